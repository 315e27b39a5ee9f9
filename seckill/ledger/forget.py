"""Forgetting buyers: their ids in the ledger become pseudonyms, and what callers gave along with
their orders is emptied. Orders, amounts and payments stay, as the books demand.

In one sale a buyer has one pseudonym, so limits and ``verify`` still hold; in another sale another
one, so that nobody can be followed through them. How pseudonyms were made is kept nowhere. None is
an id that a buyer could have: ids have no spaces.

Only a sale that has left Redis is touched. Until then Redis knows the buyer; a refund would write
the id into the ledger again, and ``reconcile`` would find the two to differ. Archives are files of
the mall, which are not touched either.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seckill.errors import SeckillError
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.tables import EVENTS, ORDERS, SALES
from seckill.sale import check_buyer
from seckill.stream import SALE_SUBJECT, EventKind

__all__ = ["Forgotten", "Retired", "StillKnown", "forget", "retire"]

READ_ROWS: Final = 2_000
# Orders of one condition on events; a buyer seldom has as many.
ORDERS_MAX: Final = 500
# What pseudonyms begin with. The second kind says that a whole sale was gone through.
_FORGOTTEN: Final = "forgotten "
_RETIRED: Final = "retired "


class StillKnown(SeckillError):
    """A buyer can't be forgotten yet, because sales of theirs are still in Redis. Nothing was
    changed. ``settled`` and ``running`` name them."""

    def __init__(self, settled: Sequence[str], running: Sequence[str]) -> None:
        self.settled = tuple(settled)
        self.running = tuple(running)
        parts = []
        if running:
            parts.append(f"sales that are not settled: {', '.join(running)} (seckill sale close)")
        if settled:
            parts.append(f"sales that are still in Redis: {', '.join(settled)}")
        super().__init__(
            f"the buyer has orders in {' and in '.join(parts)}; Redis knows the buyer until"
            " `seckill sale remove`, and nothing was changed"
        )


class Forgotten(msgspec.Struct, frozen=True):
    """What was done: the sales with orders of the buyer, how many orders, how many events."""

    sales: tuple[str, ...]
    orders: int
    events: int


class Retired(msgspec.Struct, frozen=True):
    """``sales`` were gone through now; ``waiting`` are as old, but have not left Redis."""

    sales: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


async def forget(ledger: Ledger, buyer: str) -> Forgotten:
    """Forgets a buyer in all sales, in one transaction. Repeating it finds nothing more to do.

    Raises StillKnown, InvalidInput, LedgerUnavailable, LedgerRefused.
    """
    check_buyer(buyer, "BUYER")
    with our_errors():
        async with ledger.engine.begin() as connection:
            query = (
                select(SALES.c.sale, SALES.c.state, SALES.c.removed_at_ms)
                .where(SALES.c.sale.in_(select(ORDERS.c.sale).where(ORDERS.c.buyer == buyer)))
                .order_by(SALES.c.sale)
            )
            rows = (await connection.execute(query)).all()
            there = [row for row in rows if not row.removed_at_ms]
            if there:
                raise StillKnown(
                    [row.sale for row in there if row.state == "settled"],
                    [row.sale for row in there if row.state != "settled"],
                )
            orders = events = 0
            for row in rows:
                pseudonym = _FORGOTTEN + secrets.token_hex(8)
                ids = await _rename_buyer(connection, row.sale, buyer, pseudonym)
                orders += len(ids)
                for start in range(0, len(ids), ORDERS_MAX):
                    part = ids[start : start + ORDERS_MAX]
                    events += await _rename_in_events(
                        connection, row.sale, EVENTS.c.subject.in_(part)
                    )
    return Forgotten(tuple(row.sale for row in rows), orders, events)


async def retire(ledger: Ledger, *, before_ms: int) -> Retired:
    """Forgets all buyers of the sales that ended before this time and have left Redis.

    Each sale's orders change in one transaction, then its events in many small ones. Cut off and
    called again it goes on where it was; of a sale that is done it costs one query. Raises
    LedgerUnavailable, LedgerRefused.
    """
    done, waiting = [], []
    for row in await ledger.sales():
        if row["ends_ms"] >= before_ms or await _is_retired(ledger, row["sale"]):
            continue
        if not row["removed_at_ms"]:
            waiting.append(row["sale"])
            continue
        await _retire(ledger, row["sale"])
        done.append(row["sale"])
    return Retired(tuple(done), tuple(waiting))


async def _is_retired(ledger: Ledger, sale: str) -> bool:
    """Events are gone through in the order of seq, so the last one of an order tells."""
    query = (
        select(EVENTS.c.body)
        .where(EVENTS.c.sale == sale, EVENTS.c.subject != SALE_SUBJECT)
        .order_by(EVENTS.c.seq.desc())
        .limit(1)
    )
    with our_errors():
        async with ledger.engine.connect() as connection:
            body = await connection.scalar(query)
    return body is None or body.split("|")[3].startswith(_RETIRED)


async def _retire(ledger: Ledger, sale: str) -> None:
    any_order = select(ORDERS.c.buyer).where(ORDERS.c.sale == sale).limit(1)
    with our_errors():
        async with ledger.engine.begin() as connection:
            # One process at a time: of two, each would give every buyer a pseudonym of its own.
            await connection.execute(update(SALES).where(SALES.c.sale == sale).values(sale=sale))
            # One transaction, so one order tells of all.
            first = await connection.scalar(any_order)
            if first is not None and not first.startswith(_RETIRED):
                await _rename_all(connection, sale)
        after = 0
        while True:
            async with ledger.engine.begin() as connection:
                upto = await connection.scalar(
                    select(EVENTS.c.seq)
                    .where(EVENTS.c.sale == sale, EVENTS.c.seq > after)
                    .order_by(EVENTS.c.seq)
                    .offset(READ_ROWS - 1)
                    .limit(1)
                )
                here = [EVENTS.c.seq > after, *([EVENTS.c.seq <= upto] if upto else [])]
                await _rename_in_events(connection, sale, *here)
            if upto is None:
                return
            after = upto


async def _rename_buyer(
    connection: AsyncConnection, sale: str, buyer: str, pseudonym: str
) -> list[str]:
    """Renames the buyer in the orders of a sale; the orders' ids."""
    query = select(ORDERS.c.id, ORDERS.c.buyer, ORDERS.c.record).where(
        ORDERS.c.sale == sale, ORDERS.c.buyer == buyer
    )
    rows = (await connection.execute(query.order_by(ORDERS.c.id))).all()
    await _write_orders(connection, sale, rows, lambda _: pseudonym)
    return [row.id for row in rows]


async def _rename_all(connection: AsyncConnection, sale: str) -> None:
    """Renames every buyer of a sale. The key that makes a buyer's pseudonym always the same lives
    as long as this does."""
    key = secrets.token_bytes(32)

    def pseudonym(buyer: str) -> str:
        return _RETIRED + hmac.digest(key, buyer.encode(), sha256).hex()[:16]

    after = ""
    while True:
        query = (
            select(ORDERS.c.id, ORDERS.c.buyer, ORDERS.c.record)
            .where(ORDERS.c.sale == sale, ORDERS.c.id > after)
            .order_by(ORDERS.c.id)
            .limit(READ_ROWS)
        )
        rows = (await connection.execute(query)).all()
        if not rows:
            return
        await _write_orders(connection, sale, rows, pseudonym)
        after = rows[-1].id


async def _write_orders(
    connection: AsyncConnection, sale: str, rows: Iterable[Any], name: Callable[[str], str]
) -> None:
    statement = (
        update(ORDERS)
        .where(ORDERS.c.sale == sale, ORDERS.c.id == bindparam("order"))
        .values(buyer=bindparam("name"), record=bindparam("text"), attrs="")
    )
    changes = []
    for row in rows:
        head, cart, _, *rest = row.record.split("|")
        new = name(row.buyer)
        changes.append({"order": row.id, "name": new, "text": "|".join((head, cart, new, *rest))})
    if changes:
        await connection.execute(statement, changes)


async def _rename_in_events(connection: AsyncConnection, sale: str, *which: Any) -> int:
    """Gives events the buyer that their order's row has by now; how many were changed."""
    query = (
        select(EVENTS.c.seq, EVENTS.c.kind, EVENTS.c.body, ORDERS.c.buyer)
        .select_from(EVENTS)
        .join(ORDERS, ORDERS.c.id == EVENTS.c.subject)
        .where(EVENTS.c.sale == sale, ORDERS.c.sale == sale, *which)
        .order_by(EVENTS.c.seq)
    )
    statement = (
        update(EVENTS)
        .where(EVENTS.c.sale == sale, EVENTS.c.seq == bindparam("number"))
        .values(body=bindparam("text"))
    )
    changes = []
    for row in (await connection.execute(query)).all():
        detail, head, cart, _, *rest = row.body.split("|")
        if row.kind == EventKind.HELD:
            rest = [""]  # What the caller gave along, bars and all.
        text = "|".join((detail, head, cart, row.buyer, *rest))
        if text != row.body:
            changes.append({"number": row.seq, "text": text})
    if changes:
        await connection.execute(statement, changes)
    return len(changes)
