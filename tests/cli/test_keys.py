"""``seckill key``: what it prints opens the intake, and only what it prints does."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

from tests.cli.conftest import run_seckill

api_keys = importlib.import_module("seckill.server.api_keys")
settings = importlib.import_module("seckill.server.settings")


def test_a_new_key(tmp_path: Path) -> None:
    options = ("--name", "mall", "--scope", "backend")
    # A terminal that is narrower than a hash must not fold it.
    done = run_seckill("key", "new", *options, cwd=tmp_path, COLUMNS="40")
    assert (done.code, done.err) == (0, "")
    key = done.out.splitlines()[0]
    # 32 bytes are 43 characters.
    assert re.fullmatch(r"sk_[\w-]{43}", key)
    assert done.out.count(key) == 1
    # From the table's head to the end, it is what the settings need.
    written = tomllib.loads(done.out[done.out.index("[[keys]]") :])
    keys = settings.Settings(**written).keys
    caller = api_keys.ApiKeys(keys).find(key)
    assert (caller.name, caller.scopes) == ("mall", {"backend"})
    assert api_keys.ApiKeys(keys).find(key + "x") is None
    assert list(tmp_path.iterdir()) == []


def test_several_scopes_as_json(tmp_path: Path) -> None:
    scopes = ("--scope", "admin", "--scope", "metrics", "--scope", "admin")
    ran = [
        run_seckill("key", "new", "--name", "ops", *scopes, "--json", cwd=tmp_path).data
        for _ in range(2)
    ]
    assert ran[0]["key"] != ran[1]["key"]
    for data in ran:
        assert list(data) == ["key", "name", "hash", "scopes", "settings"]
        assert data["scopes"] == ["admin", "metrics"]
        entry = {name: data[name] for name in ("name", "hash", "scopes")}
        assert tomllib.loads(data["settings"]) == {"keys": [entry]}
        assert api_keys.ApiKeys([settings.ApiKey(**entry)]).find(data["key"]).name == "ops"


def test_bad_input(tmp_path: Path) -> None:
    for name in ("", "a b", 'a"\nscopes = ["admin"]', "x" * 41, "商城"):
        done = run_seckill("key", "new", "--name", name, "--scope", "admin", cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("seckill: --name: ")
        assert "use 1 to 40" in done.err
    for options in (
        ("--name", "mall"),
        ("--scope", "admin"),
        ("--name", "mall", "--scope", "everything"),
    ):
        done = run_seckill("key", "new", *options, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert "--scope" in done.err or "--name" in done.err
