"""What benchmarks/compare.py makes of its counts: changes, how far runs of one tree are apart, and
which operations have become dearer than is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from statistics import mean
from typing import Final

import msgspec

from benchmarks.compare_count import COMMANDS, UNITS, Cost
from benchmarks.compare_intake import INSTRUCTIONS

__all__ = ["Figure", "dearer", "dearer_functions", "figures", "steadiness", "table"]

# Below this a difference is none, whatever part of nearly nothing it is.
_LEAST: Final = {COMMANDS: 0.02}
STEADY: Final = 0.01
FUNCTIONS: Final = 5
_TITLES: Final = ("operation", "one costs", "base", "now", "change", "runs within")


class Figure(msgspec.Struct, frozen=True):
    """What an operation costs in a unit: in each run of the base, and in each of the tree as it is
    now."""

    operation: str
    unit: str
    base: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def change(self) -> float:
        """How much dearer it is now, as a part of what it was."""
        before, after = mean(self.base), mean(self.now)
        if abs(after - before) <= _LEAST.get(self.unit, 0.0):
            return 0.0
        return after / before - 1 if before else inf

    @property
    def spread(self) -> float:
        """How far runs of the same tree are apart, as a part of what they found."""
        return max(self._spread(self.base), self._spread(self.now))

    def _spread(self, runs: Sequence[float]) -> float:
        apart = max(runs) - min(runs)
        return apart / mean(runs) if apart > _LEAST.get(self.unit, 0.0) else 0.0

    def is_dearer(self, allow: float) -> bool:
        """Whether it costs more than ``allow`` more, as a part, beyond what chance may be."""
        return self.change > max(allow, self.spread)


def dearer(found: Sequence[Figure], allow: float) -> list[Figure]:
    """The figures by which an operation is dearer than allowed. Where instructions were counted
    they decide, not bytecodes and calls, of which they are the price; commands always do."""
    weighed = {figure.operation for figure in found if figure.unit == INSTRUCTIONS}
    return [
        figure
        for figure in found
        if figure.is_dearer(allow)
        and (figure.unit in (INSTRUCTIONS, COMMANDS) or figure.operation not in weighed)
    ]


def figures(base: Sequence[Sequence[Cost]], now: Sequence[Sequence[Cost]]) -> list[Figure]:
    """By operation and unit, what all runs have found. Each run is a list of costs; one counts only
    some of the units. What a tree could not be asked for is left out."""
    before, after = _collected(base), _collected(now)
    return [
        Figure(operation, unit, tuple(runs), tuple(after[operation, unit]))
        for (operation, unit), runs in before.items()
        if (operation, unit) in after
    ]


def _collected(runs: Sequence[Sequence[Cost]]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for name in dict.fromkeys(cost.operation for run in runs for cost in run):
        for unit in UNITS:
            costs = (cost for run in runs for cost in run if cost.operation == name)
            if values := [cost.units[unit] for cost in costs if unit in cost.units]:
                found[name, unit] = values
    return found


def dearer_functions(operation: str, base: Sequence[Cost], now: Sequence[Cost]) -> list[str]:
    """The functions in which an operation now takes the most bytecodes more, the worst first."""
    before, after = _functions(operation, base), _functions(operation, now)
    more = {name: count - before.get(name, 0.0) for name, count in after.items()}
    worst = sorted(more, key=lambda name: -more[name])[:FUNCTIONS]
    return [f"{name} +{_number(more[name])}" for name in worst if more[name] >= 0.5]


def _functions(operation: str, costs: Sequence[Cost]) -> dict[str, float]:
    return next((cost.functions for cost in costs if cost.operation == operation), {})


def steadiness(found: Iterable[Figure]) -> str:
    """What may be said of how well runs of one tree agree."""
    worst = max(found, key=lambda figure: figure.spread)
    where = f"{worst.operation}, {worst.unit}"
    text = f"Runs of the same tree were {worst.spread:.2%} apart at most ({where})."
    if worst.spread > STEADY:
        text += (
            " That is not steady: a change counts only where it is more than its runs are apart."
        )
    return text


def table(found: Sequence[Figure], allow: float) -> str:
    """All figures, to be read."""
    marked = dearer(found, allow)
    rows = [_TITLES, *(_cells(figure, figure in marked) for figure in found)]
    for above, at in zip(found, range(2, len(rows)), strict=False):
        if rows[at][0] == above.operation:
            rows[at] = ("", *rows[at][1:])
    return "\n".join(_aligned(rows))


def _cells(figure: Figure, marked: bool) -> tuple[str, ...]:
    change = "from 0" if figure.change == inf else f"{figure.change:+.1%}"
    return (
        figure.operation,
        figure.unit,
        _number(mean(figure.base)),
        _number(mean(figure.now)),
        change + " dearer" * marked,
        f"{figure.spread:.2%}",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(_TITLES))]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join((*left, *right)).rstrip()
