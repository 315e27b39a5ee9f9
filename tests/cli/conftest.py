"""The command line as a user has it: a process of its own, against the session's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from seckill.embedded import EmbeddedServer
from tests.cli.nursery import run_forked
from tests.support import new_sale_id

NO_TRACE = ("Traceback", 'File "')


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its JSON; fails when anything else is on stdout."""
        return json.loads(self.out)


Seckill = Callable[..., Ran]


def run_seckill(*args: str, cwd: Path, **env: str) -> Ran:
    """Runs the command line in a clean environment. No traceback may ever reach a user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL_")}
    if server := os.environ.get("SECKILL_REDIS_SERVER"):
        kept["SECKILL_REDIS_SERVER"] = server
    environ = kept | {"COLUMNS": "100", "TZ": "Asia/Shanghai"} | env
    # What an interpreter reads at its start can't be changed later; and these two start others.
    given_early = any(name.startswith(("PYTHON", "LC_", "LANG")) for name in env)
    if given_early or args[:1] in (("demo",), ("serve",)):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "seckill.cli", *args],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=100,
        )
    else:
        done = run_forked(*args, cwd=cwd, env=environ, timeout=100)
    assert not any(word in done.stderr + done.stdout for word in NO_TRACE), done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def seckill(server: EmbeddedServer, tmp_path: Path) -> Seckill:
    """Runs a command on the session's server, which does not wait for its disk."""

    def run(*args: str, **env: str) -> Ran:
        more = () if "serve" in args or "--version" in args else ("--durability", "memory")
        return run_seckill(*args, *more, cwd=tmp_path, **({"SECKILL_REDIS": server.url} | env))

    return run


@pytest.fixture
def sale_file(tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """Writes a sale file with an id of its own; gives the id and the path."""

    def write(opens_at: str = "2026-01-01T20:00:00+08:00") -> tuple[str, Path]:
        sale = new_sale_id()
        path = tmp_path / f"{sale}.toml"
        path.write_text(
            f'id = "{sale}"\ntitle = "周六晚8点 [bold]秒杀[/bold]"\n'
            f"opens_at = {opens_at}\nends_at = 2099-12-31T20:00:00+08:00\nlimit_per_buyer = 6\n"
            '[[items]]\nsku = "phone"\ntitle = "旗舰手机 X15 曜石黑"\n'
            "price_fen = 299900\ntotal = 20\n"
            '[[items]]\nsku = "rice"\ntitle = "五常大米 [5kg]"\nprice_fen = 4990\ntotal = 1300\n',
            encoding="utf-8",
        )
        return sale, path

    return write
