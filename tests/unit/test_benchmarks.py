"""Each benchmark runs and says what it should. Its counts are tiny, so no figure means a thing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from benchmarks.__main__ import _busy, _command, _parser, main
from benchmarks.plan import Plan
from benchmarks.profile import BENCHMARKS
from benchmarks.report import RATIO, Row, Verdict, markdown
from benchmarks.servers import Server, find_servers
from seckill.plan_figures import BUILT_IN, measured

ROOT = Path(__file__).parents[2]
MARKDOWN_COLUMNS = 8
# A quick run has no targets; here they are counted all the same.
WITH_TARGETS = (
    "import sys; from benchmarks import __main__ as it; it.unjudged = list; sys.exit(it.main())"
)


def run(
    *arguments: str, how: tuple[str, str] = ("-m", "benchmarks")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *how, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


# The long ones show on one server that they run, whichever the machine has.
ONE_SERVER = ("--server", find_servers()[0].name)


# How many figures with a target each benchmark gives for one server, and how it is run.
RUNS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "lane": (2, ()),
    "latency": (2, ()),
    "cost": (4, ()),
    "scale": (1, ()),
    "footprint": (0, ONE_SERVER),
    "http": (6, ONE_SERVER),
    "drain": (2, ONE_SERVER),
    "queue": (6, ONE_SERVER),
    "durability": (2, ONE_SERVER),
}
PLANNED: Final = sorted({figure.benchmark for figure in BUILT_IN.values()})


@cache
def ran(name: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A quick run and its report. It takes long, so all tests look at the same."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "figures.json")
        for _ in range(3):
            options = ("--quick", "--json", str(file), *RUNS[name][1])
            done = run(name, *options, how=("-c", WITH_TARGETS))
            # A machine that is too busy to get one request done in its second can measure nothing.
            if "no request was answered" not in done.stderr:
                break
        assert done.returncode == 0, done.stderr
        return done, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs_and_gives_every_figure(name: str) -> None:
    done, report = ran(name)
    assert {"date", "machine", "versions", "servers", "took", "rows"} <= report.keys()
    servers = len(report["servers"].split(", "))
    rows = report["rows"]
    if [row["note"].partition(":")[0] for row in rows] == ["skipped"] * servers:
        pytest.skip(rows[0]["note"])
    assert {row["benchmark"] for row in rows} == {name}
    # What this machine can't build is skipped with a word, under its target.
    skipped = [row for row in rows if row["note"].startswith("skipped")]
    numbers = [row for row in rows if row["values"] or row in skipped]
    assert len([row for row in numbers if row["target"] != "–"]) == RUNS[name][0] * servers
    verdicts = [row["verdict"] for row in rows if row["question"] == "verify"]
    assert verdicts
    assert set(verdicts) == {"met"}
    # The table itself: every row of it, in whatever way it is laid out.
    assert all(row["server"].split(",")[0] in done.stdout for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANNED)
def test_every_figure_of_a_plan_has_its_row(name: str, tmp_path: Path) -> None:
    """Every figure of ``seckill plan`` comes from a row that the benchmarks really yield. A row
    that is given another name fails here, before a plan goes on with what was built in."""
    rows = ran(name)[1]["rows"]
    numbers = [row for row in rows if row["values"]]
    skipped = [row["note"] for row in rows if row["note"].startswith("skipped")]
    if skipped and not numbers:
        pytest.skip(skipped[0])
    for figure_name, figure in BUILT_IN.items():
        if figure.benchmark == name:
            found = [row for row in numbers if figure.names(row["benchmark"], row["question"])]
            assert found, f"{figure_name}: no row of {name} is named {figure.question!r}"
            # A figure is a row's unit or, by its factor, seconds of 10,000.
            units = {row["unit"].partition("/")[0] for row in found}
            wanted = "s" if figure.unit == "µs" else figure.unit.partition("/")[0]
            assert units == {wanted}, figure_name
    # And `--measured` takes them up. What a quick run gives may be 0, which it passes over.
    file = tmp_path / "run.json"
    rows = [row | {"median": 1.0} for row in numbers]
    file.write_text(json.dumps({"machine": "this one", "rows": rows}))
    table = measured(file)
    for figure_name, figure in BUILT_IN.items():
        expected = "this one" if figure.benchmark == name else figure.machine
        assert table[figure_name].machine == expected, figure_name
        if figure.benchmark == name:
            assert table[figure_name].value == figure.factor


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_begins_with_its_question_and_says_how_it_is_run(name: str) -> None:
    header = sys.modules[BENCHMARKS[name].__module__].__doc__ or ""
    assert header.partition("\n\n")[0].endswith("?")
    assert re.search(rf"\n    python -m benchmarks {name}\b", header)


def test_an_unknown_benchmark_is_named() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "no benchmark speed; there are lua, cost, scale, footprint" in done.stderr


@pytest.mark.parametrize(
    ("option", "place", "said"),
    [
        ("--json", "none/x.json", "no such file or directory"),
        ("--json", ".", "is a directory"),
        ("--out", "file", "a file is in the way"),
        ("--out", "file/folder", "a file is in the way"),
        ("--plots", "file", "a file is in the way"),
    ],
)
def test_a_report_that_has_no_place_is_refused_before_the_first_round(
    option: str, place: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("as it was")
    with pytest.raises(SystemExit) as ended:
        main(["lane", "--quick", option, str(tmp_path / place)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    (line,) = err.splitlines()
    start = f"python -m benchmarks: error: {option}: {tmp_path / place} cannot be written ({said})"
    assert line.startswith(f"{start}; name a ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "as it was"


def test_a_run_that_is_stopped_leaves_no_file_and_changes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: Plan) -> Iterator[Row]:
        raise KeyboardInterrupt

    monkeypatch.setitem(BENCHMARKS, "lane", stopped)
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("as it was")
    for file in (new, old):
        assert main(["lane", "--quick", "--json", str(file)]) == 130
        assert "stopped; nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "as it was"


def test_a_place_that_went_away_meanwhile_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def removing(_: Plan) -> Iterator[Row]:
        folder.rmdir()
        yield Row.of("lane", "Redis", "r", RATIO, [2.0])

    monkeypatch.setitem(BENCHMARKS, "lane", removing)
    assert main(["lane", "--quick", "--json", str(folder / "x.json")]) == 2
    said = capsys.readouterr()
    assert "the report could not be written: " in said.err
    # Its figures are not lost.
    assert "2 ×" in said.out


@pytest.mark.parametrize(
    ("values", "bound", "verdict", "shown"),
    [
        ([5.5, 6.0, 7.0], {"at_least": 5.0}, Verdict.MET, "6 ×"),
        ([3.5, 4.0, 7.0], {"at_least": 5.0}, Verdict.MISSED, "4 ×"),
        ([1.1, 1.2, 1.3], {"at_most": 1.15}, Verdict.MISSED, "1.2 ×"),
        ([1.2, 1.0, 1.1], {}, Verdict.INFO, "1.1 ×"),
        ([3.0, 6.0, 6.1], {"at_least": 5.0}, Verdict.NOISY, ""),
    ],
)
def test_a_ratio_is_judged_by_its_median_unless_it_is_too_noisy(
    values: list[float], bound: dict[str, Any], verdict: Verdict, shown: str
) -> None:
    row = Row.of("lane", "Redis", "how much", RATIO, values, **bound)
    assert row.verdict is verdict
    assert row.cells()[3] == shown


def test_markdown_has_a_line_for_each_row() -> None:
    row = Row.of("cost", "Redis", "time", "µs", [4.0, 5.0], at_most=6.5, note="batches")
    text = markdown({"date": "today"}, [row])
    line = text.splitlines()[-1]
    assert line == "| cost | Redis | time (batches) | 4.5 µs | 4 … 5 | 2 | ≤ 6.5 | met |"
    assert line.count(" | ") == MARKDOWN_COLUMNS - 1


# -- what is said of a run ----------------------------------------------------------------------


@pytest.mark.parametrize(("load", "is_busy"), [(0.0, False), (1000.0, True)])
def test_a_busy_machine_is_named_before_the_run_and_in_the_report(
    load: float,
    is_busy: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setitem(BENCHMARKS, "lane", lambda _: iter(()))
    file = tmp_path / "run.json"
    assert main(["lane", "--quick", "--json", str(file)]) == 0
    said = capsys.readouterr()
    warning = "this machine is busy (load 1000.00, "
    assert (warning in said.out) == is_busy
    assert said.err.startswith(warning) == is_busy
    assert json.loads(file.read_text()).get("busy", "").startswith(warning) == is_busy


@pytest.mark.parametrize(
    ("load", "cores", "is_busy"), [(1.0, 2, False), (1.01, 2, True), (0.6, 1, True)]
)
def test_busy_is_more_than_half_of_the_cores(load: float, cores: int, is_busy: bool) -> None:
    assert bool(_busy(load, cores)) == is_busy


def test_a_log_has_a_line_for_each_benchmark_and_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(plan: Plan) -> Iterator[Row]:
        for server in plan.servers:
            for turn in range(3):
                plan.say(f"lane: {server.name}, fsync always, round {turn}")
            yield Row.of("lane", server.name, "r", RATIO, [2.0])

    servers = [Server("Valkey 9.1.2", "valkey-server"), Server("Redis 7.0", "redis-server")]
    monkeypatch.setattr("benchmarks.servers.find_servers", lambda: servers)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setitem(BENCHMARKS, "lane", one)
    assert main(["lane", "--quick"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == ["lane: starting", "lane: Valkey 9.1.2", "lane: Redis 7.0"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "make bench"),
        (["--quick"], "make bench ARGS=--quick"),
        (["--full"], "make bench-full"),
        (["lane", "--quick"], "python -m benchmarks lane --quick"),
        (["--server", "Redis 7.0"], "python -m benchmarks --server 'Redis 7.0'"),
    ],
)
def test_the_command_of_a_report_gives_the_same_again(words: list[str], command: str) -> None:
    assert _command(_parser("").parse_args(words)) == command
