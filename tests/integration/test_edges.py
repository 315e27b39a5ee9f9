"""Situations a reviewer broke the engine with; each failed before it was mended."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import EngineClosed, InvalidInput, SeckillError
from seckill.keys import SALES
from seckill.order import State
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.support import make_item, make_sale


async def test_a_damaged_header_does_not_stop_the_deadlines_of_others(
    make_engine: MakeEngine, client: redis.Redis
) -> None:
    engine = await make_engine(sweep_ms=50)
    sale = make_sale(hold_ms=200)
    await engine.create(sale)
    await engine.open(sale.id)
    client.sadd(SALES, "damaged", b"\xff")
    client.set("sk:{damaged:0}:sale", "x")
    try:
        late = await make_engine(sweep_ms=50)  # one that has never seen a sound list
        held = (await late.reserve(sale.id, "ann", "k", {sale.items[0].sku: 1})).order
        assert held is not None
        for _ in range(300):
            await asyncio.sleep(0.1)
            found = await late.order(sale.id, held.id)
            if found is not None and found.state is State.EXPIRED:
                break
        else:
            pytest.fail("the hold never expired")
    finally:
        client.srem(SALES, "damaged", b"\xff")
        client.delete("sk:{damaged:0}:sale")


async def test_a_closed_engine_stays_closed(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    sale = make_sale({"a": 100})
    await engine.create(sale)
    await engine.open(sale.id)

    async def keep_buying(n: int) -> None:
        for i in range(100_000):
            await engine.reserve(sale.id, f"b{n}", f"k{i}", {"a": 1})

    callers = [asyncio.create_task(keep_buying(n)) for n in range(8)]
    await asyncio.sleep(0.02)
    await engine.aclose()
    for outcome in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(outcome, EngineClosed), outcome
    with pytest.raises(EngineClosed):
        await engine.reserve(sale.id, "bob", "k", {"a": 1})


async def test_a_cancelled_aclose_leaves_nobody_waiting(
    make_engine: MakeEngine, client: redis.Redis
) -> None:
    engine = await make_engine(batch_max=2, timeout_ms=3_000)
    sale = make_sale({"a": 100})
    await engine.create(sale)
    await engine.open(sale.id)
    await engine.reserve(sale.id, "ann", "k", {"a": 1})
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        calls = [
            asyncio.create_task(engine.reserve(sale.id, f"b{i}", "k", {"a": 1})) for i in range(15)
        ]
        await asyncio.sleep(0.05)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.aclose()
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        assert all(isinstance(outcome, SeckillError) for outcome in outcomes), outcomes
    finally:
        client.execute_command("CLIENT", "UNPAUSE")


async def test_a_subclass_of_str_harms_nobody(make_engine: MakeEngine) -> None:
    class Safe(str):
        """Such as a template engine's safe string."""

        __slots__ = ()

    engine = await make_engine()
    sale = make_sale({"a": 100})
    await engine.create(sale)
    await engine.open(sale.id)
    buyers = [Safe("safe"), *(f"b{i}" for i in range(9))]
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, b, "k", {"a": 1}, attrs=Safe("x")) for b in buyers)
    )
    assert {outcome.status for outcome in outcomes} == {Status.CREATED}


@pytest.mark.parametrize("option", ["decode_responses=true", "protocol=3", "max_connections=1"])
async def test_a_url_cannot_change_how_we_talk(option: str) -> None:
    with pytest.raises(InvalidInput, match="url"):
        await Engine(f"redis://127.0.0.1:6379/0?{option}").start()


async def test_a_cart_is_bounded(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    sale = make_sale(items=tuple(make_item(f"s{i}") for i in range(60)))
    await engine.create(sale)
    with pytest.raises(InvalidInput, match="at most 50"):
        await engine.reserve(sale.id, "ann", "k", {f"s{i}": 1 for i in range(51)})


async def test_what_the_dead_left_is_found_behind_what_the_living_hold(
    make_engine: MakeEngine,
) -> None:
    engine = await make_engine()
    sale = make_sale({"a": 100})
    await engine.create(sale)
    await engine.open(sale.id)
    for i in range(40):
        await engine.reserve(sale.id, f"b{i}", "k", {"a": 1})
    events = [event async for event in engine.history(sale.id)]
    dead = engine.events(sale.id, "g", consumer="dead", count=100, follow=False)
    await anext(dead)
    await dead.aclose()
    # Fresh in the hands of the living: the first thirty. Left by the dead: the rest.
    client = engine._calls.client_of("sk:sales")
    ids = [f"{event.at_ms}-{event.seq}" for event in events]
    key = f"sk:{{{sale.id}:0}}:events"
    await client.xclaim(key, "g", "living", 0, ids[:30])
    await client.execute_command("XCLAIM", key, "g", "dead", 0, *ids[30:], "IDLE", 60_000)
    seen = []
    async for batch in engine.events(
        sale.id, "g", consumer="new", count=2, reclaim_ms=30_000, follow=False
    ):
        seen += [event.seq for event in batch]
    assert seen == [event.seq for event in events[30:]]


async def test_verify_goes_by_the_published_definition(
    make_engine: MakeEngine, client: redis.Redis
) -> None:
    engine = await make_engine()
    sale = make_sale(items=(make_item("a", total=9, limit_per_buyer=1),))
    await engine.create(sale)
    await engine.open(sale.id)
    forged = make_sale(id=sale.id, items=(make_item("a", total=9, limit_per_buyer=5),))
    key = f"sk:{{{sale.id}:0}}:sale"
    client.hset(
        key, mapping={"definition": forged.definition(), "definition_id": forged.definition_id}
    )
    other = await make_engine()
    verdict = await verify(other, sale.id)
    assert [violation.rule for violation in verdict.violations] == ["definition"]


@pytest.mark.parametrize("buyer", [None, 0, False, (), b""])
async def test_nothing_empty_becomes_the_backend(make_engine: MakeEngine, buyer: Any) -> None:
    """A session that has ended gives None, and None must not open other buyers' orders."""
    engine = await make_engine()
    sale = make_sale({"a": 10})
    await engine.create(sale)
    await engine.open(sale.id)
    order = (await engine.reserve(sale.id, "ann", "k", {"a": 1})).order
    assert order is not None
    for verb in (engine.begin_payment, engine.release, engine.order):
        with pytest.raises(InvalidInput, match="buyer"):
            await verb(sale.id, order.id, buyer=buyer)
    assert await engine.order(sale.id, order.id) == order


async def test_numbers_too_long_to_print_are_refused_like_others(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    sale = make_sale({"a": 10})
    await engine.create(sale)
    huge: Any = 10**5000
    unsure: Any = "no"
    for call in (
        engine.reserve(sale.id, "ann", "k", {"a": huge}),
        engine.add_stock(sale.id, "a", -huge, key="k"),
        engine.begin_payment(sale.id, huge),
        engine.refund(sale.id, "0" * 24, "r", return_units=unsure, return_limit=True),
    ):
        with pytest.raises(InvalidInput):
            await call


async def test_a_wrong_estimate_of_the_clock_is_mended_while_there_is_time(
    make_engine: MakeEngine,
) -> None:
    """An answer read late makes the server's clock look late, and the next order too old."""
    engine = await make_engine()
    sale = make_sale({"a": 10})
    await engine.create(sale)
    await engine.open(sale.id)
    await engine.reserve(sale.id, "ann", "k", {"a": 1})
    lane = engine._shards[sale.id].lane
    assert lane is not None
    lane.learn_time(await engine.now_ms() - 60_000)
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, f"b{i}", "k", {"a": 1}) for i in range(3))
    )
    assert {outcome.status for outcome in outcomes} == {Status.CREATED}
