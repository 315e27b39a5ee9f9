"""A tiny sale in memory, for the checker's own tests: it decides calls by the rules, and writes
what a load, a server, a ledger and consumers of it would have left behind.

    Evening   calls one after the other, each with a fate; windows of time may overlap
    Case      what it left behind, to be damaged and judged
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import msgspec

from tests.faults.checker import History, Report, check
from tests.faults.checker_witness import LedgerOrder, SeenLedger, Sighting
from tests.faults.observed import (
    Observed,
    SeenEvent,
    SeenItem,
    SeenOrder,
    SeenSale,
    SeenStock,
)

__all__ = ["Case", "Evening", "Fate", "state_of"]

Fate = Literal["told", "lost", "open", "stuck", "unsent"]
"""Executed and answered; executed, but the answer got lost; executed, and the caller was killed;
not executed, which nobody knows; never sent."""

ORIGIN_MS = 1_000_000
LETTERS = {"begin_payment": "p", "confirm": "c", "release": "r", "refund": "f"}
WORDS = {
    "h": "held",
    "p": "paying",
    "c": "confirmed",
    "f": "refunded",
    "r": "released",
    "x": "expired",
}
KINDS = {"p": "paying", "c": "confirmed", "r": "released", "f": "refunded", "x": "expired"}
Decision = tuple[str, SeenOrder | None]


class Case(msgspec.Struct):
    """Everything the checker is given."""

    lines: list[dict[str, Any]]
    seen: Observed
    ledger: SeenLedger
    sightings: list[Sighting]

    def judge(self, **options: Any) -> Report:
        """The checker's verdict."""
        history = History()
        for line in self.lines:
            history.take("load", line)
        witnesses: dict[str, Any] = {"ledger": self.ledger, "sightings": self.sightings}
        return check(history, self.seen, **witnesses | options)

    def answers(self, *answers: str, verb: str = "") -> list[dict[str, Any]]:
        """The lines that end a call with one of these answers."""
        verbs = {line["n"]: line["op"] for line in self.lines if "op" in line}
        return [
            line
            for line in self.lines
            if line.get("answer") in answers and verb in ("", verbs[line["n"]])
        ]

    def begin_of(self, line: dict[str, Any]) -> dict[str, Any]:
        """The line that began the call that this one ends."""
        return next(each for each in self.lines if each["n"] == line["n"] and "op" in each)

    def add_call(self, begin: dict[str, Any], answer: str, **told: Any) -> None:
        """One more call, after all others."""
        number = max(line["n"] for line in self.lines) + 1
        at_s = max(line["t"] for line in self.lines) + 100
        self.lines.append(begin | {"n": number, "t": at_s})
        self.lines.append({"n": number, "t": at_s + 1, "answer": answer, **told})

    def forget(self, keep: Callable[[SeenEvent], bool]) -> None:
        """As if what is not kept had never happened, on the server and wherever its events went."""
        events = [deepcopy(event) for event in self.seen.events if keep(event)]
        for seq, event in enumerate(events, 1):
            event.seq = seq
        self.seen = state_of(self.seen.sale, events)
        self.ledger, self.sightings = witnesses_of(self.seen)


class Evening:
    """A sale of three SKUs: "plenty", "some", "one"."""

    def __init__(self) -> None:
        self.sale = SeenSale(
            [SeenItem("plenty", 30, 3), SeenItem("some", 4, 2), SeenItem("one", 1, 0)],
            hold_ms=20_000,
            pay_ms=10_000,
            limit_per_order=4,
            limit_per_buyer=5,
            max_lapsed=2,
        )
        self._events: list[SeenEvent] = []
        self._lines: list[dict[str, Any]] = []
        self._now_s = 100.0
        self._calls = 0
        for kind in ("created", "opened"):
            self._emit("sale", kind, "", None)

    def case(self) -> Case:
        """What it has left behind so far."""
        seen = state_of(self.sale, deepcopy(self._events))
        return Case(deepcopy(self._lines), seen, *witnesses_of(seen))

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._now_s += seconds

    def reserve(self, buyer: str, key: str, fate: Fate = "told", **items: int) -> str:
        """One try under a key."""
        order = f"{buyer}.{key}"
        units = {str(self._index(sku)): count for sku, count in sorted(items.items())}

        def decide() -> Decision:
            if known := self._records().get(order):
                return "EXISTS", known
            if refusal := self._refusal(buyer, units):
                return refusal, None
            deadline_ms = int(self._now_s * 1000) + self.sale.hold_ms - ORIGIN_MS
            record = SeenOrder("h", 1, "------", deadline_ms, units, buyer)
            self._emit(order, "held", "", record)
            return "CREATED", record

        asked = {"buyer": buyer, "key": key, "items": items}
        return self._call("reserve", order, decide, fate, **asked)

    def look(self, order: str, fate: Fate = "told") -> str:
        """A look-up."""

        def decide() -> Decision:
            record = self._records().get(order)
            return ("NONE", None) if record is None else ("FOUND", record)

        return self._call("look", order, decide, fate)

    def act(self, verb: str, order: str, fate: Fate = "told", **asked: Any) -> str:
        """begin_payment, confirm (payment), release, refund (refund, return_units,
        return_limit)."""

        def decide() -> Decision:
            record = self._records().get(order)
            if record is None:
                return "UNKNOWN_ORDER", None
            if verb == "confirm":
                return self._pay(order, record, asked["payment"])
            letter, before = LETTERS[verb], {"begin_payment": "h", "release": "hp", "refund": "c"}
            if record.state == letter:
                return "ALREADY", record
            if record.state not in before[verb]:
                return "NOT_CONFIRMED" if verb == "refund" else "EXPIRED", record
            detail = ""
            if verb == "refund":
                detail = f"{asked['refund']},{asked['return_units']:d},{asked['return_limit']:d}"
            return "DONE", self._next(order, record, letter, detail=detail)

        return self._call(verb, order, decide, fate, **asked)

    def add_stock(self, sku: str, units: int, key: str, fate: Fate = "told") -> str:
        """More units."""

        def decide() -> Decision:
            index = self._index(sku)
            if any(event.detail.startswith(f"{key}|") for event in self._events):
                return "ALREADY", None
            total = self._state().stock[str(index)].total + units
            self._emit("sale", "stock", f"{key}|{index}|{units}|{total}", None)
            return "DONE", None

        return self._call("add_stock", "", decide, fate, sku=sku, units=units, key=key)

    def sweep(self) -> None:
        """The reaper comes by."""
        for order, record in self._records().items():
            due = ORIGIN_MS + record.deadline_ms <= self._now_s * 1000
            if record.state in "hp" and due:
                self._next(order, record, "x")

    # -- inside -----------------------------------------------------------------------------------

    def _index(self, sku: str) -> int:
        return [item.sku for item in self.sale.items].index(sku)

    def _state(self) -> Observed:
        return state_of(self.sale, self._events)

    def _records(self) -> dict[str, SeenOrder]:
        return {event.subject: event.record for event in self._events if event.record is not None}

    def _refusal(self, buyer: str, units: dict[str, int], *, late: bool = False) -> str:
        state = self._state()
        owned, lapsed = state.buyers.get(buyer, ({}, 0))
        if lapsed >= self.sale.max_lapsed and not late:
            return "NOT_ALLOWED"
        if sum(units.values()) > self.sale.limit_per_order:
            return "ORDER_LIMIT"
        for index, count in units.items():
            limit = self.sale.items[int(index)].limit
            if 0 < limit < owned.get(index, 0) + count:
                return "SKU_LIMIT"
        if sum(owned.values()) + sum(units.values()) > self.sale.limit_per_buyer:
            return "BUYER_LIMIT"
        left = [(state.stock[index].available, count) for index, count in units.items()]
        if any(available <= 0 for available, _ in left):
            return "SOLD_OUT"
        return "INSUFFICIENT" if any(available < count for available, count in left) else ""

    def _pay(self, order: str, record: SeenOrder, payment: str) -> Decision:
        if payment in record.payments:
            paid = record.state in "cf"
            if not paid:
                return "LATE", record
            if record.payments[0] != payment:
                return "DUPLICATE_PAYMENT", record
            return ("ALREADY" if record.state == "c" else "REFUNDED"), record
        late = record.state == "x" and not self._refusal(record.buyer, record.units, late=True)
        if record.state in "hp" or late:
            payments = (payment, *record.payments)
            answer = "CONFIRMED_LATE" if late else "DONE"
            return answer, self._next(order, record, "c", detail=payment, payments=payments)
        answer = "DUPLICATE_PAYMENT" if record.state in "cf" else "LATE"
        changes = {"version": record.version + 1, "payments": (*record.payments, payment)}
        record = msgspec.structs.replace(record, **changes)
        self._emit(order, "refund_due", payment, record)
        return answer, record

    def _next(
        self, order: str, record: SeenOrder, letter: str, *, detail: str = "", **changes: Any
    ) -> SeenOrder:
        if letter == "p":
            changes["deadline_ms"] = int(self._now_s * 1000) + self.sale.pay_ms - ORIGIN_MS
        if letter == "f":
            changes["refund"] = detail
        record = msgspec.structs.replace(
            record, state=letter, version=record.version + 1, **changes
        )
        self._emit(order, KINDS[letter], detail, record)
        return record

    def _emit(self, subject: str, kind: str, detail: str, record: SeenOrder | None) -> None:
        at_ms, text = int(self._now_s * 1000), f"{kind}|{detail}|{record}"
        seq = len(self._events) + 1
        self._events.append(SeenEvent(seq, at_ms, subject, kind, detail, text, record))

    def _call(
        self, verb: str, order: str, decide: Callable[[], Decision], fate: Fate, **asked: Any
    ) -> str:
        """A call that takes up to three seconds; what it does happens a second after the last
        one."""
        self._now_s += 1.0
        self._calls += 1
        number, began_s = self._calls, self._now_s - 0.3 - number_of(verb, order, self._calls)
        begin = {"n": number, "t": began_s, "op": verb, "order": order, **asked}
        if verb == "reserve":
            begin["until"] = self._now_s + 2.0
        self._lines.append(begin)
        executed = fate in ("told", "lost", "open")
        answer, record = decide() if executed else ("", None)
        end: dict[str, Any] = {"n": number, "t": self._now_s + 0.3}
        if fate == "open":
            return ""
        if fate == "told":
            end["answer"] = answer
            if record is not None:
                end["told"] = _told(self.sale, order, record)
        else:
            end["answer"] = "Overloaded" if fate == "unsent" else "OutcomeUnknown"
        self._lines.append(end)
        return str(end["answer"])


def number_of(verb: str, order: str, number: int) -> float:
    """How much earlier than it had to a call began: up to 2 s, always the same for the same
    call."""
    return (len(verb) * 7 + len(order) * 3 + number * 5) % 21 / 10


def _told(sale: SeenSale, order: str, record: SeenOrder) -> dict[str, Any]:
    return {
        "id": order,
        "buyer": record.buyer,
        "state": WORDS[record.state],
        "version": record.version,
        "items": {sale.items[int(index)].sku: count for index, count in record.units.items()},
        "deadline_ms": ORIGIN_MS + record.deadline_ms,
        "payments": list(record.payments),
        "refund": record.refund.partition(",")[0],
    }


def state_of(sale: SeenSale, events: list[SeenEvent]) -> Observed:
    """What a server holds after these events, which are taken as they are."""
    stock = {str(i): SeenStock(item.total, 0, 0, item.total) for i, item in enumerate(sale.items)}
    owned: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    lapsed: defaultdict[str, int] = defaultdict(int)
    orders: dict[str, SeenOrder] = {}
    for event in events:
        record = event.record
        if record is None:
            if event.kind == "stock":
                _, index, added, _ = event.detail.rsplit("|", 3)
                stock[index].available += int(added)
                stock[index].total += int(added)
            continue
        before = orders[event.subject].state if event.subject in orders else ""
        orders[event.subject] = msgspec.structs.replace(record)
        keep_limit = event.kind == "refunded" and event.detail.endswith("0")
        gone = event.kind == "refunded" and event.detail.split(",")[1] == "0"
        source, to = _row(before), "gone" if gone else _row(record.state)
        lapsed[record.buyer] += (event.kind == "expired") - (before == "x" and to == "confirmed")
        for index, units in record.units.items():
            if source != to:
                setattr(stock[index], source, getattr(stock[index], source) - units)
                name, change = ("total", -units) if to == "gone" else (to, units)
                setattr(stock[index], name, getattr(stock[index], name) + change)
            if source == "available" and to != "available":
                owned[record.buyer][index] += units
            elif source != "available" and to in ("available", "gone") and not keep_limit:
                owned[record.buyer][index] -= units
    buyers = {
        buyer: ({index: count for index, count in have.items() if count}, lapsed[buyer])
        for buyer, have in owned.items()
    }
    acked = {"ledger": {event.seq for event in events}, "mall": {e.seq for e in events[:-2]}}
    return Observed(len(events), sale, stock, orders, buyers, events, ORIGIN_MS, 0, acked)


def _row(state: str) -> str:
    """Where an order's units are. Those of a refunded order were moved when it was."""
    return {"h": "held", "p": "held", "c": "confirmed"}.get(state, "available")


def witnesses_of(seen: Observed) -> tuple[SeenLedger, list[Sighting]]:
    """What the ledger and the consumers of a sale have of it, when all have kept up."""
    events = deepcopy(seen.events)
    rows = {
        event.subject: LedgerOrder(event.record.version, msgspec.structs.replace(event.record))
        for event in events
        if event.record is not None
    }
    sightings = [
        Sighting(
            "mall",
            f"c-{event.seq % 2}",
            event.seq,
            event.subject,
            f"{'sale' if event.record is None else 'order'}_{event.kind}",
            event.record.version if event.record else 0,
        )
        for event in events[:-1]
    ]
    return SeenLedger(events, rows), sightings
