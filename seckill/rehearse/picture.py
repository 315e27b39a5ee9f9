"""A rehearsed evening as one SVG that needs nothing beside it.

    who waits over time          called, units left and paid over time
    waiting time by arrival      chance of a unit by arrival

A flash sale happens in seconds and settles in hours, so the two upper panels have a logarithmic
time. The lower two go by buyers in order of arrival, equally many in each column: by the clock all
of them would stand in the first second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from html import escape
from math import log
from typing import Final

import msgspec

from seckill.rehearse.evening import Evening, Moment
from seckill.rehearse.picture_style import STYLE
from seckill.rehearse.result import Part, parts_of
from seckill.zone import span

__all__ = ["picture"]

WIDTH: Final = 1_000
HEIGHT: Final = 690
PANEL_WIDTH: Final = 420
PANEL_HEIGHT: Final = 190
LEFT: Final = (24, 524)
TOP: Final = (136, 426)
COLUMNS: Final = 40
# As many points as a panel has room for; more would only make the file larger.
_POINTS_MAX: Final = 210
_OPENS_WIDTH: Final = 60
# Of the 12 px that ticks are written in; letters are not all as wide.
_LETTER_WIDTH: Final = 6.8
_LABEL_GAP: Final = 12
_TICKS_MS: Final = (1_000, 10_000, 60_000, 600_000, 3_600_000, 36_000_000, 360_000_000)
_SPANS_MS: Final = (
    *(n * 1_000 for n in (1, 2, 5, 10, 20, 30, 40)),
    *(n * 60_000 for n in (1, 2, 5, 10, 20, 30, 40)),
    *(n * 3_600_000 for n in (1, 2, 5, 10, 24, 48, 120, 240)),
)
_MODES: Final = {
    "open": "open to all",
    "queue": "first come, first served",
    "shuffle": "shuffled",
    "draw": "drawn by lot",
}


class _Panel(msgspec.Struct, frozen=True):
    """Where a panel stands, and the largest value of its two axes."""

    left: int
    top: int
    peak: float

    @property
    def floor(self) -> int:
        return self.top + PANEL_HEIGHT

    def y(self, value: float) -> float:
        return self.floor - PANEL_HEIGHT * min(value, self.peak) / self.peak


class _Label(msgspec.Struct, frozen=True):
    """A text at the foot of a panel, and about how far it reaches."""

    x: float
    text: str
    anchor: str

    @property
    def begins(self) -> float:
        wide = _LETTER_WIDTH * len(self.text)
        return self.x - {"start": 0, "middle": wide / 2, "end": wide}[self.anchor]

    @property
    def ends(self) -> float:
        return self.begins + _LETTER_WIDTH * len(self.text)


def picture(evening: Evening, title: str, facts: Sequence[str]) -> str:
    """The evening as SVG. ``title`` and ``facts`` stand above the panels."""
    mode = _MODES[evening.rules.mode]
    parts = parts_of(evening, COLUMNS)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}"'
    return "".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{STYLE}</style>\n',
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>\n',
            _text(LEFT[0], 40, title, "title"),
            _text(WIDTH - 24, 40, mode, "mode", anchor="end"),
            *(_text(LEFT[0], 64 + 20 * row, fact, "fact") for row, fact in enumerate(facts)),
            *_over_time(evening),
            _waits(parts),
            _chances(parts),
            "</svg>\n",
        )
    )


# -- over time --------------------------------------------------------------------------------


class _Clock:
    """From a time to a place: logarithmic from the first second on."""

    def __init__(self, end_ms: int) -> None:
        self.end_ms = max(end_ms, 10_000)

    def share(self, at_ms: float) -> float:
        return log(1 + max(0.0, at_ms) / 1000) / log(1 + self.end_ms / 1000)

    def ticks(self, panel: _Panel) -> str:
        marks = [f'<path class="grid" d="M{panel.left} {panel.floor}v5"/>']
        marks.append(_text(panel.left, panel.floor + 20, "opens", "tick"))
        for at_ms in _TICKS_MS:
            x = panel.left + PANEL_WIDTH * self.share(at_ms)
            if at_ms <= self.end_ms and x >= panel.left + _OPENS_WIDTH:
                anchor = "end" if x > panel.left + PANEL_WIDTH - 12 else "middle"
                marks.append(f'<path class="grid" d="M{x:.0f} {panel.floor}v5"/>')
                marks.append(_text(x, panel.floor + 20, f"+{span(at_ms)}", "tick", anchor=anchor))
        return "".join(marks)


def _over_time(evening: Evening) -> tuple[str, str]:
    moments = evening.moments
    end_ms = moments[-1].at_ms if moments else evening.rules.ends_ms
    clock = _Clock(round(end_ms * 1.1))
    paid = evening.rules.units

    def line(kind: str, panel: _Panel, value: Callable[[Moment], float], *, area: bool) -> str:
        return _curve(kind, panel, clock, [(m.at_ms, value(m)) for m in moments], area=area)

    if evening.rules.mode == "open":
        came = _panel(0, 0, max((m.tail for m in moments), default=1))
        left = line("waiting", came, lambda m: m.tail, area=True)
        name, empty = "Buyers who have come", "nobody waits: who finds nothing goes"
        note = _text(came.left + PANEL_WIDTH, came.top - 12, empty, "key", anchor="end")
    else:
        came = _panel(0, 0, max((m.tail - m.head for m in moments), default=1))
        left = line("waiting", came, lambda m: m.tail - m.head, area=True)
        name, note = "Buyers who wait", ""
    till = _panel(1, 0, max(evening.rules.units, len(_called_before(evening))))
    right = line("stock", till, lambda m: m.available, area=True)
    right += line("paid", till, lambda m: paid - m.available - m.held, area=False)
    keys = [("stock", "units left"), ("paid", "paid")]
    if evening.rules.mode != "open":
        right += line("called", till, lambda m: m.head, area=False)
        keys.append(("called", "buyers called"))
    return (
        _frame(came, name, _number) + left + note + clock.ticks(came),
        _frame(till, "At the till", _number) + right + _keys(till, keys) + clock.ticks(till),
    )


def _called_before(evening: Evening) -> Sequence[int]:
    return [] if evening.rules.mode == "open" else evening.called


def _curve(
    kind: str, panel: _Panel, clock: _Clock, points: list[tuple[int, float]], *, area: bool
) -> str:
    """Steps, one for each place that can be told from the next."""
    if not points:
        return ""
    places: dict[int, float] = {}
    for at_ms, value in points:
        places[round(clock.share(at_ms) * _POINTS_MAX)] = value
    places.setdefault(_POINTS_MAX, points[-1][1])
    scale = PANEL_WIDTH / _POINTS_MAX
    ordered = sorted(places.items())
    path, last = f"M{panel.left + ordered[0][0] * scale:.0f} {panel.y(ordered[0][1]):.1f}", None
    for place, value in ordered:
        y = f"{panel.y(value):.1f}"
        if y != last or place == _POINTS_MAX:
            path, last = f"{path}H{panel.left + place * scale:.0f}V{y}", y
    drawn = f'<path class="{kind} line" d="{path}"/>'
    if area:
        closed = f"{path}V{panel.floor}H{panel.left + ordered[0][0] * scale:.0f}Z"
        drawn = f'<path class="{kind} area" d="{closed}"/>' + drawn
    return drawn + "\n"


# -- by arrival -------------------------------------------------------------------------------


def _waits(parts: list[Part]) -> str:
    waits = [part.wait_p90_ms for part in parts if part.wait_p90_ms is not None]
    peak = max(waits, default=0)
    ceiling = next((at for at in _SPANS_MS if peak <= at), peak)
    panel = _Panel(LEFT[0], TOP[1], ceiling)
    drawn = [_frame(panel, "Waiting time of the called, by arrival", _span_of)]
    if not waits:
        middle = panel.left + PANEL_WIDTH / 2
        drawn.append(_text(middle, panel.top + 100, "nobody waits", "fact", anchor="middle"))
    for index, part in enumerate(parts):
        if part.wait_median_ms is None:
            continue
        x, wide = _column(panel, index, len(parts))
        top, bottom = panel.y(part.wait_p90_ms or 0), panel.y(part.wait_p10_ms or 0)
        high = max(1.5, bottom - top)
        drawn.append(_rect("waiting range", x, top, wide, high))
        drawn.append(_rect("waiting half", x, panel.y(part.wait_median_ms) - 1.5, wide, 3))
    keys = _keys(panel, [("waiting half", "median"), ("waiting range", "10–90 %")]) if waits else ""
    return "".join(drawn) + keys + _arrivals(panel, parts)


def _chances(parts: list[Part]) -> str:
    peak = max(part.chance for part in parts) * 100
    panel = _Panel(LEFT[1], TOP[1], _ceiling(peak, least=0.001))
    drawn = [_frame(panel, "Chance of a unit, by arrival", _percent)]
    for index, part in enumerate(parts):
        if part.chance:
            x, wide = _column(panel, index, len(parts))
            y = min(panel.y(part.chance * 100), panel.floor - 1.5)
            drawn.append(_rect("paid bar", x, y, wide, panel.floor - y))
    return "".join(drawn) + _arrivals(panel, parts)


def _column(panel: _Panel, index: int, count: int) -> tuple[float, float]:
    wide = PANEL_WIDTH / count
    return panel.left + index * wide + 1, wide - 2


def _arrivals(panel: _Panel, parts: list[Part]) -> str:
    """When the buyers of some columns came. The first and the last stand at the ends; one between
    that would touch another is left out."""
    marks, labels = [], []
    for quarter in range(5):
        index = min(quarter * len(parts) // 4, len(parts) - 1)
        at_ms = parts[-1].to_ms if quarter == 4 else parts[index].from_ms
        x = panel.left + PANEL_WIDTH * quarter / 4
        marks.append(f'<path class="grid" d="M{x:.0f} {panel.floor}v5"/>')
        labels.append(
            _Label(x, _at(at_ms), ("start", "middle", "middle", "middle", "end")[quarter])
        )
    y = panel.floor + 20
    marks += [_text(one.x, y, one.text, "tick", anchor=one.anchor) for one in _apart(labels)]
    middle = panel.left + PANEL_WIDTH / 2
    words = "buyers in order of arrival, equally many in each column"
    marks.append(_text(middle, panel.floor + 42, words, "tick", anchor="middle"))
    return "".join(marks) + "\n"


# -- parts ------------------------------------------------------------------------------------


def _panel(column: int, row: int, peak: float) -> _Panel:
    return _Panel(LEFT[column], TOP[row], _ceiling(peak, least=1))


def _frame(panel: _Panel, name: str, show: Callable[[float], str]) -> str:
    parts = [_text(panel.left, panel.top - 12, name, "name")]
    for share in (0, 0.5, 1):
        y = panel.y(panel.peak * share)
        parts.append(f'<path class="grid" d="M{panel.left} {y:.1f}h{PANEL_WIDTH}"/>')
        x = panel.left + PANEL_WIDTH + 6
        parts.append(_text(x, y + 4, show(panel.peak * share), "tick", anchor="start"))
    return "".join(parts) + "\n"


def _keys(panel: _Panel, keys: Sequence[tuple[str, str]]) -> str:
    """What the colours mean, from the right edge to the left."""
    x, parts = float(panel.left + PANEL_WIDTH), []
    for kind, name in reversed(keys):
        x -= 7 * len(name)
        parts.append(_text(x, panel.top - 12, name, "key"))
        parts.append(_rect(f"{kind} swatch", x - 15, panel.top - 21, 10, 10))
        x -= 27
    return "".join(parts) + "\n"


def _rect(kind: str, x: float, y: float, wide: float, high: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    place = f'x="{x:.0f}" y="{y:.0f}"'
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}{where}>{escape(text)}</text>'


def _ceiling(peak: float, *, least: float) -> float:
    """The next number that is easily halved."""
    scale = least
    while peak > 10 * scale:
        scale *= 10
    steps = (1, 2, 4, 6, 8, 10)
    return scale * steps[min(bisect_right([scale * step for step in steps], peak * 0.9999), 5)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return f"{value:.4g} %"


def _span_of(value: float) -> str:
    return span(round(value))


def _at(ms: int) -> str:
    sign = "" if abs(ms) < 100 else "−" if ms < 0 else "+"
    return f"{sign}{_short_span(abs(ms))}"


def _apart(labels: Sequence[_Label]) -> list[_Label]:
    """Those of a line that don't touch: the ends, and what there is room for between them."""
    first, *between, last = labels
    kept = [first]
    for label in between:
        if kept[-1].ends + _LABEL_GAP <= label.begins and label.ends + _LABEL_GAP <= last.begins:
            kept.append(label)
    return [*kept, last]


def _short_span(ms: int) -> str:
    """As exactly as there is room for."""
    if ms < 60_000:
        return span(ms // 100 * 100)
    return span(round(ms / 60_000) * 60_000)
