"""Checks a sale's whole history, event by event, from the events alone.

Kept apart from seckill.verify, which asks more: what both find is found twice, by two hands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from seckill.order import Order, State
from seckill.sale import Sale
from seckill.stream import Event, EventKind

HELD, PAYING, CONFIRMED = State.HELD, State.PAYING, State.CONFIRMED
RELEASED, EXPIRED, REFUNDED = State.RELEASED, State.EXPIRED, State.REFUNDED

# What an order may become from each state. Staying is what refund_due does.
MAY_BECOME: dict[State | None, set[State]] = {
    None: {HELD},
    HELD: {PAYING, CONFIRMED, RELEASED, EXPIRED},
    PAYING: {CONFIRMED, RELEASED, EXPIRED},
    CONFIRMED: {CONFIRMED, REFUNDED},
    RELEASED: {RELEASED},
    EXPIRED: {EXPIRED, CONFIRMED},
    REFUNDED: {REFUNDED},
}

COUNTED_AS = {HELD: "held", PAYING: "held", CONFIRMED: "confirmed"}
"""Where an order's units are. In every other state they are on sale, or gone."""


class Finding(NamedTuple):
    seq: int
    rule: str
    text: str


def check_story(sale: Sale, events: Iterable[Event]) -> Iterator[Finding]:
    """Everything that is wrong with this history."""
    orders: dict[str, Order] = {}
    payments: dict[str, set[str]] = defaultdict(set)
    totals = {item.sku: item.total for item in sale.items}
    skus = [item.sku for item in sale.items]
    seq = at_ms = 0
    for event in events:
        if event.seq != seq + 1:
            yield Finding(event.seq, "seq", f"follows {seq}")
        if event.at_ms < at_ms:
            yield Finding(event.seq, "clock", "time runs back")
        seq, at_ms = event.seq, event.at_ms
        if event.kind is EventKind.STOCK_CHANGED:
            _, index, units, _ = event.detail.split("|")
            totals[skus[int(index)]] += int(units)
        order = event.order
        if order is not None:
            known = orders.get(order.id)
            if order.state not in MAY_BECOME[known.state if known else None]:
                was = known.state if known else "nothing"
                yield Finding(event.seq, "state", f"{order.id} becomes {order.state}, was {was}")
            if order.version != (known.version if known else 0) + 1:
                yield Finding(event.seq, "version", f"{order.id} is at {order.version}")
            if event.kind in {EventKind.CONFIRMED, EventKind.REFUND_DUE}:
                if event.detail in payments[order.id]:
                    yield Finding(event.seq, "outcome", f"{event.detail} was answered before")
                payments[order.id].add(event.detail)
            if event.kind is EventKind.REFUNDED and event.detail.split(",")[1] == "0":
                for sku, units in order.items.items():
                    totals[sku] -= units
            orders[order.id] = order
        # Slow on purpose: counted anew from all orders, so no sum can go wrong unseen.
        taken = _count(orders.values())
        for sku, total in totals.items():
            if sum(taken[sku].values()) > total:
                yield Finding(event.seq, "oversold", f"{sku}: {dict(taken[sku])} of {total}")


def _count(orders: Iterable[Order]) -> dict[str, dict[str, int]]:
    taken: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for order in orders:
        where = COUNTED_AS.get(order.state)
        if where is not None:
            for sku, units in order.items.items():
                taken[sku][where] += units
    return taken
