"""What the benchmark `http` reports. A question is "title: whose"; benchmarks/plots.py draws the
rows of one title side by side, and what stands behind a slash end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from benchmarks.http_rig import (
    EVALSHA,
    FASTIFY,
    GO,
    INTAKE,
    NOOP,
    REFERENCES,
    SQL,
    Case,
    Rig,
    Slice,
    Way,
)
from benchmarks.load import generator
from benchmarks.report import RATIO, Row, Verdict

__all__ = ["NAME", "Found", "new_rows", "rows", "skipped_rows"]

NAME: Final = "http"
BATCH_TARGET: Final = 50_000

Found = dict[Way, list[Slice]]

# The intake against each of the others: the least ratio that will do, or None where there is none.
_TARGETS: Final[dict[Way, float | None]] = {
    Way(NOOP, Case.IN_STOCK): 1.5,
    Way(FASTIFY, Case.IN_STOCK): 1.25,
    Way(GO, Case.IN_STOCK): 1.2,
    Way(EVALSHA, Case.IN_STOCK): 5.0,
    Way(SQL, Case.IN_STOCK): None,
    Way(NOOP, Case.SOLD_OUT): 0.85,
    Way(FASTIFY, Case.SOLD_OUT): None,
    Way(GO, Case.SOLD_OUT): None,
    Way(EVALSHA, Case.SOLD_OUT): None,
    Way(SQL, Case.SOLD_OUT): None,
}


def rows(rig: Rig, label: str, found: Found) -> Iterator[Row]:
    """Ratios, rates, and what an order costs."""
    for way, at_least in _TARGETS.items():
        if way in found:
            values = _ratios(found[Way(INTAKE, way.case)], found[way])
            yield Row.of(NAME, label, _against(way), RATIO, values, at_least=at_least)
    for case in (Case.IN_STOCK, Case.SELLING_OUT, Case.SOLD_OUT, Case.BATCHES):
        for way in _of(case, found):
            yield _rate(rig, label, way, found[way])
    for case in (Case.IN_STOCK, Case.SOLD_OUT, Case.BATCHES):
        for way in _of(case, found):
            yield from _costs(rig.store(way.who), label, way, found[way])
    for case in (Case.IN_STOCK, Case.BATCHES):
        for way in _of(case, found):
            if rig.store(way.who) == "Redis":
                yield from _calls(label, way, found[way])


def new_rows(label: str, found: Found) -> Iterator[Row]:
    """The intake and tokens that it has never seen."""
    ours, noop = found.values()
    question = f"{Case.NEW}, the intake against: {NOOP}"
    yield Row.of(NAME, label, question, RATIO, _ratios(ours, noop))
    yield from _costs("Redis", label, Way(INTAKE, Case.NEW), ours)


def skipped_rows(rig: Rig, label: str, first: str) -> Iterator[Row]:
    """Why a reference has no figures here."""
    for who in REFERENCES:
        way = Way(who, Case.IN_STOCK)
        if not rig.has(way):
            why = rig.missing.get(who, f"skipped: {first} alone is compared with it")
            target = _TARGETS[way]
            shown = "–" if target is None or who not in rig.missing else f"≥ {target:g}"
            yield Row.fact(NAME, label, _against(way), Verdict.INFO, shown, why)


def _of(case: str, found: Found) -> list[Way]:
    """Ours first, then the no-op, then the references."""
    return [way for who in (INTAKE, NOOP, *REFERENCES) if (way := Way(who, case)) in found]


def _against(way: Way) -> str:
    return f"{way.case}, the intake against: {way.who}"


def _rate(rig: Rig, label: str, way: Way, parts: Sequence[Slice]) -> Row:
    # An answer is not always an order.
    accepted = way.case in (Case.IN_STOCK, Case.BATCHES) and way.who != NOOP
    unit = "orders/s" if accepted else "answers/s"
    note = "; ".join(filter(None, (rig.versions.get(way.who, ""), _times(parts))))
    at_least = BATCH_TARGET if way.case == Case.BATCHES else None
    rates = [part.rate for part in parts]
    question = f"{way.case}: {way.who}"
    return Row.of(NAME, label, question, unit, rates, at_least=at_least, note=note)


def _costs(store: str, label: str, way: Way, parts: Sequence[Slice]) -> Iterator[Row]:
    """CPU of each process."""
    who = {"the server": [part.server_cpu_s for part in parts]}
    if store:
        who[store] = [part.store_cpu_s for part in parts]
    who["the load"] = [part.load.cpu_s for part in parts]
    for name, spent_s in who.items():
        values = [s / part.orders * 10_000 for s, part in zip(spent_s, parts, strict=True)]
        question = f"CPU {way.case}: {way.who} / {name}"
        yield Row.of(NAME, label, question, "s/10k orders", values)


def _calls(label: str, way: Way, parts: Sequence[Slice]) -> Iterator[Row]:
    """What Redis had to do for an order."""
    micros = [part.script_micros / part.sold for part in parts]
    yield Row.of(NAME, label, f"Redis time of an order, {way.case}: {way.who}", "µs", micros)
    sent = [part.bytes_in / part.sold for part in parts]
    yield Row.of(NAME, label, f"sent to Redis, {way.case}: {way.who}", "bytes/order", sent)
    together = [part.sold / part.script_calls for part in parts]
    yield Row.of(NAME, label, f"orders a script call, {way.case}: {way.who}", "orders", together)


def _times(parts: Sequence[Slice]) -> str:
    p50_ms = median(part.load.p50_ms for part in parts)
    p99_ms = median(part.load.p99_ms for part in parts)
    return f"{generator()}: p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms"


def _ratios(above: Sequence[Slice], below: Sequence[Slice]) -> list[float]:
    return [ours.rate / theirs.rate for ours, theirs in zip(above, below, strict=True)]
