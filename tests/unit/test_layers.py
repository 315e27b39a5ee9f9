"""The benchmarks `lua` and `workers`: their arithmetic, and that they run."""

from __future__ import annotations

import pytest

from benchmarks.load import Load
from benchmarks.lua_limit import BATCHES, Tally, count_answers
from benchmarks.lua_limit import run as run_lua
from benchmarks.plan import Plan
from benchmarks.report import Verdict
from benchmarks.servers import find_servers
from benchmarks.workers import WAYS, Slice, _check, rows
from benchmarks.workers import run as run_workers
from seckill.status import Status

SERVER = find_servers()[:1]


def reply(*answers: object) -> list[object]:
    return [1_795_000_000_000, 1_795_000_900_000, list(answers)]


def test_answers_are_counted_apart() -> None:
    replies = [
        reply(Status.CREATED, Status.CREATED, Status.SOLD_OUT),
        reply(b"a record", Status.SOLD_OUT, Status.SOLD_OUT),
    ]
    found = count_answers(replies)
    assert found == Tally(accepted=2, rejected=3, known=1)
    assert found.orders == 6
    assert count_answers([]) == Tally()


@pytest.mark.parametrize("status", [Status.TOO_LATE, Status.FENCED, Status.CONFLICT])
def test_an_answer_that_nobody_expects_ends_it(status: Status) -> None:
    with pytest.raises(AssertionError, match="an order was answered"):
        count_answers([reply(Status.CREATED, status)])


@pytest.mark.slow
def test_lua_runs_and_gives_every_figure() -> None:
    found = list(run_lua(Plan(tuple(SERVER), quick=True)))
    assert len({row.server for row in found}) == 2  # with an AOF and without
    verdicts = [row.verdict for row in found if row.question == "verify"]
    assert verdicts == [Verdict.MET] * 2
    titles = ["in stock, accepted", "selling out, accepted", "selling out, rejected"]
    titles += ["sold out, rejected", "retried, known"]
    phases = ("in stock", "selling out", "sold out", "retried")
    titles += [f"Redis time of an order, {phase}" for phase in phases]
    for title in titles:
        for batch in BATCHES:
            same = [row for row in found if row.question == f"{title}: batches of {batch}"]
            assert len(same) == 2, title
            assert all(row.median is not None and row.median > 0 for row in same), title


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_run_and_are_compared() -> None:
    for left in reversed(range(5)):
        try:
            found = list(run_workers(Plan(tuple(SERVER), quick=True)))
            break
        except AssertionError as error:
            # A busy machine may not get one request done in the second of a slice.
            if not left or "no request was answered" not in str(error):
                raise
    assert [row.verdict for row in found if row.question == "verify"] == [Verdict.MET]
    questions = {row.question for row in found if row.values}
    assert "CPU of the intake an order, two workers, against one" in questions
    for name in ("one worker", "two workers"):
        assert f"in stock: {name}" in questions
        assert f"CPU in stock: {name} / the intake" in questions


def part(requests: int, intake_cpu_s: float, *, busiest: float = 1.0) -> Slice:
    return Slice(requests, 2.0, intake_cpu_s, 0.2, 0.4, busiest)


def test_cpu_time_is_that_of_an_order() -> None:
    # Twice the orders for 2.2 times the CPU time, then for twice.
    one = [part(10_000, 1.0), part(10_000, 1.0), part(10_000, 1.0)]
    two = [part(20_000, 2.2), part(20_000, 2.0), part(20_000, 2.1, busiest=0.6)]
    shared = [part(10_000, 1.3), part(10_000, 1.2), part(10_000, 1.25)]
    found = {
        row.question: row for row in rows("Redis", dict(zip(WAYS, (one, two, shared), strict=True)))
    }
    ratio = found["CPU of the intake an order, two workers, against one"]
    assert ratio.values == pytest.approx((1.1, 1.0, 1.05))
    assert (ratio.median, ratio.verdict) == (pytest.approx(1.05), Verdict.MET)
    shares = found["CPU of the intake an order, two workers, 64 connections each, against one"]
    assert shares.values == pytest.approx((1.3, 1.2, 1.25))
    assert shares.verdict is Verdict.INFO
    assert found["in stock: one worker"].median == 5_000
    assert found["in stock: two workers"].median == 10_000
    assert found["CPU in stock: two workers / the intake"].median == pytest.approx(1.05)
    assert found["CPU in stock: one worker / Redis"].median == pytest.approx(0.2)
    assert found["CPU in stock: two workers / the load"].median == pytest.approx(0.2)


def test_more_than_a_tenth_is_missed() -> None:
    one, two = [part(10_000, 1.0)] * 3, [part(10_000, 1.12)] * 3
    assert (
        next(iter(rows("Redis", dict(zip(WAYS, (one, two, one), strict=True))))).verdict
        is Verdict.MISSED
    )


@pytest.mark.parametrize(
    ("load", "sold", "said"),
    [
        ((0, 0, 0), 0, "no request was answered"),
        ((500, 1, 0), 500, "refused=1"),
        ((500, 0, 1), 500, "failed=1"),
        ((500, 0, 0), 499, "499 orders for 500 answers"),
        ((500, 0, 0), 629, "629 orders for 500 answers"),
    ],
)
def test_a_slice_that_does_not_count(load: tuple[int, int, int], sold: int, said: str) -> None:
    requests, refused, failed = load
    with pytest.raises(AssertionError, match=said):
        _check(Load(requests, 2.0, refused, failed, 1.0, 2.0), sold, 128)


def test_a_slice_that_counts() -> None:
    for sold in (500, 628):
        _check(Load(500, 2.0, 0, 0, 1.0, 2.0), sold, 128)
