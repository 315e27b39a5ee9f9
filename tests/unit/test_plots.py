"""The pictures of a benchmark's report say what its rows say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots import draw, write
from benchmarks.report import RATIO, Row, Verdict

FACTS = {"machine": "2 cores, <a CPU> & more", "date": "2026-11-23T08:00:00+08:00"}
SVG = "{http://www.w3.org/2000/svg}"


def row(question: str, values: Sequence[float], unit: str = "orders/s", **fields: Any) -> Row:
    server = fields.pop("server", "Redis 7.0")
    return Row.of("http", server, question, unit, values, **fields)


def picture(*rows: Row) -> ET.Element:
    """The only one that is drawn."""
    (text,) = draw(FACTS, rows).values()
    return ET.fromstring(text)  # noqa: S314 - it is our own


def bars(svg: ET.Element, kind: str) -> list[float]:
    """Widths of the bars of a kind."""
    found = svg.iter(f"{SVG}rect")
    return [float(bar.get("width", "")) for bar in found if bar.get("class") == kind]


def texts(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


def test_bars_are_as_long_as_their_medians() -> None:
    svg = picture(
        row("in stock: intake", [40_000, 50_000, 52_000]),
        row("in stock: no-op", [25_000, 24_000, 26_000], unit="answers/s"),
        row("in stock: Go net/http", [10_000, 11_000, 9_000], server="Valkey 9.1"),
    )
    (ours,) = bars(svg, "ours")
    noop, go = bars(svg, "theirs")
    assert ours / noop == pytest.approx(2.0, rel=0.01)
    # Both servers are drawn to the same scale.
    assert ours / go == pytest.approx(5.0, rel=0.01)
    shown = texts(svg)
    assert "50,000 orders/s  40,000 … 52,000" in shown
    assert {"intake", "no-op", "Redis 7.0", "Valkey 9.1", "In stock"} <= set(shown)
    assert "orders/s, answers/s · more is better" in shown


def test_a_whisker_goes_from_the_lowest_to_the_highest() -> None:
    svg = picture(row("r: a", [10, 20, 40]), row("r: b", [40]))
    (whisker,) = [path for path in svg.iter(f"{SVG}path") if path.get("class") == "whisker"]
    left = float(whisker.get("d", "").split()[0].removeprefix("M"))
    right = float(whisker.get("d", "").rpartition("H")[2])
    a, b = bars(svg, "theirs")
    assert right - left == pytest.approx(b * 3 / 4, rel=0.01)
    assert a == pytest.approx(b / 2, rel=0.01)


def test_a_target_stands_where_its_value_is() -> None:
    rows = [
        row("against: Go", [2.0, 2.0], RATIO, at_least=1.0),
        row("against: no-op", [1.0, 1.0], RATIO, at_least=4.0),
    ]
    svg = picture(*rows)
    low, high = [
        float(line.get("x1", "")) for line in svg.iter(f"{SVG}line") if line.get("class") == "aim"
    ]
    # A ratio is ours, whomever it is against.
    longer, shorter = bars(svg, "ours")
    assert longer / shorter == pytest.approx(2.0, rel=0.01)
    assert high - low == pytest.approx(3 * shorter, rel=0.01)
    spans = {span.get("class"): span.text for span in svg.iter(f"{SVG}tspan")}
    assert (spans["aimed"], spans["missed"]) == (" of 1", " of 4")


def test_parts_of_a_bar_stand_end_to_end() -> None:
    svg = picture(
        row("CPU: intake / the server", [0.2], "s/10k orders"),
        row("CPU: intake / Redis", [0.1], "s/10k orders"),
        row("CPU: no-op / the server", [0.4], "s/10k orders"),
    )
    found = [
        (bar.get("class"), float(bar.get("x", "")), float(bar.get("width", "")))
        for bar in svg.iter(f"{SVG}rect")
        if bar.get("height") == "18"
    ]
    assert [kind for kind, _, _ in found] == ["part0", "part1", "part0"]
    (_, x1, server), (_, x2, redis), (_, x3, noop) = found
    assert x1 == x3
    assert x2 == pytest.approx(x1 + server)
    assert noop == pytest.approx(2 * server, rel=0.01)
    assert server == pytest.approx(2 * redis, rel=0.01)
    assert "0.3 s" in texts(svg)
    assert {"the server", "Redis"} <= set(texts(svg))


def test_what_is_too_noisy_has_a_range_and_no_bar() -> None:
    svg = picture(
        row("against: Go", [1.0, 3.0], RATIO),
        row("against: a", [1.0, 1.1], RATIO),
        row("against: b", [1.0, 1.1], RATIO),
    )
    assert len(bars(svg, "ours")) == 2
    assert "too noisy: 1 … 3" in texts(svg)
    assert any(path.get("class") == "whisker noisy" for path in svg.iter(f"{SVG}path"))


def test_what_was_skipped_says_why() -> None:
    why = "skipped: no node"
    question = "against: Fastify"
    svg = picture(
        row("against: Go", [1.0, 1.1], RATIO),
        Row.fact("http", "Redis 7.0", question, Verdict.INFO, "≥ 1.25", why),
        row("against: no-op", [1.0, 1.1], RATIO),
        Row.fact("http", "Redis 7.0", "verify", Verdict.MET, "no violation", "2 sales"),
    )
    assert len(bars(svg, "ours")) == 2
    assert {"Fastify", why} <= set(texts(svg))
    assert "verify" not in texts(svg)


def test_rows_without_a_title_are_put_together_by_their_unit() -> None:
    rows = [
        row("batches of 64", [6.0], "µs", at_most=6.5),
        row("batches of 128", [5.0], "µs"),
        row("memory of a held order, 1,000 held", [300.0], "bytes"),
        row("memory of a held order, 2,000 held", [310.0], "bytes"),
        # Nothing to compare it with.
        row("accepted: intake", [1_000.0]),
    ]
    pictures = draw(FACTS, rows)
    assert list(pictures) == ["http-us.svg", "http-bytes.svg"]
    assert "µs · less is better" in pictures["http-us.svg"]


def test_rows_of_equal_words_have_a_bar_each_and_a_label_each() -> None:
    part = "  of which the hash of tickets"
    svg = picture(
        row("memory of a buyer, 100 waiting", [100.0], "bytes"),
        row(part, [50.0], "bytes"),
        row("memory of a buyer, 200 waiting", [90.0], "bytes"),
        row(part, [40.0], "bytes"),
    )
    shown = texts(svg)
    for size, figure in ((100, "50"), (200, "40")):
        (label,) = [text for text in shown if text.endswith(f"tickets, {size} waiting")]
        # The figure stands beside its label.
        assert shown[shown.index(label) + 1] == f"{figure} bytes"
    whole, half, *_ = bars(svg, "theirs")
    assert (len(bars(svg, "theirs")), half) == (4, pytest.approx(whole / 2, rel=0.01))


def test_a_row_below_one_of_another_unit_is_told_apart_all_the_same() -> None:
    rows = [row("time, batches of 64", [6.0], "µs"), row("  of which CPU", [2.0], "s")]
    rows += [row("time of all", [5.0], "µs"), row("  of which CPU", [3.0], "s")]
    rows += [row("  of which CPU", [4.0], "s")]
    shown = texts(ET.fromstring(draw(FACTS, rows)["http-s.svg"]))  # noqa: S314 - it is our own
    labels = [text.strip() for text in shown if "of which" in text]
    assert labels == ["of which CPU, batches of 64", "of which CPU", "of which CPU (2)"]


def test_signs_of_xml_are_only_text(tmp_path: Path) -> None:
    paths = write(
        tmp_path / "new" / "folder",
        FACTS,
        [row("a <b> & c: <x>", [1.0]), row("a <b> & c: y & z", [2.0])],
    )
    assert [path.name for path in paths] == ["http-a-b-c.svg"]
    shown = texts(ET.fromstring(paths[0].read_text("utf-8")))  # noqa: S314 - it is our own
    assert {"A <b> & c", "<x>", "y & z"} <= set(shown)
    assert any(text.startswith("2 cores, <a CPU> & more · 2026-11-23") for text in shown)


def test_labels_that_are_too_long_are_told_apart_by_their_ends() -> None:
    long = "orders on sockets against a no-op handler over HTTP"
    rows = [row(f"{long} ({way})", [1.0, 1.1], RATIO) for way in ("socket", "socket, 4")]
    (text,) = draw(FACTS | {"quick": "these figures say nothing"}, rows).values()
    shown = texts(ET.fromstring(text))  # noqa: S314 - it is our own
    assert [label[-12:] for label in shown if label.startswith("orders on so")] == [
        "TTP (socket)",
        " (socket, 4)",
    ]
    # What does not fit is cut off at the end.
    assert any(text.startswith("these figures say nothing · 2 cores") for text in shown)


def test_points_of_an_open_loop_make_a_picture_of_their_own_for_each_server() -> None:
    rows = [
        Row.of("open-loop", server, f"p99 at {load} of capacity, intake", "ms", [2.0, 3.0])
        for server in ("Redis 7.0", "Valkey 9.1, fsync always")
        for load in ("0.5", "1")
    ]
    rows += [row("accepted: a", [1.0]), row("accepted: b", [2.0])]
    pictures = draw(FACTS, rows)
    assert list(pictures) == [
        "http-accepted.svg",
        "open-loop-redis-7-0.svg",
        "open-loop-valkey-9-1-fsync-always.svg",
    ]
    name = "open-loop-valkey-9-1-fsync-always.svg"
    assert "Valkey 9.1, fsync always. 2 cores" in pictures[name]
    assert "fsync always. tiny · 2 cores" in draw(FACTS | {"quick": "tiny"}, rows)[name]
