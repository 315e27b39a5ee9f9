"""CPU time that a virtual machine wanted and its host gave to others.

On a machine of one's own there is none. On a rented one half of the time may go for a minute, and
what was measured then is a figure of the neighbours. So a slice during which the host took more
than ``SHARE_MAX`` is taken again, as long as there is time for that; of several tries the one that
was disturbed least counts. What is looked at is the kernel's count of stolen time alone, never the
result, so nobody gets luckier tries than others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final, TypeVar

__all__ = ["SHARE_MAX", "Stolen"]

SHARE_MAX: Final = 0.1
TRIES_MAX: Final = 6

# Fields of the first line of /proc/stat: user, nice, system, (idle, iowait), irq, softirq, steal.
_BUSY: Final = (1, 2, 3, 6, 7)
_STOLEN: Final = 8

T = TypeVar("T")


def _ticks() -> tuple[int, int]:
    """CPU time of all processes since the machine started, and what was stolen: in ticks. A kernel
    that counts neither has nothing to say."""
    try:
        fields = Path("/proc/stat").read_text("ascii").partition("\n")[0].split()
        return sum(int(fields[at]) for at in _BUSY), int(fields[_STOLEN])
    except (OSError, IndexError, ValueError):
        return 0, 0


class Stolen:
    """``ticks`` reads how much CPU time was had and how much was stolen so far, in any unit;
    ``clock`` counts seconds."""

    def __init__(
        self,
        ticks: Callable[[], tuple[int, int]] = _ticks,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._ticks = ticks
        self._clock = clock
        self._left_s = 0.0
        self.shares: list[float] = []
        """Of each slice that counts: the stolen part of the CPU time that was wanted."""
        self.again = 0
        """How often a slice was taken again."""

    def allow(self, seconds: float) -> None:
        """From now on so much time may go into slices that are taken again."""
        self._left_s = max(0.0, seconds)

    def least(self, measure: Callable[[], T]) -> T:
        """What ``measure`` returned while least was stolen."""
        share, took_s, found = self._try(measure)
        for _ in range(TRIES_MAX - 1):
            if share <= SHARE_MAX or self._left_s < took_s:
                break
            another, took_s, result = self._try(measure)
            self.again += 1
            self._left_s -= took_s
            if another < share:
                share, found = another, result
        self.shares.append(share)
        return found

    def _try(self, measure: Callable[[], T]) -> tuple[float, float, T]:
        """The stolen share, how long it took, and the result."""
        (had, stolen), began_s = self._ticks(), self._clock()
        result = measure()
        took_s, (now_had, now_stolen) = self._clock() - began_s, self._ticks()
        had, stolen = now_had - had, now_stolen - stolen
        return (stolen / (had + stolen) if stolen else 0.0), took_s, result

    def __str__(self) -> str:
        if not self.shares:
            return "not looked at"
        middle, low, high = median(self.shares), min(self.shares), max(self.shares)
        above = sum(each > SHARE_MAX for each in self.shares)
        text = f"{middle:.0%} ({low:.0%} … {high:.0%}) of the CPU time that a slice wanted"
        if self.again:
            text += f"; taken again: {self.again}"
        if above:
            text += f"; above {SHARE_MAX:.0%}: {above} of {len(self.shares)}"
        return text
