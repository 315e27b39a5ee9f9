"""What a benchmark found: rows with a median, a range and a verdict; as a table and as data."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import msgspec

from seckill.errors import InvalidInput

__all__ = [
    *("Report", "Row", "Verdict", "broken", "encode", "interval", "markdown", "read", "render"),
    *("summed", "unjudged"),
]

RATIO: Final = "×"
# The question of a row that has no figure to give: whether the sales kept their promises, and
# whether a benchmark came to its end.
VERIFY: Final = "verify"
RUN: Final = "the whole benchmark"
# A ratio whose highest and lowest sample lie further apart than this says nothing.
NOISE_MAX: Final = 2.0
CONFIDENCE: Final = 0.95
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
        spread: tuple[float, float] | None = None,
        note: str = "",
    ) -> Self:
        """A row of these samples. The median decides whether it meets its target. Its range is that
        of the samples, or ``spread``, in which the median is almost certain to be; the note
        must say how certain. A ratio of too wide a range is no figure, unless all of
        that ``spread`` is on one side of the target."""
        middle, (low, high) = median(values), spread or (min(values), max(values))
        verdict, target = Verdict.INFO, "–"
        if at_most is not None:
            target = f"≤ {_number(at_most)}"
            verdict = Verdict.MET if middle <= at_most else Verdict.MISSED
        elif at_least is not None:
            target = f"≥ {_number(at_least)}"
            verdict = Verdict.MET if middle >= at_least else Verdict.MISSED
        shown: tuple[float | None, float | None, float | None] = (middle, low, high)
        is_decided = spread is not None and (
            (at_most is not None and not low <= at_most < high)
            or (at_least is not None and not low < at_least <= high)
        )
        if unit == RATIO and high > NOISE_MAX * low and not is_decided:
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


class Report(msgspec.Struct, frozen=True):
    """What a run has found, and the facts about the run that stand above it."""

    facts: dict[str, str]
    rows: list[Row]


def broken(rows: Iterable[Row]) -> list[Row]:
    """The rows that make a report worthless: a broken promise, a benchmark without an end."""
    good = {VERIFY: (Verdict.MET,), RUN: (Verdict.MET, Verdict.INFO)}
    return [row for row in rows if row.question in good and row.verdict not in good[row.question]]


def summed(checked: Sequence[Row]) -> Row:
    """One row for several sales that were verified: the first that broke a promise, or all."""
    for row in checked:
        if row.verdict is not Verdict.MET:
            return row
    counts = [re.search(r"([\d,]+) orders", row.note) for row in checked]
    orders = sum(int(found[1].replace(",", "")) for found in counts if found)
    note = f"{len(checked)} sales, {orders:,} orders"
    return msgspec.structs.replace(checked[0], note=note)


def unjudged(rows: Iterable[Row]) -> list[Row]:
    """The rows of a run whose figures say nothing: nobody is to read a target into them. Whether
    promises were kept and what has failed is as true as ever."""
    return [row if row.question in (VERIFY, RUN) else _unjudged(row) for row in rows]


def _unjudged(row: Row) -> Row:
    found = msgspec.structs.replace(row, target="–", verdict=Verdict.INFO)
    if not row.values:
        return found
    middle, low, high = median(row.values), min(row.values), max(row.values)
    return msgspec.structs.replace(found, median=middle, low=low, high=high)


def encode(facts: dict[str, Any], rows: Iterable[Row]) -> bytes:
    """The report as JSON, a line a row. The disk is told by its speed, not by its place, which is
    nobody's business who gets this file."""
    told = facts | {"disk": facts["disk"].rpartition(": ")[2]} if "disk" in facts else facts
    head = msgspec.json.encode(told).removesuffix(b"}")
    lines = b",\n".join(msgspec.json.encode(row) for row in rows)
    return head + (b"," if told else b"") + b'"rows":[\n' + lines + b"\n]}\n"


def read(path: Path) -> Report:
    """A report that ``encode`` has written. Raises InvalidInput."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        rows = msgspec.convert(found.pop("rows"), list[Row])
        return Report(msgspec.convert(found, dict[str, str]), rows)
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        remedy = "give what `python -m benchmarks --json FILE` has written"
        raise InvalidInput(str(path), f"is no report of benchmarks ({error})", remedy) from None


def markdown(facts: dict[str, Any], rows: Iterable[Row], pictures: Iterable[str] = ()) -> str:
    """The report as Markdown. ``pictures`` are the names of files that lie beside it."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(_TITLES) + " |", "|" + " --- |" * len(_TITLES)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    for name in pictures:
        lines += ["", f"![{Path(name).stem.replace('-', ' ')}]({name})"]
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


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Between which two of these samples the median of what they are drawn from lies, and how sure
    that is: at least CONFIDENCE where there are enough of them, else as sure as their whole range.

    So many samples or fewer lie below it as often as so many coins of a throw show heads or fewer.
    """
    ordered, count = sorted(values), len(values)
    left_out, beyond = 0, 2 / 2**count
    while (more := beyond + 2 * comb(count, left_out + 1) / 2**count) <= 1 - CONFIDENCE:
        left_out, beyond = left_out + 1, more
    return ordered[left_out], ordered[-1 - left_out], max(0.0, 1 - beyond)
