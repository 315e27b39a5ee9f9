"""Do two runs agree within their printed ranges? ``python -m benchmarks compare-runs A B``, where A
and B are reports that `make bench` has written.

Two figures agree where their ranges meet, with nothing added to either. Only ratios decide: they
were taken within one round, so the hour and the machine should not matter, and they are what the
README claims. A rate is a rate on that machine at that hour; where it differs, it is told.

Exits 0 when all ratios agree, 1 when one does not, 2 when there is nothing to compare: also when
one of them was made with --quick, or a sale or a benchmark was broken in it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.report import RATIO, Report, Row, broken, read
from seckill.errors import InvalidInput

__all__ = ["Pair", "Word", "compare", "main"]

# Samples without which a figure has no range.
SAMPLES_MIN: Final = 2


class Word(StrEnum):
    """What can be said about two figures."""

    AGREE = "agree"
    APART = "APART"
    NOISY = "too noisy"
    SINGLE = "no range"
    ALONE = "in one only"


class Pair(msgspec.Struct, frozen=True):
    """The same question in two runs. One is None where a run has no figure for it."""

    first: Row | None
    second: Row | None
    word: Word

    @property
    def row(self) -> Row:
        """Either of them, for what they have in common."""
        row = self.first or self.second
        assert row is not None
        return row


def compare(first: Report, second: Report) -> list[Pair]:
    """Every figure of either, in the order of the first."""
    ours, theirs = _figures(first.rows), _figures(second.rows)
    return [_pair(ours.get(key), theirs.get(key)) for key in ours | theirs]


def _figures(rows: Iterable[Row]) -> dict[tuple[object, ...], Row]:
    """Rows by what they are about. Some stand below another one and share their words with the like
    of it ("of which HSET"): those are counted."""
    found: dict[tuple[object, ...], Row] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for row in rows:
        if row.values:
            key = (row.benchmark, row.server, row.question, row.unit)
            found[*key, seen[key]] = row
            seen[key] += 1
    return found


def _pair(first: Row | None, second: Row | None) -> Pair:
    if first is None or second is None:
        return Pair(first, second, Word.ALONE)
    (low, high), (other_low, other_high) = _range(first), _range(second)
    if first.median is None or second.median is None:
        return Pair(first, second, Word.NOISY)
    if min(len(first.values), len(second.values)) < SAMPLES_MIN:
        return Pair(first, second, Word.SINGLE)
    meet = low <= other_high and other_low <= high
    return Pair(first, second, Word.AGREE if meet else Word.APART)


def _range(row: Row) -> tuple[float, float]:
    return min(row.values), max(row.values)


def main(words: Sequence[str]) -> int:
    """Reads two reports and prints what became of their ratios, and of what differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare-runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    asked = parser.parse_args(words)
    try:
        first, second = _sound(asked.first), _sound(asked.second)
    except InvalidInput as error:
        parser.error(str(error))
    pairs = compare(first, second)
    machines = [report.facts.get("machine", "an unknown one") for report in (first, second)]
    if machines[0] != machines[1]:
        print(f"these are two machines: {machines[0]} and {machines[1]}", file=sys.stderr)
    ratios = [pair for pair in pairs if pair.row.unit == RATIO]
    others = [pair for pair in pairs if pair.row.unit != RATIO]
    for pair in ratios + [pair for pair in others if pair.word is Word.APART]:
        print(_line(pair))
    print(f"ratios: {_counts(ratios)}\nother figures: {_counts(others)}")
    judged = {pair.word for pair in ratios} & {Word.AGREE, Word.APART}
    if not judged:
        print("no ratio has a range in both of them: nothing was compared", file=sys.stderr)
        return 2
    return 1 if Word.APART in judged else 0


def _sound(file: Path) -> Report:
    """A report whose figures count. Raises InvalidInput."""
    report = read(file)
    if "quick" in report.facts:
        problem, remedy = "was made with --quick, whose figures say nothing", "run it without"
        raise InvalidInput(str(file), problem, remedy)
    for row in broken(report.rows):
        problem = f"is broken: {row.benchmark}, {row.server}: {row.question} {row.note}".rstrip()
        raise InvalidInput(str(file), problem, "mend what it names and run it again")
    return report


def _line(pair: Pair) -> str:
    row = pair.row
    figures = " | ".join(_shown(one) for one in (pair.first, pair.second))
    return f"{pair.word:<11}  {row.benchmark}, {row.server}: {row.question}: {figures}"


def _shown(row: Row | None) -> str:
    if row is None:
        return "–"
    middle, spread = row.cells()[3:5]
    if row.median is None:
        return "too noisy"
    return f"{middle} ({spread})" if spread else middle


def _counts(pairs: Iterable[Pair]) -> str:
    counts = Counter(pair.word for pair in pairs)
    return ", ".join(f"{counts[word]} {word.lower()}" for word in Word if counts[word]) or "none"
