"""What became of a sale, from the ledger alone: what was sold and for how much, how fast, what came
back, who was refused.

Made in one reading transaction, so that all figures are of one moment. What a database adds up best
it adds up; what depends on the order of things (the stock at each moment) comes from one pass over
the events in the order of their seq. In memory are the figures, the curve and the ids of orders
that were paid late, which are few; never all orders.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seckill.errors import UnknownSale
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.report_stock import Bucket, SkuReport, StockStory
from seckill.ledger.tables import EVENTS, ORDERS, SALES
from seckill.sale import Sale
from seckill.stream import EventKind

__all__ = ["Bucket", "Report", "SkuReport", "left_out", "make_report", "snapshot"]

READ_ROWS: Final = 5_000
# A curve of more points says no more on a page or a screen.
BUCKETS_MAX: Final = 120
_SECOND: Final = 1_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_BUCKETS_MS: Final = (
    *(n * _SECOND for n in (1, 2, 5, 10, 15, 30)),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 6, 12, 24, 48, 168)),
)
_STATES: Final = ("held", "paying", "confirmed", "refunded", "released", "expired")
_SOLD: Final = ("confirmed", "refunded")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A sale as of its event ``as_of_seq``; money in fen, times in Unix ms on the sale's clock.

    ``as_of_ms`` is up to when the ledger knows all there was; ``missing_events`` are events before
    that one which have not been written yet. ``removed_at_ms``: when its keys left Redis, 0 while
    they are there. ``began_ms`` is when it could first be bought from: the announced opening, or
    the moment it was really opened if that was later; 0 if it never was.

    ``gross_fen`` is all that orders were paid with, ``refunded_fen`` what was refunded of it,
    ``net_fen`` the difference. ``due_back_fen`` is money beyond that, which came late or twice and
    bought nothing, by ``due_back_payments`` payments; each is taken to be the order's whole amount.
    ``sold`` counts units paid for and not refunded. ``came_back`` counts units that expired, were
    released or refunded into the stock again, ``resold`` those of them that were ordered once more
    (a unit that nobody had yet goes first).

    ``paid_orders`` is how many of ``orders`` were ever paid, ``late_orders`` how many of those
    after they had expired; ``pay_median_ms`` and ``pay_p90_ms`` are from order to payment, None if
    nothing was paid. ``refusals`` counts answers by status, as far as the engines have told them.
    ``sold_out_after_ms`` is when everything was gone for the first time, from ``began_ms`` on.
    ``curve`` has a bucket of ``bucket_ms`` for each stretch in which something was ordered or paid;
    ``first_minute`` counts the units ordered in each of the first 60 seconds from ``began_ms`` on.
    """

    sale: str
    title: str
    state: str
    reason: str
    opens_ms: int
    ends_ms: int
    began_ms: int
    as_of_seq: int
    as_of_ms: int
    missing_events: int
    removed_at_ms: int
    gross_fen: int
    refunded_fen: int
    net_fen: int
    due_back_payments: int
    due_back_fen: int
    total: int
    sold: int
    refunded: int
    held: int
    unsold: int
    came_back: int
    resold: int
    sold_out_after_ms: int | None
    orders: int
    orders_by_state: dict[str, int]
    buyers: int
    paying_buyers: int
    first_order_ms: int
    last_order_ms: int
    paid_orders: int
    late_orders: int
    pay_median_ms: int | None
    pay_p90_ms: int | None
    refusals: dict[str, int]
    skus: list[SkuReport]
    bucket_ms: int
    curve: list[Bucket]
    first_minute: list[int]

    @property
    def pay_through(self) -> float | None:
        """The share of accepted orders that were paid, 0 to 1; None if there was none."""
        return self.paid_orders / self.orders if self.orders else None

    @property
    def running(self) -> bool:
        """Whether the figures may still change by more than a refund."""
        return self.state != "settled"

    def data(self) -> dict[str, Any]:
        """For programs: the fields, and what follows from them."""
        return {**msgspec.structs.asdict(self), "pay_through": self.pay_through}


@asynccontextmanager
async def snapshot(ledger: Ledger) -> AsyncIterator[AsyncConnection]:
    """A connection to which the ledger stands still. What is done with it raises what its driver
    raises (``database.our_errors``)."""
    with our_errors():
        connection = await ledger.engine.connect()
    try:
        with our_errors():
            if connection.dialect.name == "sqlite":
                # The driver begins a transaction with the first write only.
                await connection.exec_driver_sql("BEGIN")
            else:
                connection = await connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection
    finally:
        with our_errors():
            await connection.close()


async def left_out(connection: AsyncConnection, sale: str) -> int:
    """How many seqs there never were: a rebuild after a loss begins far past the last event."""
    query = select(EVENTS.c.seq, EVENTS.c.body).where(
        EVENTS.c.sale == sale, EVENTS.c.kind == str(EventKind.SALE_REBUILT)
    )
    rows = (await connection.execute(query)).all()
    return sum(seq - int(body.partition("|")[0]) - 1 for seq, body in rows)


async def make_report(ledger: Ledger, sale: str) -> Report:
    """The report of a sale that the ledger knows. Raises UnknownSale, LedgerUnavailable and
    LedgerRefused; works while the sale runs, and after its keys have left Redis."""
    async with snapshot(ledger) as connection:
        with our_errors():
            found = await connection.execute(select(SALES).where(SALES.c.sale == sale))
            row = found.mappings().first()
            if row is None:
                raise UnknownSale(sale)
            return await _Reading(connection, row).report()


class _Reading:
    """One report in the making."""

    def __init__(self, connection: AsyncConnection, row: Any) -> None:
        self._connection = connection
        self._row = row
        self._id = row["sale"]
        self._definition = Sale.from_definition(row["definition"].encode())
        self._of_orders = ORDERS.c.sale == self._id
        self._of_events = EVENTS.c.sale == self._id

    async def report(self) -> Report:
        row, sale = self._row, self._definition
        seq, last_ms, events = await self._one(
            select(func.max(EVENTS.c.seq), func.max(EVENTS.c.at_ms), func.count()).where(
                self._of_events
            )
        )
        by_state = await self._by_state()
        orders = sum(count for count, _ in by_state.values())
        gross_fen = sum(by_state[state][1] for state in _SOLD)
        refunded_fen = by_state["refunded"][1]
        first_ms, newest_ms = await self._one(
            select(func.min(ORDERS.c.held_ms), func.max(ORDERS.c.held_ms)).where(
                self._of_orders, ORDERS.c.held_ms > 0
            )
        )
        paid, median_ms, p90_ms = await self._pay_times()
        story, late = await self._story()
        as_of_ms = self._as_of_ms(seq or 0, last_ms or 0)
        skus = story.skus(as_of_ms)
        return Report(
            sale=sale.id,
            title=sale.title,
            state=row["state"],
            reason=row["reason"],
            opens_ms=sale.opens_ms,
            ends_ms=sale.ends_ms,
            began_ms=story.began_ms,
            as_of_seq=seq or 0,
            as_of_ms=as_of_ms,
            missing_events=(seq or 0) - events - await left_out(self._connection, self._id),
            removed_at_ms=row["removed_at_ms"],
            gross_fen=gross_fen,
            refunded_fen=refunded_fen,
            net_fen=gross_fen - refunded_fen,
            due_back_payments=story.due_back_payments,
            due_back_fen=story.due_back_fen,
            total=sum(sku.total for sku in skus),
            sold=sum(sku.sold for sku in skus),
            refunded=sum(sku.refunded for sku in skus),
            held=sum(sku.held for sku in skus),
            unsold=sum(sku.unsold for sku in skus),
            came_back=sum(sku.came_back for sku in skus),
            resold=sum(sku.resold for sku in skus),
            sold_out_after_ms=story.sold_out_after_ms,
            orders=orders,
            orders_by_state={state: count for state, (count, _) in by_state.items()},
            buyers=await self._buyers(),
            paying_buyers=await self._buyers(ORDERS.c.state.in_(_SOLD)),
            first_order_ms=first_ms or 0,
            last_order_ms=newest_ms or 0,
            paid_orders=paid,
            late_orders=late,
            pay_median_ms=median_ms,
            pay_p90_ms=p90_ms,
            refusals=_refusals(row["refusals"]),
            skus=skus,
            bucket_ms=story.bucket_ms,
            curve=story.curve(),
            first_minute=story.first_minute,
        )

    async def _one(self, query: Any) -> Any:
        return (await self._connection.execute(query)).one()

    def _as_of_ms(self, seq: int, last_ms: int) -> int:
        """The last event's time; or when Redis was last seen to have nothing newer."""
        seen = self._row["seen_at_ms"] if self._row["seen_seq"] <= seq else 0
        return max(last_ms, min(seen, int(time.time() * 1000)))

    async def _by_state(self) -> dict[str, tuple[int, int]]:
        """How many orders of each state, and what they amount to."""
        query = (
            select(ORDERS.c.state, func.count(), func.sum(ORDERS.c.amount_fen))
            .where(self._of_orders)
            .group_by(ORDERS.c.state)
        )
        # A sum of whole numbers is a Decimal to some drivers.
        found = {state: (n, int(fen)) for state, n, fen in await self._connection.execute(query)}
        return {state: found.get(state, (0, 0)) for state in _STATES}

    async def _buyers(self, *only: Any) -> int:
        query = select(func.count(ORDERS.c.buyer.distinct())).where(self._of_orders, *only)
        return int((await self._one(query))[0])

    async def _pay_times(self) -> tuple[int, int | None, int | None]:
        """How many payments bought an order; the median and 90 % of the time that took, ms."""
        paid = and_(self._of_events, EVENTS.c.kind == str(EventKind.CONFIRMED))
        (count,) = await self._one(select(func.count()).where(paid))
        took = (EVENTS.c.at_ms - ORDERS.c.held_ms).label("took")
        known = (
            select(took)
            .select_from(EVENTS)
            .join(ORDERS, and_(self._of_orders, ORDERS.c.id == EVENTS.c.subject))
            .where(paid, ORDERS.c.held_ms > 0)
        )
        (timed,) = await self._one(select(func.count()).select_from(known.subquery()))
        ranks = [max(0, -(-timed * share // 100) - 1) for share in (50, 90)]
        times = [
            await self._connection.scalar(known.order_by(took).offset(rank).limit(1))
            for rank in ranks
        ]
        return count, times[0], times[1]

    async def _story(self) -> tuple[StockStory, int]:
        """What happened to the stock, and how many orders were paid after they had expired."""
        late = await self._late()
        shown = (str(EventKind.HELD), str(EventKind.CONFIRMED))
        first_ms, last_ms = await self._one(
            select(func.min(EVENTS.c.at_ms), func.max(EVENTS.c.at_ms)).where(
                self._of_events, EVENTS.c.kind.in_(shown)
            )
        )
        bucket_ms = _bucket_ms((last_ms or 0) - (first_ms or 0))
        story = StockStory(self._definition, late, bucket_ms)
        after = 0
        columns = (EVENTS.c.seq, EVENTS.c.at_ms, EVENTS.c.kind, EVENTS.c.subject, EVENTS.c.body)
        while True:
            query = (
                select(*columns)
                .where(self._of_events, EVENTS.c.seq > after)
                .where(EVENTS.c.kind != str(EventKind.PAYING))  # It moves no unit.
                .order_by(EVENTS.c.seq)
                .limit(READ_ROWS)
            )
            rows = (await self._connection.execute(query)).all()
            for _, at_ms, kind, subject, body in rows:
                story.feed(at_ms, kind, subject, body)
            if len(rows) < READ_ROWS:
                return story, len(late)
            after = rows[-1][0]

    async def _late(self) -> frozenset[str]:
        """The orders that were paid after they had expired."""
        kinds = (str(EventKind.EXPIRED), str(EventKind.CONFIRMED))
        query = (
            select(EVENTS.c.subject)
            .where(self._of_events, EVENTS.c.kind.in_(kinds))
            .group_by(EVENTS.c.subject)
            # Each of the two happens to an order once at most, and expiry never after payment.
            .having(func.count() == len(kinds))
        )
        return frozenset((await self._connection.execute(query)).scalars())


def _bucket_ms(length_ms: int) -> int:
    """The shortest stretch of which not too many cover this length."""
    fitting = (bucket for bucket in _BUCKETS_MS if length_ms < bucket * (BUCKETS_MAX - 1))
    return next(fitting, -(-length_ms // (BUCKETS_MAX - 1)))


def _refusals(text: str) -> dict[str, int]:
    counts = Counter(msgspec.json.decode(text, type=dict[str, int]))
    return dict(counts.most_common())
