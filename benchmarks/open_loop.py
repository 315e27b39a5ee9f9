"""How long does an order take when the buyers come at their own pace, up to overload and beyond?

Workload: one unit of the canonical sale of workload.py in each order, a new idempotency key, buyers
with user tokens that their server has seen.

Open loop: arrivals are a Poisson process (seeded, the same for everybody) on 128 kept connections,
and the latency of each counts from its scheduled moment; see arrivals.py. Our intake with its
default settings (user tokens, limits and metrics on; Redis with appendfsync always) and the no-op
aiohttp handler that decodes and encodes the same JSON, in turns, at the same rates: fractions of
what the *intake* accepts when the same client asks it in a closed loop, measured before.

    capacity ── half of it, in many pairs: open_loop_half.py ── the other fractions, a curve
        ── overload: open_loop_overload.py

Nobody is bound to a core until the overload begins. So the load may be late itself, which counts
as latency: how much it was stands beside each point of the curve. And beyond the capacity it takes
from the servers what they could use; only the overload says what they can do then.

Every sale is verified; if one broke a promise, no figure is given.

    python -m benchmarks open-loop --json FILE
    python -m benchmarks.open_loop_picture FILE > latency.svg
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final

import msgspec

from benchmarks import open_loop_half, open_loop_overload
from benchmarks.arrivals import Came, Phase
from benchmarks.open_loop_points import FRACTIONS, NAME, QUANTILES, Point, millis
from benchmarks.open_loop_stage import CONNECTIONS, FSYNC, INTAKE, WHO, Stage, staged
from benchmarks.plan import Plan
from benchmarks.report import Row, Verdict

__all__ = ["NAME", "run"]

# The pairs bring the point at half of the capacity.
CURVE: Final = tuple(each for each in FRACTIONS if each != open_loop_half.HALF)
SECONDS: Final = 1.0
CAPACITY_SECONDS: Final = 2.0
CAPACITY_ROUNDS: Final = 3


class Capacity(msgspec.Struct):
    """What each accepted a second in a closed loop, and what the load itself could have offered, in
    each round."""

    per_s: dict[str, list[float]]
    limit_per_s: list[float]


Round = dict[tuple[str, float], Came]
"""What came of each point."""


def run(plan: Plan) -> Iterator[Row]:
    """The rows of every server."""
    for server in plan.servers:
        label = f"{server.name}, fsync {FSYNC}"
        with staged(plan, server) as stage:
            _warm(stage, label)
            capacity = _capacity(stage, label)
            per_s = median(capacity.per_s[INTAKE])
            pairs = open_loop_half.measure(stage, label, per_s)
            rounds = [_round(stage, label, per_s, turn) for turn in range(plan.rounds)]
            with stage.load_apart():
                over = list(open_loop_overload.rows(stage, NAME, label))
            verdict = stage.verify(NAME, label)
        if verdict.verdict is Verdict.MET:
            yield from open_loop_half.rows(label, pairs)
            yield from _rows(label, capacity, rounds)
            yield from over
        yield verdict


def _warm(stage: Stage, label: str) -> None:
    """Shows every server the tokens of all buyers."""
    for who in WHO:
        stage.plan.say(f"{NAME}: {label}, warming up, {who}")
        stage.offer(who, Phase(0, 0.3 if stage.plan.quick else 4), connections=CONNECTIONS)


def _capacity(stage: Stage, label: str) -> Capacity:
    phase = Phase(0, 0.3 if stage.plan.quick else CAPACITY_SECONDS)
    found = Capacity({who: [] for who in WHO}, [])
    for turn in range(1 if stage.plan.quick else CAPACITY_ROUNDS):
        for who in WHO[:: -1 if turn % 2 else 1]:
            stage.plan.say(f"{NAME}: {label}, capacity, round {turn + 1}, {who}")
            offer = partial(stage.offer, who, phase, connections=CONNECTIONS)
            answers = stage.plan.stolen.least(offer)
            found.per_s[who].append(answers.phases[0].goodput())
            found.limit_per_s.append(answers.limit_per_s)
    return found


def _round(stage: Stage, label: str, per_s: float, turn: int) -> Round:
    stage.open_sale()
    points = {}
    for fraction in CURVE:
        for who in WHO[:: -1 if turn % 2 else 1]:
            stage.plan.say(f"{NAME}: {label}, round {turn + 1}, {fraction:g} of capacity, {who}")
            phase = Phase(fraction * per_s, 0.3 if stage.plan.quick else SECONDS)
            offer = partial(stage.offer, who, phase, connections=CONNECTIONS, seed=turn + 1)
            points[who, fraction] = stage.plan.stolen.least(offer).phases[0]
    return points


def _rows(label: str, capacity: Capacity, rounds: Sequence[Round]) -> Iterator[Row]:
    for who in WHO:
        rates = capacity.per_s[who]
        yield Row.of(NAME, label, f"capacity (closed loop), {who}", "orders/s", rates)
    limits = capacity.limit_per_s
    note = "by the CPU time it takes for a request; 3 × the peak must be below it"
    yield Row.of(NAME, label, "what the load itself could offer", "requests/s", limits, note=note)
    for who in WHO:
        for fraction in CURVE:
            yield from _point(label, who, fraction, [each[who, fraction] for each in rounds])


def _point(label: str, who: str, fraction: float, found: Sequence[Came]) -> Iterator[Row]:
    for quantile in QUANTILES:
        question = Point(who, fraction, quantile).question
        note = _kinds(found) if quantile == QUANTILES[0] else ""
        yield Row.of(NAME, label, question, "ms", millis(found, quantile), note=note)


def _kinds(found: Sequence[Came]) -> str:
    """What became of all that were offered, in parts of it, and how late they were offered: p99."""
    offered = sum(came.offered for came in found) or 1
    counts = {
        "accepted": sum(came.accepted for came in found),
        "refused": sum(came.refused for came in found),
        "after 4 s": sum(came.overdue for came in found),
        "gave up waiting for a connection": sum(came.unsent for came in found),
        "lost": sum(came.lost for came in found),
    }
    rate = median(came.offered / came.seconds for came in found)
    parts = (f"{name} {100 * count / offered:.3g} %" for name, count in counts.items() if count)
    late_ms = median(came.late.p99_ms for came in found)
    return f"{rate:,.0f}/s offered: {', '.join(parts)}; itself late by {late_ms:.2g} ms"
