"""Refusals are counted where they are answered, and reach the sale's hash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill import refusals as refusals_module
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import crew_key, refusals_key, shard_keys
from seckill.order import Wish
from seckill.refusals import read_refusals, refusals_json
from seckill.status import Status
from tests.conftest import MakeEngine, MakeSale
from tests.support import make_sale


async def test_every_answer_counts(
    make_engine: MakeEngine, open_sale: MakeSale, aclient: Any
) -> None:
    sale = await open_sale({"a": 1, "b": 5}, limit_per_buyer=3)
    engine = await make_engine()
    for number in range(5):  # One gets it, asks again, and four are too late.
        await engine.reserve(sale.id, f"u{number}", "k", {"a": 1})
    assert (await engine.reserve(sale.id, "u0", "k", {"a": 1})).status is Status.EXISTS
    await engine.reserve(sale.id, "u0", "k", {"b": 1})
    wishes = [Wish(f"w{number}", "k", {"b": 4 if number else 1}) for number in range(3)]
    await engine.reserve_many(sale.id, [*wishes, Wish("x", "k", {"none": 1})])
    assert await read_refusals(aclient, sale.id) == {}
    await engine.aclose()
    assert await read_refusals(aclient, sale.id) == {
        "sold_out": 4,
        "buyer_limit": 2,
        "conflict": 1,
        "unknown_sku": 1,
    }
    assert await refusals_json(aclient, sale.id) == (
        '{"sold_out":4,"buyer_limit":2,"conflict":1,"unknown_sku":1}'
    )


async def test_what_is_refused_from_memory_counts(
    make_engine: MakeEngine, open_sale: MakeSale, aclient: Any
) -> None:
    sale = await open_sale({"a": 1})
    engine = await make_engine(lease_ms=900)
    asked = 1
    await engine.reserve(sale.id, "u", "k", {"a": 1})
    lease = engine._shards[sale.id].lease
    assert lease is not None
    while lease.answered < 20:
        assert asked < 20_000
        outcome = await engine.reserve(sale.id, f"u{asked}", "k", {"a": 1})
        assert outcome.status is Status.SOLD_OUT
        asked += 1
        await asyncio.sleep(0)
    await engine.aclose()
    assert await read_refusals(aclient, sale.id) == {"sold_out": asked - 1}


async def test_engines_add_up_while_they_run(
    make_engine: MakeEngine,
    open_sale: MakeSale,
    aclient: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusals_module, "FLUSH_S", 0.02)
    sale = await open_sale({"a": 1})
    engines = [await make_engine() for _ in range(3)]
    for turn in range(2):
        for number, engine in enumerate(engines):
            await engine.reserve(sale.id, f"u{number}-{turn}", "k", {"a": 9})
        async with asyncio.timeout(60):
            while await read_refusals(aclient, sale.id) != {"insufficient": 3 * (turn + 1)}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_only_what_changed_is_sent(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 1})
    await engine.reserve(sale.id, "u", "k", {"a": 9})
    refusals = engine._shards[sale.id].refusals
    await refusals.flush()
    client.delete(refusals_key(sale.id))
    await refusals.flush()
    assert not client.exists(refusals_key(sale.id))
    await engine.reserve(sale.id, "u", "k2", {"a": 9})
    await refusals.flush()
    assert client.hgetall(refusals_key(sale.id)) == {b"insufficient": b"1"}


async def test_a_sale_that_is_gone_gets_no_hash(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 1})
    await engine.reserve(sale.id, "u", "k", {"a": 9})
    await engine._roll.aclose()
    client.delete(*shard_keys(sale.id), crew_key(sale.id))
    await engine._shards[sale.id].refusals.flush()
    assert client.keys(f"sk:{{{sale.id}:*") == []


async def test_what_a_server_refuses_is_kept(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 1})
    await engine.reserve(sale.id, "u", "k", {"a": 9})
    client.set(refusals_key(sale.id), "no hash")
    await engine._shards[sale.id].refusals.flush()
    client.delete(refusals_key(sale.id))
    await engine._shards[sale.id].refusals.flush()
    assert client.hgetall(refusals_key(sale.id)) == {b"insufficient": b"1"}


async def test_what_never_left_is_kept(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data", appendfsync="always") as server:
        # Each start has a socket of its own; this name leads to the one there is.
        name = tmp_path / "s.sock"
        name.symlink_to(server.url.removeprefix("unix://"))
        async with Engine(f"unix://{name}", sweep_ms=0) as engine:
            sale = make_sale({"a": 1})
            await engine.create(sale)
            await engine.open(sale.id)
            await engine.reserve(sale.id, "u", "k", {"a": 9})
            refusals = engine._shards[sale.id].refusals
            server.stop()
            # A connection that breaks under a flush takes it along; here there is none.
            await engine._calls.servers.pool("sk:sales").disconnect()
            await refusals.flush()
            name.unlink()
            await refusals.flush()
            server.start()
            name.symlink_to(server.url.removeprefix("unix://"))
            await refusals.flush()
            with redis.Redis.from_url(server.url) as client:
                assert client.hgetall(refusals_key(sale.id)) == {b"insufficient": b"1"}
