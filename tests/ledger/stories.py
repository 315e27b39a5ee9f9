"""Sales with a whole story, and whether a ledger tells it as Redis does.

STEPS, tell     a story from steps: some of everything that can happen in a sale
read_known      what a runner reads of a sale before its events
read_raws       the events as they stand in the stream
differences     what a ledger's tables say otherwise than Redis; it shares no code with rows.py
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from seckill.engine import Engine
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.rows import Known, Raw, raw_of
from seckill.ledger.run import LedgerRunner
from seckill.order import Order
from seckill.sale import Sale
from seckill.snapshot import Snapshot
from seckill.stream import Event, EventKind
from tests.support import async_client, make_item, make_sale, travel

__all__ = [
    "STEPS",
    "differences",
    "read_known",
    "read_raws",
    "running",
    "story_sale",
    "tell",
    "until",
]

ORDER_COLUMNS = (
    *("id", "buyer", "state", "version", "items", "units", "amount_fen", "deadline_ms"),
    *("payment", "refund", "held_ms", "changed_ms", "attrs", "record"),
)
ATTRS = ("", "room=1;share=abc", "留言|给妈妈|'\"; DROP TABLE seckill_orders --", "a|b\\|😀%s :x")
CARTS = ({"a": 1}, {"b": 2}, {"a": 1, "b": 1}, {"c": 3, "a": 2})


def story_sale() -> Sale:
    """Three SKUs, one of them for free; the second is scarce."""
    items = (
        make_item("a", total=60, title="商品 “甲” 'x'"),
        make_item("b", total=9, price_fen=100),
        make_item("c", total=500, price_fen=0),
    )
    return make_sale(items=items, title="晚8点秒杀 😀", hold_ms=60_000, pay_ms=60_000)


# One step is a verb and two numbers that choose what it is about. Most steps are about orders.
STEPS = (
    *("reserve", "reserve", "reserve", "begin_payment", "confirm", "confirm", "confirm_again"),
    *("release", "refund", "refund", "add_stock", "pause", "resume", "expire", "many", "close"),
)


async def tell(engine: Engine, sale: Sale, steps: list[tuple[str, int, int]]) -> None:
    """Creates and opens the sale and does these steps, whatever each of them answers."""
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    orders: list[str] = []
    for number, (verb, first, second) in enumerate(steps):
        order = orders[first % len(orders)] if orders else "00" + 22 * "0"
        match verb:
            case "reserve" | "many":
                for more in range(40 if verb == "many" else 1):
                    outcome = await engine.reserve(
                        *(sale.id, f"buyer-{first % 5}-{more}", f"k{number}"),
                        CARTS[second % 4],
                        attrs=ATTRS[first % 4],
                    )
                    orders += [outcome.order.id] if outcome.order else []
            case "begin_payment":
                await engine.begin_payment(sale.id, order)
            case "confirm":
                await engine.confirm(sale.id, order, f"pay-{number}")
            case "confirm_again":
                await engine.confirm(sale.id, order, f"pay-{second % 3}")
            case "release":
                await engine.release(sale.id, order)
            case "refund":
                choices = {"return_units": bool(second & 1), "return_limit": bool(second & 2)}
                await engine.refund(sale.id, order, f"refund-{first % 3}", **choices)
            case "add_stock":
                units = (1, 7, -1, -40)[second % 4]
                await engine.add_stock(sale.id, "abc"[first % 3], units, key=f"k{number}")
            case "pause":
                await engine.pause(sale.id, ("", "库存核对中 'x' | 稍后")[second % 2])
            case "resume":
                await engine.resume(sale.id)
            case "close":
                if first % 4 == 0:  # Else the stories would be short.
                    await engine.close(sale.id)
            case "expire":
                await travel(engine, sale.id, 60_001)
                await engine._expire(sale.id, 100)


async def read_known(engine: Engine, sale: str) -> Known:
    async with async_client(engine.url) as client:
        fields: Any = client.hmget(shard_keys(sale)[0], "definition", "origin_ms", "made")
        definition, origin_ms, made = await fields
    return Known(Sale.from_definition(definition), int(origin_ms), made.decode())


async def read_raws(engine: Engine, sale: str) -> list[Raw]:
    """By a script, because redis-py would make a dict of an entry's fields and so hide a double."""
    async with async_client(engine.url) as client:
        script: Any = client.eval(
            "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, stream_key(sale)
        )
        entries = await script
    return [raw for entry_id, fields in entries for raw in raw_of(entry_id, fields)]


async def differences(ledger: Ledger, engine: Engine, sale: str) -> list[str]:
    """Every order, event, item and the sale itself: what is not as Redis has it.

    ``engine`` must not have met the sale before time was moved in it.
    """
    found = []
    raws = await read_raws(engine, sale)
    there = [raw async for part in ledger.events(sale) for raw in part]
    if there != raws:
        missing = sorted({raw.seq for raw in raws} - {raw.seq for raw in there})
        found.append(f"events: {len(there)} of {len(raws)}, missing {missing[:5]}")
    events = [event async for event in engine.history(sale)]
    rows = {
        row[0]: dict(zip(ORDER_COLUMNS, row, strict=True))
        async for part in ledger.orders(sale, *ORDER_COLUMNS)
        for row in part
    }
    wanted = await _orders(engine, sale, events)
    found += [f"order {order} is missing" for order in sorted(wanted.keys() - rows.keys())]
    found += [f"order {order} is too many" for order in sorted(rows.keys() - wanted.keys())]
    for order in sorted(rows.keys() & wanted.keys()):
        row = rows[order] | {"items": json.loads(rows[order]["items"])}
        if row != wanted[order]:
            found.append(f"order {order}: {row} is not {wanted[order]}")
    found += await _of_the_sale(ledger, engine, sale, events)
    return found


async def _orders(engine: Engine, sale: str, events: list[Event]) -> dict[str, dict[str, Any]]:
    async with async_client(engine.url) as client:
        all_records: Any = client.hgetall(shard_keys(sale)[3])
        records = await all_records
    wanted = {}
    for field, record in records.items():
        order = await engine.order(sale, field.decode())
        assert order is not None
        wanted[order.id] = _row_of(order) | {"record": record.decode()}
    for event in events:
        if event.order is not None:
            row = wanted[event.order.id]
            row["changed_ms"] = event.at_ms
            if event.kind is EventKind.HELD:
                row |= {"held_ms": event.at_ms, "attrs": event.attrs}
    return wanted


def _row_of(order: Order) -> dict[str, Any]:
    paid = order.state in ("confirmed", "refunded")
    return {
        "id": order.id,
        "buyer": order.buyer,
        "state": str(order.state),
        "version": order.version,
        "items": order.items,
        "units": sum(order.items.values()),
        "amount_fen": order.amount_fen,
        "deadline_ms": order.deadline_ms,
        "payment": order.payments[0] if paid else "",
        "refund": order.refund,
    }


async def _of_the_sale(ledger: Ledger, engine: Engine, sale: str, events: list[Event]) -> list[str]:
    found = []
    snapshot = await engine.snapshot(sale)
    row = await ledger.sale(sale)
    definition = await engine.sale(sale)
    for name, value in {
        "state": str(snapshot.state),
        "reason": snapshot.reason,
        "definition": definition.definition().decode(),
        "opens_ms": definition.opens_ms,
        "ends_ms": definition.ends_ms,
    }.items():
        if row[name] != value:
            found.append(f"sale: {name} is {row[name]!r}, not {value!r}")
    async with ledger.engine.connect() as connection:
        query = "SELECT sku, title, price_fen, total FROM seckill_items WHERE sale = '%s'"
        items = await connection.exec_driver_sql(query % sale + " ORDER BY position")
        there = [tuple(item) for item in items]
    wanted = [
        (item.sku, item.title, item.price_fen, total)
        for item, total in zip(definition.items, _totals(snapshot, events), strict=True)
    ]
    if there != wanted:
        found.append(f"items: {there} are not {wanted}")
    return found


def _totals(snapshot: Snapshot, events: list[Event]) -> list[int]:
    """What Redis counts, and what was refunded without return since the last change of stock: the
    ledger's totals are as of that change."""
    gone: dict[str, int] = {}
    skus = list(snapshot.stock)
    for event in events:
        if event.kind is EventKind.STOCK_CHANGED:
            gone.pop(skus[int(event.detail.split("|")[1])], None)
        elif event.kind is EventKind.REFUNDED and event.detail.split(",")[1] == "0":
            assert event.order is not None
            for sku, units in event.order.items.items():
                gone[sku] = gone.get(sku, 0) + units
    return [stock.total + gone.get(sku, 0) for sku, stock in snapshot.stock.items()]


@asynccontextmanager
async def running(engine: Engine, ledger: Ledger, **options: Any) -> AsyncIterator[LedgerRunner]:
    """A runner that is told to stop in the end."""
    runner = LedgerRunner(engine, ledger, **options)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        # Less than what a database that is away is waited for.
        async with asyncio.timeout(14):
            await task


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 60) -> None:
    """Waits for it, and fails the test when it does not come."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)
