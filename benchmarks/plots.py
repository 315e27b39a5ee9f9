"""Pictures of a report: a bar for each figure, with its range. SVG by hand, so that a stranger
needs nothing for it; light or dark as whoever looks at it prefers.

A question is "title: whose". The rows of one title make one picture, with a panel for each server;
rows without a title are put together by their unit. A label "whose / part" is a part of one bar,
and the parts of a bar stand end to end. What has one bar only is not worth a picture. The points of
an open loop have a picture of their own kind, see open_loop_picture.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any, Final
from xml.sax.saxutils import escape

import msgspec

from benchmarks import open_loop_picture
from benchmarks.open_loop_points import Point
from benchmarks.report import RATIO, Row, Verdict, _number

__all__ = ["draw", "write"]

WIDTH: Final = 880
MARGIN: Final = 28
LABEL_MAX: Final = 300
VALUES: Final = 230
ROW: Final = 32
BAR: Final = 18
HEAD: Final = 84
PANEL_HEAD: Final = 30
PANEL_FOOT: Final = 34
FOOT: Final = 40
TICKS: Final = 5
# Kinds of parts that have a colour of their own.
PARTS: Final = 4
# What an average letter takes, in ems.
LETTER: Final = 0.57
# These bars are ours, the others are what they are compared with.
OURS: Final = ("intake", "the lane", "the ledger", "engine", "socket")
# How the question of a row begins that says what a part of the row above it is.
BELOW: Final = "  "
# What a figure takes inside of its part of a bar.
INSIDE_MIN: Final = 40

_STYLE: Final = """
svg { --ink: #1c2430; --soft: #5d6a7a; --line: #e3e8ee; --paper: #ffffff; --ours: #d9480f;
  --theirs: #8fa1b5; --one: #d9480f; --two: #4c7dac; --three: #c3cdd8;
  --four: #7159a6; --aim: #2b8a3e; --missed: #c92a2a; }
@media (prefers-color-scheme: dark) { svg { --ink: #e8edf3; --soft: #9aa7b6; --line: #2b3440;
  --paper: #12171e; --ours: #ff8243; --theirs: #5f7186; --one: #ff8243; --two: #6aa0d4;
  --three: #46525f; --four: #9c85d0; --aim: #69db7c; --missed: #ff8787; } }
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
.paper { fill: var(--paper); } .title { font-size: 20px; font-weight: 650; }
.soft, .tick { fill: var(--soft); } .tick, .foot { font-size: 11px; } .foot { fill: var(--soft); }
.panel { font-weight: 600; } .mine { font-weight: 650; } .value { font-weight: 600; }
.unit, .range { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; } .zero { stroke: var(--soft); stroke-width: 1; }
.even { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.ours { fill: var(--ours); } .theirs { fill: var(--theirs); }
.whisker { stroke: var(--ink); stroke-width: 1.4; fill: none; } .noisy { stroke-dasharray: 4 3; }
.aim { stroke: var(--aim); stroke-width: 2; } .aimed, .missed { font-size: 11px; }
.aimed { fill: var(--aim); } .missed { fill: var(--missed); }
.skipped { fill: var(--soft); stroke: var(--paper); stroke-width: 4px; paint-order: stroke; }
.part0 { fill: var(--one); } .part1 { fill: var(--two); } .part2 { fill: var(--three); }
.part3 { fill: var(--four); }
.inside { font-size: 11px; fill: #ffffff; font-weight: 600; } .inside2 { fill: var(--ink); }
"""


class _Bar(msgspec.Struct, frozen=True):
    """What one line of a panel shows: one row, or the rows of its parts, which add up."""

    label: str
    rows: tuple[Row, ...]
    parts: tuple[str, ...] = ()

    @property
    def middle(self) -> float:
        return sum(median(row.values) for row in self.rows if row.values)

    @property
    def top(self) -> float:
        if self.parts:
            return self.middle
        return max((max(row.values) for row in self.rows if row.values), default=0.0)


class _Chart(msgspec.Struct, frozen=True):
    """One picture. ``panels``: the bars of each server."""

    benchmark: str
    title: str
    panels: dict[str, list[_Bar]]

    @property
    def bars(self) -> list[_Bar]:
        return [bar for bars in self.panels.values() for bar in bars]

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of parts, in the order in which they are met."""
        return tuple(dict.fromkeys(part for bar in self.bars for part in bar.parts))

    @property
    def units(self) -> tuple[str, ...]:
        rows = (row for bar in self.bars for row in bar.rows)
        return tuple(dict.fromkeys(row.unit for row in rows if row.values))


def write(directory: Path, facts: dict[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Writes the pictures into a directory, which is made if it is not there; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in draw(facts, rows).items():
        (directory / name).write_text(text, encoding="utf-8")
        paths.append(directory / name)
    return paths


def draw(facts: dict[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """The pictures as SVG, by their file names. ``facts`` stand below: see machine.describe."""
    points = [row for row in rows if Point.of(row.question)]
    pictures = {}
    for chart in _charts(row for row in rows if row not in points):
        pictures[f"{_slug(chart)}.svg"] = _picture(chart, facts)
    for server in dict.fromkeys(row.server for row in points if row.median):
        here = [row for row in points if row.server == server]
        slug = re.sub(r"[^a-z0-9]+", "-", server.lower())
        machine = " · ".join(str(facts[name]) for name in ("quick", "machine") if name in facts)
        pictures[f"open-loop-{slug}.svg"] = open_loop_picture.draw(here, machine=machine)
    return pictures


def _slug(chart: _Chart) -> str:
    title = chart.title.removeprefix(f"{chart.benchmark}, in ").replace("µ", "u")
    words = f"{chart.benchmark} {title.replace(RATIO, 'times')}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _charts(rows: Iterable[Row]) -> Iterator[_Chart]:
    found: dict[tuple[str, str], dict[str, dict[str, list[tuple[str, Row]]]]] = {}
    wholes: dict[tuple[str, str], str] = {}
    for row in rows:
        if not row.question.startswith(BELOW):
            wholes[row.benchmark, row.server] = row.question
        title, colon, label = row.question.partition(": ")
        if not row.values and not colon:
            continue  # A fact, such as what verify said.
        if not colon:
            title, label = f"{row.benchmark}, in {row.unit}", row.question
        whose, _, part = label.partition(" / ")
        panel = found.setdefault((row.benchmark, title), {}).setdefault(row.server, {})
        if not part:
            whose = _label(whose, wholes.get((row.benchmark, row.server), ""), panel)
        panel.setdefault(whose, []).append((part, row))
    for (benchmark, title), panels in found.items():
        drawn = {
            server: [_bar(label, parts) for label, parts in bars.items()]
            for server, bars in panels.items()
        }
        chart = _Chart(benchmark, title, drawn)
        if sum(bool(bar.middle) for bar in chart.bars) > 1:
            yield chart


def _label(question: str, whole: str, taken: Collection[str]) -> str:
    """A label that no other bar has. Rows of equal words, such as "  of which HSET" for each size,
    are told apart by the end of the row that they are a part of."""
    _, comma, size = whole.rpartition(", ")
    label = f"{question}, {size}" if comma and question.startswith(BELOW) else question
    same = (label, *(f"{label} ({number})" for number in range(2, len(taken) + 2)))
    return next(name for name in same if name not in taken)


def _bar(label: str, parts: Sequence[tuple[str, Row]]) -> _Bar:
    named = tuple(part for part, _ in parts if part)
    return _Bar(label, tuple(row for _, row in parts), named)


class _Plane(msgspec.Struct, frozen=True):
    """Where values lie: ``left`` is zero, and ``top`` is ``width`` to the right of it."""

    left: float
    width: float
    top: float
    step: float

    def x(self, value: float) -> float:
        return round(self.left + self.width * value / self.top, 1)


def _plane(chart: _Chart) -> _Plane:
    left = MARGIN + min(LABEL_MAX, max(_width(bar.label) for bar in chart.bars)) + 12
    aims = [aim for bar in chart.bars for aim in [_aim(bar)] if aim]
    highest = max([bar.top for bar in chart.bars] + aims)
    rough = highest / TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough)
    return _Plane(left, WIDTH - MARGIN - VALUES - left, step * ceil(highest / step), step)


def _picture(chart: _Chart, facts: dict[str, Any]) -> str:
    plane, y, body = _plane(chart), float(HEAD), []
    if chart.parts:
        body += _legend(chart, y)
        y += 26
    for server, bars in chart.panels.items():
        body += _panel(chart, plane, server, bars, y)
        y += PANEL_HEAD + ROW * len(bars) + PANEL_FOOT
    body += _foot(chart, facts, y)
    height = y + FOOT
    title = _sentence(chart.title)
    size = f'width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height:g}" rx="10"/>',
        _text(MARGIN, 42, title, "title"),
        _text(MARGIN, 64, f"{', '.join(map(_spelled, chart.units))}{_better(chart)}", "soft"),
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _better(chart: _Chart) -> str:
    """Which way is good, where that is plain."""
    unit = chart.units[0]
    if unit == RATIO or unit.endswith("/s"):
        return " · more is better"
    return " · less is better" if unit[:2] in ("s/", "µs", "ms", "by") else ""


def _legend(chart: _Chart, y: float) -> list[str]:
    found, x = [], float(MARGIN)
    for number, part in enumerate(chart.parts):
        place = f'x="{x:g}" y="{y - 4:g}" width="12" height="12" rx="2"'
        found.append(f'<rect class="part{number % PARTS}" {place}/>')
        found.append(_text(x + 18, y + 6, part, "soft"))
        x += 18 + _width(part) + 24
    return found


def _panel(
    chart: _Chart, plane: _Plane, server: str, bars: Sequence[_Bar], y: float
) -> Iterator[str]:
    yield _text(MARGIN, y + 12, server, "panel")
    above, below = y + PANEL_HEAD - 6, y + PANEL_HEAD + ROW * len(bars)
    for number in range(round(plane.top / plane.step) + 1):
        x = plane.x(number * plane.step)
        kind = "zero" if number == 0 else "grid"
        yield f'<line class="{kind}" x1="{x:g}" x2="{x:g}" y1="{above:g}" y2="{below:g}"/>'
        yield _text(x, below + 15, _number(number * plane.step), "tick", "middle")
    if chart.units[0] == RATIO and plane.top > 1:
        x = plane.x(1)
        yield f'<line class="even" x1="{x:g}" x2="{x:g}" y1="{above:g}" y2="{below:g}"/>'
    for number, bar in enumerate(bars):
        yield from _line(chart, plane, bar, y + PANEL_HEAD + ROW * number)


def _line(chart: _Chart, plane: _Plane, bar: _Bar, y: float) -> Iterator[str]:
    mine = bar.label.lower().startswith(OURS)
    middle = y + ROW / 2
    label = _cut(bar.label, plane.left - MARGIN - 12, ends=True)
    yield _text(plane.left - 12, middle + 4.5, label, "mine" if mine else "", "end")
    if not bar.middle:
        yield _text(plane.left + 8, middle + 4.5, bar.rows[0].note, "skipped")
        return
    if bar.parts:
        yield from _parts(chart, plane, bar, middle)
    else:
        # A ratio is ours, whomever it is against.
        mine = mine or bar.rows[0].unit == RATIO
        yield from _whole(plane, bar, middle, "ours" if mine else "theirs")
    yield _value(bar, plane.left + plane.width + 14, middle + 4.5)


def _whole(plane: _Plane, bar: _Bar, middle: float, kind: str) -> Iterator[str]:
    row = bar.rows[0]
    low, high = plane.x(min(row.values)), plane.x(max(row.values))
    noisy = row.verdict is Verdict.NOISY
    if not noisy:
        yield _rect(kind, plane.left, plane.x(bar.middle), middle)
    if len(row.values) > 1:
        path = f"M{low:g} {middle - 4:g}v8M{high:g} {middle - 4:g}v8"
        path += f"M{low:g} {middle:g}H{high:g}"
        yield f'<path class="whisker{" noisy" if noisy else ""}" d="{path}"/>'
    aim = _aim(bar)
    if aim:
        x, half = plane.x(aim), BAR / 2 + 4
        yield (
            f'<line class="aim" x1="{x:g}" x2="{x:g}" y1="{middle - half:g}" '
            f'y2="{middle + half:g}"><title>target {escape(row.target)}</title></line>'
        )


def _parts(chart: _Chart, plane: _Plane, bar: _Bar, middle: float) -> Iterator[str]:
    total = 0.0
    for part, row in zip(bar.parts, bar.rows, strict=True):
        value, number = median(row.values), chart.parts.index(part) % PARTS
        left, right = plane.x(total), plane.x(total + value)
        total += value
        yield _rect(f"part{number}", left, right, middle, f"{part}: {_number(value)} {row.unit}")
        if right - left >= INSIDE_MIN:
            at = (left + right) / 2
            yield _text(at, middle + 4, _number(value), f"inside inside{number}", "middle")


def _value(bar: _Bar, x: float, y: float) -> str:
    row = bar.rows[0]
    spread = f"{_number(min(row.values))} … {_number(max(row.values))}"
    if row.verdict is Verdict.NOISY:
        return _text(x, y, f"too noisy: {spread}", "soft")
    spread = "" if bar.parts or len(row.values) == 1 else spread
    aimed = f" of {row.target[2:]}" if row.target.startswith("≥") else ""
    parts = (
        ("value", _number(bar.middle)),
        ("unit", f" {_short(row.unit)}"),
        ("missed" if row.verdict is Verdict.MISSED else "aimed", aimed),
        ("range", f"  {spread}" if spread else ""),
    )
    spans = (f'<tspan class="{kind}">{escape(text)}</tspan>' for kind, text in parts if text)
    return f'<text x="{x:g}" y="{y:g}" xml:space="preserve">{"".join(spans)}</text>'


def _foot(chart: _Chart, facts: dict[str, Any], y: float) -> list[str]:
    rows = [row for bar in chart.bars for row in bar.rows if row.values]
    rounds = max(len(row.values) for row in rows)
    said = ["one sample each"]
    if rounds > 1:
        said = [f"medians of {min(len(row.values) for row in rows)} rounds or more"]
        if {len(row.values) for row in rows} == {rounds}:
            said = [f"medians of {rounds} rounds"]
        if not chart.parts:
            said.append("whiskers from the lowest to the highest")
    if any(_aim(bar) for bar in chart.bars):
        said.append("green: the target")
    # First, for what does not fit is cut off at the end.
    where = [str(facts[name]) for name in ("quick", "machine") if name in facts]
    where += [str(facts["date"])[:10]] if "date" in facts else []
    where.append(f"python -m benchmarks {chart.benchmark}")
    return [
        _text(MARGIN, y + 6, _sentence(", ".join(said)), "foot"),
        _text(MARGIN, y + 22, _cut(" · ".join(where), WIDTH - 2 * MARGIN, 11), "foot"),
    ]


def _rect(kind: str, left: float, right: float, middle: float, title: str = "") -> str:
    width = max(right - left, 1.0)
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="{kind}" x="{left:g}" y="{middle - BAR / 2:g}" width="{width:g}" '
        f'height="{BAR}" rx="{0 if title else 3}">{inner}</rect>'
    )


def _aim(bar: _Bar) -> float | None:
    """The target of a bar, if its row has one in figures."""
    target = bar.rows[0].target
    if bar.parts or target[:1] not in ("≥", "≤"):
        return None
    return float(target[1:].replace(",", ""))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}{anchor}>{escape(text)}</text>'


def _width(text: str, size: float = 13) -> float:
    return len(text) * LETTER * size


def _cut(text: str, width: float, size: float = 13, *, ends: bool = False) -> str:
    """What fits of it; with ``ends`` of both, where bars differ in their last word only."""
    most = int(width / (LETTER * size) + 0.01)  # What fits exactly does fit.
    if len(text) <= most:
        return text
    last = most // 2 if ends else 0
    return f"{text[: most - 1 - last]}…{text[len(text) - last :]}"


def _sentence(text: str) -> str:
    # A Greek µ would become a Greek M.
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _short(unit: str) -> str:
    return {"s/10k orders": "s", RATIO: RATIO}.get(unit, unit)


def _spelled(unit: str) -> str:
    return {"s/10k orders": "CPU seconds per 10,000 orders", RATIO: "times as fast"}.get(unit, unit)
