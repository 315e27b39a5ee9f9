"""Trimming through Python, and what a group meets that comes after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from seckill import redis as servers
from seckill import stream
from seckill.consumer import Consumer
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine, Wish
from seckill.errors import EventsTrimmed, InvalidInput, UnknownSale, UpgradeNeeded
from seckill.keys import shard_keys, stream_key
from seckill.stream import Event, first_seq, join_group
from seckill.trim import Trimmed, trim
from tests.conftest import MakeSale
from tests.support import new_sale_id


@pytest.fixture
async def aclient(server: EmbeddedServer) -> AsyncIterator[Any]:
    """A client as ours are."""
    pool = servers.connect_pool(server.url, connections=2, timeout_s=5)
    yield servers.connect_client(pool)
    await pool.disconnect()


async def collect(engine: Engine, sale: str, group: str, **options: Any) -> list[int]:
    batches = engine.events(sale, group, follow=False, **options)
    return [event.seq async for batch in batches for event in batch]


async def sell(engine: Engine, sale: str, count: int, who: str = "b") -> None:
    wishes = [Wish(f"{who}{n}", "k", {"a": 1}) for n in range(count)]
    assert all(not isinstance(one, Exception) for one in await engine.reserve_many(sale, wishes))


def entries(client: redis.Redis, sale: str) -> list[str]:
    found: Any = client.xrange(stream_key(sale))
    return [entry_id.decode() for entry_id, _ in found]


async def test_many_steps(
    engine: Engine,
    open_sale: MakeSale,
    client: redis.Redis,
    aclient: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("seckill.trim.LOOK_AT", 20)
    sale = await open_sale({"a": 5_000})
    await sell(engine, sale.id, 3_000)
    assert await collect(engine, sale.id, "mall") == list(range(1, 3_003))
    assert await collect(engine, sale.id, "slow", count=50) == list(range(1, 3_003))
    await sell(engine, sale.id, 40, "late")
    here = entries(client, sale.id)
    steps: Any = client.info("commandstats")
    before = int(steps.get("cmdstat_xtrim", {"calls": 0})["calls"])
    await asyncio.sleep(0.002)
    trimmed = await trim(aclient, sale.id, keep_ms=0)
    assert trimmed == Trimmed(len(here) - 2, 3_003, "mall")
    steps = client.info("commandstats")
    assert int(steps["cmdstat_xtrim"]["calls"]) - before >= 3
    # The sale and its groups go on where they were.
    for group in ("mall", "slow"):
        assert await collect(engine, sale.id, group) == list(range(3_003, 3_043))


async def test_a_group_that_comes_later_is_told(
    engine: Engine,
    open_sale: MakeSale,
    client: redis.Redis,
    aclient: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("seckill.consumer.runner.REFRESH_S", 0.05)
    sale = await open_sale({"a": 50})
    await sell(engine, sale.id, 1)
    await asyncio.sleep(0.002)
    await trim(aclient, sale.id, keep_ms=0, through=entries(client, sale.id)[1])
    with pytest.raises(EventsTrimmed, match=r"before 3 were trimmed.*after_trim=True") as told:
        await collect(engine, sale.id, "late")
    assert (told.value.sale, told.value.first_seq) == (sale.id, 3)
    handled: list[int] = []

    async def handle(event: Event) -> None:
        handled.append(event.seq)

    for once in (True, False):
        with pytest.raises(EventsTrimmed):
            async with asyncio.timeout(60):
                await Consumer(engine, "late", handle, sales=(sale.id,), once=once).run()
    assert client.xinfo_groups(stream_key(sale.id)) == []  # It holds nothing back.
    assert await collect(engine, sale.id, "late", after_trim=True) == [3]
    await Consumer(engine, "own", handle, sales=(sale.id,), once=True, after_trim=True).run()
    assert handled == [3]
    # Once it has begun it needs no leave any more.
    await engine.pause(sale.id)
    await asyncio.sleep(0.002)
    await trim(aclient, sale.id, keep_ms=0)
    assert await collect(engine, sale.id, "late") == [4]
    await Consumer(engine, "own", handle, sales=(sale.id,), once=True).run()
    assert handled == [3, 4]


async def test_nothing_is_left(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, aclient: Any
) -> None:
    sale = await open_sale()
    await asyncio.sleep(0.002)
    assert await trim(aclient, sale.id, keep_ms=0) == Trimmed(2, 3, "")
    assert await first_seq(aclient, sale.id) == 3
    with pytest.raises(EventsTrimmed):
        await join_group(aclient, sale.id, "late")
    await engine.pause(sale.id)
    assert await collect(engine, sale.id, "late", after_trim=True) == [3]


async def test_trimmed_at_the_moment_at_which_a_group_is_made(
    engine: Engine,
    open_sale: MakeSale,
    client: redis.Redis,
    aclient: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it, it is told; after it, nothing goes."""
    make = stream.make_group

    async def trim_first(client: Any, key: str, group: str) -> None:
        await trim(client, sale.id, keep_ms=0)
        await make(client, key, group)

    async def trim_then(client: Any, key: str, group: str) -> None:
        await make(client, key, group)
        assert (await trim(client, sale.id, keep_ms=0)).held_by == group

    for how in (trim_first, trim_then):
        sale = await open_sale()
        await asyncio.sleep(0.002)
        monkeypatch.setattr(stream, "make_group", how)
        if how is trim_first:
            with pytest.raises(EventsTrimmed):
                await collect(engine, sale.id, "g")
            assert client.xinfo_groups(stream_key(sale.id)) == []
        else:
            assert await collect(engine, sale.id, "g") == [1, 2]


async def test_a_group_made_by_hand_does_not_begin_in_the_middle(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, aclient: Any
) -> None:
    """Or by a process that died between making it and looking."""
    sale = await open_sale()
    await trim(aclient, sale.id, keep_ms=0, through=entries(client, sale.id)[0])
    await asyncio.sleep(0.002)
    await trim(aclient, sale.id, keep_ms=0, through=entries(client, sale.id)[0])
    client.xgroup_create(stream_key(sale.id), "hand", id="0")
    with pytest.raises(EventsTrimmed):
        await collect(engine, sale.id, "hand")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"keep_ms": -1}, "keep_ms"),
        ({"keep_ms": 1.5}, "keep_ms"),
        ({"keep_ms": 0, "through": "12"}, "through"),
        ({"keep_ms": 0, "through": ""}, "through"),
        ({"keep_ms": 0, "through": b"1-1"}, "through"),
    ],
)
async def test_bad_arguments(aclient: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await trim(aclient, "sale", **options)
    assert refusal.value.field == field


async def test_no_such_sale(aclient: Any, open_sale: MakeSale, client: redis.Redis) -> None:
    with pytest.raises(UnknownSale):
        await trim(aclient, new_sale_id(), keep_ms=0)
    sale = await open_sale()
    client.hset(shard_keys(sale.id)[0], "state", "fenced")
    await asyncio.sleep(0.002)
    assert await trim(aclient, sale.id, keep_ms=0) == Trimmed(0, 0, "")
    client.hset(shard_keys(sale.id)[0], "format", 99)
    with pytest.raises(UpgradeNeeded):
        await trim(aclient, sale.id, keep_ms=0)
