"""Who reads a sale's events, how far behind, and dropping a group that nobody wants any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from seckill import redis as servers
from seckill.consumer import Consumer, Pace
from seckill.doctor.groups import check_groups, check_letters, count_letters
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, Refused, UnknownSale
from seckill.groups import ACTIVE_MS, GroupState, drop_group, groups
from seckill.keys import LEDGER_GROUP, group_keys, stream_key
from seckill.stream import Event, make_group
from seckill.trim import trim
from tests.conftest import MakeSale
from tests.support import new_sale_id, rewind


@pytest.fixture
async def aclient(server: EmbeddedServer) -> AsyncIterator[Any]:
    """A client as ours are."""
    pool = servers.connect_pool(server.url, connections=2, timeout_s=5)
    yield servers.connect_client(pool)
    await pool.disconnect()


async def state_of(aclient: Any, sale: str, group: str) -> GroupState:
    return next(state for state in await groups(aclient, sale) if state.name == group)


async def refuse(event: Event) -> None:
    raise Refused("never")


async def accept(event: Event) -> None:
    """Everything."""


async def sell(engine: Engine, sale: str, count: int) -> None:
    await asyncio.gather(*(engine.reserve(sale, f"b{n}", "k", {"a": 1}) for n in range(count)))


async def test_what_is_unread_and_what_is_pending(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, aclient: Any
) -> None:
    sale = (await open_sale({"a": 100})).id
    assert await groups(aclient, sale) == []
    await sell(engine, sale, 40)  # Fewer entries than events.
    rewind(client, sale, 90_000)
    client.xgroup_create(stream_key(sale), "new", id="0")
    batches = engine.events(sale, "mall", count=1, consumer="one")
    await anext(batches)
    await anext(batches)
    new, mall = await groups(aclient, sale), await state_of(aclient, sale, "mall")
    assert [state.name for state in new] == ["mall", "new"]
    assert (new[1].unread, new[1].pending, new[1].consumers) == (42, 0, 0)
    assert (new[1].idle_ms, new[1].active) == (None, False)
    assert (mall.unread, mall.pending, mall.consumers) == (40, 1, 1)
    assert mall.active
    assert mall.idle_ms is not None
    assert 0 <= mall.idle_ms < ACTIVE_MS
    for state in new:
        assert 90_000 <= state.age_ms < 120_000
    await batches.aclose()
    await Consumer(engine, "mall", accept, sales=(sale,), once=True).run()
    mall = await state_of(aclient, sale, "mall")
    assert (mall.unread, mall.pending, mall.oldest_ms, mall.age_ms) == (0, 0, 0, 0)
    assert (mall.letters, mall.leased) == (0, False)

    # What was trimmed is nobody's to read.
    client.xgroup_destroy(stream_key(sale), "new")
    through: Any = client.xrange(stream_key(sale), count=2)
    await trim(aclient, sale, keep_ms=0, through=through[1][0].decode())
    client.xgroup_create(stream_key(sale), "late", id="0")
    assert (await state_of(aclient, sale, "late")).unread == 40


async def test_letters_and_leases(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, aclient: Any
) -> None:
    sale = (await open_sale()).id
    consumer = Consumer(engine, "mall", refuse, sales=(sale,), pace=Pace(first_s=0.01))
    task = asyncio.create_task(consumer.run())
    async with asyncio.timeout(60):
        while not client.hlen(group_keys(sale, "mall").dead):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    state = await state_of(aclient, sale, "mall")
    assert (state.letters, state.leased, state.active) == (2, True, True)
    with pytest.raises(InvalidInput, match="is being read"):
        await drop_group(aclient, sale, "mall")
    consumer.stop()
    await task
    assert not (await state_of(aclient, sale, "mall")).leased
    counts = await count_letters(aclient, sale)
    assert counts == {"mall": 2, "webhook": 0}
    finding = check_letters(counts, sale)
    assert (finding.level, finding.seen.startswith("2 of mall, ")) == ("red", True)
    assert f"`seckill dead list {sale} --group mall`" in finding.remedy
    client.set(group_keys(sale, "webhook").dead, "x")
    assert "damaged" in check_letters(await count_letters(aclient, sale), sale).seen
    client.delete(group_keys(sale, "mall").dead)
    client.set(group_keys(sale, "mall").dead, "x")
    assert (await state_of(aclient, sale, "mall")).letters is None


async def test_dropping(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, aclient: Any
) -> None:
    sale = (await open_sale()).id
    await Consumer(engine, "mall", refuse, sales=(sale,), once=True).run()
    await sell(engine, sale, 3)
    batches = engine.events(sale, "mall", count=1)
    await anext(batches)
    await batches.aclose()
    with pytest.raises(InvalidInput, match="no group 'points'; there are: mall"):
        await drop_group(aclient, sale, "points")
    with pytest.raises(InvalidInput, match="is being read"):
        await drop_group(aclient, sale, "mall")
    dropped = await drop_group(aclient, sale, "mall", force=True)
    assert (dropped.letters, dropped.pending) == (2, 1)
    assert dropped.unread in range(3)
    assert await groups(aclient, sale) == []
    assert client.exists(*group_keys(sale, "mall")) == 0
    # Whoever takes the name again begins at the first event.
    told = [e.seq async for batch in engine.events(sale, "mall", follow=False) for e in batch]
    assert told == [1, 2, 3, 4, 5]
    for work in (groups(aclient, new_sale_id()), drop_group(aclient, new_sale_id(), "g")):
        with pytest.raises(UnknownSale):
            await work


@pytest.mark.parametrize(
    ("fields", "wanted", "level", "said"),
    [
        ({}, (), "green", "mall: up to date"),
        ({"unread": 1_001, "oldest_ms": 999_000}, (), "red", "1,001 waiting"),
        ({"unread": 600, "pending": 401, "oldest_ms": 999_000}, (), "red", "1,001 waiting"),
        ({"pending": 1, "oldest_ms": 900_000}, (), "red", "the oldest for 100 s"),
        ({"pending": 1, "oldest_ms": 990_000}, (), "yellow", "the oldest for 10 s"),
        ({"idle_ms": 31_000}, (), "yellow", "no reader has asked for 31 s"),
        ({"idle_ms": 31_000, "leased": True}, ("mall",), "green", "up to date"),
        ({"idle_ms": None}, ("mall",), "red", "no reader has asked ever"),
        ({}, ("webhook",), "red", "webhook: nobody has ever read"),
    ],
)
def test_what_doctor_says(
    fields: dict[str, Any], wanted: tuple[str, ...], level: str, said: str
) -> None:
    plain: dict[str, Any] = {
        "name": "mall",
        "unread": 0,
        "pending": 0,
        "oldest_ms": 0,
        "age_ms": 0,
        "consumers": 1,
        "idle_ms": 100,
        "letters": 0,
        "leased": False,
    }
    finding = check_groups([GroupState(**(plain | fields))], "s", 1_000_000, wanted)
    assert (finding.level, said in finding.seen) == (level, True), finding


async def test_the_ledgers_group_is_not_dropped_by_the_way(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 1})
    client = engine._calls.client_of("sk:sales")
    await make_group(client, stream_key(sale.id), LEDGER_GROUP)
    with pytest.raises(InvalidInput, match="--force"):
        await drop_group(client, sale.id, LEDGER_GROUP)
    assert [state.name for state in await groups(client, sale.id)] == [LEDGER_GROUP]
    assert (await drop_group(client, sale.id, LEDGER_GROUP, force=True)).unread > 0
