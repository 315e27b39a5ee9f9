"""The rules by which ``seckill.verify`` judges a sale, written again from the definition in its
first event. Nothing here shares code with the scripts.

Checked at every event: a dense seq and a clock that never runs back; one acceptance an order; legal
states and versions up by one; limits; and for each SKU that nothing was sold that was not there.

    order_held        (new)             → held        available → held
    order_paying      held              → paying
    order_confirmed   held, paying      → confirmed   held → confirmed
                      expired           → confirmed   available → confirmed
    order_released    held, paying      → released    held → available
    order_expired     held, paying      → expired     held → available
    order_refunded    confirmed         → refunded    confirmed → available, or out of the total
    refund_due        all but held, paying: state unchanged

A sale that was rebuilt after a loss goes on with ``sale_rebuilt``: only this event may leave a gap,
and it must begin exactly where the ledger ends, with as many orders. What was lost in between is
known to nobody. Until the sale is resumed, orders that only Redis knew may follow as new ones: held
within stock and limits, or expired or released from the start, and then without a unit. Until then
versions may also jump, because they go on above those that Redis had.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import msgspec

from seckill.draw import commitment_of
from seckill.order import Order, State
from seckill.sale import Sale
from seckill.stream import Event, EventKind

__all__ = ["Replay", "Violation"]

VIOLATIONS_MAX: Final = 100


class Violation(msgspec.Struct, frozen=True):
    """One broken promise. ``seq`` is the event at which it shows, 0 where it shows at the end."""

    seq: int
    rule: str
    text: str


class _Units(msgspec.Struct):
    available: int
    held: int
    confirmed: int
    total: int


_MOVES: Final[dict[EventKind, tuple[frozenset[State], State]]] = {
    EventKind.PAYING: (frozenset({State.HELD}), State.PAYING),
    EventKind.CONFIRMED: (
        frozenset({State.HELD, State.PAYING, State.EXPIRED}),
        State.CONFIRMED,
    ),
    EventKind.RELEASED: (frozenset({State.HELD, State.PAYING}), State.RELEASED),
    EventKind.EXPIRED: (frozenset({State.HELD, State.PAYING}), State.EXPIRED),
    EventKind.REFUNDED: (frozenset({State.CONFIRMED}), State.REFUNDED),
}
_SALE_MOVES: Final[dict[EventKind, tuple[frozenset[str], str]]] = {
    EventKind.SALE_CREATED: (frozenset({""}), "created"),
    EventKind.SALE_OPENED: (frozenset({"created"}), "open"),
    EventKind.SALE_PAUSED: (frozenset({"open"}), "paused"),
    EventKind.SALE_RESUMED: (frozenset({"paused"}), "open"),
    EventKind.SALE_CLOSED: (frozenset({"created", "open", "paused"}), "closed"),
    EventKind.SALE_SETTLED: (frozenset({"closed"}), "settled"),
}


_QUEUE_KINDS: Final = frozenset(kind for kind in EventKind if kind.name.startswith("QUEUE_"))

# What an order that only Redis knew may be from its first event on, beside held.
_ADMITTED: Final = (EventKind.EXPIRED, EventKind.RELEASED)
_REBUILT_AS: Final[dict[str, tuple[str, ...]]] = {
    # From a ledger that had none of its events.
    "": ("created", "paused"),
    # A sale whose opening was lost as well has orders to admit.
    "created": ("created", "paused"),
    "open": ("paused",),
    "paused": ("paused",),
    "closed": ("closed",),
    "settled": ("settled",),
}


class Replay:
    """The naive model: feed it events in order, then compare it with what Redis holds."""

    def __init__(self, sale: Sale) -> None:
        self.sale = sale
        self.violations: list[Violation] = []
        self.seq = 0
        self.events = 0
        self.at_ms = 0
        self.state = ""
        self.orders: dict[str, Order] = {}
        self.units = {item.sku: _Units(item.total, 0, 0, item.total) for item in sale.items}
        self.owned: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.lapsed: defaultdict[str, int] = defaultdict(int)
        self._queue: dict[EventKind, str] = {}
        self._queue_lost = False
        self._admitting = False
        self._spared_ms = 0
        self._limits = {item.sku: item.limit_per_buyer for item in sale.items}

    def feed(self, event: Event) -> None:
        """Checks one event and applies it."""
        rebuilt = event.kind is EventKind.SALE_REBUILT
        if event.seq <= self.seq if rebuilt else event.seq != self.seq + 1:
            self.broken(event, "seq", f"event {event.seq} follows event {self.seq}")
        if event.at_ms < self.at_ms:
            self.broken(event, "clock", f"{event.at_ms} ms follows {self.at_ms} ms")
        before, self.seq, self.at_ms = (self.seq, self.at_ms), event.seq, event.at_ms
        self.events += 1
        if event.order is not None:
            self._feed_order(event, event.order)
        elif event.kind is EventKind.STOCK_CHANGED:
            self._change_stock(event)
        elif rebuilt:
            self._begin_again(event, before)
        elif event.kind in _QUEUE_KINDS:
            self._feed_queue(event)
        else:
            self._feed_sale(event)
        for sku, units in self.units.items():
            if min(units.available, units.held, units.confirmed) < 0:
                self.broken(
                    event,
                    "oversold" if units.available < 0 else "stock",
                    f"SKU {sku}: {units.available} available, {units.held} held, "
                    f"{units.confirmed} confirmed of {units.total}",
                )
                return

    def broken(self, event: Event | None, rule: str, text: str) -> None:
        """Notes a broken promise; ``event`` None where it shows at the end."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(event.seq if event else 0, rule, text))

    def _feed_sale(self, event: Event) -> None:
        before, after = _SALE_MOVES[event.kind]
        if self.state not in before:
            self.broken(event, "sale state", f"{event.kind} in a sale that is {self.state!r}")
        self.state, self._admitting = after, False
        if event.kind is EventKind.SALE_SETTLED:
            held = sum(units.held for units in self.units.values())
            if held:
                self.broken(event, "settled", f"settled while {held} units are held")
            unsold = ",".join(
                f"{index}:{self.units[item.sku].available}"
                for index, item in enumerate(self.sale.items)
                if self.units[item.sku].available
            )
            if event.detail != unsold:
                self.broken(event, "settled", f"unsold {event.detail!r}, not {unsold!r}")

    def _feed_queue(self, event: Event) -> None:
        """A queue moves no unit. Its draw goes by the seed and the list that were committed to, and
        there is one: only where the sale was rebuilt, the queue may be opened anew."""
        if event.kind is EventKind.QUEUE_OPENED and self._queue_lost:
            self._queue.clear()
        elif event.kind in self._queue:
            self.broken(event, "draw", f"{event.kind} a second time")
        self._queue_lost = False
        if event.kind is EventKind.QUEUE_DRAWN:
            tickets, digest, seed, value = event.detail.split("|", 3)
            if commitment_of(bytes.fromhex(seed)) != self._queue.get(EventKind.QUEUE_OPENED):
                self.broken(event, "draw", "the seed is not the one that was committed to")
            if f"{tickets}|{digest}" != self._queue.get(EventKind.QUEUE_LISTED):
                self.broken(event, "draw", "the list is not the one that was written down")
            if value != self._queue.get(EventKind.QUEUE_VALUED, ""):
                self.broken(event, "draw", "the public value is not the one that was handed in")
        self._queue[event.kind] = event.detail

    def _begin_again(self, event: Event, before: tuple[int, int]) -> None:
        """The sale was rebuilt from exactly what was replayed so far."""
        last_seq, last_ms, orders, seen_seq, state, spared_ms = event.detail.split("|")
        if (int(last_seq), int(last_ms)) != before:
            self.broken(
                event, "seq", f"rebuilt as of event {last_seq}, and event {before[0]} is the last"
            )
        if event.seq <= int(seen_seq):
            self.broken(event, "seq", f"begins anew at {event.seq}, and {seen_seq} was seen")
        if int(orders) != len(self.orders):
            self.broken(
                event, "rebuilt", f"with {orders} orders, where there were {len(self.orders)}"
            )
        if state not in _REBUILT_AS.get(self.state, ()):
            self.broken(event, "sale state", f"{self.state!r} was rebuilt as {state!r}")
        self.state, self._admitting, self._spared_ms = state, True, int(spared_ms)
        self._queue_lost = True

    def _change_stock(self, event: Event) -> None:
        _, index, change, total = event.detail.rsplit("|", 3)
        units = self.units[self.sale.items[int(index)].sku]
        units.available += int(change)
        units.total += int(change)
        if units.total != int(total):
            self.broken(event, "conservation", f"total {total} where {units.total} follows")

    def _feed_order(self, event: Event, order: Order) -> None:
        known = self.orders.get(order.id)
        if event.kind is EventKind.HELD:
            self._accept(event, order, known)
        elif known is None and self._admitting and event.kind in _ADMITTED:
            self._admit_without(event, order)
        elif known is None:
            self.broken(event, "outcome", f"{event.kind} of order {order.id}, never accepted")
            return
        else:
            # An order that is admitted goes on above the version that Redis had.
            after = (
                order.version > known.version
                if self._admitting
                else (order.version == known.version + 1)
            )
            if not after:
                self.broken(
                    event, "version", f"order {order.id}: {order.version} after {known.version}"
                )
            if (order.buyer, order.items) != (known.buyer, known.items):
                self.broken(event, "outcome", f"order {order.id} changed buyer or items")
            self._move(event, order, known)
        self.orders[order.id] = order

    def _accept(self, event: Event, order: Order, known: Order | None) -> None:
        if known is not None:
            self.broken(event, "accepted twice", f"order {order.id} was accepted before")
        if self.state != ("paused" if self._admitting else "open"):
            self.broken(event, "sale state", f"order {order.id} while the sale is {self.state}")
        # An order that is admitted was made in the sale's time, whatever time it is now.
        if not self._admitting and not self.sale.opens_ms <= event.at_ms < self.sale.ends_ms:
            self.broken(event, "window", f"order {order.id} outside the sale's time")
        if order.state is not State.HELD or (order.version != 1 and not self._admitting):
            self.broken(event, "version", f"order {order.id} begins as version {order.version}")
        if 0 < self.sale.max_lapsed <= self.lapsed[order.buyer]:
            self.broken(event, "limit", f"buyer {order.buyer} let {self.sale.max_lapsed} lapse")
        self._take(event, order, "held")

    def _admit_without(self, event: Event, order: Order) -> None:
        """An order that only Redis knew, for which there is no unit or was none any more."""
        after = _MOVES[event.kind][1]
        if order.state is not after or order.payments:
            self.broken(event, "version", f"order {order.id} begins as version {order.version}")
        self.lapsed[order.buyer] += event.kind is EventKind.EXPIRED
        self.owned[order.buyer].update({})

    def _take(self, event: Event, order: Order, to: str) -> None:
        """Units leave the stock for a buyer, who must be allowed that many."""
        owned = self.owned[order.buyer]
        for sku, quantity in order.items.items():
            units = self.units[sku]
            units.available -= quantity
            setattr(units, to, getattr(units, to) + quantity)
            owned[sku] += quantity
            if 0 < self._limits[sku] < owned[sku]:
                self.broken(
                    event,
                    "limit",
                    f"buyer {order.buyer} has {owned[sku]} of SKU {sku}, "
                    f"allowed {self._limits[sku]} (order {order.id})",
                )
        if 0 < self.sale.limit_per_buyer < sum(owned.values()):
            self.broken(
                event,
                "limit",
                f"buyer {order.buyer} has {sum(owned.values())} units, "
                f"allowed {self.sale.limit_per_buyer} (order {order.id})",
            )
        if 0 < self.sale.limit_per_order < sum(order.items.values()):
            self.broken(
                event,
                "limit",
                f"order {order.id} has {sum(order.items.values())} units, "
                f"allowed {self.sale.limit_per_order}",
            )

    def _move(self, event: Event, order: Order, known: Order) -> None:
        pays = event.kind in (EventKind.CONFIRMED, EventKind.REFUND_DUE)
        if pays and event.detail in known.payments:
            self.broken(event, "outcome", f"order {order.id}: {event.detail} has two outcomes")
        payments = known.payments
        if event.kind is EventKind.CONFIRMED:
            payments = (event.detail, *payments)
        elif event.kind is EventKind.REFUND_DUE:
            payments = (*payments, event.detail)
        if order.payments != payments:
            self.broken(
                event, "outcome", f"order {order.id}: paid by {order.payments}, not {payments}"
            )
        if event.kind is EventKind.REFUND_DUE:
            if order.state != known.state or known.state in (State.HELD, State.PAYING):
                self.broken(
                    event, "state", f"refund_due of order {order.id}, which is {known.state}"
                )
            return
        before, after = _MOVES[event.kind]
        due_ms = max(known.deadline_ms, self._spared_ms)
        if event.kind is EventKind.EXPIRED and event.at_ms < due_ms:
            early_ms = due_ms - event.at_ms
            self.broken(event, "deadline", f"order {order.id} expired {early_ms} ms early")
        if known.state not in before or order.state is not after:
            self.broken(
                event,
                "state",
                f"order {order.id}: {known.state} → {order.state} by {event.kind}",
            )
        if event.kind is EventKind.CONFIRMED:
            if known.state is State.EXPIRED:
                if self.state not in ("open", "paused"):
                    self.broken(
                        event, "sale state", f"order {order.id} sold late while {self.state}"
                    )
                self.lapsed[order.buyer] = max(0, self.lapsed[order.buyer] - 1)
                self._take(event, order, "confirmed")
            else:
                self._return(order, "held", "confirmed", limit=False)
        elif event.kind in (EventKind.RELEASED, EventKind.EXPIRED):
            self._return(order, "held", "available", limit=True)
            self.lapsed[order.buyer] += event.kind is EventKind.EXPIRED
        elif event.kind is EventKind.REFUNDED:
            refund, returned, limit = event.detail.rsplit(",", 2)
            if order.refund != refund:
                self.broken(event, "outcome", f"order {order.id}: refund {order.refund}, {refund}")
            to = "available" if returned == "1" else "total"
            self._return(order, "confirmed", to, limit=limit == "1")

    def _return(self, order: Order, source: str, to: str, *, limit: bool) -> None:
        for sku, quantity in order.items.items():
            units = self.units[sku]
            setattr(units, source, getattr(units, source) - quantity)
            # A unit that does not come back leaves the sale: the total falls by it.
            setattr(units, to, getattr(units, to) + (-quantity if to == "total" else quantity))
            if limit:
                self.owned[order.buyer][sku] -= quantity

    def compare(
        self,
        stock: dict[str, dict[str, int]],
        orders: dict[str, Order],
        purses: dict[str, tuple[dict[str, int], int]],
        state: str,
    ) -> None:
        """Adds a violation wherever Redis holds something else than the events say."""
        if state != self.state:
            self.broken(None, "drift", f"the sale is {state} in Redis, {self.state} by its events")
        for sku, units in self.units.items():
            if msgspec.structs.asdict(units) != stock[sku]:
                self.broken(None, "drift", f"SKU {sku}: {stock[sku]} in Redis, {units} by events")
            if units.available + units.held + units.confirmed != units.total:
                self.broken(None, "conservation", f"SKU {sku}: {units}")
        self._compare("order", orders, self.orders)
        mine = {
            buyer: ({s: n for s, n in owned.items() if n}, self.lapsed.get(buyer, 0))
            for buyer, owned in self.owned.items()
        }
        self._compare("buyer", purses, mine)

    def _compare(self, what: str, redis: dict[str, Any], events: dict[str, Any]) -> None:
        for name in redis.keys() | events.keys():
            if redis.get(name) != events.get(name):
                self.broken(
                    None,
                    "drift",
                    f"{what} {name}: {redis.get(name)} in Redis, {events.get(name)} by events",
                )
