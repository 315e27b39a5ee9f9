"""``seckill serve`` with a ledger: its workers write it, and no order ever waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.keys import stream_key
from seckill.ledger import Ledger
from seckill.ledger.run import GROUP
from seckill.sale import Sale
from tests.databases import DatabaseServer, PostgresServer, _children
from tests.ledger.stories import differences, until
from tests.support import make_sale
from tests.web.processes import Serve, serve


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One of its own: the ledger takes all sales that are there."""
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        yield server


@pytest.fixture
async def engine(redis_server: EmbeddedServer) -> AsyncIterator[Engine]:
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        yield engine


@pytest.fixture
async def sale(engine: Engine) -> Sale:
    sale = make_sale({"a": 10_000})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


@pytest.fixture
def postgres() -> Iterator[DatabaseServer]:
    """Not the session's, which is started again for whoever asks."""
    with PostgresServer() as server:
        yield server


@asynccontextmanager
async def serving(server: EmbeddedServer, folder: Path, url: str) -> AsyncIterator[Serve]:
    config = folder / "seckill.toml"
    config.write_text(f'[ledger]\nurl = "{url}"\n')
    config.chmod(0o600)
    options = ("--redis", server.url, "--durability", "memory", "--workers", "2", "--dev")
    async with serve(*options, "--config", str(config)) as intake:
        yield intake


async def sell(intake: Serve, sale: Sale, count: int, first: int = 0) -> None:
    """A database that hangs is waited for longer than this, and one that is away for ever."""
    async with asyncio.timeout(12):
        buyers = [f"b{number}" for number in range(first, first + count)]
        answers = await asyncio.gather(*(intake.reserve(sale.id, buyer) for buyer in buyers))
    assert [answer.http for answer in answers] == [201] * count


async def end(intake: Serve) -> str:
    """SIGTERM; what it said on stderr."""
    intake.signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        _, stderr = await intake.child.communicate()
    assert intake.child.returncode == 0, stderr.decode()
    assert b"Traceback" not in stderr, stderr.decode()
    return stderr.decode()


def left_behind(server: EmbeddedServer, sale: Sale) -> tuple[int, int]:
    """Entries that are pending, and consumers."""
    with redis.Redis.from_url(server.url) as client:
        groups = {each["name"]: each for each in client.xinfo_groups(stream_key(sale.id))}
    group = groups[GROUP.encode()]
    return group["pending"], group["consumers"]


async def is_written(engine: Engine, ledger: Ledger, sale: Sale) -> bool:
    seq = (await engine.snapshot(sale.id)).seq
    try:
        return (await ledger.counts(sale.id))[0] == seq
    except SeckillError:
        return False


@pytest.mark.slow
async def test_the_workers_write_it(
    redis_server: EmbeddedServer, engine: Engine, sale: Sale, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with serving(redis_server, tmp_path, url) as intake, Ledger(url) as ledger:
        await sell(intake, sale, 100)
        await until(lambda: is_written(engine, ledger, sale))
        # The end comes right after an order, whose events are then in the stream at most.
        await sell(intake, sale, 50, 100)
        await end(intake)
        assert left_behind(redis_server, sale) == (0, 0)
        async with serving(redis_server, tmp_path, url):
            await until(lambda: is_written(engine, ledger, sale))
        assert await differences(ledger, engine, sale.id) == []
        assert (await ledger.counts(sale.id))[1] == 150


@pytest.mark.slow
async def test_a_database_that_is_away_delays_nothing(
    redis_server: EmbeddedServer,
    engine: Engine,
    sale: Sale,
    postgres: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Neither the start, nor an order, nor the end."""
    async with postgres.database() as url:
        postgres.stop(kill=True)
        async with asyncio.timeout(120), serving(redis_server, tmp_path, url) as intake:
            await sell(intake, sale, 50)
            said = await end(intake)
        assert "the ledger can't be written" in said
        assert postgres.password not in said
        async with serving(redis_server, tmp_path, url) as intake:
            await sell(intake, sale, 50, 50)
            postgres.start()
            async with Ledger(url) as ledger:
                await until(lambda: is_written(engine, ledger, sale))
                # It goes away for good, in the middle.
                postgres.stop(kill=True)
                await sell(intake, sale, 50, 100)
                await end(intake)
        postgres.start()
        async with serving(redis_server, tmp_path, url), Ledger(url) as ledger:
            # What the workers that have ended had taken would come in half a minute.
            assert (await ledger.counts(sale.id))[1] >= 100


@pytest.mark.slow
async def test_a_database_that_hangs_delays_no_order(
    redis_server: EmbeddedServer,
    engine: Engine,
    sale: Sale,
    postgres: DatabaseServer,
    tmp_path: Path,
) -> None:
    """Its processes are stopped: connections stand, and nothing answers."""
    async with (
        postgres.database() as url,
        Ledger(url) as ledger,
        serving(redis_server, tmp_path, url) as intake,
    ):
        await until(lambda: is_written(engine, ledger, sale))
        pids = [postgres.pid, *_children(postgres.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await sell(intake, sale, 100)
            await end(intake)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
