"""Draws latency over offered load from the report of an open loop:

    python -m benchmarks.open_loop_picture FILE > latency.svg

``FILE`` is what ``python -m benchmarks open-loop --json FILE`` has written. Nothing but text is
needed to draw it, and it reads on a white and on a black page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.open_loop_points import FRACTIONS, NAME, QUANTILES, Point
from benchmarks.report import Row

__all__ = ["draw", "main"]

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 50, 60
COLOURS: Final = {"intake": "#d9480f", "no-op": "#1c7ed6"}
DASHES: Final = {"p50": "2 4", "p99": "", "p99.9": "8 4"}


class _Report(msgspec.Struct):
    rows: list[Row]
    machine: str = ""


def draw(rows: Sequence[Row], *, machine: str = "") -> str:
    """An SVG of the first server in these rows. Raises ValueError when there is no point to draw:
    all were invalid, or this is another report."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    server = next((row.server for row in rows if row.benchmark == NAME), "")
    for row in rows:
        point = Point.of(row.question) if row.benchmark == NAME and row.server == server else None
        if point is not None and row.median:
            lines.setdefault((point.who, point.quantile), []).append((point.fraction, row.median))
    if not lines:
        raise ValueError("there is no point of an open loop in this report")
    return "\n".join(_svg(lines, server, machine))


def _svg(
    lines: dict[tuple[str, str], list[tuple[float, float]]], server: str, machine: str
) -> Iterator[str]:
    values = [ms for points in lines.values() for _, ms in points]
    low, high = floor(log10(min(values))), ceil(log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def y(ms: float) -> float:
        return HEIGHT - BOTTOM - (log10(ms) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12" role="img"'
        ' aria-label="latency over offered load, log scale">'
    )
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield _text(LEFT, 22, "Latency from the scheduled moment, by offered load", size=16)
    yield _text(LEFT, 40, f"{server}. {machine}".strip(), fill="#666666")
    for power in range(low, high + 1):
        at = y(10.0**power)
        yield _line(LEFT, at, WIDTH - RIGHT, at, "#dddddd")
        yield _text(LEFT - 8, at + 4, f"{10.0**power:g} ms", anchor="end")
    for fraction in FRACTIONS:
        yield _line(_x(fraction), TOP, _x(fraction), HEIGHT - BOTTOM, "#eeeeee")
        yield _text(_x(fraction), HEIGHT - BOTTOM + 18, f"{fraction:g} ×", anchor="middle")
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield _text(middle, HEIGHT - 18, "of the intake's own capacity", anchor="middle")
    for (who, quantile), points in lines.items():
        yield from _curve(who, quantile, [(_x(at), y(ms)) for at, ms in sorted(points)])
    yield from _legend(lines)
    yield "</svg>"


def _x(fraction: float) -> float:
    # By doublings: half of the points lie below the capacity, and the farthest at three times it.
    left, right = log10(FRACTIONS[0]), log10(FRACTIONS[-1])
    return LEFT + 20 + (log10(fraction) - left) / (right - left) * (WIDTH - LEFT - RIGHT - 40)


def _curve(who: str, quantile: str, points: list[tuple[float, float]]) -> Iterator[str]:
    colour = COLOURS.get(who, "#333333")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield (
        f'<polyline fill="none" stroke="{colour}" stroke-width="2"'
        f' stroke-dasharray="{DASHES[quantile]}" points="{path}"/>'
    )
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _legend(lines: dict[tuple[str, str], list[tuple[float, float]]]) -> Iterator[str]:
    left = WIDTH - RIGHT + 20
    ordered = sorted(lines, key=lambda line: (line[0], -QUANTILES.index(line[1])))
    for number, (who, quantile) in enumerate(ordered):
        at = TOP + 16 + 22 * number
        yield _line(left, at, left + 34, at, COLOURS.get(who, "#333333"), 2, DASHES[quantile])
        yield _text(left + 42, at + 4, f"{who}, {quantile}")


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashes: str = ""
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-width="{width:g}" stroke-dasharray="{dashes}"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, fill: str = "#222222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' fill="{fill}">{escape(text)}</text>'
    )


def main() -> int:
    """Reads a report, prints a picture."""
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.open_loop_picture FILE > latency.svg", file=sys.stderr)
        return 2
    try:
        report = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=_Report)
        print(draw(report.rows, machine=report.machine))
    except (OSError, ValueError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
