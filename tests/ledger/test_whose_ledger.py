"""A Redis belongs to one ledger, and every other one is refused before it takes or fences anything.

Each test has a server of its own: a mark is about all of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select, text

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerRefused
from seckill.keys import LEDGER_MARK, shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.fence import check, check_new
from seckill.ledger.keep import Keeper
from seckill.ledger.mark import Mark, OtherLedger, adopt, check_mark, own, read_mark
from seckill.ledger.rebuild import rebuild
from seckill.ledger.remove import remove
from seckill.ledger.run import LedgerRunner
from seckill.ledger.tables import IDENTITY
from seckill.sale import Sale
from tests.cli.conftest import Ran, run_seckill
from tests.ledger.stories import until
from tests.support import make_sale

OpenLedger = Callable[[str], Awaitable[Ledger]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        yield server


@pytest.fixture
async def engine(server: EmbeddedServer) -> AsyncIterator[Engine]:
    async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
        yield engine


@pytest.fixture
async def open_ledger(tmp_path: Path) -> AsyncIterator[OpenLedger]:
    """Opens the ledger of a name, in a file of its own."""
    async with AsyncExitStack() as stack:

        async def open_(name: str) -> Ledger:
            ledger = Ledger(f"sqlite:///{tmp_path}/{name}.db")
            return await stack.enter_async_context(ledger)

        yield open_


@pytest.fixture
async def malls(open_ledger: OpenLedger) -> Ledger:
    return await open_ledger("mall")


@pytest.fixture
async def others(open_ledger: OpenLedger) -> Ledger:
    """A developer's."""
    return await open_ledger("dev")


@pytest.fixture
async def sale(engine: Engine, malls: Ledger) -> Sale:
    """One of which the mall's ledger has all but the last order."""
    sale = make_sale({"a": 10})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    await buy(engine, sale, "ann")
    await write(engine, malls)
    await buy(engine, sale, "bob")
    return sale


async def buy(engine: Engine, sale: Sale, buyer: str) -> None:
    assert (await engine.reserve(sale.id, buyer, "k", {"a": 1})).ok


async def write(engine: Engine, ledger: Ledger) -> None:
    await LedgerRunner(engine, ledger, once=True, reclaim_ms=1).run()


def picture(client: redis.Redis) -> dict[bytes, Any]:
    """All of Redis but who is in the crews, which changes all the time."""
    return {key: client.dump(key) for key in client.keys("*") if not key.endswith(b":crew")}


# -- its id -----------------------------------------------------------------------------------


async def test_an_id_of_its_own(database_url: str) -> None:
    """Made once, whoever comes first, and kept."""
    ledgers = [Ledger(database_url) for _ in range(3)]
    await asyncio.gather(*(ledger.start() for ledger in ledgers))
    ids = {await ledger.identity() for ledger in ledgers}
    for ledger in ledgers:
        await ledger.aclose()
    assert len(ids) == 1
    assert len(ids.pop()) == 32
    async with Ledger(database_url) as again, again.engine.connect() as connection:
        rows = (await connection.execute(select(IDENTITY))).all()
    assert len(rows) == 1


async def test_tables_of_the_version_before(database_url: str) -> None:
    """They get the table, and the id with it."""
    async with Ledger(database_url) as ledger, ledger.engine.begin() as connection:
        await connection.execute(text("DROP TABLE seckill_ledger"))
        await connection.execute(text("UPDATE seckill_version SET version_num = '0001'"))
    async with Ledger(database_url) as ledger:
        async with ledger.engine.connect() as connection:
            rows = (await connection.execute(select(IDENTITY.c.id))).scalars().all()
        assert rows == [await ledger.identity()]


async def test_an_id_that_was_not_written(database_url: str) -> None:
    """Whoever made the tables ended right after that, where both are not one transaction."""
    async with Ledger(database_url) as ledger:
        before = await ledger.identity()
        async with ledger.engine.begin() as connection:
            await connection.execute(IDENTITY.delete())
        ids = await asyncio.gather(*(ledger.identity() for _ in range(3)))
        assert len(set(ids)) == 1
        assert set(ids) != {before}


async def test_a_name_tells_no_secret(tmp_path: Path) -> None:
    """Of a file the whole path, for `ledger.db` says nothing to somebody else."""
    at = Ledger("postgresql://ann:hush@db.internal:5433/mall?ssl=require")
    assert at.name == "postgresql://db.internal:5433/mall"
    assert Ledger("mysql://ann:hush@db.internal/mall").name == "mysql://db.internal/mall"
    assert Ledger("sqlite:///ledger.db").name == f"sqlite:///{Path.cwd()}/ledger.db"


async def test_a_backup_and_a_copy_have_the_same(malls: Ledger, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mall.db") as db:
        db.execute("VACUUM INTO ?", [f"{tmp_path}/backup.db"])
    async with Ledger(f"sqlite:///{tmp_path}/backup.db") as backup:
        assert await backup.identity() == await malls.identity()


# -- who is refused ---------------------------------------------------------------------------


async def test_the_first_one_leaves_its_mark(engine: Engine, malls: Ledger, sale: Sale) -> None:
    assert await read_mark(engine) == Mark(await malls.identity(), malls.name)


Use = Callable[[Engine, Ledger, str], Awaitable[object]]
USES: dict[str, Use] = {
    "run": lambda engine, ledger, sale: LedgerRunner(engine, ledger).run(),
    "once": lambda engine, ledger, sale: LedgerRunner(engine, ledger, once=True).run(),
    "one sale": lambda engine, ledger, sale: LedgerRunner(engine, ledger, sales=[sale]).run(),
    "keep": lambda engine, ledger, sale: Keeper(engine, f"sqlite:///{ledger.file}").run(),
    "fence": lambda engine, ledger, sale: check(engine, ledger),
    "rebuild": lambda engine, ledger, sale: rebuild(engine, ledger, sale, force=True),
    "remove": lambda engine, ledger, sale: remove(engine, ledger, sale),
    "new sale": lambda engine, ledger, sale: check_new(engine, ledger, "new"),
    "look": lambda engine, ledger, sale: check_mark(engine, ledger),
}


@pytest.mark.parametrize("use", USES)
async def test_the_second_one(
    engine: Engine, sale: Sale, malls: Ledger, others: Ledger, client: redis.Redis, use: str
) -> None:
    """It is told whose Redis this is, and has taken, written and fenced nothing. It even knows
    sales of its own, which it would miss here."""
    await others.know(await malls.known(sale.id))
    before = picture(client)
    with pytest.raises(OtherLedger) as caught:
        async with asyncio.timeout(60):
            await USES[use](engine, others, sale.id)
    said = str(caught.value)
    assert malls.name in said
    assert others.name in said
    assert "SECKILL_LEDGER" in said
    assert "seckill ledger adopt" in said
    assert picture(client) == before
    assert await others.counts(sale.id) == (0, 0)
    # The right one goes on.
    await write(engine, malls)
    assert (await malls.counts(sale.id))[1] == 2


def looks(client: redis.Redis) -> int:
    """How often anybody has asked for a key."""
    stats: Any = client.info("commandstats")
    return int(stats["cmdstat_get"]["calls"])


async def test_it_becomes_another_s(
    engine: Engine, sale: Sale, malls: Ledger, others: Ledger, client: redis.Redis
) -> None:
    """A keeper that is at work stops, waits, and goes on when it is its own once more. What it
    would have fenced meanwhile stays as it is."""
    keeper = Keeper(engine, f"sqlite:///{malls.file}")
    task = asyncio.create_task(keeper.run())
    try:

        async def has(count: int) -> bool:
            return (await malls.counts(sale.id))[1] == count

        async def is_waiting() -> bool:
            return not keeper._runner.sales

        async def has_looked_again() -> bool:
            return looks(client) >= looked + 3

        await until(lambda: has(2))
        assert await adopt(engine, others) == Mark(await malls.identity(), malls.name)
        await until(is_waiting)
        await buy(engine, sale, "cy")
        # By which it would fence the sale.
        made: Any = client.hget(shard_keys(sale.id)[0], "made")
        client.hset(shard_keys(sale.id)[0], "made", "another:1")
        before, looked = picture(client), looks(client)
        await until(has_looked_again)
        assert not task.done()
        assert picture(client) == before
        assert await has(2)
        client.hset(shard_keys(sale.id)[0], "made", made)
        await adopt(engine, malls)
        await until(lambda: has(3))
    finally:
        keeper.stop()
        await asyncio.wait_for(task, 60)


async def test_a_patient_one_waits(
    engine: Engine, sale: Sale, others: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """An intake's orders go on, whosoever the server is."""
    keeper = Keeper(engine, f"sqlite:///{others.file}", patient=True)
    task = asyncio.create_task(keeper.run())

    async def is_told() -> bool:
        return "belongs to the ledger" in caplog.text

    try:
        await until(is_told)
        assert not task.done()
        await adopt(engine, others)

        async def is_written() -> bool:
            return (await others.counts(sale.id))[1] == 1

        # All but what the mall's has acknowledged.
        await until(is_written)
    finally:
        keeper.stop()
        await asyncio.wait_for(task, 60)


async def test_a_rebuild_that_is_overtaken(
    engine: Engine, sale: Sale, malls: Ledger, others: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark changes while it works: the sale that is there stays."""
    await write(engine, malls)
    run = engine._calls.run

    async def adopted(verb: str, *args: Any) -> Any:
        if verb == "rebuild_found":
            await adopt(engine, others)
        return await run(verb, *args)

    monkeypatch.setattr(engine._calls, "run", adopted)
    with pytest.raises(OtherLedger):
        await rebuild(engine, malls, sale.id, force=True)
    assert (await engine.snapshot(sale.id)).state == "fenced"


# -- a Redis without a mark -------------------------------------------------------------------


async def test_a_wiped_redis(
    engine: Engine,
    sale: Sale,
    malls: Ledger,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The normal recovery: fenced and rebuilt, and it is said what that means elsewhere."""
    client.flushall()
    fenced = await check(engine, malls)
    assert [each.sale for each in fenced] == [sale.id]
    assert await read_mark(engine) == Mark(await malls.identity(), malls.name)
    told = [each for each in caplog.messages if "no mark of a ledger" in each]
    assert len(told) == 1
    assert malls.name in told[0]
    assert "(1)" in told[0]
    assert (await rebuild(engine, malls, sale.id)).done
    assert len([each for each in caplog.messages if "no mark of a ledger" in each]) == 1


async def test_a_wiped_redis_and_no_keeper(
    engine: Engine, sale: Sale, malls: Ledger, others: Ledger, client: redis.Redis
) -> None:
    client.flushall()
    assert (await rebuild(engine, malls, sale.id)).done
    with pytest.raises(OtherLedger):
        await own(engine, others)


async def test_sales_of_the_version_before(
    engine: Engine,
    sale: Sale,
    malls: Ledger,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There are sales and no mark: nothing is wrong, so nobody is alarmed."""
    client.delete(LEDGER_MARK)
    await check_mark(engine, malls)
    assert await read_mark(engine) is None
    await write(engine, malls)
    assert await read_mark(engine) is not None
    assert "no mark of a ledger" not in caplog.text


async def test_many_at_once(engine: Engine, open_ledger: OpenLedger) -> None:
    """Exactly one of them has it."""
    ledgers = [await open_ledger(f"l{number}") for number in range(4)]
    done = await asyncio.gather(
        *(own(engine, ledger) for ledger in ledgers), return_exceptions=True
    )
    assert sum(each is None for each in done) == 1
    assert all(each is None or isinstance(each, OtherLedger) for each in done)


async def test_a_full_server(
    engine: Engine, sale: Sale, malls: Ledger, client: redis.Redis
) -> None:
    """What frees its memory goes on, with the mark and without."""
    client.config_set("maxmemory", 1_000_000)
    await own(engine, malls)
    client.delete(LEDGER_MARK)
    await own(engine, malls)
    assert await read_mark(engine) is None
    await write(engine, malls)
    assert (await malls.counts(sale.id))[1] == 2
    assert client.xinfo_groups(stream_key(sale.id))[0]["pending"] == 0


async def test_a_mark_that_is_none(engine: Engine, malls: Ledger, client: redis.Redis) -> None:
    client.set(LEDGER_MARK, b"\xff")
    with pytest.raises(OtherLedger, match="adopt"):
        await own(engine, malls)


async def test_a_ledger_that_keeps_no_id(malls: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(str(malls.file)) as db:
        db.execute("DELETE FROM seckill_ledger")
        db.execute(
            "CREATE TRIGGER none_here AFTER INSERT ON seckill_ledger"
            " BEGIN DELETE FROM seckill_ledger; END"
        )
    with pytest.raises(LedgerRefused, match="seckill_ledger"):
        await malls.identity()


# -- the commands -----------------------------------------------------------------------------

Seckill = Callable[..., Ran]


@pytest.fixture
def seckill(server: EmbeddedServer, tmp_path: Path) -> Seckill:
    def run(*args: str, ledger: str) -> Ran:
        more = () if args[:2] == ("ledger", "run") else ("--durability", "memory")
        env = {"SECKILL_REDIS": server.url, "SECKILL_REDIS__DURABILITY": "memory"}
        env["SECKILL_LEDGER"] = f"sqlite:///{tmp_path}/{ledger}.db"
        return run_seckill(*args, *more, cwd=tmp_path, **env)

    return run


@pytest.mark.slow
async def test_commands(
    engine: Engine, sale: Sale, malls: Ledger, others: Ledger, seckill: Seckill
) -> None:
    def go(*args: str, ledger: str) -> Any:
        return asyncio.to_thread(seckill, *args, ledger=ledger)

    ran = await go("ledger", "run", ledger="dev")
    assert ran.code == 1
    assert f"belongs to the ledger {malls.name}" in ran.err
    status = await go("ledger", "status", ledger="dev")
    assert status.code == 1
    assert "belongs to the ledger" in status.err
    # Nobody to ask, and not told to go on.
    ran = await go("ledger", "adopt", ledger="dev")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert (await read_mark(engine)) == Mark(await malls.identity(), malls.name)
    ran = await go("ledger", "adopt", "--yes", ledger="dev")
    assert (ran.code, ran.err) == (0, "")
    assert others.name in ran.out
    assert f"and no longer to {malls.name}" in " ".join(ran.out.split())
    # Its own already: nothing is asked.
    ran = await go("ledger", "adopt", "--json", ledger="dev")
    assert ran.data["before"] == {"ledger": await others.identity(), "name": others.name}


async def test_check_new_still_refuses(engine: Engine, sale: Sale, malls: Ledger) -> None:
    """The mark comes before, not instead."""
    await engine._calls.client_of("sk:sales").flushall()
    with pytest.raises(InvalidInput, match="has lost"):
        await check_new(engine, malls, sale.id)
