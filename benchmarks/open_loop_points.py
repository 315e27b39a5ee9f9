"""What a point of the open loop is called in a report, so that a picture can be drawn from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.arrivals import Came

__all__ = ["FRACTIONS", "NAME", "QUANTILES", "Point", "millis"]

NAME: Final = "open-loop"
FRACTIONS: Final = (0.25, 0.5, 0.7, 0.85, 1.0, 1.5, 3.0)
QUANTILES: Final = ("p50", "p99", "p99.9")


class Point(msgspec.Struct, frozen=True):
    """Whose latency, at which load, and which part of the answers was quicker."""

    who: str
    fraction: float
    quantile: str

    @property
    def question(self) -> str:
        """What stands in the report: "p99 at 0.5 of capacity, intake"."""
        return f"{self.quantile} at {self.fraction:g} of capacity, {self.who}"

    @classmethod
    def of(cls, question: str) -> Point | None:
        """The point that a report's question means, if it means one."""
        quantile, found, rest = question.partition(" at ")
        fraction, found_too, who = rest.partition(" of capacity, ")
        if not (found and found_too and quantile in QUANTILES):
            return None
        return cls(who, float(fraction), quantile)


def millis(found: Sequence[Came], quantile: str) -> list[float]:
    """This quantile of each, in ms."""
    names = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}
    return [getattr(came.times, names[quantile]) for came in found]
