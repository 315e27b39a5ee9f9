"""What became of an evening, in figures."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from seckill.rehearse.evening import Evening, Fate, Moment
from seckill.rehearse.model import Crowd, Habits, Mode, Rules
from seckill.rehearse.pace import Pacer
from seckill.rehearse.simulate import simulate

__all__ = ["Part", "Rehearsal", "parts_of", "rehearse"]

DECILES: Final = 10
# Of those who waited in vain, so many are asked when they were told.
_ASKED: Final = 300
_ETA_LEAST_MS: Final = 1_000


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Buyers who came one after the other, from ``from_ms`` to ``to_ms``.

    ``chance`` is how likely a unit was for one of them who would come when called. The waits are of
    those who were called, None where nobody was.
    """

    from_ms: int
    to_ms: int
    buyers: int
    called: int
    units: int
    chance: float
    wait_median_ms: int | None
    wait_p10_ms: int | None
    wait_p90_ms: int | None


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """One evening. Times are milliseconds since the opening, lengths are milliseconds.

    Of ``buyers``, ``joined`` came in time to join; ``called`` had their turn, ``absent`` of them
    did not use it and ``empty`` found nothing left; ``orders`` were accepted, and ``lapsed`` of
    them not paid. ``in_vain`` waited and were never called: half of them were told so within
    ``told_median_ms``, and ``untold`` of them not before the sale was over. ``sold_out_ms`` is when
    no unit was there for the first time, ``gone_ms`` when the last one was paid. ``eta_error`` is
    by how much what a buyer was told on joining was wrong in the median, as a share of the wait.
    """

    mode: Mode
    units: int
    buyers: int
    joined: int
    called: int
    absent: int
    empty: int
    orders: int
    lapsed: int
    paid: int
    unsold: int
    in_vain: int
    told_median_ms: int | None
    untold: int
    sold_out_ms: int | None
    gone_ms: int | None
    wait_median_ms: int | None
    wait_p90_ms: int | None
    wait_p99_ms: int | None
    eta_error: float | None
    deciles: list[Part]

    def data(self) -> dict[str, Any]:
        """For programs."""
        return msgspec.structs.asdict(self)


def rehearse(rules: Rules, crowd: Crowd, habits: Habits, pacer: Pacer) -> tuple[Rehearsal, Evening]:
    """One evening, and what became of it. Raises RedisUnavailable."""
    evening = simulate(rules, crowd, habits, pacer)
    return _measure(evening), evening


def _measure(evening: Evening) -> Rehearsal:
    rules, crowd = evening.rules, evening.crowd
    fates = Counter(evening.fates[buyer] for buyer in evening.called)
    waits = [] if rules.mode == "open" else sorted(_wait(evening, b) for b in evening.called)
    told = _told_after(evening)
    asked = sorted(after for after in told if after is not None)
    in_vain = crowd.joined - len(evening.called)
    return Rehearsal(
        mode=rules.mode,
        units=rules.units,
        buyers=len(crowd.arrivals),
        joined=crowd.joined,
        called=len(evening.called),
        absent=fates[Fate.ABSENT],
        empty=fates[Fate.EMPTY],
        orders=fates[Fate.LAPSED] + fates[Fate.PAID],
        lapsed=fates[Fate.LAPSED],
        paid=fates[Fate.PAID],
        unsold=rules.units - fates[Fate.PAID],
        in_vain=in_vain,
        told_median_ms=_at_share(asked, 0.5),
        untold=round(in_vain * (1 - len(asked) / len(told))) if told else 0,
        sold_out_ms=evening.first_empty_ms,
        gone_ms=evening.gone_ms,
        wait_median_ms=_at_share(waits, 0.5),
        wait_p90_ms=_at_share(waits, 0.9),
        wait_p99_ms=_at_share(waits, 0.99),
        eta_error=_eta_error(evening),
        deciles=parts_of(evening, DECILES),
    )


def parts_of(evening: Evening, count: int) -> list[Part]:
    """The buyers in order of arrival, in so many equal parts."""
    arrivals, total = evening.crowd.arrivals, len(evening.crowd.arrivals)
    bounds = sorted({total * part // count for part in range(count + 1)})
    members: list[list[int]] = [[] for _ in bounds[1:]]
    for buyer in evening.called:
        members[bisect_right(bounds, buyer) - 1].append(buyer)
    parts = []
    for first, end, called in zip(bounds, bounds[1:], members, strict=False):
        fates = Counter(evening.fates[buyer] for buyer in called)
        units = fates[Fate.LAPSED] + fates[Fate.PAID]
        came = units + fates[Fate.EMPTY]
        waits = [] if evening.rules.mode == "open" else sorted(_wait(evening, b) for b in called)
        parts.append(
            Part(
                from_ms=arrivals[first],
                to_ms=arrivals[end - 1],
                buyers=end - first,
                called=len(called),
                units=units,
                chance=len(called) / (end - first) * (units / came if came else 1),
                wait_median_ms=_at_share(waits, 0.5),
                wait_p10_ms=_at_share(waits, 0.1),
                wait_p90_ms=_at_share(waits, 0.9),
            )
        )
    return parts


def _wait(evening: Evening, buyer: int) -> int:
    """From joining to the call; whoever came before the opening waits from there."""
    return evening.called_at[buyer] - max(0, evening.crowd.arrivals[buyer])


def _at_share(values: Sequence[int], share: float) -> int | None:
    """The value below which this share of the sorted values is."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else None


def _told_after(evening: Evening) -> list[int | None]:
    """Of some who were never called, evenly chosen: how long it took until they were told that a
    unit was unlikely, None where they never were."""
    head, tail = len(evening.called), evening.crowd.joined
    times = [moment.at_ms for moment in evening.moments]
    return [
        _told_one(evening, position, times)
        for position in range(head, tail, max(1, (tail - head) // _ASKED))
    ]


def _told_one(evening: Evening, position: int, times: list[int]) -> int | None:
    came_ms = evening.crowd.arrivals[evening.crowd.buyer(position)]
    since_ms = max(came_ms, evening.rules.begins_ms)
    for index in range(bisect_left(times, since_ms), len(times)):
        moment = evening.moments[index]
        if _is_hopeless(moment, position):
            return moment.at_ms - since_ms
    return None if evening.gone_ms is None else 0


def _is_hopeless(moment: Moment, position: int) -> bool:
    """As seckill.queue says it."""
    return position - moment.head >= moment.reach or moment.available + moment.held == 0


def _eta_error(evening: Evening) -> float | None:
    errors = []
    for position, at_ms, eta in evening.told:
        called_ms = evening.called_at[evening.crowd.buyer(position)]
        if eta is not None and called_ms - at_ms >= _ETA_LEAST_MS:
            errors.append(abs(eta - (called_ms - at_ms)) / (called_ms - at_ms))
    return sorted(errors)[len(errors) // 2] if errors else None
