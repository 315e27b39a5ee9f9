"""What came of it: the replayed stream, the buyers' books and Redis's own figures, side by side."""

from __future__ import annotations

import os
from collections import Counter

import msgspec

from seckill.cli.demo_messages import Books, Mischief
from seckill.engine import Engine
from seckill.order import Order, State
from seckill.sale import Sale
from seckill.snapshot import Snapshot
from seckill.stream import EventKind
from seckill.verify import Verdict, Violation

__all__ = ["Report", "ScriptTime", "SkuReport", "Story", "make_report", "read_story"]


class Story(msgspec.Struct):
    """A sale as its events tell it. ``held`` counts the acceptances of each order id."""

    events: int = 0
    held: Counter[str] = msgspec.field(default_factory=Counter)
    orders: dict[str, Order] = msgspec.field(default_factory=dict)
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    late: int = 0
    units_taken: Counter[str] = msgspec.field(default_factory=Counter)
    units_back: Counter[str] = msgspec.field(default_factory=Counter)
    all_taken_ms: int | None = None


class SkuReport(msgspec.Struct, frozen=True):
    """One SKU's units. ``taken`` counts every hold; what exceeds the total had come back first."""

    sku: str
    title: str
    total: int
    confirmed: int
    held: int
    available: int
    taken: int
    resold: int


class ScriptTime(msgspec.Struct, frozen=True):
    """INFO commandstats of EVALSHA over the whole run."""

    calls: int
    micros: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the last screen shows. ``accepted_became`` counts the accepted orders by the state
    they ended in; ``expired`` counts expiries, after some of which late money bought the order.
    """

    ok: bool
    violations: tuple[Violation, ...]
    sale: str
    title: str
    server: str
    durability: str
    buyers: int
    skus: list[SkuReport]
    accepted: int
    accepted_became: dict[str, int]
    refused: dict[str, int]
    paid: int
    paid_late: int
    expired: int
    released: int
    refunds_due: int
    units_resold: int
    amount_fen: int
    mischief: Mischief
    retried: dict[str, int]
    unanswered: int
    unclaimed: int
    all_taken_after_ms: int | None
    requests: int
    decided: int
    load_seconds: float
    requests_per_s: float
    decided_per_s: float
    decided_per_s_peak: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    script_calls: int
    script_micros_per_decided: float
    events: int
    orders_in_stream: int
    orders_in_sql: int
    seconds: float
    cores: int


async def read_story(engine: Engine, sale: str, opens_ms: int, total: int) -> Story:
    """Reads every event of the sale once more, for what happened rather than for what is wrong."""
    story = Story()
    left = total
    async for event in engine.history(sale):
        story.events += 1
        story.kinds[event.kind] += 1
        order = event.order
        if order is None:
            continue
        before = story.orders.get(order.id)
        taken = event.kind is EventKind.HELD
        if event.kind is EventKind.CONFIRMED and before and before.state is State.EXPIRED:
            story.late += 1
            taken = True
        back = event.kind in (EventKind.EXPIRED, EventKind.RELEASED)
        for sku, quantity in order.items.items():
            story.units_taken[sku] += quantity if taken else 0
            story.units_back[sku] += quantity if back else 0
            left += quantity * (back - taken)
        if event.kind is EventKind.HELD:
            story.held[order.id] += 1
        story.orders[order.id] = order
        if left <= 0 and story.all_taken_ms is None:
            story.all_taken_ms = event.at_ms - opens_ms
    return story


def make_report(
    *,
    engine: Engine,
    sale: Sale,
    snapshot: Snapshot,
    story: Story,
    books: Books,
    verdict: Verdict,
    violations: list[Violation],
    scripts: ScriptTime,
    rows: int,
    peak: float,
    seconds: float,
) -> Report:
    """Puts the figures together."""
    titles = {item.sku: item.title for item in sale.items}
    skus = [
        SkuReport(
            sku,
            titles[sku],
            stock.total,
            stock.confirmed,
            stock.held,
            stock.available,
            story.units_taken[sku],
            max(0, story.units_taken[sku] - stock.total),
        )
        for sku, stock in snapshot.stock.items()
    ]
    paid = [order for order in story.orders.values() if order.state is State.CONFIRMED]
    facts = engine.facts
    return Report(
        ok=not violations,
        violations=tuple(violations),
        sale=snapshot.sale,
        title=sale.title,
        server=facts.version if facts else "",
        durability="appendfsync always",
        buyers=books.buyers,
        skus=skus,
        accepted=story.kinds[EventKind.HELD],
        accepted_became=dict(Counter(order.state.value for order in story.orders.values())),
        refused=dict(Counter(books.refused).most_common()),
        paid=len(paid),
        paid_late=story.late,
        expired=story.kinds[EventKind.EXPIRED],
        released=story.kinds[EventKind.RELEASED],
        refunds_due=story.kinds[EventKind.REFUND_DUE],
        units_resold=sum(sku.resold for sku in skus),
        amount_fen=sum(order.amount_fen for order in paid),
        mischief=books.mischief,
        retried=books.retried,
        unanswered=books.unanswered,
        unclaimed=len(story.orders.keys() - {receipt.order for receipt in books.receipts}),
        all_taken_after_ms=story.all_taken_ms,
        requests=books.requests,
        decided=books.decided,
        load_seconds=round(books.seconds, 2),
        requests_per_s=_per(books.requests, books.seconds),
        decided_per_s=_per(books.decided, books.seconds),
        decided_per_s_peak=round(peak, 1),
        p50_ms=books.p50_ms,
        p90_ms=books.p90_ms,
        p99_ms=books.p99_ms,
        max_ms=books.max_ms,
        script_calls=scripts.calls,
        script_micros_per_decided=_per(scripts.micros, books.decided),
        events=verdict.events,
        orders_in_stream=verdict.orders,
        orders_in_sql=rows,
        seconds=round(seconds, 1),
        cores=os.cpu_count() or 1,
    )


def _per(amount: float, of: float) -> float:
    return round(amount / of, 2) if of else 0.0
