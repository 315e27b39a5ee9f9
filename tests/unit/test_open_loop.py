"""The rows and the picture of the open loop, from answers that were made up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import open_loop, open_loop_half, open_loop_overload
from benchmarks.arrivals import Came, Times
from benchmarks.open_loop import CURVE, Capacity
from benchmarks.open_loop_half import HALF, Pair
from benchmarks.open_loop_overload import Overload
from benchmarks.open_loop_picture import draw
from benchmarks.open_loop_points import FRACTIONS, QUANTILES, Point
from benchmarks.open_loop_stage import INTAKE, NOOP, looking, throttled
from benchmarks.plan import Plan
from benchmarks.report import Row, Verdict, interval
from benchmarks.servers import find_servers

ROOT = Path(__file__).parents[2]
NONE = Times(0, 0, 0, 0)


def came(p99_ms: float = 1.0, *, late_ms: float = 0.0, **kinds: int) -> Came:
    counts = dict.fromkeys(("accepted", "refused", "wrong", "overdue", "lost", "unsent"), 0) | kinds
    return Came(
        **counts,
        offered=sum(counts.values()),
        odd={},
        times=Times(p99_ms / 2, p99_ms, p99_ms * 2, p99_ms * 3),
        punctual_times=Times(0, p99_ms - late_ms, 0, 0),
        refused_times=NONE,
        late=Times(0, late_ms, 0, 0),
        began_s=0.0,
        seconds=1.0,
        done=(counts["accepted"] // 10,) * 10,
    )


def pairs_of(*ratios: float, late_ms: float = 0.0) -> list[Pair]:
    return [
        {
            INTAKE: came(10 * ratio, late_ms=late_ms, accepted=100),
            NOOP: came(10, late_ms=late_ms, accepted=100),
        }
        for ratio in ratios
    ]


def rows_of(ours_ms: float, noop_ms: float) -> list[Row]:
    points = {
        (who, fraction): came(ms * fraction, accepted=100)
        for who, ms in ((INTAKE, ours_ms), (NOOP, noop_ms))
        for fraction in FRACTIONS
    }
    capacity = Capacity({INTAKE: [1_000.0], NOOP: [2_000.0]}, [9_000.0])
    pairs = [{who: points[who, HALF] for who in (INTAKE, NOOP)}] * 3
    half = open_loop_half.rows("Redis", pairs)
    return [*half, *open_loop._rows("Redis", capacity, [points] * 3)]


def overload(
    goodput: int,
    refused: int = 0,
    *,
    lost: int = 0,
    overdue: int = 0,
    after: tuple[int, int] = (95, 5),
    after_ms: float = 1.0,
) -> Overload:
    """``after`` counts who was accepted and who was refused when the load had fallen."""
    return Overload(
        peak=1_000.0,
        order_s=20e-6,
        calm=came(1.0),
        over=came(accepted=goodput, refused=refused, lost=lost),
        settle=came(overdue=overdue),
        after=came(after_ms, accepted=after[0], refused=after[1]),
        before_bytes=100,
        most_bytes=109,
        after_bytes=105,
    )


def half_of(*ratios: float) -> Row:
    return next(open_loop_half.rows("Redis", pairs_of(*ratios)))


def test_half_of_the_capacity_is_judged() -> None:
    # One pair in three is far off, on either side, and says nothing against the others.
    found = half_of(*([1.6, 1.7, 0.2, 1.9, 9.0, 1.8] * 7))
    assert (found.verdict, found.median) == (Verdict.MET, pytest.approx(1.75))
    assert (found.low, found.high) == pytest.approx((1.7, 1.8))
    assert len(found.values) == 42
    assert "single pairs: 0.20 … 9.00" in found.note
    assert half_of(*([2.1] * 40)).verdict is Verdict.MISSED
    # Half of them say this, and half of them that: the median is below the target, by chance.
    unsure = half_of(*([0.5] * 21 + [2.1] * 19))
    assert (unsure.verdict, unsure.median) == (Verdict.NOISY, None)
    # However far apart the two are, when both are on the same side.
    assert half_of(*([0.5] * 21 + [1.9] * 19)).verdict is Verdict.MET
    assert half_of(*([2.1] * 21 + [9.0] * 19)).verdict is Verdict.MISSED


def test_how_sure_a_median_is() -> None:
    # As tables of order statistics have it.
    for count, low, high, sure in ((5, 1, 5, 0.9375), (9, 2, 8, 0.961), (30, 10, 21, 0.957)):
        assert interval(range(count, 0, -1)) == pytest.approx((low, high, sure), abs=0.001)
    assert interval([7.0]) == (7.0, 7.0, 0.0)
    assert interval([2.0, 1.0]) == (1.0, 2.0, 0.5)


def test_what_the_load_was_late_stands_beside_the_ratio() -> None:
    rows = {row.question: row for row in open_loop_half.rows("R", pairs_of(1.5, 1.5, late_ms=5.0))}
    assert rows["the same without the load's own lateness"].median == pytest.approx(2.0)
    for who in (INTAKE, NOOP):
        assert rows[f"the load's own lateness at half of capacity, p99, {who}"].median == 5.0
    assert rows[Point(INTAKE, HALF, "p99").question].median == 15.0


def test_a_second_without_an_answer_is_no_crash() -> None:
    (row, *_) = open_loop_half.rows("Redis", [{INTAKE: came(5.0), NOOP: came(0.0)}] * 3)
    assert row.verdict is Verdict.MISSED


def test_every_point_has_its_rows() -> None:
    rows = rows_of(1.9, 1.0)
    points = [row for row in rows if Point.of(row.question)]
    assert len(points) == 2 * len(FRACTIONS) * len(QUANTILES)
    # The ratios, lateness, the capacities, the load's own limit.
    assert len(rows) == len(points) + 2 + 4 + 3
    assert len(CURVE) == len(FRACTIONS) - 1
    (row,) = [row for row in rows if row.question == Point(INTAKE, 3.0, "p50").question]
    assert row.note.endswith("/s offered: accepted 100 %; itself late by 0 ms")


def test_questions_are_read_back() -> None:
    point = Point(NOOP, 0.85, "p99.9")
    assert point.question == "p99.9 at 0.85 of capacity, no-op"
    assert Point.of(point.question) == point
    assert Point.of("verify") is None
    assert Point.of("latency at 0.5 of capacity, intake") is None


def test_the_picture_has_every_line(tmp_path: Path) -> None:
    rows = rows_of(1.9, 1.0)
    tree = ElementTree.fromstring(draw(rows, machine="<2 cores & more>"))  # noqa: S314 - ours
    space = "{http://www.w3.org/2000/svg}"
    lines = tree.findall(f"{space}polyline")
    assert len(lines) == 2 * len(QUANTILES)
    assert len(tree.findall(f"{space}circle")) == len(lines) * len(FRACTIONS)
    for line in lines:
        heights = [float(point.split(",")[1]) for point in (line.get("points") or "").split()]
        # More load, more latency: higher up, and never outside.
        assert heights == sorted(heights, reverse=True)
        assert all(0 < height < 480 for height in heights)
    words = [text.text for text in tree.findall(f"{space}text")]
    assert {"intake, p99.9", "no-op, p50", "0.25 ×", "3 ×"} <= set(words)

    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "benchmarks.open_loop_picture", str(file)]
    for rows_there, code in ((rows, 0), ([], 1)):
        file.write_bytes(msgspec.json.encode({"machine": "m", "rows": rows_there}))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout[:4]) == (code, "" if code else "<svg")
        assert "Traceback" not in done.stderr


def verdicts(case: str, run: Overload, refusal_s: float) -> dict[str, Verdict]:
    goodput = open_loop_overload._goodput("ol", "Redis", case, [run], [refusal_s])
    promises = open_loop_overload._promises("ol", "Redis", case, [run])
    return {row.question.removesuffix(f", {case}"): row.verdict for row in (*goodput, *promises)}


def test_a_collapse_is_no_goodput_however_dear_refusals_are() -> None:
    case = open_loop_overload.OURS
    against = f"goodput at 3 × the peak, {case}, against"
    left = f"{against} what refusals leave of the peak"
    # 1,000 refusals at half the price of an order leave half of the peak.
    fine = verdicts(case, overload(480, 1_000), 10e-6)
    assert fine[left] is Verdict.MET
    assert verdicts(case, overload(440, 1_000), 10e-6)[left] is Verdict.MISSED
    assert verdicts(case, overload(880), 10e-6)[left] is Verdict.MISSED
    # All of its time for refusals, and nothing left.
    collapsed = verdicts(case, overload(10, 2_000), 10e-6)
    assert collapsed[left] is collapsed[f"{against} the peak"] is Verdict.MISSED


def test_what_else_overload_must_keep() -> None:
    case = open_loop_overload.REDIS
    against = f"goodput at 3 × the peak, {case}, against the peak"
    late = "sent and not answered within 4 s"
    back = "p99 from one second after the load fell, against before"
    memory = "memory of the intake at most, against before"
    again = "accepted from one second after the load fell"
    fine = verdicts(case, overload(920, 2_000), 10e-6)
    assert {fine[name] for name in (against, late, back, memory, again)} == {Verdict.MET}
    assert verdicts(case, overload(880), 10e-6)[against] is Verdict.MISSED
    assert verdicts(case, overload(920, lost=1), 10e-6)[late] is Verdict.MISSED
    assert verdicts(case, overload(920, overdue=1), 10e-6)[late] is Verdict.MISSED
    assert verdicts(case, overload(920, after_ms=2.5), 10e-6)[back] is Verdict.MISSED
    for size in ("most_bytes", "after_bytes"):
        grown = msgspec.structs.replace(overload(920), **{size: 120})
        assert verdicts(case, grown, 10e-6)[memory] is Verdict.MISSED, size


def test_who_refuses_everybody_afterwards_is_not_itself_again() -> None:
    case = open_loop_overload.OURS
    again = "accepted from one second after the load fell"
    # Nobody is accepted, so no accepted answer is late.
    assert verdicts(case, overload(920, after=(0, 100), after_ms=0), 1e-6)[again] is Verdict.MISSED
    assert verdicts(case, overload(920, after=(89, 11)), 1e-6)[again] is Verdict.MISSED
    assert verdicts(case, overload(920, after=(90, 10)), 1e-6)[again] is Verdict.MET
    # One round of several is enough.
    runs = [overload(920), overload(920, after=(0, 100)), overload(920)]
    rows = list(open_loop_overload._promises("ol", "Redis", case, runs))
    (row,) = [row for row in rows if row.question.startswith(again)]
    assert row.verdict is Verdict.MISSED
    assert "95 % 0 % 95 %" in row.note


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_that_is_throttled_stands_and_goes_on() -> None:
    code = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            with looking(process.pid) as looks, throttled(process.pid, cpu_s=0.01, period_s=0.1):
                states, end_s = set[str](), monotonic() + 60
                # It has next to no memory until it has run a while, a tenth of the time.
                while monotonic() < end_s and not (
                    states == {"T", "R"} and looks and looks[-1].resident_bytes > 1_000_000
                ):
                    sleep(0.003)
                    states |= {state_of(process.pid)} & {"T", "R"}
            assert states == {"T", "R"}
            assert looks[-1].cpu_s >= looks[0].cpu_s
            assert looks[-1].resident_bytes > 1_000_000
            # In the end it runs.
            while (
                Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
            ):
                sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs_on_real_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(open_loop, "CURVE", (1.0,))
    rows = list(open_loop.run(Plan(tuple(find_servers()[:1]), quick=True)))
    assert rows[-1].question == "verify"
    assert rows[-1].verdict is Verdict.MET, rows[-1].note
    questions = " ".join(row.question for row in rows)
    for text in ("at half of capacity, against", "cost of a refusal", "peak (closed loop), Redis"):
        assert text in questions
    goodputs = [row for row in rows if row.unit == "orders/s" and "goodput" in row.question]
    assert len(goodputs) == 2
