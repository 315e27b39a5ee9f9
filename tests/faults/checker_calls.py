"""Holds what the callers were told against the events: each call by itself, and those of an order
together. When things happened is judged elsewhere (checker_times.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from tests.faults.checker_report import broken
from tests.faults.checker_times import VERBS, causes, stock_calls
from tests.faults.history import Call, History
from tests.faults.observed import Observed, SeenEvent, SeenOrder

__all__ = ["Loss", "Losses", "call_problems", "losses", "stock_problems"]

STATES: Final = {
    "h": "held",
    "p": "paying",
    "c": "confirmed",
    "f": "refunded",
    "r": "released",
    "x": "expired",
}
# What an answer to a verb says has happened, by the event that must be there.
DONE: Final = {
    ("begin_payment", "DONE"): "paying",
    ("begin_payment", "ALREADY"): "paying",
    ("confirm", "DONE"): "confirmed",
    ("confirm", "ALREADY"): "confirmed",
    ("confirm", "CONFIRMED_LATE"): "confirmed",
    ("confirm", "REFUNDED"): "confirmed",
    ("confirm", "LATE"): "refund_due",
    ("confirm", "DUPLICATE_PAYMENT"): "refund_due",
    ("release", "DONE"): "released",
    ("release", "ALREADY"): "released",
    ("refund", "DONE"): "refunded",
    ("refund", "ALREADY"): "refunded",
}
# Answers that say "this very call did it", which an order can be told once.
ONCE: Final = {
    "reserve": ("CREATED",),
    "begin_payment": ("DONE",),
    "release": ("DONE",),
    "confirm": ("DONE", "CONFIRMED_LATE"),
    "refund": ("DONE",),
}


class Loss(NamedTuple):
    """Something acknowledged that is not there: a problem, and when it was first acknowledged."""

    problem: str
    acknowledged_s: float


Losses = list[Loss]


def losses(history: History, seen: Observed, events: list[SeenEvent]) -> Losses:
    """What was acknowledged and is not in the events any more."""
    told = versions_of(events)
    found = [
        loss
        for order_id, calls in history.orders.items()
        if (loss := _lost(order_id, calls, told.get(order_id, {}), seen.orders.get(order_id)))
    ]
    keys = {event.detail.rsplit("|", 3)[0] for event in events if event.kind == "stock"}
    for call in history.stock:
        if call.answer in ("DONE", "ALREADY") and call.asked["key"] not in keys:
            said = f"the change of stock {call.asked['key']}, {call}, has no event"
            found.append(Loss(broken("lost", said), call.ended_s))
    return found


def versions_of(events: Iterable[SeenEvent]) -> dict[str, dict[int, SeenEvent]]:
    """The events of each order by its version."""
    found: dict[str, dict[int, SeenEvent]] = {}
    for event in events:
        if event.record is not None:
            found.setdefault(event.subject, {})[event.record.version] = event
    return found


def _lost(
    order_id: str, calls: list[Call], versions: dict[int, SeenEvent], record: SeenOrder | None
) -> Loss | None:
    last = max(versions, default=0)
    for call in sorted(calls, key=lambda call: call.ended_s):
        if call.told is None or call.told["version"] <= last:
            continue
        said = f"order {order_id} was told in version {call.told['version']} to {call}"
        if record is not None and record.version >= call.told["version"]:
            return Loss(broken("event", f"{said}, which has no event"), call.ended_s)
        return Loss(broken("lost", f"{said}, and ends at {last}"), call.ended_s)
    return None


def call_problems(
    history: History, events: list[SeenEvent], origin_ms: int, index_of: dict[str, str]
) -> Iterator[str]:
    """What of the orders does not fit the calls. ``index_of``: SKU to the index that records
    have."""
    told = versions_of(events)
    for order_id in told.keys() - history.orders.keys():
        yield broken("phantom", f"order {order_id} exists and nobody ever asked for it")
    for order_id, calls in history.orders.items():
        versions = told.get(order_id, {})
        yield from _twice(order_id, calls)
        for call in calls:
            if call.told is not None:
                yield from _misled(order_id, call, versions, origin_ms, index_of)
            yield from _undone(order_id, call, versions)
        yield from _uncaused(order_id, calls, versions)
        if versions:
            yield from _haunted(order_id, calls)


def _twice(order_id: str, calls: list[Call]) -> Iterator[str]:
    for verb, answers in ONCE.items():
        said = [call for call in calls if call.verb == verb and call.answer in answers]
        if len(said) > 1:
            both = " and ".join(map(str, said[:2]))
            yield broken("twice", f"order {order_id} was {said[0].answer} by {both}")


def _misled(
    order_id: str,
    call: Call,
    versions: dict[int, SeenEvent],
    origin_ms: int,
    index_of: dict[str, str],
) -> Iterator[str]:
    """Whether an answer tells the order that was asked for, as one of its events left it."""
    told: dict[str, Any] = call.told or {}
    if told["id"] != order_id:
        yield broken("twice", f"{call} was answered with order {told['id']}, not {order_id}")
        return
    if call.verb == "reserve":
        asked = call.asked
        if (told["buyer"], told["items"]) != (asked["buyer"], asked["items"]):
            yield broken("twice", f"order {order_id}: {call} was answered with another payload")
            return
    event = versions.get(told["version"])
    if event is None or event.record is None:
        return  # Lost, or told by a version that a rebuilt sale has passed over.
    record = event.record
    expected = {
        "id": order_id,
        "buyer": record.buyer,
        "state": STATES[record.state],
        "version": record.version,
        "items": record.units,
        "deadline_ms": origin_ms + record.deadline_ms,
        "payments": list(record.payments),
        "refund": record.refund.partition(",")[0],
    }
    units = {index_of.get(sku, sku): count for sku, count in told["items"].items()}
    if (told | {"items": units}) != expected:
        said = f"order {order_id}: {call} told {told}, and event {event.seq} left it {expected}"
        yield broken("answer", said)


def _undone(order_id: str, call: Call, versions: dict[int, SeenEvent]) -> Iterator[str]:
    """Whether what an answer says was done has its event. An order that was lost as far as the
    answer tells it is told elsewhere."""
    kind = DONE.get((call.verb, call.answer))
    if kind is None or (call.told and call.told["version"] not in versions):
        return
    if not any(event.kind == kind and causes(event, [call]) for event in versions.values()):
        rule = "money" if call.verb == "confirm" else "lost"
        yield broken(rule, f"order {order_id}: {call} left no event {kind!r}")


def _uncaused(order_id: str, calls: list[Call], versions: dict[int, SeenEvent]) -> Iterator[str]:
    for event in versions.values():
        if event.kind in VERBS and not causes(event, calls):
            said = f"order {order_id} is {event.kind} by event {event.seq}"
            yield broken("phantom", f"{said}, and no call of it could have done that")


def _haunted(order_id: str, calls: list[Call]) -> Iterator[str]:
    """Whether an order exists that all who may have made it had let go of when it was not there. An
    order that was accepted before must be found instead, which is told elsewhere."""
    # Whoever was told that it exists may have made it as well, by a batch that was sent twice.
    makers = [call for call in calls if call.verb == "reserve" and not call.futile]
    if not makers:
        return
    over_s = max(call.effective_s for call in makers)
    for call in calls:
        if call.denied and call.began_s > over_s and not _acknowledged(calls, call.began_s):
            rule = "phantom" if call.verb == "reserve" else "zombie"
            yield broken(rule, f"order {order_id} exists, and {call} had settled that it does not")
            return


def _acknowledged(calls: list[Call], before_s: float) -> bool:
    return any(call.told is not None and call.ended_s < before_s for call in calls)


def stock_problems(
    history: History, events: list[SeenEvent], index_of: dict[str, str]
) -> Iterator[str]:
    """The changes of stock: each made by a call, as it was asked for, and once."""
    said = Counter(call.asked["key"] for call in history.stock if call.answer == "DONE")
    for key, times in said.items():
        if times > 1:
            yield broken("twice", f"the change of stock {key} was DONE {times} times")
    for event in events:
        if event.kind != "stock":
            continue
        key, index, units, _ = event.detail.rsplit("|", 3)
        calls = stock_calls(history, event)
        if not calls:
            yield broken("phantom", f"event {event.seq} changes stock by {key}, and nobody asked")
        elif not any(
            (index_of[call.asked["sku"]], call.asked["units"]) == (index, int(units))
            for call in calls
        ):
            asked = f"{calls[0]} asked for {calls[0].asked['units']} of {calls[0].asked['sku']}"
            yield broken("twice", f"event {event.seq} changes stock by {event.detail}, and {asked}")
