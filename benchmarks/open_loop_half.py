"""How much longer than in a handler that sells nothing does an order take, at half of the capacity?

Both are asked one right after the other, a second each, at the same rate and by the same schedule:
half of what the intake accepts in a closed loop of the same client. Many such pairs, and the other
one begins in every second of them. The figure is the median of the pairs' ratios of p99.

Why pairs: what a p99 is on a shared machine changes from one second to the next by more than the
two differ, with the host's scheduler and its disk. Two seconds that follow each other have the most
in common; what they have not falls on either side, and many pairs bring it into balance. So no
single pair says anything, and the range of all of them only how restless the machine was. The
range that is given is that of the median: the 95 % interval by order statistics, which takes the
pairs for independent of each other and nothing more. It has its place in the rule for noise that
all ratios have: if its ends lie further apart than that allows, there is no verdict.

Why nobody is bound to a core: with one for the load, the intake and its Redis would have to share
the other of two, and the no-op handler would have it for itself. A load that is free sleeps between
arrivals, as arrivals.py says, and may be late like everybody else. A latency counts from the
schedule, so that lateness is in the p99 of both and brings their ratio nearer to one. How much it
was is in rows of its own, and so is the ratio without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final

from benchmarks.arrivals import Came, Phase
from benchmarks.open_loop_points import NAME, QUANTILES, Point, millis
from benchmarks.open_loop_stage import CONNECTIONS, INTAKE, NOOP, WHO, Stage
from benchmarks.report import RATIO, Row, interval

__all__ = ["HALF", "Pair", "measure", "rows"]

HALF: Final = 0.5
TARGET: Final = 2.0
PAIRS: Final = 40
FULL_PAIRS: Final = 120
SECONDS: Final = 1.0
PAIRS_A_SALE: Final = 10

Pair = dict[str, Came]
"""What came of the intake's second, and of the no-op handler's."""


def measure(stage: Stage, label: str, capacity_per_s: float) -> list[Pair]:
    """All pairs. ``capacity_per_s`` is the intake's."""
    plan, pairs = stage.plan, []
    count = 2 if plan.quick else FULL_PAIRS if plan.full else PAIRS
    for turn in range(count):
        if turn and turn % PAIRS_A_SALE == 0:
            stage.open_sale()
        plan.say(f"{NAME}: {label}, half of the capacity, pair {turn + 1} of {count}")
        # Taken again as a whole: its seconds belong together.
        pairs.append(plan.stolen.least(partial(_pair, stage, HALF * capacity_per_s, turn)))
    return pairs


def _pair(stage: Stage, per_s: float, turn: int) -> Pair:
    phase = Phase(per_s, 0.3 if stage.plan.quick else SECONDS)
    order = WHO[:: -1 if turn % 2 else 1]
    return {
        who: stage.offer(who, phase, connections=CONNECTIONS, seed=turn + 1).phases[0]
        for who in order
    }


def rows(label: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """The ratio, and all that a reader needs to believe it or not."""
    question = "p99 of an in-stock order at half of capacity, against a no-op handler"
    yield _ratio(label, question, pairs, lambda came: came.times.p99_ms, at_most=TARGET)
    question = "the same without the load's own lateness"
    yield _ratio(label, question, pairs, lambda came: came.punctual_times.p99_ms)
    for who in WHO:
        found = [pair[who] for pair in pairs]
        rate = median(came.offered / came.seconds for came in found)
        for quantile in QUANTILES:
            note = f"{rate:,.0f}/s offered" if quantile == QUANTILES[0] else ""
            asked, values = Point(who, HALF, quantile).question, millis(found, quantile)
            yield Row.of(NAME, label, asked, "ms", values, note=note)
        for quantile, late in (
            ("p50", [came.late.p50_ms for came in found]),
            ("p99", [came.late.p99_ms for came in found]),
        ):
            asked = f"the load's own lateness at half of capacity, {quantile}, {who}"
            yield Row.of(NAME, label, asked, "ms", late)


def _ratio(
    label: str,
    question: str,
    pairs: Sequence[Pair],
    p99_ms: Callable[[Came], float],
    *,
    at_most: float | None = None,
) -> Row:
    # Nobody answers within a microsecond: that is a second without any answer.
    ratios = [p99_ms(pair[INTAKE]) / max(0.001, p99_ms(pair[NOOP])) for pair in pairs]
    low, high, sure = interval(ratios)
    ours_ms, noop_ms = (median(p99_ms(pair[who]) for pair in pairs) for who in (INTAKE, NOOP))
    note = (
        f"{ours_ms:.2f} against {noop_ms:.2f} ms; the range is the median's, {100 * sure:.0f} % "
        f"sure; single pairs: {min(ratios):.2f} … {max(ratios):.2f}"
    )
    return Row.of(
        NAME, label, question, RATIO, ratios, at_most=at_most, spread=(low, high), note=note
    )
