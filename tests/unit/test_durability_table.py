"""What `durability` reports, and the table of docs/durability.md that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import durability_table
from benchmarks.durability import ENGINE, HTTP, TARGETS, Part, rows
from benchmarks.durability_sites import MODES
from benchmarks.durability_table import BEGIN, END, GUIDE, NOTHING, kept, main, put, table
from benchmarks.report import RUN, Report, Row, Verdict, encode
from seckill.errors import InvalidInput

FACTS = {
    "command": "python -m benchmarks durability",
    "date": "2026-11-23T12:00:00+00:00",
    "machine": "2 cores, Xeon, a kernel",
    "disk": "a sync of 4 KB takes 222 µs",
}


def parts(*rates: int) -> list[Part]:
    """Rounds of a second each."""
    return [Part(rate, 1.0, rate / 20_000, rate / 50_000, 0.0, (2.5, 9.25)) for rate in rates]


FOUND = {
    HTTP: {"memory": parts(10_000, 20_000, 10_000), "aof": parts(9_000, 16_000, 8_500)},
    ENGINE: {"memory": parts(100_000, 100_000, 100_000), "aof": parts(60_000, 50_000, 70_000)},
}


def report() -> Report:
    found = list(rows("Redis 7.0", FOUND))
    skipped = f"{HTTP}, replicas:1 against: memory"
    why = "skipped: no replica"
    found.append(Row.fact("durability", "Redis 7.0", skipped, Verdict.INFO, "≥ 0.75", why))
    return Report(FACTS, found)


def test_ratios_are_of_one_round_and_only_those_of_the_http_path_are_judged() -> None:
    found = {row.question: row for row in rows("Redis 7.0", FOUND)}
    ratio = found[f"{HTTP}, aof against: memory"]
    assert ratio.values == pytest.approx((0.9, 0.8, 0.85))
    assert (ratio.target, ratio.verdict) == ("≥ 0.8", Verdict.MET)
    assert found[f"{ENGINE}, aof against: memory"].verdict is Verdict.INFO
    assert found[f"CPU {HTTP}: aof / the intake"].values == pytest.approx((0.5,) * 3)
    assert found[f"CPU {HTTP}: aof / Redis"].values == pytest.approx((0.2,) * 3)
    slow = FOUND | {HTTP: FOUND[HTTP] | {"aof": parts(7_900, 15_000, 8_100)}}
    missed = {row.question: row for row in rows("Redis 7.0", slow)}
    assert missed[f"{HTTP}, aof against: memory"].verdict is Verdict.MISSED


def test_every_promise_but_the_weakest_has_a_target() -> None:
    assert set(TARGETS) == set(MODES) - {"memory"}


def test_the_table() -> None:
    assert table([report()]).splitlines()[-3:] == [
        "| Redis 7.0 | `memory` | 10,000 | 1 | 2.5, 9.2 ms | 100,000 | 1 |",
        "| Redis 7.0 | `aof` | 9,000 | 0.85 (0.8 … 0.9) | 2.5, 9.2 ms | 60,000 | 0.6 (0.5 … 0.7) |",
        "| Redis 7.0 | `replicas:1` | – | skipped: no replica | – | – | – |",
    ]
    assert table([report()]).startswith(
        "`python -m benchmarks durability`, 2026-11-23: 2 cores, Xeon; a sync of 4 KB takes 222 µs."
    )


def test_reports_of_something_else_have_no_table() -> None:
    other = Report(FACTS, [Row.of("lane", "Redis 7.0", "x", "orders/s", [1.0])])
    assert table([other]) == NOTHING


def test_a_run_that_says_nothing_is_refused() -> None:
    bad = Row.fact("durability", "Redis 7.0", RUN, Verdict.MISSED, "an end", "failed: it broke")
    quick = Report(FACTS | {"quick": "tiny counts"}, report().rows)
    for worthless in (quick, Report(FACTS, [*report().rows, bad])):
        with pytest.raises(InvalidInput, match="the run of 2026-11-23"):
            table([worthless])


def test_the_table_is_put_into_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide, run = tmp_path / "guide.md", tmp_path / "run.json"
    guide.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n", "utf-8")
    run.write_bytes(encode(FACTS, report().rows))
    monkeypatch.setattr(durability_table, "GUIDE", guide)
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{table([report()])}\n"
    assert main(["--write", str(run)]) == 0
    written = guide.read_text("utf-8")
    assert written == f"before\n\n{BEGIN}\n\n{table([report()])}\n\n{END}\n\nafter\n"
    assert main(["--write", str(run)]) == 0
    assert guide.read_text("utf-8") == written
    with pytest.raises(InvalidInput, match="no place"):
        put("nothing here", "x")


def test_the_guide_has_the_table_of_the_runs_that_are_kept() -> None:
    guide = GUIDE.read_text("utf-8")
    assert put(guide, table(list(kept()))) == guide, "python -m benchmarks.durability_table --write"
