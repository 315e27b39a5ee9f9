"""Reports of runs: what is kept of them, whether two of them agree, and what a run does whose
benchmarks fail or take too long."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agree, profile
from benchmarks.__main__ import main
from benchmarks.agree import Word, compare
from benchmarks.plan import Plan
from benchmarks.report import RATIO, RUN, VERIFY, Report, Row, Verdict, encode, markdown, read
from benchmarks.servers import Server
from seckill.errors import InvalidInput

ROOT = Path(__file__).parents[2]
VALKEY = "Valkey 9.1.2, fsync always"
REDIS = "Redis 7.0.15, fsync always"
FACTS = {"machine": "2 cores, Xeon", "disk": "/disk: a sync of 4 KB takes 222 µs"}


def ratio(question: str, values: Sequence[float], server: str = VALKEY, **fields: Any) -> Row:
    return Row.of("http", server, question, RATIO, values, **fields)


def rate(question: str, values: Sequence[float], **fields: Any) -> Row:
    return Row.of("http", VALKEY, question, "orders/s", values, **fields)


# -- the file ---------------------------------------------------------------------------------


def test_a_report_comes_back_and_has_no_place_of_the_machine(tmp_path: Path) -> None:
    rows = [ratio("in stock, the intake against: no-op", [1.0, 1.25, 1.5]), rate("x", [3.0])]
    file = tmp_path / "run.json"
    file.write_bytes(encode(FACTS, rows))
    report = read(file)
    assert report.rows == rows
    assert report.facts["disk"] == "a sync of 4 KB takes 222 µs"
    assert report.facts["machine"] == FACTS["machine"]
    # A line a row, so that a change of one is a change of one.
    assert len(file.read_text().splitlines()) == len(rows) + 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1}', '{"rows": [{"benchmark": 1}]}'])
def test_what_is_no_report_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=r"run\.json: is no report of benchmarks"):
        read(file)
    with pytest.raises(InvalidInput, match="is no report of benchmarks"):
        read(tmp_path / "none.json")


def test_markdown_shows_the_pictures_that_lie_beside_it() -> None:
    text = markdown({}, [], ["http-in-stock.svg"])
    assert text.endswith("![http in stock](http-in-stock.svg)")


# -- two runs ---------------------------------------------------------------------------------


def words(first: Sequence[Row], second: Sequence[Row]) -> list[Word]:
    return [pair.word for pair in compare(Report({}, list(first)), Report({}, list(second)))]


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ([1.0, 1.2, 1.4], [1.3, 1.5, 1.6], Word.AGREE),
        ([1.3, 1.5, 1.6], [1.0, 1.2, 1.4], Word.AGREE),
        # One within the other, and those that touch.
        ([1.0, 1.2, 1.9], [1.3, 1.4], Word.AGREE),
        ([1.0, 1.2], [1.2, 1.4], Word.AGREE),
        # Nothing is added to a range.
        ([1.0, 1.2], [1.201, 1.4], Word.APART),
        ([1.201, 1.4], [1.0, 1.2], Word.APART),
        ([1.0, 2.1], [1.0, 1.2], Word.NOISY),
        ([1.0], [1.0, 1.2], Word.SINGLE),
    ],
)
def test_figures_agree_where_their_ranges_meet(
    first: list[float], second: list[float], word: Word
) -> None:
    assert words([ratio("r", first)], [ratio("r", second)]) == [word]


def test_a_figure_of_one_run_only_is_named() -> None:
    first, second = [ratio("a", [1, 1.1]), ratio("b", [1, 1.1])], [ratio("b", [1, 1.1])]
    assert words(first, second) == [Word.ALONE, Word.AGREE]
    assert words(second, first) == [Word.AGREE, Word.ALONE]
    # Another server is another question.
    assert words([ratio("a", [1, 1.1])], [ratio("a", [1, 1.1], REDIS)]) == [Word.ALONE] * 2


def test_rows_below_others_are_compared_in_their_order() -> None:
    """``cost`` has "of which HSET" below each of its batch sizes."""
    first = [rate("  of which HSET", [1, 2]), rate("  of which HSET", [10, 11])]
    second = [rate("  of which HSET", [1.5, 2.5]), rate("  of which HSET", [12, 13])]
    assert words(first, second) == [Word.AGREE, Word.APART]


@pytest.mark.parametrize(
    ("second", "code", "said"),
    [
        ([ratio("r", [1.1, 1.3]), rate("x", [10, 11])], 0, "ratios: 1 agree"),
        # A rate tells of the hour, and decides nothing.
        ([ratio("r", [1.1, 1.3]), rate("x", [90, 99])], 0, "APART        http, Valkey"),
        ([ratio("r", [1.3, 1.4]), rate("x", [10, 11])], 1, "ratios: 1 apart"),
        ([rate("x", [10, 11])], 2, "other figures: 1 agree"),
    ],
)
def test_ratios_decide_the_exit_code(
    second: list[Row], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [ratio("r", [1.0, 1.2]), rate("x", [10, 11])]
    for name, rows in (("a", first), ("b", second)):
        (tmp_path / name).write_bytes(encode(FACTS, rows))
    assert agree.main([str(tmp_path / "a"), str(tmp_path / "b")]) == code
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "rows", "said"),
    [
        ({"quick": "tiny counts"}, [], "was made with --quick"),
        ({}, [Row.fact("lane", VALKEY, VERIFY, Verdict.MISSED, "", "")], "lane, Valkey 9.1.2"),
        ({}, [Row.fact("lane", VALKEY, RUN, Verdict.MISSED, "", "")], RUN),
    ],
)
def test_reports_that_say_nothing_are_not_compared(
    facts: dict[str, str],
    rows: list[Row],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(encode(FACTS, [ratio("r", [1.0, 1.2])]))
    bad.write_bytes(encode(FACTS | facts, [ratio("r", [1.0, 1.2]), *rows]))
    for files in ((good, bad), (bad, good)):
        with pytest.raises(SystemExit) as ended:
            agree.main([str(file) for file in files])
        told = capsys.readouterr()
        assert ended.value.code == 2
        assert str(bad) in told.err
        assert said in told.err
        assert "ratios" not in told.out


# -- what a run does --------------------------------------------------------------------------

PLAN = Plan((Server("Valkey 9.1.2", "valkey-server"),), quick=True)


def quick_one(plan: Plan) -> Iterator[Row]:
    assert plan.quick
    yield Row.of("lane", "Valkey 9.1.2", "r", RATIO, [2.0])


def broken_one(plan: Plan) -> Iterator[Row]:
    yield Row.of("lane", "Valkey 9.1.2", "r", RATIO, [2.0])
    raise AssertionError("no request was answered\nand more")


def test_a_benchmark_that_fails_keeps_what_it_had_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(profile.BENCHMARKS, "lane", broken_one)
    figure, end = profile.run("lane", PLAN)
    assert figure.values == (2.0,)
    assert (end.question, end.verdict) == (RUN, Verdict.MISSED)
    assert re.fullmatch(
        r"failed: no request was answered \(test_benchmark_reports\.py:\d+\)", end.note
    )


def kept(server: str, verdict: Verdict) -> Row:
    return Row.fact("lane", server, VERIFY, verdict, "no violation", "")


def test_a_server_whose_sale_broke_a_promise_gives_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one(_: Plan) -> Iterator[Row]:
        for server, verdict in ((REDIS, Verdict.MET), (VALKEY, Verdict.MISSED)):
            yield ratio("before", [2.0], server)
            yield Row.fact("lane", server, "drained into MariaDB", Verdict.INFO, "–", "skipped")
            yield kept(server, verdict)
            yield ratio("after", [2.0], server)

    monkeypatch.setitem(profile.BENCHMARKS, "lane", one)
    rows = list(profile.run("lane", PLAN))
    assert [(row.server, row.question) for row in rows] == [
        (REDIS, "before"),
        (REDIS, "drained into MariaDB"),
        (REDIS, VERIFY),
        (REDIS, "after"),
        (VALKEY, VERIFY),
    ]


def test_a_failure_after_a_broken_promise_hides_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(_: Plan) -> Iterator[Row]:
        yield from (ratio("r", [2.0]), kept(VALKEY, Verdict.MISSED))
        raise AssertionError("no request was answered")

    monkeypatch.setitem(profile.BENCHMARKS, "lane", one)
    assert [row.question for row in profile.run("lane", PLAN)] == [VERIFY, RUN]


def test_a_broken_promise_of_a_whole_server_takes_all_its_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one(_: Plan) -> Iterator[Row]:
        yield from (ratio("r", [2.0]), ratio("r", [2.0], REDIS))
        yield kept("Valkey 9.1.2", Verdict.MISSED)

    monkeypatch.setitem(profile.BENCHMARKS, "lane", one)
    found = [(row.server, row.question) for row in profile.run("lane", PLAN)]
    assert found == [(REDIS, "r"), ("Valkey 9.1.2", VERIFY)]


def test_what_would_end_too_late_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in profile.SHORT:
        monkeypatch.setitem(profile.BENCHMARKS, step.name, quick_one)
    assert [row.question for row in profile.short(PLAN, clock=lambda: 0.0)] == ["r"] * 4
    # The first two have taken twice as long as on our machine.
    times = iter([0.0, 0.0, 430.0, 580.0, 585.0])
    rows = list(profile.short(PLAN, clock=lambda: next(times)))
    assert [row.question for row in rows] == ["r", "r", RUN, RUN]
    assert [row.benchmark for row in rows[2:]] == [step.name for step in profile.SHORT[2:]]
    assert {row.note for row in rows[2:]} == {"skipped: it would not end within ten minutes"}
    assert not [row for row in rows if row.verdict is Verdict.MISSED]


def test_the_short_one_fits_into_its_time() -> None:
    assert sum(step.about_s for step in profile.SHORT) <= profile.LIMIT_S


def test_tools_that_are_missing_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert profile.missing_tools() == (
        "wrk, go, node, npm (Debian: apt install wrk golang-go nodejs npm)"
    )


@pytest.mark.parametrize(("benchmark", "code"), [(quick_one, 0), (broken_one, 1)])
def test_a_run_leaves_a_folder_of_its_own(
    benchmark: Any,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in profile.BENCHMARKS:
        monkeypatch.setitem(profile.BENCHMARKS, name, benchmark)
    assert main(["--quick", "--out", str(tmp_path)]) == code
    [folder] = tmp_path.iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["command"] == "make bench ARGS=--quick"
    # Ten minutes are for one server; all of them are asked for by name, or with --full.
    assert ", " not in report["servers"]
    assert len([row for row in report["rows"] if row["values"]]) == len(profile.SHORT)
    assert "| lane | Valkey 9.1.2 | r | 2 × |" in (folder / "report.md").read_text()
    said = capsys.readouterr()
    assert f"{folder}: report.md, report.json" in said.out
    assert ("no request was answered" in said.err) == bool(code)


def test_everything_is_asked_for_by_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def one(name: str, plan: Plan) -> Iterator[Row]:
        asked.append((name, plan.full))
        yield Row.of(name, plan.servers[0].name, "r", RATIO, [2.0])

    for name in profile.BENCHMARKS:
        monkeypatch.setitem(profile.BENCHMARKS, name, partial(one, name))
    file = tmp_path / "run.json"
    assert main(["--full", "--quick", "--json", str(file)]) == 0
    assert asked == [(name, True) for name in profile.BENCHMARKS]
    assert read(file).facts["command"] == "make bench-full ARGS=--quick"
    assert main(["lane", "cost", "--quick", "--json", str(file)]) == 0
    assert asked[len(profile.BENCHMARKS) :] == [("lane", False), ("cost", False)]
    assert read(file).facts["command"] == "python -m benchmarks lane cost --quick"
    assert Plan(PLAN.servers).rounds < Plan(PLAN.servers, full=True).rounds


def test_a_quick_run_judges_promises_and_ends_but_no_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(_: Plan) -> Iterator[Row]:
        yield ratio("missed", [2.0], at_least=5.0)
        yield ratio("noisy", [1.0, 3.0, 9.0], at_least=1.0)
        yield Row.fact("lane", VALKEY, "too slow here", Verdict.MISSED, "≤ 1", "")
        yield kept(VALKEY, Verdict.MET)
        raise AssertionError("no request was answered")

    monkeypatch.setitem(profile.BENCHMARKS, "lane", one)
    file = tmp_path / "run.json"
    words = ["lane", "--json", str(file), "--out", str(tmp_path)]
    assert main([*words, "--quick"]) == 1
    rows = read(file).rows
    judged = {row.question: (row.target, row.verdict) for row in rows}
    assert judged == {
        "missed": ("–", Verdict.INFO),
        "noisy": ("–", Verdict.INFO),
        "too slow here": ("–", Verdict.INFO),
        VERIFY: ("no violation", Verdict.MET),
        RUN: ("an end", Verdict.MISSED),
    }
    assert [row.median for row in rows[:2]] == [2.0, 3.0]
    assert "≥ 5" not in capsys.readouterr().out
    [written] = tmp_path.glob("*/report.md")
    assert "≥ 5" not in written.read_text()
    # Any other run judges them.
    assert main(words) == 1
    assert read(file).rows[0].verdict is Verdict.MISSED


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["readme", "/nowhere/run.json"], "is no report of benchmarks"),
        (["readme", "--write", "run.json"], "put the report there"),
        (["compare-runs", "/nowhere/a", "/nowhere/b"], "is no report of benchmarks"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_make_names_its_targets_and_hands_on_what_it_is_given() -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-s", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    listed = [line[:18].strip() for line in make("help").stdout.splitlines()]
    assert {"make bench", "make bench-full", "make bench-compare"} <= set(listed)
    # Nothing is installed for a look at what would be done.
    assert "ARGS=lane: on all servers" in make("help").stdout
    assert "takes about 2 minutes, 5 with valgrind" in make("help").stdout
    assert "--full --out bench" in make("-n", "-o", ".venv/.dev", "bench-full").stdout
    assert "--out bench lane" in make("-n", "-o", ".venv/.dev", "bench", "ARGS=lane").stdout
    # Only shown, too: it would count for minutes.
    compared = make("-n", "-o", ".venv/.dev", "bench-compare", "BASE=HEAD~1").stdout
    assert "-m benchmarks.compare HEAD~1" in compared
