"""Replays a sale's event stream with rules of its own and proves what the engine promises.

Nothing here shares code with the scripts: the rules are written again, from the definition in the
first event. Checked at every event: a dense seq and a clock that never runs back; one acceptance an
order; legal states and versions up by one; limits; and for each SKU that nothing was sold that was
not there. At the end the replayed stock, orders and limits must be what Redis holds.

    order_held        (new)             → held        available → held
    order_paying      held              → paying
    order_confirmed   held, paying      → confirmed   held → confirmed
                      expired           → confirmed   available → confirmed
    order_released    held, paying      → released    held → available
    order_expired     held, paying      → expired     held → available
    order_refunded    confirmed         → refunded    confirmed → available, or out of the total
    refund_due        all but held, paying: state unchanged
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.errors import UnknownSale
from seckill.keys import shard_keys
from seckill.order import Order, State
from seckill.redis import our_errors
from seckill.sale import Sale
from seckill.stream import Event, EventKind

if TYPE_CHECKING:
    from seckill.engine import Engine

__all__ = ["Replay", "Verdict", "Violation", "verify"]

VIOLATIONS_MAX: Final = 100
PATIENCE_S: Final = 600.0


class Violation(msgspec.Struct, frozen=True):
    """One broken promise. ``seq`` is the event at which it shows, 0 where it shows at the end."""

    seq: int
    rule: str
    text: str


class Verdict(msgspec.Struct, frozen=True):
    """What the replay found. ``violations`` are in order of discovery, at most 100."""

    sale: str
    events: int
    orders: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return not self.violations


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


class Replay:
    """The naive model: feed it events in order, then compare it with what Redis holds."""

    def __init__(self, sale: Sale) -> None:
        self.sale = sale
        self.violations: list[Violation] = []
        self.seq = 0
        self.at_ms = 0
        self.state = ""
        self.orders: dict[str, Order] = {}
        self.units = {item.sku: _Units(item.total, 0, 0, item.total) for item in sale.items}
        self.owned: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.lapsed: defaultdict[str, int] = defaultdict(int)
        self._limits = {item.sku: item.limit_per_buyer for item in sale.items}

    def feed(self, event: Event) -> None:
        """Checks one event and applies it."""
        if event.seq != self.seq + 1:
            self._broken(event, "seq", f"event {event.seq} follows event {self.seq}")
        if event.at_ms < self.at_ms:
            self._broken(event, "clock", f"{event.at_ms} ms follows {self.at_ms} ms")
        self.seq, self.at_ms = event.seq, event.at_ms
        if event.order is not None:
            self._feed_order(event, event.order)
        elif event.kind is EventKind.STOCK_CHANGED:
            self._change_stock(event)
        else:
            self._feed_sale(event)
        for sku, units in self.units.items():
            if min(units.available, units.held, units.confirmed) < 0:
                self._broken(
                    event,
                    "oversold" if units.available < 0 else "stock",
                    f"SKU {sku}: {units.available} available, {units.held} held, "
                    f"{units.confirmed} confirmed of {units.total}",
                )
                return

    def _broken(self, event: Event | None, rule: str, text: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(event.seq if event else 0, rule, text))

    def _feed_sale(self, event: Event) -> None:
        before, after = _SALE_MOVES[event.kind]
        if self.state not in before:
            self._broken(event, "sale state", f"{event.kind} in a sale that is {self.state!r}")
        self.state = after
        if event.kind is EventKind.SALE_SETTLED:
            held = sum(units.held for units in self.units.values())
            if held:
                self._broken(event, "settled", f"settled while {held} units are held")
            unsold = ",".join(
                f"{index}:{self.units[item.sku].available}"
                for index, item in enumerate(self.sale.items)
                if self.units[item.sku].available
            )
            if event.detail != unsold:
                self._broken(event, "settled", f"unsold {event.detail!r}, not {unsold!r}")

    def _change_stock(self, event: Event) -> None:
        _, index, change, total = event.detail.rsplit("|", 3)
        units = self.units[self.sale.items[int(index)].sku]
        units.available += int(change)
        units.total += int(change)
        if units.total != int(total):
            self._broken(event, "conservation", f"total {total} where {units.total} follows")

    def _feed_order(self, event: Event, order: Order) -> None:
        known = self.orders.get(order.id)
        if event.kind is EventKind.HELD:
            self._accept(event, order, known)
        elif known is None:
            self._broken(event, "outcome", f"{event.kind} of order {order.id}, never accepted")
            return
        else:
            if order.version != known.version + 1:
                self._broken(
                    event, "version", f"order {order.id}: {order.version} after {known.version}"
                )
            if (order.buyer, order.items) != (known.buyer, known.items):
                self._broken(event, "outcome", f"order {order.id} changed buyer or items")
            self._move(event, order, known)
        self.orders[order.id] = order

    def _accept(self, event: Event, order: Order, known: Order | None) -> None:
        if known is not None:
            self._broken(event, "accepted twice", f"order {order.id} was accepted before")
        if self.state != "open":
            self._broken(event, "sale state", f"order {order.id} while the sale is {self.state}")
        if not self.sale.opens_ms <= event.at_ms < self.sale.ends_ms:
            self._broken(event, "window", f"order {order.id} outside the sale's time")
        if (order.version, order.state) != (1, State.HELD):
            self._broken(event, "version", f"order {order.id} begins as version {order.version}")
        if 0 < self.sale.max_lapsed <= self.lapsed[order.buyer]:
            self._broken(event, "limit", f"buyer {order.buyer} let {self.sale.max_lapsed} lapse")
        self._take(event, order, "held")

    def _take(self, event: Event, order: Order, to: str) -> None:
        """Units leave the stock for a buyer, who must be allowed that many."""
        owned = self.owned[order.buyer]
        for sku, quantity in order.items.items():
            units = self.units[sku]
            units.available -= quantity
            setattr(units, to, getattr(units, to) + quantity)
            owned[sku] += quantity
            if 0 < self._limits[sku] < owned[sku]:
                self._broken(
                    event,
                    "limit",
                    f"buyer {order.buyer} has {owned[sku]} of SKU {sku}, "
                    f"allowed {self._limits[sku]} (order {order.id})",
                )
        if 0 < self.sale.limit_per_buyer < sum(owned.values()):
            self._broken(
                event,
                "limit",
                f"buyer {order.buyer} has {sum(owned.values())} units, "
                f"allowed {self.sale.limit_per_buyer} (order {order.id})",
            )
        if 0 < self.sale.limit_per_order < sum(order.items.values()):
            self._broken(
                event,
                "limit",
                f"order {order.id} has {sum(order.items.values())} units, "
                f"allowed {self.sale.limit_per_order}",
            )

    def _move(self, event: Event, order: Order, known: Order) -> None:
        pays = event.kind in (EventKind.CONFIRMED, EventKind.REFUND_DUE)
        if pays and event.detail in known.payments:
            self._broken(event, "outcome", f"order {order.id}: {event.detail} has two outcomes")
        payments = known.payments
        if event.kind is EventKind.CONFIRMED:
            payments = (event.detail, *payments)
        elif event.kind is EventKind.REFUND_DUE:
            payments = (*payments, event.detail)
        if order.payments != payments:
            self._broken(
                event, "outcome", f"order {order.id}: paid by {order.payments}, not {payments}"
            )
        if event.kind is EventKind.REFUND_DUE:
            if order.state != known.state or known.state in (State.HELD, State.PAYING):
                self._broken(
                    event, "state", f"refund_due of order {order.id}, which is {known.state}"
                )
            return
        before, after = _MOVES[event.kind]
        if event.kind is EventKind.EXPIRED and event.at_ms < known.deadline_ms:
            early_ms = known.deadline_ms - event.at_ms
            self._broken(event, "deadline", f"order {order.id} expired {early_ms} ms early")
        if known.state not in before or order.state is not after:
            self._broken(
                event,
                "state",
                f"order {order.id}: {known.state} → {order.state} by {event.kind}",
            )
        if event.kind is EventKind.CONFIRMED:
            if known.state is State.EXPIRED:
                if self.state not in ("open", "paused"):
                    self._broken(
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
                self._broken(event, "outcome", f"order {order.id}: refund {order.refund}, {refund}")
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
            self._broken(None, "drift", f"the sale is {state} in Redis, {self.state} by its events")
        for sku, units in self.units.items():
            if msgspec.structs.asdict(units) != stock[sku]:
                self._broken(None, "drift", f"SKU {sku}: {stock[sku]} in Redis, {units} by events")
            if units.available + units.held + units.confirmed != units.total:
                self._broken(None, "conservation", f"SKU {sku}: {units}")
        self._compare("order", orders, self.orders)
        mine = {
            buyer: ({s: n for s, n in owned.items() if n}, self.lapsed.get(buyer, 0))
            for buyer, owned in self.owned.items()
        }
        self._compare("buyer", purses, mine)

    def _compare(self, what: str, redis: dict[str, Any], events: dict[str, Any]) -> None:
        for name in redis.keys() | events.keys():
            if redis.get(name) != events.get(name):
                self._broken(
                    None,
                    "drift",
                    f"{what} {name}: {redis.get(name)} in Redis, {events.get(name)} by events",
                )


async def verify(
    engine: Engine, sale: str, *, progress: Callable[[int], None] | None = None
) -> Verdict:
    """Replays the sale's events and compares the end with what Redis holds.

    May run while the sale sells: the end is then compared as of the moment of one read of all keys.
    ``progress`` gets the number of events replayed now and then. Raises UnknownSale.
    """
    async with asyncio.timeout(PATIENCE_S):
        with our_errors():
            return await _verify(engine, sale, progress)


async def _verify(engine: Engine, sale: str, progress: Callable[[int], None] | None) -> Verdict:
    definition = await engine.sale(sale)
    state = await _read_state(engine, definition)
    replay = Replay(definition)
    async for event in engine.history(sale, through_seq=state.seq):
        if event.seq == 1 and event.kind is EventKind.SALE_CREATED:
            # By the definition that was published, not by what the sale's hash says today.
            created = Sale.from_definition(event.detail.encode())
            replay = Replay(created)
            if created != definition:
                replay._broken(event, "definition", "the sale's hash holds another definition")
        replay.feed(event)
        if progress and event.seq % 1_000 == 0:
            progress(event.seq)
    if replay.seq != state.seq:
        replay._broken(None, "seq", f"the stream ends at {replay.seq}, the sale at {state.seq}")
    replay.compare(state.stock, state.orders, state.purses, state.state)
    return Verdict(sale, replay.seq, len(replay.orders), tuple(replay.violations))


class _State(msgspec.Struct):
    seq: int
    state: str
    stock: dict[str, dict[str, int]]
    orders: dict[str, Order]
    purses: dict[str, tuple[dict[str, int], int]]


async def _read_state(engine: Engine, sale: Sale) -> _State:
    """Header, stock, orders and buyers in one MULTI: hundreds of thousands of orders stall the
    server for tens of milliseconds, which is the price of a picture without a seam."""
    from seckill.order import read_cart, read_order

    client = engine._calls.client
    origin_ms = (await engine._shard(sale.id)).origin_ms
    keys = shard_keys(sale.id)
    async with client.pipeline(transaction=True) as pipe:
        for command in (
            ("HMGET", keys[0], "seq", "state"),
            ("HGETALL", keys[1]),
            ("HGETALL", keys[3]),
            ("HGETALL", keys[2]),
        ):
            pipe.execute_command(*command)
        header, stock, orders, purses = await pipe.execute()
    if header[0] is None:
        raise UnknownSale(sale.id)
    skus = [item.sku for item in sale.items]

    def purse(text: str) -> tuple[dict[str, int], int]:
        body, _, lapsed = text.partition("!")
        return {skus[index]: n for index, n in read_cart(body).items()}, int(lapsed or 0)

    return _State(
        seq=int(header[0]),
        state=header[1].decode(),
        stock={
            sku: {
                name: int(stock[f"{index}:{name}".encode()])
                for name in ("available", "held", "confirmed", "total")
            }
            for index, sku in enumerate(skus)
        },
        orders={
            name.decode(): read_order(sale, origin_ms, name.decode(), record.decode())
            for name, record in orders.items()
        },
        purses={buyer.decode(): purse(text.decode()) for buyer, text in purses.items()},
    )
