"""Counting into buckets, for what is too frequent to be kept one by one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["Histogram"]


class Histogram:
    """How many values fell between which bounds, and their sum.

    ``counts[i]`` are the values up to and including ``bounds[i]`` that are above ``bounds[i - 1]``;
    one more at the end are those above every bound. ``counts`` and ``sum`` only ever grow. Not
    thread-safe.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds`` must ascend. Raises ValueError when they don't."""
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds must ascend: {bounds}")
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def total(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def grow(self, counts: Sequence[int], total: float) -> None:
        """Adds what was counted elsewhere between the same bounds, with the sum of its values."""
        for index, count in enumerate(counts):
            self.counts[index] += count
        self.sum += total
