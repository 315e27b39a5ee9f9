"""The naive twin: the engine again, in dicts, written from the promises and not from the Lua.

One thing differs on purpose: the twin's time moves only when a test says so. Deadlines are compared
with a tolerance that the real time a test takes never reaches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from seckill.sale import Sale
from seckill.snapshot import Stock
from seckill.status import Status
from seckill.stream import EventKind

PAYMENTS_MAX = 16
UNITS_MAX = 10**9

DONE, ALREADY, UNKNOWN_ORDER = Status.DONE, Status.ALREADY, Status.UNKNOWN_ORDER


@dataclass
class TwinOrder:
    id: str
    buyer: str
    cart: dict[str, int]
    attrs: str
    deadline_ms: int
    state: str = "held"
    version: int = 0
    payments: list[str] = field(default_factory=list)
    refund: tuple[str, bool, bool] | None = None

    @property
    def units(self) -> int:
        return sum(self.cart.values())

    @property
    def is_open(self) -> bool:
        return self.state in {"held", "paying"}


@dataclass(frozen=True)
class TwinEvent:
    """What the stream must say. ``version`` and ``state`` are the order's after the event."""

    kind: EventKind
    order: str = ""
    version: int = 0
    state: str = ""
    detail: str = ""
    attrs: str = ""


class Twin:
    """``opens_ms`` and ``ends_ms`` count from the moment the twin was made, like ``now_ms``."""

    def __init__(self, sale: Sale, opens_ms: int, ends_ms: int) -> None:
        self.sale, self.opens_ms, self.ends_ms = sale, opens_ms, ends_ms
        self.now_ms = 0
        self.state, self.reason = "created", ""
        self.items = {item.sku: item for item in sale.items}
        self.available = {item.sku: item.total for item in sale.items}
        self.held = dict.fromkeys(self.items, 0)
        self.confirmed = dict.fromkeys(self.items, 0)
        self.total = dict(self.available)
        self.orders: dict[str, TwinOrder] = {}
        self.owned: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.lapsed: defaultdict[str, int] = defaultdict(int)
        self.queues: dict[str, list[str]] = {"held": [], "paying": []}
        self.stock_keys: dict[str, tuple[str, int]] = {}
        self.events: list[TwinEvent] = []
        self._tell(EventKind.SALE_CREATED, sale.definition().decode())

    # -- the sale -----------------------------------------------------------------------------

    def open(self) -> Status:
        if self.state == "open":
            return ALREADY
        if self.state == "paused":
            return Status.PAUSED
        if self.state != "created":
            return Status.CLOSED
        self.state = "open"
        self._tell(EventKind.SALE_OPENED)
        return DONE

    def pause(self, reason: str) -> Status:
        if self.state == "paused":
            return ALREADY
        if self.state == "created":
            return Status.NOT_OPEN
        if self.state != "open":
            return Status.CLOSED
        self.state, self.reason = "paused", reason
        self._tell(EventKind.SALE_PAUSED, reason)
        return DONE

    def resume(self) -> Status:
        if self.state == "open":
            return ALREADY
        if self.state == "created":
            return Status.NOT_OPEN
        if self.state != "paused":
            return Status.CLOSED
        self.state, self.reason = "open", ""
        self._tell(EventKind.SALE_RESUMED)
        return DONE

    def close(self) -> Status:
        if self.state in {"closed", "settled"}:
            return ALREADY
        self.state, self.reason = "closed", ""
        self._tell(EventKind.SALE_CLOSED)
        self._settle()
        return DONE

    def add_stock(self, sku: str, units: int, key: str) -> Status:
        if sku not in self.items:
            return Status.UNKNOWN_SKU
        if key in self.stock_keys:
            return ALREADY if self.stock_keys[key] == (sku, units) else Status.CONFLICT
        if self.state in {"closed", "settled"}:
            return Status.CLOSED
        if self.available[sku] + units < 0:
            return Status.BELOW_COMMITTED
        if self.total[sku] + units > UNITS_MAX:
            return Status.TOO_MANY_UNITS
        self.available[sku] += units
        self.total[sku] += units
        self.stock_keys[key] = (sku, units)
        index = list(self.items).index(sku)
        self._tell(EventKind.STOCK_CHANGED, f"{key}|{index}|{units}|{self.total[sku]}")
        return DONE

    # -- orders -------------------------------------------------------------------------------

    def reserve(self, id: str, buyer: str, cart: Mapping[str, int], attrs: str = "") -> Status:  # noqa: A002
        known = self.orders.get(id)
        if known is not None:
            same = (known.buyer, known.cart, known.attrs) == (buyer, dict(cart), attrs)
            return Status.EXISTS if same else Status.CONFLICT
        refusal = self._refusal(buyer, cart)
        if refusal is not None:
            return refusal
        order = TwinOrder(id, buyer, dict(cart), attrs, self.now_ms + self.sale.hold_ms)
        self.orders[id] = order
        self.queues["held"].append(id)
        self._move(order, self.available, self.held)
        self._own(order, +1)
        self._change(order, "held", EventKind.HELD, attrs=attrs)
        return Status.CREATED

    def _refusal(self, buyer: str, cart: Mapping[str, int]) -> Status | None:
        if any(sku not in self.items for sku in cart):
            return Status.UNKNOWN_SKU
        if self.state == "paused":
            return Status.PAUSED
        if self.state == "created":
            return Status.NOT_OPEN
        if self.state != "open":
            return Status.ENDED
        if self.now_ms < self.opens_ms:
            return Status.NOT_OPEN
        if self.now_ms >= self.ends_ms:
            return Status.ENDED
        if 0 < self.sale.max_lapsed <= self.lapsed[buyer]:
            return Status.NOT_ALLOWED
        limit = self._limit(buyer, cart)
        if limit is not None:
            return limit
        if any(self.available[sku] == 0 for sku in cart):
            return Status.SOLD_OUT
        if any(self.available[sku] < units for sku, units in cart.items()):
            return Status.INSUFFICIENT
        return None

    def _limit(self, buyer: str, cart: Mapping[str, int]) -> Status | None:
        if 0 < self.sale.limit_per_order < sum(cart.values()):
            return Status.ORDER_LIMIT
        owned = self.owned[buyer]
        for sku, units in cart.items():
            if 0 < self.items[sku].limit_per_buyer < owned[sku] + units:
                return Status.SKU_LIMIT
        if 0 < self.sale.limit_per_buyer < sum(owned.values()) + sum(cart.values()):
            return Status.BUYER_LIMIT
        return None

    def begin_payment(self, id: str, buyer: str = "") -> Status:  # noqa: A002
        order = self._find(id, buyer)
        if order is None:
            return UNKNOWN_ORDER
        if order.state == "paying":
            return ALREADY
        if order.state != "held":
            return Status[order.state.upper()]
        if order.deadline_ms <= self.now_ms:
            return Status.EXPIRED
        order.deadline_ms = self.now_ms + self.sale.pay_ms
        self.queues["paying"].append(id)
        self._change(order, "paying", EventKind.PAYING)
        return DONE

    def confirm(self, id: str, payment: str) -> Status:  # noqa: A002
        order = self.orders.get(id)
        if order is None:
            return UNKNOWN_ORDER
        is_paid = order.state in {"confirmed", "refunded"}
        if payment in order.payments:
            if not is_paid:
                return Status.LATE
            if payment != order.payments[0]:
                return Status.DUPLICATE_PAYMENT
            return ALREADY if order.state == "confirmed" else Status.REFUNDED
        if len(order.payments) == PAYMENTS_MAX:
            return Status.TOO_MANY_PAYMENTS
        if order.is_open or self._can_sell_late(order):
            is_late = not order.is_open
            self._move(order, self.available if is_late else self.held, self.confirmed)
            if is_late:
                self._own(order, +1)
                self.lapsed[order.buyer] = max(0, self.lapsed[order.buyer] - 1)
            order.payments.insert(0, payment)
            self._change(order, "confirmed", EventKind.CONFIRMED, payment)
            self._settle()
            return Status.CONFIRMED_LATE if is_late else DONE
        order.payments.append(payment)
        self._change(order, order.state, EventKind.REFUND_DUE, payment)
        return Status.DUPLICATE_PAYMENT if is_paid else Status.LATE

    def _can_sell_late(self, order: TwinOrder) -> bool:
        return (
            order.state == "expired"
            and self.state in {"open", "paused"}
            and all(self.available[sku] >= units for sku, units in order.cart.items())
            and self._limit(order.buyer, order.cart) is None
        )

    def release(self, id: str, buyer: str = "") -> Status:  # noqa: A002
        order = self._find(id, buyer)
        if order is None:
            return UNKNOWN_ORDER
        if order.state == "released":
            return ALREADY
        if not order.is_open:
            return Status[order.state.upper()]
        self._move(order, self.held, self.available)
        self._own(order, -1)
        self._change(order, "released", EventKind.RELEASED)
        self._settle()
        return DONE

    def refund(self, id: str, refund: str, return_units: bool, return_limit: bool) -> Status:  # noqa: A002
        order = self.orders.get(id)
        if order is None:
            return UNKNOWN_ORDER
        wish = (refund, return_units, return_limit)
        if order.refund is not None:
            if order.refund == wish:
                return ALREADY
            return Status.CONFLICT if order.refund[0] == refund else Status.REFUNDED
        if order.state != "confirmed":
            return Status.NOT_CONFIRMED
        self._move(order, self.confirmed, self.available if return_units else None)
        if return_limit:
            self._own(order, -1)
        order.refund = wish
        detail = f"{refund},{int(return_units)},{int(return_limit)}"
        self._change(order, "refunded", EventKind.REFUNDED, detail)
        return DONE

    def expire(self, look_at: int) -> tuple[Status, bool]:
        """One sweep; whether more may be due, because as many were gone as were looked at."""
        due, more = [], False
        for state, queue in self.queues.items():
            gone = 0
            for name in queue[:look_at]:
                order = self.orders[name]
                if order.state == state:
                    if order.deadline_ms > self.now_ms:
                        break
                    due.append(order)
                gone += 1
            del queue[:gone]
            more = more or gone == look_at
        for order in due:
            self._move(order, self.held, self.available)
            self._own(order, -1)
            self.lapsed[order.buyer] += 1
            self._change(order, "expired", EventKind.EXPIRED)
        if due:
            self._settle()
        return DONE, more

    # -- what can be seen ---------------------------------------------------------------------

    @property
    def stock(self) -> dict[str, Stock]:
        return {
            sku: Stock(self.available[sku], self.held[sku], self.confirmed[sku], self.total[sku])
            for sku in self.items
        }

    def _find(self, id: str, buyer: str) -> TwinOrder | None:  # noqa: A002
        order = self.orders.get(id)
        return order if order is not None and buyer in {"", order.buyer} else None

    def _move(self, order: TwinOrder, source: dict[str, int], to: dict[str, int] | None) -> None:
        """Units from one place to another, or, to None, out of the sale."""
        for sku, units in order.cart.items():
            source[sku] -= units
            if to is None:
                self.total[sku] -= units
            else:
                to[sku] += units

    def _own(self, order: TwinOrder, sign: int) -> None:
        for sku, units in order.cart.items():
            self.owned[order.buyer][sku] += sign * units

    def _settle(self) -> None:
        if self.state == "closed" and not any(self.held.values()):
            self.state = "settled"
            left = [f"{i}:{n}" for i, n in enumerate(self.available.values()) if n]
            self._tell(EventKind.SALE_SETTLED, ",".join(left))

    def _tell(self, kind: EventKind, detail: str = "") -> None:
        self.events.append(TwinEvent(kind, detail=detail))

    def _change(
        self, order: TwinOrder, state: str, kind: EventKind, detail: str = "", attrs: str = ""
    ) -> None:
        order.state = state
        order.version += 1
        self.events.append(TwinEvent(kind, order.id, order.version, state, detail, attrs))
