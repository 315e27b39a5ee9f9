"""What a benchmark found: rows with a median, a range and a verdict; as a table and as data."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from enum import StrEnum
from statistics import median
from typing import Any, Final, Self

import msgspec

__all__ = ["Row", "Verdict", "markdown", "render"]

RATIO: Final = "×"
# A ratio whose highest and lowest sample lie further apart than this says nothing.
NOISE_MAX: Final = 2.0
_TITLES: Final = ("benchmark", "server", "question", "median", "range", "n", "target", "verdict")


class Verdict(StrEnum):
    """``INFO`` is a figure that explains another one and has no target of its own."""

    MET = "met"
    MISSED = "MISSED"
    NOISY = "too noisy"
    INFO = "info"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. ``values`` are its samples in the order in which they were taken."""

    benchmark: str
    server: str
    question: str
    unit: str
    values: tuple[float, ...]
    median: float | None
    low: float | None
    high: float | None
    target: str
    verdict: Verdict
    note: str = ""

    @classmethod
    def of(
        cls,
        benchmark: str,
        server: str,
        question: str,
        unit: str,
        values: Sequence[float],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        note: str = "",
    ) -> Self:
        """A row of these samples. The median decides whether it meets its target."""
        middle, low, high = median(values), min(values), max(values)
        verdict, target = Verdict.INFO, "–"
        if at_most is not None:
            target = f"≤ {_number(at_most)}"
            verdict = Verdict.MET if middle <= at_most else Verdict.MISSED
        elif at_least is not None:
            target = f"≥ {_number(at_least)}"
            verdict = Verdict.MET if middle >= at_least else Verdict.MISSED
        shown: tuple[float | None, float | None, float | None] = (middle, low, high)
        if unit == RATIO and high > NOISE_MAX * low:
            verdict, shown = Verdict.NOISY, (None, None, None)
        return cls(
            benchmark=benchmark,
            server=server,
            question=question,
            unit=unit,
            values=tuple(values),
            median=shown[0],
            low=shown[1],
            high=shown[2],
            target=target,
            verdict=verdict,
            note=note,
        )

    @classmethod
    def fact(
        cls, benchmark: str, server: str, question: str, verdict: Verdict, target: str, note: str
    ) -> Self:
        """A row whose answer is a word, not a number."""
        return cls(
            benchmark=benchmark,
            server=server,
            question=question,
            unit="",
            values=(),
            median=None,
            low=None,
            high=None,
            target=target,
            verdict=verdict,
            note=note,
        )

    def cells(self) -> tuple[str, ...]:
        """The row as text, under ``_TITLES``."""
        middle, spread = "", ""
        if self.median is not None and self.low is not None and self.high is not None:
            middle = f"{_number(self.median)} {self.unit}"
            if len(self.values) > 1:
                spread = f"{_number(self.low)} … {_number(self.high)}"
        question = f"{self.question} ({self.note})" if self.note else self.question
        return (
            self.benchmark,
            self.server,
            question,
            middle,
            spread,
            str(len(self.values) or ""),
            self.target,
            str(self.verdict),
        )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "0" if text in ("-0", "0.0") else text


def markdown(facts: dict[str, Any], rows: Iterable[Row]) -> str:
    """The report as Markdown."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(_TITLES) + " |", "|" + " --- |" * len(_TITLES)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines)


def render(facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Prints the report: with rich where it is installed, in plain columns otherwise."""
    for name, value in facts.items():
        print(f"{name:>10}  {value}")
    print()
    if importlib.util.find_spec("rich") is None:
        table = [_TITLES, *(row.cells() for row in rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(_TITLES))]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        return
    from rich.console import Console
    from rich.table import Table

    colours = {
        Verdict.MET: "green",
        Verdict.MISSED: "bold red",
        Verdict.NOISY: "yellow",
        Verdict.INFO: "dim",
    }
    shown = Table(box=None, pad_edge=False)
    for title in _TITLES:
        right = title in ("median", "n", "target")
        shown.add_column(title, justify="right" if right else "left", no_wrap=title != "question")
    above = ("", "")
    for row in rows:
        cells = list(row.cells())
        if above != (row.benchmark, row.server) and above[0]:
            shown.add_section()
            shown.add_row()
        above = (row.benchmark, row.server)
        cells[-1] = f"[{colours[row.verdict]}]{cells[-1]}[/]"
        shown.add_row(*cells)
    console = Console()
    # Piped into a file there is no terminal to fit into, and a cut table is of no use.
    Console(width=max(console.width, 150) if not console.is_terminal else None).print(shown)
