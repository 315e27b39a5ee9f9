"""What is left of an intake at three times its capacity, and how soon is it itself again?

    the peak, 2 s ── full, 1 s ── half of the peak: 1 s, and 1 s that is compared ── 3 × the peak,
        3 s ── half again: 1 s to recover, and 1 s that is compared ── the peak once more, 2 s

on 4,096 connections, twice what an intake takes on at once (max_in_flight); an arrival that finds
all of them waiting for an answer is not sent and counted apart, as nginx's worker_connections would
have it. The load has a core of its own, for no other could offer so much. The peak is measured in a
closed loop on 1,024 connections, in the same state: few enough that nobody is refused. Before and
after, because a rented machine's speed changes within seconds: goodput is compared with the mean.
What is compared is the median of nine such rounds, and its range that of open_loop_half.py.

Redis the limit    Redis gets 1 ms of a core in 20, by SIGSTOP and SIGCONT, as by a container's CPU
                   quota, so the intake has time to spare. On two cores it shares that of the load,
                   not that of the intake.
                   Goodput must be 0.9 of the peak.
intake the limit   nothing is held back. Goodput must be 0.9 of what refusing leaves of the peak:
                   peak - (cost of a refusal / cost of an order) x refusals a second.

What a refusal costs is measured apart: Redis stands still, so the intake fills up to max_in_flight
and refuses everything else; its CPU time by refusal, against its CPU time by order at the peak.

In either case: every request that was sent is answered or refused within 4 s (an intake gives
Redis three); memory stays (the most that is resident from then to the end, against before; all
connections were full once before the first look); and in the second after the second of recovery
0.9 of what is offered is accepted in every round, with a p99 of at most twice what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, median
from typing import Final

import msgspec

from benchmarks.arrivals import Came, Phase
from benchmarks.open_loop_stage import (
    INTAKE,
    Look,
    Stage,
    at,
    beside_load,
    looking,
    stopped,
    throttled,
)
from benchmarks.report import RATIO, Row, Verdict, interval

__all__ = ["rows"]

CONNECTIONS: Final = 4_096
# Enough to fill up max_in_flight, and that many again to be refused.
QUICK_CONNECTIONS: Final = 2_300
PEAK_CONNECTIONS: Final = 1_024
CALM, OVER = 0.5, 3.0
ROUNDS: Final = 9
GOODPUT: Final = 0.9
# Less than this part of the peak is a collapse.
STANDS: Final = 0.5
RECOVERED: Final = 2.0
MEMORY: Final = 1.1
# The queues fill first.
SETTLE_S: Final = 0.5
QUOTA_S, PERIOD_S = 0.001, 0.02
REDIS, OURS = "Redis the limit", "intake the limit"


class Overload(msgspec.Struct, frozen=True):
    """One run: the peak, CPU seconds of the intake by order there, what came of the phases, and
    the intake's memory."""

    peak: float
    order_s: float
    calm: Came
    over: Came
    settle: Came
    after: Came
    before_bytes: int
    most_bytes: int
    after_bytes: int

    @property
    def goodput(self) -> float:
        return self.over.goodput(skip_s=min(SETTLE_S, self.over.seconds / 2))

    @property
    def accepted_after(self) -> float:
        """The part of those who came after the recovery."""
        return self.after.accepted / max(1, self.after.offered)

    @property
    def grown(self) -> float:
        """The most memory, relative to that before."""
        return max(self.most_bytes, self.after_bytes) / self.before_bytes

    def allowed(self, refusal_s: float) -> float:
        """Orders a second that are left when so much goes into refusals."""
        refused = self.over.refused / self.over.seconds
        return max(STANDS * self.peak, self.peak - refused * refusal_s / self.order_s)


def rows(stage: Stage, name: str, label: str) -> Iterator[Row]:
    """The rows of both cases, with a load that has a core of its own: see Stage.load_apart."""
    stage.open_sale()
    found: dict[str, list[Overload]] = {OURS: [], REDIS: []}
    refusals: list[float] = []
    for turn in range(1 if stage.plan.quick else ROUNDS):
        for case, runs in found.items():
            stage.plan.say(f"{name}: {label}, overload, {case}, round {turn + 1}")
            runs.append(_overload(stage, case))
        stage.plan.say(f"{name}: {label}, what a refusal costs, round {turn + 1}")
        refusals.append(_refusal_s(stage))
    costs = [refusal_s / run.order_s for refusal_s, run in zip(refusals, found[OURS], strict=True)]
    note = "CPU of the intake; at 3 × the peak everybody can be answered only below 0.33"
    yield Row.of(name, label, "cost of a refusal, relative to an order", RATIO, costs, note=note)
    for case, runs in found.items():
        yield from _goodput(name, label, case, runs, refusals)
        yield from _promises(name, label, case, runs)


def _connections(stage: Stage) -> int:
    return QUICK_CONNECTIONS if stage.plan.quick else CONNECTIONS


@contextmanager
def _state(stage: Stage, case: str) -> Iterator[None]:
    pid = stage.embedded.pid
    if case == OURS:
        yield
        return
    with beside_load(pid, stage.core), throttled(pid, cpu_s=QUOTA_S, period_s=PERIOD_S):
        yield


def _overload(stage: Stage, case: str) -> Overload:
    quick, connections = stage.plan.quick, _connections(stage)
    pid = stage.servers[INTAKE].pid
    with _state(stage, case), looking(pid) as looks:
        peaks = [_peak(stage, looks)]
        parts = ((0, 1.0), (CALM, 1.0), (CALM, 1.0), (OVER, 3.0), (CALM, 1.0), (CALM, 1.0))
        per_s = peaks[0].per_s
        phases = [Phase(factor * per_s, part / 8 if quick else part) for factor, part in parts]
        answers = stage.offer(INTAKE, *phases, connections=connections, waits=False)
        peaks.append(_peak(stage, looks))
    _, _, calm, over, settle, after = answers.phases
    return Overload(
        peak=fmean(peak.per_s for peak in peaks),
        order_s=fmean(peak.order_s for peak in peaks),
        calm=calm,
        over=over,
        settle=settle,
        after=after,
        before_bytes=at(looks, over.began_s).resident_bytes,
        most_bytes=_most(looks, over.began_s, settle.began_s),
        after_bytes=at(looks, after.began_s + after.seconds).resident_bytes,
    )


class Peak(msgspec.Struct, frozen=True):
    """Orders a second in a closed loop, and the intake's CPU seconds for each."""

    per_s: float
    order_s: float


def _peak(stage: Stage, looks: Sequence[Look]) -> Peak:
    seconds = 0.5 if stage.plan.quick else 2.0
    came = stage.offer(INTAKE, Phase(0, seconds), connections=PEAK_CONNECTIONS).phases[0]
    spent_s = at(looks, came.began_s + seconds).cpu_s - at(looks, came.began_s).cpu_s
    # In the half second of a quick run nobody may have been answered, and 0 is a closed loop. And
    # /proc counts in steps of 10 ms.
    per_s, order_s = came.goodput(skip_s=seconds / 3), spent_s / max(1, sum(came.done))
    return Peak(max(1.0, per_s), max(1e-6, order_s))


def _most(looks: Sequence[Look], from_s: float, to_s: float) -> int:
    return max(
        (look.resident_bytes for look in looks if from_s <= look.at_s <= to_s),
        default=at(looks, from_s).resident_bytes,
    )


def _refusal_s(stage: Stage) -> float:
    """CPU seconds of the intake by refusal."""
    seconds = 0.5 if stage.plan.quick else 2.0
    pid = stage.servers[INTAKE].pid
    with looking(pid) as looks, stopped(stage.embedded.pid):
        came = stage.offer(INTAKE, Phase(0, seconds), connections=_connections(stage)).phases[0]
    middle_s, end_s = came.began_s + seconds / 2, came.began_s + seconds
    spent_s = at(looks, end_s).cpu_s - at(looks, middle_s).cpu_s
    return spent_s / max(1.0, came.refused / 2)


def _goodput(
    name: str, label: str, case: str, runs: Sequence[Overload], refusals: Sequence[float]
) -> Iterator[Row]:
    peaks = [run.peak for run in runs]
    yield Row.of(name, label, f"peak (closed loop), {case}", "orders/s", peaks)
    for_whom = f"goodput at 3 × the peak, {case}"
    yield Row.of(
        name, label, for_whom, "orders/s", [run.goodput for run in runs], note=_kinds(runs)
    )
    late_ms = max(run.over.late.p99_ms for run in runs)
    note = f"the load itself was late by {late_ms:.1f} ms, p99"
    ratios = [run.goodput / run.peak for run in runs]
    least = GOODPUT if case == REDIS else STANDS
    question = f"{for_whom}, against the peak"
    yield _ratio(name, label, question, ratios, at_least=least, note=note)
    if case == OURS:
        ratios = [
            run.goodput / run.allowed(refusal_s)
            for run, refusal_s in zip(runs, refusals, strict=True)
        ]
        question = f"{for_whom}, against what refusals leave of the peak"
        yield _ratio(name, label, question, ratios, at_least=GOODPUT)


def _ratio(
    name: str,
    label: str,
    question: str,
    ratios: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Judged by its median, and that by the range it is almost certain to be in."""
    low, high, sure = interval(ratios)
    rounds = " ".join(f"{ratio:.2f}" for ratio in ratios)
    words = f"the range is the median's, {100 * sure:.0f} % sure; rounds: {rounds}"
    return Row.of(
        name,
        label,
        question,
        RATIO,
        ratios,
        at_least=at_least,
        at_most=at_most,
        spread=(low, high),
        note=f"{note}; {words}" if note else words,
    )


def _promises(name: str, label: str, case: str, runs: Sequence[Overload]) -> Iterator[Row]:
    late = sum(
        run.over.lost + run.over.overdue + run.settle.lost + run.settle.overdue for run in runs
    )
    longest = max(max(run.over.times.max_ms, run.over.refused_times.max_ms) for run in runs)
    yield Row.fact(
        name,
        label,
        f"sent and not answered within 4 s, {case}",
        Verdict.MISSED if late else Verdict.MET,
        "0",
        f"{late:,}; the longest answer took {longest:,.0f} ms",
    )
    # Who refuses everybody has no late answer among those that it accepted.
    recovered = all(run.accepted_after >= GOODPUT for run in runs)
    yield Row.fact(
        name,
        label,
        f"accepted from one second after the load fell, {case}",
        Verdict.MET if recovered else Verdict.MISSED,
        f"≥ {100 * GOODPUT:g} %",
        " ".join(f"{100 * run.accepted_after:.3g} %" for run in runs),
    )
    ratios = [run.after.times.p99_ms / max(0.001, run.calm.times.p99_ms) for run in runs]
    before_ms, after_ms = (
        median(times.p99_ms for times in found)
        for found in ([run.calm.times for run in runs], [run.after.times for run in runs])
    )
    note = f"{before_ms:.1f} ms before, {after_ms:.1f} after"
    question = f"p99 from one second after the load fell, against before, {case}"
    yield _ratio(name, label, question, ratios, at_most=RECOVERED, note=note)
    grown = [run.grown for run in runs]
    last = runs[-1]
    sizes = (last.before_bytes, last.most_bytes, last.after_bytes)
    note = "{:.0f} MB before, {:.0f} at most, {:.0f} after".format(*(size / 1e6 for size in sizes))
    question = f"memory of the intake at most, against before, {case}"
    yield Row.of(name, label, question, RATIO, grown, at_most=MEMORY, note=note)


def _kinds(runs: Sequence[Overload]) -> str:
    offered = sum(run.over.offered for run in runs) or 1
    kinds = ("accepted", "refused", "overdue", "lost", "unsent")
    shares = {kind: sum(getattr(run.over, kind) for run in runs) / offered for kind in kinds}
    parts = (f"{kind} {100 * share:.3g} %" for kind, share in shares.items() if share)
    return f"{offered / sum(run.over.seconds for run in runs):,.0f}/s offered: {', '.join(parts)}"
