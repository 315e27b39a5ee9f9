"""Proves a sale that has left Redis: its events by the rules of replay.py, and at the end the rows
of the ledger in the place of what Redis held.
"""

from __future__ import annotations

from sqlalchemy import select

from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.rows import Known, Raw, decode, order_of
from seckill.ledger.tables import ITEMS
from seckill.order import Order
from seckill.replay import Replay
from seckill.sale import Sale
from seckill.stream import EventKind
from seckill.verify import Verdict

__all__ = ["prove"]


async def prove(ledger: Ledger, sale: str) -> Verdict:
    """Replays a sale's events from the ledger alone and compares the end with its other tables.

    Raises UnknownSale (the ledger has no such sale), LedgerUnavailable and LedgerRefused.
    """
    row, known = await ledger.sale(sale), await ledger.known(sale)
    replay = Replay(known.sale)
    # As the rows of the items have them, which a refund without its unit leaves alone.
    totals = {item.sku: item.total for item in known.sale.items}
    async for part in ledger.events(sale):
        for raw in part:
            replay = _feed(replay, known, raw, totals)
    if replay.seq < row["seen_seq"]:
        text = f"the ledger ends at {replay.seq}, and Redis was seen at {row['seen_seq']}"
        replay.broken(None, "seq", text)
    if replay.state != row["state"]:
        text = f"the sale's row says {row['state']}, its events {replay.state or 'nothing'}"
        replay.broken(None, "ledger", text)
    await _compare_orders(ledger, known, replay)
    await _compare_items(ledger, known, replay, totals)
    return Verdict(sale, replay.events, len(replay.orders), tuple(replay.violations))


def _feed(replay: Replay, known: Known, raw: Raw, totals: dict[str, int]) -> Replay:
    """The replay that goes on with this event."""
    try:
        event = decode(known, raw)
        if event.seq == 1 and event.kind is EventKind.SALE_CREATED:
            # By the definition that was published, not by what the sale's row says today.
            created = Sale.from_definition(event.detail.encode())
            replay = Replay(created)
            if created != known.sale:
                replay.broken(event, "definition", "the sale's row holds another definition")
        replay.feed(event)
        if event.kind is EventKind.STOCK_CHANGED:
            _, position, _, total = event.detail.rsplit("|", 3)
            totals[known.sale.items[int(position)].sku] = int(total)
    except (LookupError, ValueError):
        # Its text may quote the event, in which a buyer is named.
        replay.broken(None, "ledger", f"event {raw.seq} can't be read")
    return replay


async def _compare_orders(ledger: Ledger, known: Known, replay: Replay) -> None:
    rows = 0
    async for part in ledger.orders(known.sale.id, "id", "state", "record"):
        for order, state, record in part:
            rows += 1
            ours = replay.orders.get(order)
            if ours is None:
                replay.broken(None, "ledger", f"order {order} has a row and no event")
            elif ours.state != state or _other(known, order, record, ours):
                replay.broken(None, "ledger", f"the row of order {order} differs from its events")
    if rows < len(replay.orders):
        missing = len(replay.orders) - rows
        replay.broken(None, "ledger", f"{missing} of {len(replay.orders)} orders have no row")


def _other(known: Known, order: str, record: str, ours: Order) -> bool:
    try:
        return order_of(known, order, record) != ours
    except (LookupError, ValueError):
        return True


async def _compare_items(
    ledger: Ledger, known: Known, replay: Replay, told: dict[str, int]
) -> None:
    query = select(ITEMS.c.sku, ITEMS.c.total).where(ITEMS.c.sale == known.sale.id)
    with our_errors():
        async with ledger.engine.connect() as connection:
            totals = {row.sku: row.total for row in await connection.execute(query)}
    if totals != told:
        replay.broken(None, "ledger", f"the items' totals are {totals}, by their events {told}")
    for sku, units in replay.units.items():
        if units.available + units.held + units.confirmed != units.total:
            replay.broken(None, "conservation", f"SKU {sku}: {units}")
