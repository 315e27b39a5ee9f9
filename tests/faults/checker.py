"""Decides whether what a server holds fits what its callers were told.

    History   every call and its answer, as the callers logged them
    Observed  the server's keys at one moment, read raw and without the engine
    check     both together: valid, invalid with the problems, or unknown

It shares no code with the engine but the names of the keys, and replays the events with a twin of
a few lines. It knows sales without refunds, stock changes and late payments; the rest is unknown.
"""

from __future__ import annotations

import json
import traceback
from enum import StrEnum
from pathlib import Path

import msgspec
import redis

from seckill.keys import shard_keys

__all__ = [
    "History",
    "Observed",
    "Report",
    "SeenEvent",
    "SeenOrder",
    "SeenStock",
    "Verdict",
    "check",
    "observe",
    "state_problems",
]

# Answers of the load that are no statuses: an exception says what happened.
UNKNOWN = "OutcomeUnknown"
NOT_SENT = frozenset({"EngineClosed", "Overloaded", "RedisUnavailable"})

# From which states (a letter of the record, "" for none) an event may take an order, and to which.
MOVES = {
    "held": ({""}, "h"),
    "paying": ({"h"}, "p"),
    "confirmed": ({"h", "p"}, "c"),
    "released": ({"h", "p"}, "r"),
    "expired": ({"h", "p"}, "x"),
}
ACCEPTED = frozenset({"CREATED", "EXISTS"})
GOAL = {"confirm": "c", "release": "r"}


class Verdict(StrEnum):
    """Unknown is no pass: nothing was proved."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


class Report(msgspec.Struct, frozen=True):
    """A verdict and what led to it; ``problems`` are "rule: text"."""

    verdict: Verdict
    problems: tuple[str, ...] = ()

    def found(self, rule: str) -> int:
        """How many problems of one rule."""
        return sum(problem.startswith(f"{rule}:") for problem in self.problems)


class SeenStock(msgspec.Struct):
    """The units of one SKU."""

    available: int
    held: int
    confirmed: int
    total: int


class SeenOrder(msgspec.Struct):
    """An order's state (a letter) and its units by SKU index."""

    state: str
    units: dict[str, int]


class SeenEvent(msgspec.Struct):
    """One event: of an order, or of the "sale"."""

    seq: int
    subject: str
    kind: str


class Observed(msgspec.Struct):
    """What one transaction has read. ``totals``: the units of the sale's definition."""

    seq: int
    totals: dict[str, int]
    stock: dict[str, SeenStock]
    orders: dict[str, SeenOrder]
    events: list[SeenEvent]


def observe(url: str, sale: str) -> Observed:
    """Reads a sale. All of it in one transaction, so that nothing happens in between."""
    sale_key, stock_key, _, orders_key, _, _, events_key = shard_keys(sale)
    with redis.Redis.from_url(url) as client, client.pipeline(transaction=True) as pipe:
        pipe.hmget(sale_key, "seq", "definition")
        pipe.hgetall(stock_key)
        pipe.hgetall(orders_key)
        # By a script, because redis-py would make a dict of the fields and so swallow a double.
        pipe.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, events_key)
        (seq, definition), stock, orders, entries = pipe.execute()
    if seq is None:
        # A crash may take the whole sale with it; then everything that was acknowledged is lost.
        return Observed(0, {}, {}, {}, [])
    rows: dict[str, dict[str, int]] = {}
    for field, value in stock.items():
        index, _, name = field.decode().partition(":")
        if name in SeenStock.__struct_fields__:
            rows.setdefault(index, {})[name] = int(value)
    events = []
    for entry_id, fields in entries:
        parts = [part.decode() for part in fields]
        last = int(entry_id.decode().partition("-")[2])
        first = last - len(parts) // 2 + 1
        events += [
            SeenEvent(first + place, subject, value.partition("|")[0])
            for place, (subject, value) in enumerate(zip(parts[::2], parts[1::2], strict=True))
        ]
    return Observed(
        int(seq),
        {str(index): item["total"] for index, item in enumerate(json.loads(definition)["items"])},
        {index: SeenStock(**row) for index, row in rows.items()},
        {order.decode(): _read_record(record.decode()) for order, record in orders.items()},
        events,
    )


def _read_record(record: str) -> SeenOrder:
    units = {}
    for line in record.split("|")[1].split(","):
        index, _, quantity = line.partition(":")
        units[index] = int(quantity or 1)
    return SeenOrder(record[0], units)


class _Calls:
    """What the callers know of one order."""

    def __init__(self) -> None:
        self.accepted = False
        self.created = 0
        self.open = 0
        self.unknown_at = 0
        self.asked: set[str] = set()
        self.done: set[str] = set()
        self.strange: list[str] = []


class History:
    """The log of the load, one JSON line when a call begins and one when it is answered."""

    def __init__(self) -> None:
        self.orders: dict[str, _Calls] = {}
        self.accepted = 0
        self.unknown = 0
        self._open: dict[int, tuple[str, str, int]] = {}
        self._lines = 0
        self._offset = 0

    def read(self, log: Path) -> None:
        """Takes in what was appended since the last time, whole lines only."""
        with log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            entry = json.loads(line)
            if "op" in entry:
                self.begin(entry["n"], entry["op"], entry["order"])
            else:
                self.end(entry["n"], entry["answer"])

    def begin(self, number: int, verb: str, order: str) -> None:
        self._lines += 1
        self._open[number] = (verb, order, self._lines)
        calls = self.orders.setdefault(order, _Calls())
        if verb == "reserve":
            calls.open += 1
        else:
            calls.asked.add(verb)

    def end(self, number: int, answer: str) -> None:
        self._lines += 1
        verb, order, began = self._open.pop(number)
        calls = self.orders[order]
        if answer == UNKNOWN:
            self.unknown += 1
        if verb != "reserve":
            if answer in ("DONE", "ALREADY"):
                calls.done.add(verb)
            elif answer != UNKNOWN and answer not in NOT_SENT:
                calls.strange.append(f"{verb} {answer}")
            return
        calls.open -= 1
        if answer in ACCEPTED:
            self.accepted += 1
            calls.accepted = True
            calls.created += answer == "CREATED"
        elif answer == UNKNOWN:
            calls.unknown_at = self._lines
        elif answer not in NOT_SENT and began > calls.unknown_at:
            # A refusal says as well that no earlier call has made the order, nor ever will.
            calls.unknown_at = 0


def state_problems(seen: Observed) -> list[str]:
    """What is wrong with the server's state alone, whatever anybody was told."""
    problems = []
    if [event.seq for event in seen.events] != list(range(1, seen.seq + 1)):
        problems.append(f"seq: {len(seen.events)} events are not the numbers 1 to {seen.seq}")
    states: dict[str, str] = {}
    twin = {index: SeenStock(total, 0, 0, total) for index, total in seen.totals.items()}
    for event in seen.events:
        if event.subject == "sale":
            continue
        before, after = MOVES[event.kind]
        state = states.get(event.subject, "")
        if state not in before:
            rule = "double" if event.kind == "held" else "state"
            problems.append(f"{rule}: {event.subject} is {event.kind} when {state!r}")
        states[event.subject] = after
        order = seen.orders.get(event.subject)
        if order is None:
            problems.append(f"lost: {event.subject} has events and no record")
            continue
        for index, units in order.units.items():
            _move(twin[index], event.kind, units)
            if twin[index].available < 0:
                problems.append(f"oversold: SKU {index} at {event.seq}")
    for order_id, order in seen.orders.items():
        if states.get(order_id) != order.state:
            problems.append(
                f"state: {order_id} is {order.state!r}, its events say {states.get(order_id)!r}"
            )
    for index, wanted in twin.items():
        row = seen.stock.get(index)
        if row is None or row.available + row.held + row.confirmed != row.total:
            problems.append(f"conservation: SKU {index} has {row}")
        if row != wanted:
            problems.append(f"conservation: SKU {index} has {row}, its events say {wanted}")
    return problems


def _move(row: SeenStock, kind: str, units: int) -> None:
    if kind == "held":
        row.available -= units
        row.held += units
    elif kind == "confirmed":
        row.held -= units
        row.confirmed += units
    elif kind in ("released", "expired"):
        row.held -= units
        row.available += units


def _history_problems(history: History, seen: Observed) -> list[str]:
    problems = [
        f"phantom: {order} exists and was never asked for"
        for order in seen.orders
        if order not in history.orders
    ]
    for order_id, calls in history.orders.items():
        problems += [f"refused: {order_id} exists, but {text}" for text in calls.strange]
        if calls.created > 1:
            problems.append(f"double: {order_id} was CREATED {calls.created} times")
        order = seen.orders.get(order_id)
        if order is None:
            if calls.accepted:
                problems.append(f"lost: {order_id} was acknowledged")
            continue
        if not (calls.accepted or calls.open or calls.unknown_at):
            problems.append(f"phantom: {order_id} exists, but every call was refused")
        wanted = {GOAL[verb] for verb in calls.done}
        if not wanted:
            wanted = {"h", *(GOAL[verb] for verb in calls.asked)}
        if order.state not in wanted:
            rule = "lost" if calls.done else "state"
            problems.append(f"{rule}: {order_id} is {order.state!r}, not {sorted(wanted)}")
    return problems


def check(history: History, seen: Observed | None) -> Report:
    """The verdict. A state that could not be read, a history in which nothing was accepted and a
    checker that crashed prove nothing."""
    if seen is None:
        return Report(Verdict.UNKNOWN, ("unread: the server's state could not be read",))
    try:
        problems = state_problems(seen) + _history_problems(history, seen)
    except Exception:  # noqa: BLE001
        # Whatever it stumbled over, it has not finished, and must not look as if it had.
        return Report(Verdict.UNKNOWN, (f"crashed: {traceback.format_exc()}",))
    if problems:
        return Report(Verdict.INVALID, tuple(problems))
    if not history.accepted:
        return Report(Verdict.UNKNOWN, ("empty: nothing was acknowledged",))
    return Report(Verdict.VALID)
