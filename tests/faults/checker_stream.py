"""Replays a sale's events with a twin of a few lines, and compares its end with what the server
holds.

    held       (new)            → held       available → held
    paying     held             → paying
    confirmed  held, paying     → confirmed  held → confirmed
               expired          → confirmed  available → confirmed
    released   held, paying     → released   held → available
    expired    held, paying     → expired    held → available
    refunded   confirmed        → refunded   confirmed → available, or out of the total
    refund_due all that had an end, which stays

The first event that breaks a promise ends the replay: what follows from it would be told as broken
promises of their own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from tests.faults.checker_report import broken
from tests.faults.observed import Observed, SeenEvent, SeenOrder, SeenStock

__all__ = ["Twin", "purses_of", "state_problems"]

# From which states (the letters of records) an event may take an order, and to which.
MOVES: Final = {
    "paying": ("h", "p"),
    "confirmed": ("hpx", "c"),
    "released": ("hp", "r"),
    "expired": ("hp", "x"),
    "refunded": ("c", "f"),
}
LIVE: Final = "hp"
PAID: Final = "cf"
# Events of a sale that move no unit.
SILENT: Final = frozenset(
    {
        *("created", "opened", "paused", "resumed", "closed", "settled"),
        *("queue_opened", "queue_closed", "queue_listed", "queue_valued", "queue_drawn"),
    }
)

_Purse = tuple[dict[str, int], int]


class Twin:
    """The sale by its events alone. ``stock``, ``orders``, ``owned`` (units by buyer and SKU index)
    and ``lapsed`` are as of the last event; ``available`` has for each SKU index the places in the
    list of events (-1: before the first) from which on so many units were available."""

    def __init__(self, seen: Observed) -> None:
        self._sale = seen.sale
        self._origin_ms = seen.origin_ms
        self._spared_ms = 0
        # Orders that only Redis knew come back as new ones while a sale is being rebuilt.
        self._admitting = False
        self._stock_keys: set[str] = set()
        self.stock = {
            str(index): SeenStock(item.total, 0, 0, item.total)
            for index, item in enumerate(seen.sale.items)
        }
        self.orders: dict[str, SeenOrder] = {}
        self.owned: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.lapsed: defaultdict[str, int] = defaultdict(int)
        self.available = {index: [(-1, row.available)] for index, row in self.stock.items()}
        self.problem = ""

    def replay(self, events: list[SeenEvent]) -> None:
        """Feeds all of them, up to the first that breaks a promise, which ``problem`` then is."""
        last_seq = 0
        for place, event in enumerate(events):
            if event.seq <= last_seq if event.kind == "rebuilt" else event.seq != last_seq + 1:
                self.problem = broken("seq", f"event {event.seq} follows event {last_seq}")
                return
            last_seq = event.seq
            self.problem = self._feed(event) or self._count(event, place)
            if self.problem:
                return

    def _feed(self, event: SeenEvent) -> str:
        """Takes in one event; a problem, or nothing."""
        if event.record is None:
            return self._feed_sale(event)
        known = self.orders.get(event.subject)
        if event.kind == "held":
            problem = self._accept(event, event.record, known)
        elif known is not None:
            problem = self._check(event, event.record, known) or self._move(
                event, event.record, known
            )
        elif self._admitting and event.kind in ("expired", "released"):
            # There was no unit for it any more.
            self.lapsed[event.record.buyer] += event.kind == "expired"
            self.owned[event.record.buyer].update({})
            problem = ""
        else:
            problem = broken("event", f"{_name(event)} comes to an order that was never held")
        self.orders[event.subject] = event.record
        return problem

    def _feed_sale(self, event: SeenEvent) -> str:
        if event.kind == "stock":
            key, index, change, total = event.detail.rsplit("|", 3)
            row = self.stock[index]
            row.available += int(change)
            row.total += int(change)
            if key in self._stock_keys:
                return broken("twice", f"{_name(event)} changes stock again under the key {key}")
            self._stock_keys.add(key)
            if row.total != int(total):
                said = f"{_name(event)} says {total} units in all of SKU {index}"
                return broken("conservation", f"{said}, and {row.total} follow")
        elif event.kind == "rebuilt":
            self._admitting, self._spared_ms = True, int(event.detail.split("|")[5])
        elif event.kind not in SILENT:
            raise ValueError(f"the checker knows no event {event.kind!r}")
        elif event.kind == "resumed":
            self._admitting = False
        return ""

    def _accept(self, event: SeenEvent, record: SeenOrder, known: SeenOrder | None) -> str:
        if known is not None:
            return broken("twice", f"{_name(event)} accepts an order that was accepted before")
        if record.state != "h" or record.payments or record.refund:
            return broken("state", f"{_name(event)} leaves its order as {record}")
        if record.version != 1 and not self._admitting:
            return broken("version", f"{_name(event)} begins with version {record.version}")
        if 0 < self._sale.max_lapsed <= self.lapsed[record.buyer] and not self._admitting:
            return broken(
                "limit", f"{_name(event)} is of buyer {record.buyer}, who let too many lapse"
            )
        if problem := self._check_time(event, record, known):
            return problem
        return self._take(event, record, "held")

    def _take(self, event: SeenEvent, record: SeenOrder, to: str) -> str:
        """Units leave the stock for a buyer, who must be allowed that many."""
        owned = self.owned[record.buyer]
        for index, units in record.units.items():
            self._shift(index, "available", to, units)
            owned[index] += units
        whose = f"with {_name(event)} buyer {record.buyer} has"
        for index in record.units:
            if 0 < self._sale.items[int(index)].limit < owned[index]:
                return broken("limit", f"{whose} {owned[index]} of SKU {index}")
        if 0 < self._sale.limit_per_buyer < sum(owned.values()):
            return broken("limit", f"{whose} {sum(owned.values())} units of the sale")
        if 0 < self._sale.limit_per_order < sum(record.units.values()):
            return broken("limit", f"{whose} {sum(record.units.values())} units in one order")
        return ""

    def _check(self, event: SeenEvent, record: SeenOrder, known: SeenOrder) -> str:
        """Whether an order's next record may follow its last."""
        rises = record.version > known.version
        if not rises or (record.version != known.version + 1 and not self._admitting):
            said = f"{_name(event)} has version {record.version} after {known.version}"
            return broken("version", said)
        if (record.buyer, record.units, record.print6) != (known.buyer, known.units, known.print6):
            return broken("twice", f"{_name(event)} changes what its order is of")
        if problem := self._check_time(event, record, known):
            return problem
        if event.kind in ("confirmed", "refund_due") and event.detail in known.payments:
            return broken("money", f"{_name(event)} is a second outcome of payment {event.detail}")
        payments = known.payments
        if event.kind == "confirmed":
            payments = (event.detail, *payments)
        elif event.kind == "refund_due":
            payments = (*payments, event.detail)
        if record.payments != payments:
            said = f"{_name(event)} has the payments {record.payments} instead of {payments}"
            return broken("money", said)
        refund = event.detail if event.kind == "refunded" else known.refund
        if record.refund != refund:
            return broken("state", f"{_name(event)} has the refund {record.refund}, not {refund}")
        return ""

    def _check_time(self, event: SeenEvent, record: SeenOrder, known: SeenOrder | None) -> str:
        """Whether the order has the deadline that this event gives it."""
        times_ms = {"held": self._sale.hold_ms, "paying": self._sale.pay_ms}
        due_ms = known.deadline_ms if known else 0
        if event.kind in times_ms:
            due_ms = event.at_ms + times_ms[event.kind] - self._origin_ms
        if record.deadline_ms == due_ms or self._admitting:
            return ""
        off_ms = record.deadline_ms - due_ms
        return broken("deadline", f"{_name(event)} leaves a deadline that is {off_ms:+} ms off")

    def _move(self, event: SeenEvent, record: SeenOrder, known: SeenOrder) -> str:
        before, after = MOVES.get(event.kind, ("crxf", known.state))
        if known.state not in before or record.state != after:
            stays = known.state == "c" and record.state not in PAID
            said = f"{_name(event)} takes its order from {known.state!r} to {record.state!r}"
            return broken("confirmed" if stays else "state", said)
        if event.kind == "confirmed" and known.state == "x":
            self.lapsed[record.buyer] = max(0, self.lapsed[record.buyer] - 1)
            return self._take(event, record, "confirmed")
        if event.kind == "confirmed":
            self._give(record, "held", "confirmed", limit=False)
        elif event.kind in ("released", "expired"):
            due_ms = max(self._origin_ms + known.deadline_ms, self._spared_ms)
            if event.kind == "expired" and event.at_ms < due_ms:
                return broken("deadline", f"{_name(event)} is {due_ms - event.at_ms} ms early")
            self._give(record, "held", "available", limit=True)
            self.lapsed[record.buyer] += event.kind == "expired"
        elif event.kind == "refunded":
            _, returned, limit = event.detail.rsplit(",", 2)
            to = "available" if returned == "1" else "total"
            self._give(record, "confirmed", to, limit=limit == "1")
        return ""

    def _give(self, record: SeenOrder, source: str, to: str, *, limit: bool) -> None:
        for index, units in record.units.items():
            self._shift(index, source, to, units)
            if limit:
                self.owned[record.buyer][index] -= units

    def _shift(self, index: str, source: str, to: str, units: int) -> None:
        row = self.stock[index]
        setattr(row, source, getattr(row, source) - units)
        # A unit that does not come back leaves the sale: the total falls by it.
        setattr(row, to, getattr(row, to) + (-units if to == "total" else units))

    def _count(self, event: SeenEvent, place: int) -> str:
        """Adds up the units that an event may have moved."""
        for index in event.record.units if event.record else self.stock:
            row, steps = self.stock[index], self.available[index]
            if row.available < 0:
                return broken("oversold", f"after {_name(event)} SKU {index} has {row}")
            if row.held < 0 or row.confirmed < 0 or _sum(row) != row.total:
                return broken("conservation", f"after {_name(event)} SKU {index} has {row}")
            if steps[-1][1] != row.available:
                steps.append((place, row.available))
        return ""


def state_problems(
    seen: Observed, events: list[SeenEvent] | None = None, twin: Twin | None = None
) -> list[str]:
    """What is wrong with the server's state alone, whatever anybody was told. ``events`` are all of
    the sale, where the stream does not have them all; ``twin`` has replayed them. Raises ValueError
    or LookupError for an event of a kind that is unknown here."""
    events = seen.events if events is None else events
    if twin is None:
        twin = Twin(seen)
        twin.replay(events)
    if twin.problem:
        return [twin.problem]
    last_seq = events[-1].seq if events else 0
    if last_seq != seen.seq:
        said = f"the stream ends with event {last_seq} and the sale is at {seen.seq}"
        return [broken("seq", said)]
    return [
        *_order_problems(seen, twin),
        *_stock_problems(seen, twin),
        *_purse_problems(seen, twin),
    ]


def _order_problems(seen: Observed, twin: Twin) -> list[str]:
    problems = []
    for order_id in seen.orders.keys() | twin.orders.keys():
        record, told = seen.orders.get(order_id), twin.orders.get(order_id)
        if record is None:
            problems.append(broken("lost", f"order {order_id} has events and no record"))
        elif told is None:
            problems.append(broken("event", f"order {order_id} has a record and no event"))
        elif record != told:
            rule = "state"
            if record.version < told.version:
                rule = "version"
            elif told.state == "c" and record.state not in PAID:
                rule = "confirmed"
            said = f"order {order_id} is {record} in its record and {told} by its events"
            problems.append(broken(rule, said))
    return problems


def _stock_problems(seen: Observed, twin: Twin) -> list[str]:
    problems = []
    for index in seen.stock.keys() | twin.stock.keys():
        row, told = seen.stock.get(index), twin.stock.get(index)
        if row is None or _sum(row) != row.total or row != told:
            said = f"SKU {index} has {row} in the stock and {told} by the events"
            problems.append(broken("conservation", said))
    return problems


def _purse_problems(seen: Observed, twin: Twin) -> list[str]:
    told = purses_of(twin)
    return [
        broken("purse", f"buyer {buyer} has {held} in the limits and {by_events} by the events")
        for buyer in seen.buyers.keys() | told.keys()
        if (held := seen.buyers.get(buyer)) != (by_events := told.get(buyer))
    ]


def purses_of(twin: Twin) -> dict[str, _Purse]:
    """What counts against each buyer's limits, of whoever has had an order."""
    return {
        buyer: ({index: n for index, n in owned.items() if n}, twin.lapsed.get(buyer, 0))
        for buyer, owned in twin.owned.items()
    }


def _sum(row: SeenStock) -> int:
    return row.available + row.held + row.confirmed + row.moving


def _name(event: SeenEvent) -> str:
    whose = "the sale" if event.record is None else f"order {event.subject}"
    return f"event {event.seq} ({event.kind} of {whose})"
