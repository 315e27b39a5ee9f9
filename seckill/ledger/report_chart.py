"""The charts of a report as inline SVG: what was ordered in each second of the first minute, and
what was ordered and paid for over the whole sale.

Each panel has a scale of its own: on a common one the payments, which spread over minutes, would
vanish beside the orders of the first second.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from html import escape
from typing import Final

from seckill.ledger.report import Report
from seckill.zone import local, span

__all__ = ["chart", "first_minute"]

# The picture for a wide page, and the one for a phone: made smaller, the first could not be read.
WIDE: Final = 1_000
NARROW: Final = 440
LEFT: Final = 8
RIGHT: Final = 56
PANEL: Final = 130
HEAD: Final = 26
GAP: Final = 18
# Where text stands below the lower panel.
FOOT: Final = 26
_TICKS_MS: Final = (
    *(n * 1_000 for n in (1, 2, 5, 10, 15, 30)),
    *(n * 60_000 for n in (1, 2, 5, 10, 15, 30)),
    *(n * 3_600_000 for n in (1, 2, 3, 6, 12, 24, 48, 168, 720)),
)
SECOND_MS: Final = 1_000


def chart(report: Report, zone: tzinfo) -> str:
    """The whole sale, twice: the page shows the one that has room. Nothing when nothing was
    ordered."""
    return "".join(_chart(report, zone, width) for width in (WIDE, NARROW)) if report.curve else ""


def _chart(report: Report, zone: tzinfo, width: int) -> str:
    bucket_ms, first_ms = report.bucket_ms, report.curve[0].at_ms
    count = max((report.curve[-1].at_ms - first_ms) // bucket_ms + 1, 12)
    axis = _Axis(first_ms, count * bucket_ms, width)
    held = [(bucket.at_ms, bucket.held) for bucket in report.curve]
    paid = [(bucket.at_ms, bucket.confirmed) for bucket in report.curve]
    upper, lower = HEAD, HEAD + PANEL + GAP + HEAD
    each = f"units in {span(bucket_ms)} 每 {span(bucket_ms)} 件数"
    return _svg(
        axis,
        "Units ordered and paid for over time 下单与付款件数随时间变化",
        lower + PANEL + FOOT,
        _panel(axis, upper, held, bucket_ms, "ordered", f"Ordered 下单 · {each}"),
        _panel(axis, lower, paid, bucket_ms, "paid", f"Paid 付款 · {each}"),
        _times(axis, lower + PANEL, zone),
    )


def first_minute(report: Report) -> str:
    """The second in which it all happens, twice as well; nothing when nothing was ordered in the
    first minute, or when the whole sale is shown by the second anyway."""
    if not any(report.first_minute) or report.bucket_ms <= SECOND_MS:
        return ""
    return "".join(_first_minute(report, width) for width in (WIDE, NARROW))


def _first_minute(report: Report, width: int) -> str:
    axis = _Axis(0, len(report.first_minute) * SECOND_MS, width)
    values = [(second * SECOND_MS, count) for second, count in enumerate(report.first_minute)]
    name = "First minute 开场一分钟 · units in 1 s 每秒件数"
    floor, step_ms = HEAD + PANEL, 10_000 if width == WIDE else 20_000
    ticks = (_tick(axis, floor, ms, f"+{ms // SECOND_MS} s") for ms in range(0, 60_001, step_ms))
    return _svg(
        axis,
        "Units ordered in each second of the first minute 开场一分钟每秒下单件数",
        floor + FOOT,
        _panel(axis, HEAD, values, SECOND_MS, "ordered", name),
        *ticks,
        _sold_out(axis, report, floor),
    )


def _svg(axis: _Axis, label: str, height: int, *parts: str) -> str:
    kind = "wide" if axis.width == WIDE else "narrow"
    box = f'class="{kind}" viewBox="0 0 {axis.width} {height}"'
    head = f'<svg {box} role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"


class _Axis:
    """From time to a place in the picture. ``right`` is where the panels end, and ``ticks_max`` how
    many times have room below them."""

    def __init__(self, first_ms: int, length_ms: int, width: int) -> None:
        self.first_ms = first_ms
        self.length_ms = length_ms
        self.width = width
        self.right = width - RIGHT
        self.ticks_max = width // 120

    def x(self, at_ms: int) -> float:
        room = self.right - LEFT
        return LEFT + room * (at_ms - self.first_ms) / self.length_ms


def _panel(
    axis: _Axis,
    top: int,
    values: Sequence[tuple[int, int]],
    bucket_ms: int,
    kind: str,
    name: str,
) -> str:
    peak = max(value for _, value in values)
    ceiling = _ceiling(peak)
    floor = top + PANEL
    parts = [f'<text class="name" x="{LEFT}" y="{top - 9}">{escape(name)}</text>']
    for share in (0, 1, 2):
        value = ceiling * share // 2
        y = floor - PANEL * share / 2
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{axis.right}"/>')
        if share != 1 or ceiling % 2 == 0:
            parts.append(f'<text x="{axis.right + 6}" y="{y + 4:.1f}">{value:,}</text>')
    wide = axis.x(axis.first_ms + bucket_ms) - axis.x(axis.first_ms)
    inset = min(1.5, wide * 0.12)
    for at_ms, value in values:
        if value:
            # What is not nothing is seen.
            high = max(1.5, PANEL * value / ceiling)
            parts.append(
                f'<rect class="{kind}" x="{axis.x(at_ms) + inset:.1f}" y="{floor - high:.1f}" '
                f'width="{wide - 2 * inset:.1f}" height="{high:.1f}"/>'
            )
    return "".join(parts)


def _ceiling(peak: int) -> int:
    """The next round number."""
    scale = 1
    while True:
        for step in (1, 2, 4, 5, 6, 8):
            if peak <= step * scale:
                return step * scale
        scale *= 10


def _times(axis: _Axis, floor: int, zone: tzinfo) -> str:
    step_ms = next(
        (step for step in _TICKS_MS if axis.length_ms <= step * axis.ticks_max),
        axis.length_ms // axis.ticks_max,
    )
    form = "%H:%M:%S" if step_ms < 60_000 else "%H:%M" if step_ms < 86_400_000 else "%m-%d"
    local_ms = _offset_ms(axis.first_ms, zone)
    at_ms = -(-(axis.first_ms + local_ms) // step_ms) * step_ms - local_ms
    ticks = []
    while at_ms <= axis.first_ms + axis.length_ms:
        ticks.append(_tick(axis, floor, at_ms, local(at_ms, zone).strftime(form)))
        at_ms += step_ms
    return "".join(ticks)


def _tick(axis: _Axis, floor: int, at_ms: int, text: str) -> str:
    x = axis.x(at_ms)
    anchor = "start" if x < LEFT + 30 else "end" if x > axis.right - 20 else "middle"
    return (
        f'<path class="grid" d="M{x:.1f} {floor}v5"/>'
        f'<text x="{x:.1f}" y="{floor + 19}" text-anchor="{anchor}">{text}</text>'
    )


def _offset_ms(at_ms: int, zone: tzinfo) -> int:
    """Ticks stand at round times of the reader's clock."""
    offset = local(at_ms, zone).utcoffset()
    return int(offset.total_seconds() * 1000) if offset else 0


def _sold_out(axis: _Axis, report: Report, floor: int) -> str:
    """The moment when everything, or else the first item, was gone."""
    what, after_ms = "sold out 售罄", report.sold_out_after_ms
    if after_ms is None:
        gone = [sku for sku in report.skus if sku.sold_out_after_ms is not None]
        if not gone:
            return ""
        first = min(gone, key=lambda sku: sku.sold_out_after_ms or 0)
        # A SKU may be longer than a phone is wide.
        name = first.sku if axis.width == WIDE else "first item"
        what, after_ms = f"{name} sold out 首个售罄", first.sold_out_after_ms or 0
    if after_ms > axis.length_ms:
        return ""
    x = axis.x(after_ms)
    left = x > axis.width * 0.6
    place = f'x="{x - 6 if left else x + 6:.1f}" text-anchor="{"end" if left else "start"}"'
    return (
        f'<path class="mark" d="M{x:.1f} {HEAD}V{floor}"/>'
        f'<text class="note" {place} y="{HEAD + 14}">{escape(what)} +{span(after_ms)}</text>'
    )
