"""seckill/scripts.py: how a script and its fragments become one text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import redis

from seckill.scripts import NAMES, expand, script
from tests.lua.core import LUA


def tree(root: Path, **files: str) -> Path:
    (root / "lib").mkdir()
    for name, text in files.items():
        (root / f"{name.replace('__', '/')}.lua").write_text(text)
    return root


def test_an_include_is_replaced_by_its_fragment(tmp_path: Path) -> None:
    root = tree(tmp_path, main='a\n--@include "lib/x"\nb\n', lib__x="x1\nx2\n")
    assert expand("main", root).split() == ["a", "x1", "x2", "b"]


def test_fragments_include_fragments(tmp_path: Path) -> None:
    root = tree(
        tmp_path, main='--@include "lib/x"\nm\n', lib__x='--@include "lib/y"\nx\n', lib__y="y\n"
    )
    assert expand("main", root).split() == ["y", "x", "m"]


def test_a_fragment_is_put_in_once(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        main='--@include "lib/x"\n--@include "lib/y"\n--@include "lib/x"\nm\n',
        lib__x='--@include "lib/y"\nx\n',
        lib__y="y\n",
    )
    assert expand("main", root).split() == ["y", "x", "m"]


def test_a_missing_fragment_is_named_with_who_wants_it(tmp_path: Path) -> None:
    root = tree(tmp_path, main='--@include "lib/x"\n', lib__x='--@include "lib/gone"\n')
    with pytest.raises(FileNotFoundError, match=r"lib/gone\.lua, included by lib/x"):
        expand("main", root)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"main\.lua"):
        expand("main", tree(tmp_path))


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"lib__x": '--@include "lib/x"\n'}, "main -> lib/x -> lib/x"),
        (
            {"lib__x": '--@include "lib/y"\n', "lib__y": '--@include "lib/x"\n'},
            "main -> lib/x -> lib/y -> lib/x",
        ),
        ({"lib__x": '--@include "main"\n'}, "main -> lib/x -> main"),
    ],
)
def test_a_cycle_is_shown(tmp_path: Path, files: dict[str, str], path: str) -> None:
    root = tree(tmp_path, main='--@include "lib/x"\n', **files)
    with pytest.raises(ValueError, match=f"include cycle: {path}$"):
        expand("main", root)


@pytest.mark.parametrize(
    "line",
    [
        '-- @include "lib/x"',
        ' --@include "lib/x"',
        "--@include lib/x",
        '--@include "lib/x" -- why',
        '--@include "../secret"',
    ],
)
def test_only_a_whole_plain_line_is_an_include(tmp_path: Path, line: str) -> None:
    root = tree(tmp_path, main=f"{line}\nm\n", lib__x="x\n")
    assert expand("main", root) == f"{line}\nm\n"


def test_backslashes_of_a_fragment_stay(tmp_path: Path) -> None:
    root = tree(tmp_path, main='--@include "lib/x"\n', lib__x=r"'\1\n\g<0>'")
    assert expand("main", root).strip() == r"'\1\n\g<0>'"


@pytest.mark.parametrize("verb", NAMES)
def test_a_shipped_script_is_whole(client: redis.Redis, verb: str) -> None:
    code = script(verb)
    assert code.name == verb
    assert "@include" not in code.source
    assert code.source == expand(verb, LUA)
    assert code.sha == hashlib.sha1(code.source.encode()).hexdigest()  # noqa: S324
    # The server compiles it, and knows it by the same hash.
    loaded = client.script_load(code.source)
    assert (loaded.decode() if isinstance(loaded, bytes) else loaded) == code.sha


def test_every_fragment_is_used() -> None:
    sources = "".join((LUA / f"{verb}.lua").read_text("utf-8") for verb in NAMES)
    for fragment in LUA.glob("lib/*.lua"):
        assert f'--@include "lib/{fragment.stem}"' in sources
