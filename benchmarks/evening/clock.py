"""The sale's clock, as a phone learns it: ask a few times, believe the answer that came back
fastest, and add half of the time it took."""

from __future__ import annotations

from time import monotonic
from typing import Final

__all__ = ["OFF_MS", "Clock"]

# An intake that has had no quick answer from Redis yet may be wrong by half of the longest that it
# waits for one, a second, on either side (docs/api.md); and so may be this clock.
OFF_MS: Final = 600.0
_OLD_MS: Final = 300_000.0


class Clock:
    """One process's estimate of the server's clock, in milliseconds since 1970."""

    def __init__(self) -> None:
        self._ahead_ms = 0.0
        self._trip_ms = float("inf")
        self._learned_ms = 0.0

    @property
    def known(self) -> bool:
        """Whether anybody has asked yet."""
        return self._trip_ms < float("inf")

    @property
    def error_ms(self) -> float:
        """How far it may be off the intake's clock, on either side."""
        return self._trip_ms / 2 + 1

    def learn(self, now_ms: int, sent_ms: float, got_ms: float) -> None:
        """An answer of ``GET /v1/time``, with when it was asked and answered by ``local_ms``."""
        trip_ms = got_ms - sent_ms
        if trip_ms <= self._trip_ms or got_ms - self._learned_ms > _OLD_MS:
            self._trip_ms, self._learned_ms = trip_ms, got_ms
            self._ahead_ms = now_ms + trip_ms / 2 - got_ms

    def at(self, local_ms: float) -> float:
        """The server's time at a moment of ``local_ms``."""
        return local_ms + self._ahead_ms

    def now_ms(self) -> float:
        """The server's time now."""
        return self.at(self.local_ms())

    @staticmethod
    def local_ms() -> float:
        """The clock of this process that never jumps."""
        return monotonic() * 1000
