"""Runners are killed under load and the database with them: in the end the ledger is what Redis is.

SECKILL_FAULT_SEED repeats a run's choice of moments (not its scheduling).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import LedgerUnavailable
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.reconcile import reconcile
from seckill.ledger.run import GROUP
from seckill.sale import Sale
from tests.children import child
from tests.databases import DatabaseServer
from tests.ledger.stories import differences, until
from tests.support import make_sale

ROOT = Path(__file__).parents[2]
RUNNERS = 2

# Forks a runner for each line of its stdin and prints its pid; ends them all with its stdin. What
# they need is imported before, so that a runner that was just killed is soon replaced.
_NURSERY = """
import asyncio, os, signal, sys
import alembic.command, asyncmy, asyncpg, redis.asyncio
from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.ledger import Ledger
from seckill.ledger.run import LedgerRunner

async def main():
    async with Engine(sys.argv[1], durability="memory", sweep_ms=0) as engine:
        ledger = Ledger(sys.argv[2])
        runner = LedgerRunner(engine, ledger, reclaim_ms=1_000)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
        await runner.run()
        await ledger.aclose()

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pids = []
try:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(main())
            os._exit(0)
        pids.append(pid)
        print(pid, flush=True)
finally:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
"""

# Sells until its stdin ends: some of everything that can happen to an order.
_SELLER = """
import asyncio, random, sys
from seckill.engine import Engine
from seckill.order import Wish

async def main():
    url, sale, rng = sys.argv[1], sys.argv[2], random.Random(int(sys.argv[3]))
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        number = 0
        while not told.done():
            wishes = [Wish(f"b{number + n}", "k", {"a": 1}, "room=1|甲") for n in range(40)]
            number += 40
            for outcome in await engine.reserve_many(sale, wishes):
                order, what = outcome.order.id, rng.random()
                if what < 0.1:
                    await engine.begin_payment(sale, order)
                if what < 0.2:
                    await engine.confirm(sale, order, f"p-{order}")
                if what < 0.05:
                    choices = {"return_units": what < 0.02, "return_limit": what < 0.03}
                    await engine.refund(sale, order, "r", **choices)
                if 0.2 < what < 0.3:
                    await engine.release(sale, order)
                if 0.05 < what < 0.06:
                    await engine.confirm(sale, order, "again")
            await asyncio.sleep(0.02)

asyncio.run(main())
"""


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("SECKILL_FAULT_SEED") or random.randrange(1_000_000))
    print(f"SECKILL_FAULT_SEED={seed}")
    return seed


@asynccontextmanager
async def program(code: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python program that ends with its stdin, which it must do without a word on stderr."""
    async with child(
        *(sys.executable, "-c", code, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        yield process
        async with asyncio.timeout(60):
            _, stderr = await process.communicate(b"")
        assert process.returncode == 0, stderr.decode()
        assert b"Traceback" not in stderr, stderr.decode()


class Nursery:
    """Runners, in processes of their own."""

    def __init__(self, process: asyncio.subprocess.Process, client: Any, sale: str) -> None:
        self._process = process
        self._client = client
        self._key = stream_key(sale)
        self.pids: list[int] = []
        self.orphaned = 0

    async def fork(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"go\n")
        self.pids.append(int(await self._process.stdout.readline()))

    async def kill(self, rng: random.Random) -> None:
        """One of them, and starts another."""
        pid = self.pids.pop(rng.randrange(len(self.pids)))
        os.kill(pid, signal.SIGKILL)
        name = f"-{pid}-"
        for consumer in self._client.xinfo_consumers(self._key, GROUP):
            if name in consumer["name"].decode() and consumer["pending"]:
                self.orphaned += 1
        await self.fork()

    async def end(self) -> None:
        """In good order."""
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in self.pids))

    def pending(self) -> int:
        (group,) = self._client.xinfo_groups(self._key)
        return int(group["pending"])


async def make(engine: Engine) -> Sale:
    sale = make_sale({"a": 1_000_000})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills", "restarts"),
    [("postgres", 30, (9, 19)), ("mariadb", 12, (4, 8))],
    ids=["postgresql", "mariadb"],
)
async def test_killed_under_load(
    name: str,
    kills: int,
    restarts: tuple[int, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    seed: int,
) -> None:
    database: DatabaseServer = request.getfixturevalue(name)
    rng = random.Random(seed)
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        client = redis.Redis.from_url(server.url)
        async with (
            Engine(server.url, durability="memory", sweep_ms=0) as engine,
            database.database() as url,
            Ledger(url) as ledger,
        ):
            sale = await make(engine)
            async with program(_NURSERY, server.url, url) as process:
                nursery = Nursery(process, client, sale.id)
                for _ in range(RUNNERS):
                    await nursery.fork()
                async with program(_SELLER, server.url, sale.id, str(seed)):
                    await until(lambda: is_written(ledger, sale, 500))
                    killed = 0
                    # Until one has hit a runner at work, or the kills have tested nothing.
                    while killed < kills or not nursery.orphaned:
                        await asyncio.sleep(rng.uniform(0.1, 0.5))
                        await nursery.kill(rng)
                        killed += 1
                        if killed - 1 in restarts:
                            await asyncio.to_thread(database.stop, kill=True)
                            await asyncio.sleep(rng.uniform(0.1, 0.5))
                            await asyncio.to_thread(database.start)
                seq = (await engine.snapshot(sale.id)).seq
                await until(lambda: is_written(ledger, sale, seq))
                await until(lambda: nursery.pending() == 0)
                await nursery.end()
                assert nursery.pending() == 0
            print(f"{seq} events, {nursery.orphaned} of {killed} kills left entries behind")
            assert await ledger.counts(sale.id) == (seq, client.hlen(shard_keys(sale.id)[3]))
            assert await differences(ledger, engine, sale.id) == []
            report = await reconcile(engine, ledger, sale.id)
            assert report.ok, report.drifts[:5]
            assert report.orders == client.hlen(shard_keys(sale.id)[3])
        client.close()


async def is_written(ledger: Ledger, sale: Sale, seq: int) -> bool:
    try:
        return (await ledger.counts(sale.id))[0] >= seq
    except LedgerUnavailable:
        return False
