"""The engine's public calls, one buyer or a few, on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import redis

from seckill.engine import Engine
from seckill.errors import EngineClosed, ScriptFailed, UnknownSale
from seckill.keys import SALES, shard_keys
from seckill.order import State, order_id
from seckill.reaper import unsettled
from seckill.sale import Sale
from seckill.status import Status
from tests.conftest import MakeEngine, MakeSale
from tests.support import dump, make_item, make_sale, new_sale_id, travel


def with_title(sale: Sale, title: str) -> Sale:
    return msgspec.structs.replace(sale, title=title)


async def test_a_sale_from_beginning_to_end(engine: Engine) -> None:
    sale = make_sale(items=(make_item("rice", total=2, price_fen=4_990),))
    assert (await engine.create(sale)).status is Status.CREATED
    assert (await engine.snapshot(sale.id)).phase == "created"
    assert (await engine.open(sale.id)).ok

    outcome = await engine.reserve(sale.id, "ann", "k1", {"rice": 2}, attrs="room=7")
    assert outcome.status is Status.CREATED
    order = outcome.order
    assert order is not None
    assert (order.sale, order.buyer, order.state, order.version) == (
        sale.id,
        "ann",
        State.HELD,
        1,
    )
    assert (order.items, order.amount_fen) == ({"rice": 2}, 9_980)
    assert order.id == order_id(sale.id, "ann", "k1")
    now_ms = datetime.now(UTC).timestamp() * 1000
    assert abs(order.deadline_ms - now_ms - sale.hold_ms) < 10_000
    assert await engine.order(sale.id, order.id) == order

    paying = (await engine.begin_payment(sale.id, order.id, buyer="ann")).order
    assert paying is not None
    assert (paying.state, paying.version) == (State.PAYING, 2)
    assert paying.deadline_ms >= order.deadline_ms - sale.hold_ms + sale.pay_ms
    paid = (await engine.confirm(sale.id, order.id, "wx-1")).order
    assert paid is not None
    assert (paid.state, paid.payments) == (State.CONFIRMED, ("wx-1",))
    back = await engine.refund(sale.id, order.id, "r-1", return_units=True, return_limit=False)
    assert back.order is not None
    assert (back.order.state, back.order.refund, back.order.version) == (State.REFUNDED, "r-1", 4)
    assert (await engine.release(sale.id, order.id)).status is Status.REFUNDED

    assert (await engine.close(sale.id)).ok
    snapshot = await engine.snapshot(sale.id)
    assert (snapshot.state, snapshot.phase, snapshot.reason) == ("settled", "settled", "")
    assert (snapshot.orders, snapshot.buyers, snapshot.seq, snapshot.format) == (1, 1, 8, 1)
    assert engine.facts is not None
    assert snapshot.server == engine.facts.run_id


async def test_a_retry_finds_the_original(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 5, "b": 5})
    first = await engine.reserve(sale.id, "ann", "k1", {"a": 1, "b": 2}, attrs="x")
    again = await engine.reserve(sale.id, "ann", "k1", {"b": 2, "a": 1}, attrs="x")
    assert (again.status, again.ok) == (Status.EXISTS, True)
    assert again.order == first.order
    assert first.order is not None
    await engine.confirm(sale.id, first.order.id, "p1")
    later = await engine.reserve(sale.id, "ann", "k1", {"a": 1, "b": 2}, attrs="x")
    assert later.order is not None
    assert (later.status, later.order.state) == (Status.EXISTS, State.CONFIRMED)


async def test_a_key_belongs_to_its_buyer_and_payload(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 9, "b": 9})
    assert (await engine.reserve(sale.id, "ann", "k", {"a": 1})).status is Status.CREATED
    for items, attrs in (({"a": 2}, ""), ({"b": 1}, ""), ({"a": 1, "b": 1}, ""), ({"a": 1}, "x")):
        outcome = await engine.reserve(sale.id, "ann", "k", items, attrs=attrs)
        assert (outcome.status, outcome.order) == (Status.CONFLICT, None)
    assert (await engine.reserve(sale.id, "bob", "k", {"a": 2})).status is Status.CREATED
    assert (await engine.reserve(sale.id, "ann", "k2", {"a": 1})).status is Status.CREATED


async def test_only_the_buyer_sees_an_order(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    order = (await engine.reserve(sale.id, "ann", "k", {"a": 1})).order
    assert order is not None
    assert await engine.order(sale.id, order.id, buyer="ann") == order
    assert await engine.order(sale.id, order.id, buyer="bob") is None
    assert await engine.order(sale.id, order_id(sale.id, "ann", "other")) is None
    for verb in (engine.begin_payment, engine.release):
        outcome = await verb(sale.id, order.id, buyer="bob")
        assert (outcome.status, outcome.order) == (Status.UNKNOWN_ORDER, None)


async def test_a_rush_sells_exactly_what_there_is(
    make_engine: MakeEngine, engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 100, "b": 30})
    engines = [engine, await make_engine(batch_max=7), await make_engine(lane_depth=1_000)]

    async def buy(number: int) -> Status:
        items = {"a": 1, "b": 1} if number % 5 == 0 else {"a": 1}
        at = engines[number % 3]
        outcome = await at.reserve(sale.id, f"b{number}", "k", items)
        again = await engines[0].reserve(sale.id, f"b{number}", "k", items)
        if outcome.ok:
            assert again.status is Status.EXISTS
        return outcome.status

    seen = Counter(await asyncio.gather(*(buy(number) for number in range(600))))
    assert seen[Status.CREATED] + seen[Status.SOLD_OUT] == 600
    stock = (await engine.snapshot(sale.id)).stock
    assert (stock["a"].available, stock["a"].held) == (0, 100)
    assert stock["b"].available + stock["b"].held == 30
    # Whoever had been refused the cart may have bought later, so only the sum is certain.
    assert (await engine.snapshot(sale.id)).orders == 100


async def test_create_again(engine: Engine) -> None:
    sale = make_sale()
    assert (await engine.create(sale)).status is Status.CREATED
    assert (await engine.create(sale)).status is Status.EXISTS
    assert (await engine.create(with_title(sale, "另一场"))).status is Status.CONFLICT
    assert await engine.sale(sale.id) == sale


async def test_sales_are_listed(engine: Engine) -> None:
    ids = sorted(new_sale_id() for _ in range(3))
    for name in reversed(ids):
        await engine.create(make_sale(id=name))
    listed = await engine.sales()
    assert listed == sorted(listed)
    assert set(ids) <= set(listed)


async def test_what_the_definition_says_is_what_redis_sells(engine: Engine) -> None:
    opens = datetime.now(UTC) + timedelta(hours=1)
    sale = make_sale(
        items=(make_item("z", limit_per_buyer=2), make_item("a")),
        opens_at=opens,
        ends_at=opens + timedelta(minutes=30),
        hold_ms=1_000,
        pay_ms=2_000,
        limit_per_order=3,
        limit_per_buyer=4,
        max_lapsed=5,
    )
    await engine.create(sale)
    await engine.open(sale.id)
    snapshot = await engine.snapshot(sale.id)
    assert snapshot.phase == "not started"
    assert (snapshot.opens_ms, snapshot.ends_ms) == (sale.opens_ms, sale.ends_ms)
    assert list(snapshot.stock) == ["z", "a"]
    assert (await engine.reserve(sale.id, "ann", "k", {"z": 1})).status is Status.NOT_OPEN
    await travel(engine, sale.id, 3_600_000 + 10_000)
    assert (await engine.snapshot(sale.id)).phase == "selling"
    for items, status in (
        ({"a": 4}, Status.ORDER_LIMIT),
        ({"z": 3}, Status.SKU_LIMIT),
        ({"a": 3}, Status.CREATED),
        ({"a": 2}, Status.BUYER_LIMIT),
    ):
        outcome = await engine.reserve(sale.id, "ann", f"k{status.name}", items)
        assert outcome.status is status
    await travel(engine, sale.id, 30 * 60_000)
    assert (await engine.snapshot(sale.id)).phase == "ended"
    assert (await engine.reserve(sale.id, "bob", "k", {"z": 1})).status is Status.ENDED


async def test_add_stock(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 1})
    outcome = await engine.add_stock(sale.id, "a", 4, key="morning")
    assert (outcome.status, outcome.ok, outcome.available, outcome.total) == (
        Status.DONE,
        True,
        5,
        5,
    )
    again = await engine.add_stock(sale.id, "a", 4, key="morning")
    assert (again.status, again.available) == (Status.ALREADY, 5)
    assert (await engine.add_stock(sale.id, "a", -6, key="k")).status is Status.BELOW_COMMITTED
    assert (await engine.add_stock(sale.id, "zz", 1, key="k")).status is Status.UNKNOWN_SKU


async def test_an_unknown_sale(engine: Engine) -> None:
    name, order = new_sale_id(), order_id("x", "ann", "k")
    for call in (
        engine.open(name),
        engine.pause(name),
        engine.resume(name),
        engine.close(name),
        engine.reserve(name, "ann", "k", {"a": 1}),
        engine.begin_payment(name, order),
        engine.confirm(name, order, "p1"),
        engine.release(name, order),
        engine.refund(name, order, "r1", return_units=True, return_limit=True),
        engine.add_stock(name, "a", 1, key="k"),
    ):
        assert (await call).status is Status.UNKNOWN_SALE
    for look in (engine.sale(name), engine.snapshot(name), engine.order(name, order)):
        with pytest.raises(UnknownSale, match=name):
            await look
    assert (await engine._expire(name, 10))[0] is Status.UNKNOWN_SALE


async def test_scripts_come_back_after_a_flush(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale()
    order = (await engine.reserve(sale.id, "ann", "k1", {"a": 1})).order
    assert order is not None
    for call in (
        lambda: engine.reserve(sale.id, "ann", "k2", {"a": 1}),
        lambda: engine.begin_payment(sale.id, order.id),
        lambda: engine.confirm(sale.id, order.id, "p1"),
        lambda: engine.pause(sale.id),
    ):
        client.script_flush()
        assert (await call()).ok


async def test_a_sale_made_anew_under_the_same_id(
    make_engine: MakeEngine, engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    """Another process may delete and recreate a sale that this one has already sold."""
    sale = await open_sale({"a": 5})
    assert (await engine.reserve(sale.id, "ann", "k", {"a": 1})).ok
    client.delete(*shard_keys(sale.id))
    other = await make_engine()
    anew = make_sale({"x": 3, "a": 7}, id=sale.id)
    await other.create(anew)
    await other.open(sale.id)
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, f"b{i}", "k", {"a": 1}) for i in range(5))
    )
    assert [outcome.status for outcome in outcomes] == [Status.CREATED] * 5
    assert (await other.snapshot(sale.id)).stock["a"].held == 5
    assert await engine.sale(sale.id) == anew


async def test_a_damaged_key_is_no_outcome(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale()
    await engine.reserve(sale.id, "ann", "k", {"a": 1})
    client.delete(shard_keys(sale.id)[1])
    client.set(shard_keys(sale.id)[1], "damaged")
    before = dump(client, sale.id)
    with pytest.raises(ScriptFailed, match="WRONGTYPE"):
        await engine.reserve(sale.id, "bob", "k", {"a": 1})
    with pytest.raises(ScriptFailed, match="WRONGTYPE"):
        await engine.snapshot(sale.id)
    assert dump(client, sale.id) == before
    # The server is shared, and its other guests may sweep every sale there is.
    client.delete(*shard_keys(sale.id))
    client.srem(SALES, sale.id)


async def test_an_engine_that_is_not_started(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    idle = Engine(engine.url, durability="memory")
    with pytest.raises(EngineClosed):
        await idle.reserve(sale.id, "ann", "k", {"a": 1})
    with pytest.raises(EngineClosed):
        await idle.create(sale)
    with pytest.raises(EngineClosed):
        await idle.sales()
    await idle.aclose()


async def test_an_engine_can_be_closed_twice_and_started_again(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale()
    other = Engine(engine.url, durability="memory", sweep_ms=10)
    for round_ in range(2):
        await other.start()
        await other.start()
        assert (await other.reserve(sale.id, "ann", f"k{round_}", {"a": 1})).ok
        await other.aclose()
        await other.aclose()
        with pytest.raises(EngineClosed):
            await other.reserve(sale.id, "ann", "k", {"a": 1})


async def test_closing_answers_what_waits(make_engine: MakeEngine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 1_000})
    other = await make_engine(batch_max=10)
    assert (await other.reserve(sale.id, "ann", "k", {"a": 1})).ok
    waiting = [
        asyncio.ensure_future(other.reserve(sale.id, f"b{i}", "k", {"a": 1})) for i in range(200)
    ]
    await asyncio.sleep(0)
    await other.aclose()
    assert {(await call).status for call in waiting} == {Status.CREATED}


async def test_an_embedded_engine_keeps_its_orders(tmp_path: Path) -> None:
    sale = make_sale({"a": 3})
    async with Engine.embedded(tmp_path / "data") as first:
        assert first.facts is not None
        assert (first.facts.durability, first.facts.unverified) == ("aof", ())
        await first.create(sale)
        await first.open(sale.id)
        order = (await first.reserve(sale.id, "ann", "k", {"a": 1})).order
        assert order is not None
    async with Engine.embedded(tmp_path / "data") as second:
        assert await second.order(sale.id, order.id) == order
        assert (await second.reserve(sale.id, "ann", "k", {"a": 1})).status is Status.EXISTS
        assert (await second.snapshot(sale.id)).state == "open"


async def test_a_listed_sale_that_was_never_written_harms_nobody(
    make_engine: MakeEngine, client: redis.Redis
) -> None:
    ghost = new_sale_id()
    client.sadd(SALES, ghost)
    try:
        engine = await make_engine()
        assert ghost in await engine.sales()
        assert ghost not in await unsettled(engine)
    finally:
        client.srem(SALES, ghost)
