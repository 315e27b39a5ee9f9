"""``seckill ledger`` as the person on duty has it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.keys import shard_keys, stream_key
from tests.cli.conftest import Ran, run_seckill

SaleFile = Callable[..., tuple[str, Path]]
Seckill = Callable[..., Ran]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One of its own: the ledger takes all sales that are there."""
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        yield server


@pytest.fixture
def seckill(server: EmbeddedServer, tmp_path: Path) -> Seckill:
    def run(*args: str, **env: str) -> Ran:
        more = () if args[:2] in (("ledger", "run"), ("ledger", "migrate")) else MEMORY
        env = {"SECKILL_REDIS": server.url, "SECKILL_REDIS__DURABILITY": "memory"} | env
        return run_seckill(*args, *more, cwd=tmp_path, **env)

    return run


MEMORY = ("--durability", "memory")


@pytest.fixture
def sold(seckill: Seckill, sale_file: SaleFile) -> str:
    sale, path = sale_file()
    assert seckill("sale", "create", str(path), "--open").code == 0
    return sale


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def add(server: EmbeddedServer, sale: str, subject: str, value: str) -> None:
    """An event as a script would write it."""
    with redis.Redis.from_url(server.url) as client:
        seq = client.hincrby(shard_keys(sale)[0], "seq", 1)
        last_ms: Any = client.hget(shard_keys(sale)[0], "last_ms")
        client.xadd(stream_key(sale), {subject: value}, id=f"{int(last_ms)}-{seq}")


@pytest.mark.slow
def test_a_morning(seckill: Seckill, sold: str, url: str, server: EmbeddedServer) -> None:
    """Tables, status before, the events, status after, a poison event."""
    migrated = seckill("ledger", "migrate", "--ledger", url)
    assert (migrated.code, migrated.err) == (0, "")
    assert "up to date" in migrated.out

    behind = seckill("ledger", "status", "--ledger", url)
    assert (behind.code, behind.err) == (1, "")
    assert "unknown" in behind.out

    ran = seckill("ledger", "run", "--once", "--ledger", url)
    assert (ran.code, ran.out) == (0, "")
    assert "wrote 2 events, new dead letters 0, left 0" in ran.err
    # The command line's own variable does as well as the setting's.
    done = seckill("ledger", "status", "--json", SECKILL_LEDGER=url)
    assert done.code == 0
    assert done.data == [
        {"sale": sold, "state": "open", "seq": 2, "ledger_seq": 2}
        | {"waiting": 0, "events": 2, "orders": 0}
    ]

    add(server, sold, "00" + 22 * "a", "shipped||c2------900000|0|hush|p")
    ran = seckill("ledger", "run", "--once", "--ledger", url)
    assert ran.code == 1
    assert "new dead letters 1" in ran.err
    assert "kind 'shipped'" in ran.err
    assert "hush" not in ran.err
    # The row of the event is missing, so the ledger is behind.
    assert seckill("ledger", "status", "--ledger", url).code == 1


@pytest.mark.parametrize("command", ["run", "migrate", "status"])
def test_no_ledger_is_named(seckill: Seckill, command: str) -> None:
    ran = seckill("ledger", command)
    assert (ran.code, ran.out) == (2, "")
    assert "is not named" in ran.err
    assert "--ledger URL" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "bad", "code", "words"),
    [
        ("run --once", "oracle://u:hush@h/x", 2, "'oracle' is no database"),
        ("status", "ledger.db", 2, "is not a URL of a database"),
        ("run --once", "postgresql://u:hush@127.0.0.1:1/x", 1, "does the database run"),
        ("status", "mysql://u:hush@127.0.0.1:1/x", 1, "does the database run"),
        ("migrate", "sqlite:////nowhere/ledger.db", 1, "is there such a folder"),
        ("status", f"sqlite:///{__file__}", 1, "name the ledger's own file"),
    ],
)
def test_what_no_command_can_use(
    seckill: Seckill, command: str, bad: str, code: int, words: str
) -> None:
    ran = seckill("ledger", *command.split(), "--ledger", bad)
    assert (ran.code, ran.out) == (code, "")
    assert words in " ".join(ran.err.split())
    assert "hush" not in ran.err


@pytest.mark.slow
def test_a_sale_that_is_not_there(seckill: Seckill, url: str) -> None:
    ran = seckill("ledger", "run", "--once", "--sale", "nix", "--ledger", url)
    assert ran.code == 1
    assert "no sale 'nix'" in ran.err
    ran = seckill("ledger", "status", "--ledger", url)
    assert (ran.code, ran.out.strip()) == (0, "no sales")


@pytest.mark.slow
def test_until_it_is_told_to_stop(
    seckill: Seckill, sold: str, url: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    """Events come while it runs; SIGTERM leaves nothing pending and exits with 0."""
    assert seckill("ledger", "migrate", "--ledger", url).code == 0
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "seckill.cli", "ledger", "run"],
        cwd=tmp_path,
        env={
            "PATH": "",
            "SECKILL_REDIS__URL": server.url,
            "SECKILL_REDIS__DURABILITY": "memory",
            "SECKILL_LEDGER__URL": url,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait(lambda: ledger_seq(seckill, url) == 2)
        assert seckill("sale", "pause", sold, "--reason", "stocktaking").code == 0
        wait(lambda: ledger_seq(seckill, url) == 3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "")
    assert "wrote 3 events" in err
    assert "Traceback" not in err
    with redis.Redis.from_url(server.url) as client:
        (group,) = client.xinfo_groups(stream_key(sold))
    assert (group["pending"], group["consumers"]) == (0, 0)


def ledger_seq(seckill: Seckill, url: str) -> int:
    ran = seckill("ledger", "status", "--json", "--ledger", url)
    assert ran.out, ran.err
    return int(ran.data[0]["ledger_seq"])


def wait(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
