"""Each benchmark runs and says what it should. Its counts are tiny, so no figure means a thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import RATIO, Row, Verdict, markdown
from benchmarks.servers import find_servers

ROOT = Path(__file__).parents[2]
MARKDOWN_COLUMNS = 8


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


# The long ones show on one server that they run, whichever the machine has.
ONE_SERVER = ("--server", find_servers()[0].name)


# How many figures with a target each benchmark gives for one server.
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("lane", 2, ()),
        ("latency", 2, ()),
        ("cost", 4, ()),
        ("scale", 1, ()),
        ("http", 4, ONE_SERVER),
        ("drain", 2, ONE_SERVER),
        ("queue", 6, ONE_SERVER),
    ],
)
def test_benchmark_runs_and_gives_every_figure(
    name: str, targets: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    for _ in range(3):
        done = run(name, "--quick", "--json", str(file), *options)
        # A machine that is too busy to get one request done in its second can measure nothing.
        if "no request was answered" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert {"date", "machine", "versions", "servers", "took", "rows"} <= report.keys()
    servers = len(report["servers"].split(", "))
    rows = report["rows"]
    if [row["note"].partition(":")[0] for row in rows] == ["skipped"] * servers:
        pytest.skip(rows[0]["note"])
    assert {row["benchmark"] for row in rows} == {name}
    numbers = [row for row in rows if row["values"] and row["target"] != "–"]
    assert len(numbers) == targets * servers
    verdicts = [row["verdict"] for row in rows if row["question"] == "verify"]
    assert verdicts
    assert set(verdicts) == {"met"}
    # The table itself: every row of it, in whatever way it is laid out.
    assert all(row["server"].split(",")[0] in done.stdout for row in rows)


def test_an_unknown_benchmark_is_named() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "no benchmark speed; there are lane, latency, cost, scale, http, drain" in done.stderr


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
