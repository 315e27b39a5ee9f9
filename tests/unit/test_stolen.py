"""Slices that a machine's host has disturbed are taken again, by the stolen time alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from benchmarks.stolen import SHARE_MAX, TRIES_MAX, Stolen


class Machine:
    """Each measurement takes ten seconds and wants 100 ticks, of which the next share is stolen.
    Its result is its number."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = list(shares)
        self._had = 1000.0
        self._gone = 500.0
        self.now_s = 0.0
        self.measured = 0

    def ticks(self) -> tuple[int, int]:
        return int(self._had), int(self._gone)

    def clock(self) -> float:
        return self.now_s

    def measure(self) -> int:
        share = self._shares[self.measured]
        self.measured += 1
        self._had += 100 * (1 - share)
        self._gone += 100 * share
        self.now_s += 10.0
        return self.measured - 1


def made(shares: Sequence[float], allowed_s: float) -> tuple[Machine, Stolen]:
    machine = Machine(shares)
    stolen = Stolen(machine.ticks, machine.clock)
    stolen.allow(allowed_s)
    return machine, stolen


@pytest.mark.parametrize(
    ("shares", "allowed_s", "counts", "measured"),
    [
        ([0.0], 100.0, 0, 1),
        ([SHARE_MAX], 100.0, 0, 1),
        ([0.5, 0.3, 0.05], 100.0, 2, 3),
        # The time is over: the least disturbed one counts, and it is not the last.
        ([0.5, 0.2, 0.4], 20.0, 1, 3),
        ([0.5, 0.05], 9.0, 0, 1),
        ([0.5, 0.05], 0.0, 0, 1),
        ([0.5, 0.4, 0.3, 0.25, 0.2, 0.35, 0.0], 1000.0, 4, TRIES_MAX),
    ],
)
def test_the_least_disturbed_counts(
    shares: list[float], allowed_s: float, counts: int, measured: int
) -> None:
    machine, stolen = made(shares, allowed_s)
    assert stolen.least(machine.measure) == counts
    assert machine.measured == measured
    assert stolen.shares == [pytest.approx(shares[counts])]
    assert stolen.again == measured - 1


def test_the_time_allowed_is_for_all_slices() -> None:
    machine, stolen = made([0.5, 0.4, 0.0, 0.5, 0.0], 20.0)
    assert [stolen.least(machine.measure) for _ in range(2)] == [2, 3]


def test_it_says_what_it_saw() -> None:
    machine, stolen = made([0.5, 0.2, 0.0, 0.04], 10.0)
    assert str(stolen) == "not looked at"
    for _ in range(3):
        stolen.least(machine.measure)
    assert str(stolen) == (
        "4% (0% … 20%) of the CPU time that a slice wanted; taken again: 1; above 10%: 1 of 3"
    )


def test_the_kernel_is_asked() -> None:
    """What counts is what was used and stolen between two looks, so some CPU time is used."""
    stolen, looks = Stolen(), 0

    def work() -> int:
        nonlocal looks
        looks += 1
        return sum(range(3_000_000))

    assert stolen.least(work) == sum(range(3_000_000))
    assert looks == 1  # No time was allowed for more.
    assert 0.0 <= stolen.shares[0] <= 1.0


def test_a_failure_is_passed_on() -> None:
    def fail() -> int:
        raise RuntimeError("no server")

    measure: Callable[[], int] = fail
    with pytest.raises(RuntimeError, match="no server"):
        Stolen().least(measure)
