"""The event stream as a consumer of one group sees it: at least once, in order, from the start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.keys import stream_key
from seckill.order import State
from seckill.sale import Sale
from seckill.stream import Event, EventKind, consume
from tests.conftest import MakeEngine, MakeSale
from tests.support import new_sale_id, travel


async def collect(engine: Engine, sale: str, group: str = "g", **options: Any) -> list[Event]:
    """All that is there now for this consumer, acknowledged."""
    return [
        event
        async for batch in engine.events(sale, group, follow=False, **options)
        for event in batch
    ]


async def take(engine: Engine, sale: str, group: str = "g", **options: Any) -> list[Event]:
    """One batch, and then this consumer is gone without a word."""
    stream = engine.events(sale, group, **options)
    batch = await anext(stream)
    await stream.aclose()
    return batch


async def sell(engine: Engine, sale: Sale, *buyers: str) -> list[str]:
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, buyer, "k", {"a": 1}) for buyer in buyers)
    )
    return [outcome.order.id for outcome in outcomes if outcome.order]


async def test_every_kind_of_event(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 3, "b": 0})
    outcome = await engine.reserve(sale.id, "ann", "k", {"a": 2}, attrs="地址|7|room=3")
    assert outcome.order is not None
    order = outcome.order.id
    await engine.begin_payment(sale.id, order)
    await engine.confirm(sale.id, order, "wx-1")
    await engine.confirm(sale.id, order, "wx-2")
    await engine.refund(sale.id, order, "r-1", return_units=True, return_limit=False)
    await engine.pause(sale.id, "盘点")
    await engine.resume(sale.id)
    await engine.add_stock(sale.id, "b", 4, key="more")
    (lapsed,) = await sell(engine, sale, "bob")
    await travel(engine, sale.id, sale.hold_ms)
    await engine._expire(sale.id, 10)
    (released,) = await sell(engine, sale, "eve")
    await engine.close(sale.id)
    await engine.release(sale.id, released)

    told = [event async for event in engine.history(sale.id)]
    assert [(e.kind, e.order.id if e.order else "", e.detail) for e in told] == [
        (EventKind.SALE_CREATED, "", sale.definition().decode()),
        (EventKind.SALE_OPENED, "", ""),
        (EventKind.HELD, order, ""),
        (EventKind.PAYING, order, ""),
        (EventKind.CONFIRMED, order, "wx-1"),
        (EventKind.REFUND_DUE, order, "wx-2"),
        (EventKind.REFUNDED, order, "r-1,1,0"),
        (EventKind.SALE_PAUSED, "", "盘点"),
        (EventKind.SALE_RESUMED, "", ""),
        (EventKind.STOCK_CHANGED, "", "more|1|4|4"),
        (EventKind.HELD, lapsed, ""),
        (EventKind.EXPIRED, lapsed, ""),
        (EventKind.HELD, released, ""),
        (EventKind.SALE_CLOSED, "", ""),
        (EventKind.RELEASED, released, ""),
        (EventKind.SALE_SETTLED, "", "0:3,1:4"),
    ]
    assert [event.seq for event in told] == list(range(1, 17))
    assert [event.at_ms for event in told] == sorted(event.at_ms for event in told)
    assert {event.sale for event in told} == {sale.id}
    held, paying, confirmed, _, refunded = (event.order for event in told[2:7])
    assert held == outcome.order
    assert told[2].attrs == "地址|7|room=3"
    assert {event.attrs for event in told[3:]} == {""}
    assert paying is not None
    assert (paying.state, paying.version) == (State.PAYING, 2)
    assert confirmed is not None
    assert (confirmed.payments, confirmed.version) == (("wx-1",), 3)
    assert refunded is not None
    assert (refunded.refund, refunded.payments) == ("r-1", ("wx-1", "wx-2"))
    # A group sees the same.
    assert await collect(engine, sale.id) == told


@pytest.mark.parametrize("count", [31, 32, 33, 100])
async def test_the_orders_of_one_entry_are_as_many_events(
    engine: Engine, open_sale: MakeSale, client: redis.Redis, count: int
) -> None:
    sale = await open_sale({"a": 200})
    await engine.reserve(sale.id, "first", "k", {"a": 1})
    ids = await sell(engine, sale, *(f"b{i}" for i in range(count)))
    assert client.xlen(stream_key(sale.id)) < 3 + count / 8
    told = await collect(engine, sale.id)
    assert [event.seq for event in told] == list(range(1, 4 + count))
    assert sorted(event.order.id for event in told[3:] if event.order) == sorted(ids)


async def test_history_stops_where_it_is_told(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 2_000})
    await sell(engine, sale, *(f"b{i}" for i in range(1_200)))
    for through in (1, 2, 3, 40, 700, 1_202):
        told = [event.seq async for event in engine.history(sale.id, through_seq=through)]
        assert told == list(range(1, through + 1))
    assert len([event async for event in engine.history(sale.id)]) == 1_202


async def test_a_group_starts_at_the_first_event(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    await sell(engine, sale, "ann")
    for group in ("ledger", "mall"):
        kinds = [event.kind for event in await collect(engine, sale.id, group)]
        assert kinds == [EventKind.SALE_CREATED, EventKind.SALE_OPENED, EventKind.HELD]
        assert await collect(engine, sale.id, group) == []
    await engine.pause(sale.id)
    for group in ("ledger", "mall"):
        assert [event.seq for event in await collect(engine, sale.id, group)] == [4]


async def test_a_batch_is_acknowledged_when_the_next_is_asked_for(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale()
    pending: list[Any] = []
    async for batch in engine.events(sale.id, "g", count=1, follow=False):
        assert len(batch) == 1
        summary: Any = client.xpending(stream_key(sale.id), "g")
        pending.append(summary["pending"])
    assert pending == [1, 1]
    summary = client.xpending(stream_key(sale.id), "g")
    assert summary["pending"] == 0


async def test_what_was_never_acknowledged_comes_again(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    await sell(engine, sale, "ann")
    lost = await take(engine, sale.id, consumer="one", count=2)
    assert [event.seq for event in lost] == [1, 2]
    # Not yet: the consumer may only be slow.
    rest = await collect(engine, sale.id, consumer="two")
    assert [event.seq for event in rest] == [3]
    again = await collect(engine, sale.id, consumer="two", reclaim_ms=0)
    assert again == lost
    assert await collect(engine, sale.id, consumer="two", reclaim_ms=0) == []


async def test_a_consumer_that_fails_gets_the_batch_again(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale()
    failures = 0
    handled: list[int] = []

    async def consume() -> None:
        nonlocal failures
        async for batch in engine.events(sale.id, "g", follow=False, reclaim_ms=0):
            if failures < 3:
                failures += 1
                raise RuntimeError("the mall is down")
            handled.extend(event.seq for event in batch)

    for _ in range(3):
        with pytest.raises(RuntimeError, match="the mall is down"):
            await consume()
    await consume()
    assert handled == [1, 2]


async def test_two_consumers_share_the_work(make_engine: MakeEngine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 300})
    engines = [await make_engine(batch_max=1) for _ in range(2)]
    await sell(engines[0], sale, *(f"b{i}" for i in range(200)))
    shares = await asyncio.gather(
        *(collect(engine, sale.id, consumer=f"c{i}", count=5) for i, engine in enumerate(engines))
    )
    assert sorted(event.seq for share in shares for event in share) == list(range(1, 203))
    assert all(shares)


async def test_following_waits_for_what_comes(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    seen: asyncio.Queue[Event] = asyncio.Queue()

    async def follow() -> None:
        async for batch in engine.events(sale.id, "g"):
            for event in batch:
                seen.put_nowait(event)

    task = asyncio.create_task(follow())
    try:
        for kind in (EventKind.SALE_CREATED, EventKind.SALE_OPENED):
            assert (await asyncio.wait_for(seen.get(), 30)).kind is kind
        # Longer than one blocking read: it must wait on.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(seen.get(), 1.3)
        await sell(engine, sale, "ann")
        assert (await asyncio.wait_for(seen.get(), 30)).kind is EventKind.HELD
        # It is told to stop while it waits; at any other moment is the next test.
        await asyncio.sleep(0.1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_consumer_can_be_cancelled_at_any_moment(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale()
    lost = []
    for moment in range(15):
        seen = asyncio.Event()

        async def follow(group: str, seen: asyncio.Event) -> None:
            async for _ in engine.events(sale.id, group):
                seen.set()

        task = asyncio.create_task(follow(f"g{moment}", seen))
        await asyncio.wait_for(seen.wait(), 30)
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        # After a lost cancellation it reads on for ever.
        _, pending = await asyncio.wait([task], timeout=60)
        if pending:
            lost.append(moment)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
    assert lost == []


async def test_following_does_not_hold_up_the_engine(
    make_engine: MakeEngine, open_sale: MakeSale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocking readers have connections of their own, however many there are."""
    # Whoever waited for one of them would wait longer than this test does.
    monkeypatch.setattr(
        "seckill.engine.consume",
        lambda *given, **options: consume(*given, **(options | {"block_ms": 60_000})),
    )
    sale = await open_sale()
    engine = await make_engine()
    groups = [engine.events(sale.id, f"g{i}", count=10) for i in range(40)]
    assert all(await asyncio.gather(*(anext(group) for group in groups)))
    waiting = [asyncio.ensure_future(anext(group)) for group in groups]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(40):
        assert (await engine.snapshot(sale.id)).seq == 2
        await sell(engine, sale, "ann")
    assert {batch[0].seq for batch in await asyncio.gather(*waiting)} == {3}
    await asyncio.gather(*(group.aclose() for group in groups))


async def test_events_of_an_unknown_sale(engine: Engine) -> None:
    with pytest.raises(UnknownSale):
        await collect(engine, new_sale_id())
    with pytest.raises(UnknownSale):
        await anext(engine.history(new_sale_id()))


async def test_groups_do_not_touch_what_the_scripts_write(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale()
    await collect(engine, sale.id)
    before: Any = client.xrange(stream_key(sale.id))
    await collect(engine, sale.id, "other")
    assert client.xrange(stream_key(sale.id)) == before
    await engine.pause(sale.id)
    assert [event.seq async for event in engine.history(sale.id)] == [1, 2, 3]
