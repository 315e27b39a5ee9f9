"""When things happened, as far as the callers' calls tell it, and what that rules out.

The stream says in which order the events happened, and each call says that its event happened after
it began, and that what its answer tells had happened before it ended. Both together bound the time
of every event, without any clock but the callers' own: an event is not earlier than any before it,
nor later than any after it. Where the bounds leave room, nothing is held against anybody.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from tests.faults.checker_report import broken
from tests.faults.checker_stream import Twin
from tests.faults.history import Call, History
from tests.faults.observed import Observed, SeenEvent

__all__ = ["Times", "causes", "sold_out_problems", "time_problems"]

VERBS = {
    "held": "reserve",
    "paying": "begin_payment",
    "confirmed": "confirm",
    "refund_due": "confirm",
    "released": "release",
    "refunded": "refund",
}
STOCK_DONE = frozenset({"DONE", "ALREADY"})


def causes(event: SeenEvent, calls: list[Call]) -> list[Call]:
    """Those calls of an order that may have caused an event of it."""
    return [
        call
        for call in calls
        if call.verb == VERBS.get(event.kind) and not call.futile and _names(event, call)
    ]


def _names(event: SeenEvent, call: Call) -> bool:
    """Whether the call is of the same payment or refund."""
    if call.verb == "confirm":
        return bool(call.asked["payment"] == event.detail)
    if call.verb == "refund":
        return bool(call.asked["refund"] == event.detail.partition(",")[0])
    return True


class Times:
    """``earliest_s`` and ``latest_s`` of each event, by its place; ``places`` of each order's
    versions. ``contradiction`` is the first place at which no time is left."""

    def __init__(self, history: History, events: list[SeenEvent]) -> None:
        self.places: dict[str, dict[int, int]] = {}
        for place, event in enumerate(events):
            if event.record is not None:
                self.places.setdefault(event.subject, {})[event.record.version] = place
        began, ended = [-math.inf] * len(events), [math.inf] * len(events)
        for order_id, versions in self.places.items():
            calls = history.orders.get(order_id, [])
            told = [(_version(call), call.ended_s) for call in calls if call.told]
            for version, place in versions.items():
                makers = causes(events[place], calls)
                if makers:
                    began[place] = min(call.began_s for call in makers)
                known_s = [ended_s for later, ended_s in told if later >= version]
                if known_s:
                    ended[place] = min(known_s)
        for place, event in enumerate(events):
            if event.kind == "stock":
                calls = stock_calls(history, event)
                began[place] = min((call.began_s for call in calls), default=-math.inf)
                done = (call.ended_s for call in calls if call.answer in STOCK_DONE)
                ended[place] = min(done, default=math.inf)
        # When each was first asked for, and first told.
        self.asked_s, self.told_s = list(began), list(ended)
        self.earliest_s, self.latest_s = began, ended
        for place in range(1, len(events)):
            began[place] = max(began[place], began[place - 1])
        for place in range(len(events) - 2, -1, -1):
            ended[place] = min(ended[place], ended[place + 1])
        self.contradiction = next(
            (place for place in range(len(events)) if began[place] > ended[place]), None
        )

    def had_happened(self, order_id: str, version: int, at_s: float) -> bool:
        """Whether this version of an order certainly was there at that time."""
        place = self.places.get(order_id, {}).get(version)
        return place is not None and self.latest_s[place] < at_s

    def possible(self, from_s: float, to_s: float) -> tuple[int, int]:
        """The first and the last place that may have been the latest one at some moment of this
        time; -1 is before the first event."""
        return bisect_left(self.latest_s, from_s) - 1, bisect_right(self.earliest_s, to_s) - 1


def stock_calls(history: History, event: SeenEvent) -> list[Call]:
    """Those calls that may have made a change of stock."""
    key = event.detail.rsplit("|", 3)[0]
    return [call for call in history.stock if call.asked["key"] == key and not call.harmless]


def _version(call: Call) -> int:
    return int(call.told["version"]) if call.told else 0


def time_problems(history: History, events: list[SeenEvent], times: Times) -> list[str]:
    """Answers that were out of date when they were given, and events in an impossible order."""
    if times.contradiction is not None:
        place = times.contradiction
        late = times.asked_s.index(times.earliest_s[place])
        early = len(events) - 1 - times.told_s[::-1].index(times.latest_s[place])
        asked, told = events[late], events[early]
        said = f"event {asked.seq} ({asked.kind} of {asked.subject}) has no call that began before"
        said += f" {times.asked_s[late]:.6f} s, and event {told.seq} ({told.kind} of"
        said += f" {told.subject}), which does not stand before it, was told at"
        return [broken("order", f"{said} {times.told_s[early]:.6f} s")]
    return [
        problem
        for order_id, calls in history.orders.items()
        for call in calls
        for problem in _stale(order_id, call, times)
    ]


def _stale(order_id: str, call: Call, times: Times) -> Iterator[str]:
    if call.told is not None:
        version = _version(call)
        if times.had_happened(order_id, version + 1, call.began_s):
            said = f"order {order_id}: {call} told version {version}"
            yield broken("version", f"{said} when a later one was known")
        return
    if not call.denied:
        return
    first = min(times.places.get(order_id, {0: 0}))
    if not times.had_happened(order_id, first, call.began_s):
        return
    rule = "retry" if call.verb == "reserve" else "missing"
    said = f"order {order_id}: {call} came when the order was known to be there"
    yield broken(rule, said)


def sold_out_problems(
    history: History, seen: Observed, twin: Twin, times: Times, lease_s: float
) -> list[str]:
    """Refusals for want of stock at no moment of which, nor of the lease before it, too few units
    were available."""
    index_of = {item.sku: str(index) for index, item in enumerate(seen.sale.items)}
    problems = []
    for order_id, calls in history.orders.items():
        for call in calls:
            if call.verb != "reserve" or call.answer not in ("SOLD_OUT", "INSUFFICIENT"):
                continue
            first, last = times.possible(call.began_s - lease_s, call.ended_s)
            wanted = call.asked["items"].items()
            scarce = call.answer == "INSUFFICIENT"
            if not any(
                _fewer_than(twin.available[index_of[sku]], units if scarce else 1, first, last)
                for sku, units in wanted
            ):
                said = f"order {order_id}: {call} asked for {call.asked['items']}"
                problems.append(broken("sold_out", f"{said} while all of it was available"))
    return problems


def _fewer_than(steps: list[tuple[int, int]], units: int, first: int, last: int) -> bool:
    """Whether fewer than so many units were available after some event from ``first`` to
    ``last``."""
    place = bisect_right(steps, (first, math.inf)) - 1
    while place < len(steps) and steps[place][0] <= last:
        if steps[place][1] < units:
            return True
        place += 1
    return False
