"""`seckill verify-draw`, as its users have it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from msgspec.structs import replace

from seckill.cli import main
from seckill.draw import salt_of
from seckill.verify_draw import Kind, verify_draw
from tests.draws import LIST_SECRET, MadeDraw, made_draw

WEIGHTS = (1, 2, 0, 7, 1, 1)


@pytest.fixture(scope="module")
def made() -> MadeDraw:
    return made_draw(weights=WEIGHTS, public_value="03 07 12")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, made: MadeDraw, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `seckill verify-draw draw.json tickets.txt`, which are those of ``made``."""
    monkeypatch.chdir(tmp_path)
    Path("draw.json").write_bytes(made.record.encode())
    Path("tickets.txt").write_bytes(made.tickets)

    def command(*words: str) -> Ran:
        argv = ["seckill", "verify-draw", "draw.json", "tickets.txt", *words]
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            mock.patch.object(sys, "argv", argv),
        ):
            code = main()
        return Ran(code, out.getvalue(), err.getvalue())

    return command


def test_command_proves(run: Callable[..., Ran], made: MadeDraw) -> None:
    noted = ("--commitment", made.record.commitment.upper(), "--digest", made.record.digest)
    salt = salt_of(LIST_SECRET, "buyer-3").hex()
    done = run(*noted, "--buyer", "buyer-3", "--salt", salt, "--winners", "2")
    order = verify_draw(made.record, io.BytesIO(made.tickets)).winners(9)
    assert (done.code, done.err) == (0, "")
    assert "✓ sale" in done.out
    assert "public value: 03 07 12 (balls): look it up there" in done.out
    assert "tickets: 3 of weight 1, 1 of weight 2, 1 of weight 7" in done.out
    assert f"buyer-3: ticket 3, weight 7, has place {order.index(3) + 1} of 5" in done.out
    assert re.findall(r"(\d)\. ticket (\d)", done.out) == [
        ("1", str(order[0])),
        ("2", str(order[1])),
    ]
    data = json.loads(run(*noted, "--winners", "2", "--json").out)
    assert (data["ok"], data["winners"]) == (True, order[:2])
    assert data["compared"] == {"commitment": True, "digest": True, "public_value": False}
    assert run(*noted, "--public-value", "03 07 12").code == 0
    other = run(*noted, "--public-value", "03 07 13")
    assert other.code == 1
    assert "published_value: draw.json has the public value '03 07 12'" in other.out + other.err


def test_command_says_what_it_could_not_compare(run: Callable[..., Ran], made: MadeDraw) -> None:
    done = run("--digest", made.record.digest)
    assert done.code == 0
    assert f"the commitment {made.record.commitment}, with --commitment" in done.err
    assert "--digest" not in done.err


def test_command_finds_what_was_changed(run: Callable[..., Ran], made: MadeDraw) -> None:
    Path("tickets.txt").write_bytes(made.tickets.replace(b" 7 ", b" 2 "))
    done = run("--winners", "2")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("seckill: digest: the digest of tickets.txt is ")
    data = json.loads(run("--json").out)
    assert [finding["kind"] for finding in data["findings"]] == ["digest"]
    assert data["findings"][0]["meaning"] == Kind.DIGEST.meaning


def test_command_finds_that_a_buyer_was_left_out(run: Callable[..., Ran]) -> None:
    salt = salt_of(LIST_SECRET, "buyer-2").hex()
    done = run("--buyer", "buyer-2", "--salt", salt)
    assert done.code == 1
    assert "no ticket of buyer buyer-2 with this salt is in the list" in done.err
    assert run("--buyer", "buyer-2", "--salt", salt, "--json").code == 1


def test_command_is_too_early(run: Callable[..., Ran], made: MadeDraw) -> None:
    Path("draw.json").write_bytes(replace(made.record, seed=None).encode())
    salt = salt_of(LIST_SECRET, "buyer-3").hex()
    done = run("--buyer", "buyer-3", "--salt", salt)
    assert done.code == 2
    assert "not_revealed: the seed is not revealed yet" in done.err
    assert "buyer-3: ticket 3, weight 7, is in the list" in done.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--commitment", "ab"), "--commitment: 'ab' is not 64 digits of 0-9 a-f"),
        (("--digest", "zz" * 32), "--digest: "),
        (("--buyer", "b"), "--salt: is missing"),
        (("--salt", "00" * 16), "--buyer: is missing"),
        (("--buyer", "a b", "--salt", "00" * 16), "--buyer: 'a b' holds ' '"),
        (
            ("--buyer", "b", "--salt", "0x"),
            "--salt: '0x' is not 32 digits of 0-9 a-f; write it as join",
        ),
    ],
)
def test_command_refuses(words: tuple[str, ...], text: str, run: Callable[..., Ran]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"seckill: {text}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["draw.json", "tickets.txt"])
def test_command_can_not_read(name: str, run: Callable[..., Ran]) -> None:
    Path(name).unlink()
    done = run()
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"seckill: {name}: can't be read: No such file or directory; name a file that is there\n"
    )
    Path(name).mkdir()
    assert "Is a directory" in run().err
    Path(name).rmdir()
    Path(name).write_bytes(b"\x00\xff")
    done = run()
    assert (done.code, done.err.count("\n")) == (2, 1)
