"""The clock by which the server tells whether a caller still waits: lua/lib/sale.lua, let_pass.

Every order carries ``not_after`` in that clock's time, so a call that was stuck in a socket is
refused when it arrives late. A server's clock can be set back, and then the call would look young
again. So whoever saw the clock earlier says what has passed, before anybody is told that there is
no such order (lua/find.lua), and once a second (lua/roll_call.lua); from there the clock goes on.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Final

__all__ = ["Patience"]

MEMORY_S: Final = 60.0
"""For how long the latest clock that was seen counts. The two clocks may run at different speeds,
so it can't be for ever; and callers wait for seconds."""


class Patience:
    """One sale's, as this engine has seen it."""

    __slots__ = ("_given_up_ms", "_highest", "_seen_s")

    def __init__(self) -> None:
        self._highest = -inf
        self._seen_s = -inf
        self._given_up_ms = -1

    def see(self, ahead_ms: float) -> None:
        """The clock was at least so far ahead of ours (monotonic) just now."""
        now_s = monotonic()
        if ahead_ms >= self._highest or now_s - self._seen_s > MEMORY_S:
            self._highest, self._seen_s = ahead_ms, now_s

    def give_up(self, not_after: int) -> None:
        """A caller is told that nobody knows what became of a call with this ``not_after``."""
        self._given_up_ms = max(self._given_up_ms, not_after)

    @property
    def passed_ms(self) -> int:
        """What the clock has shown; 0 where it was never seen."""
        shown_ms = monotonic() * 1000 + self._highest
        return max(0, self._given_up_ms + 1, int(shown_ms) if shown_ms > 0 else 0)
