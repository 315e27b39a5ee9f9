"""What one evening leaves behind, and the till at which units are sold and come back: the part that
is the same with a queue and without one.
"""

from __future__ import annotations

import heapq
from array import array
from enum import IntEnum
from typing import Final, NamedTuple

from seckill.rehearse.model import Crowd, Rules

__all__ = ["NEVER", "Evening", "Fate", "Moment", "Told"]

NEVER: Final = -(2**62)
"""In place of the time of a call that never came."""


class Fate(IntEnum):
    """What became of a buyer. LEFT never had a turn, ABSENT did not use it, EMPTY came and found
    nothing left, LAPSED ordered and did not pay, PAID has got a unit."""

    LEFT = 0
    ABSENT = 1
    EMPTY = 2
    LAPSED = 3
    PAID = 4


class Moment(NamedTuple):
    """The line and the till at one time. ``tail`` is how many have joined the line, ``head`` how
    many were called; ``reach`` is how many more can be called at best."""

    at_ms: int
    tail: int
    head: int
    available: int
    held: int
    live: int
    reach: int


class Told(NamedTuple):
    """What the queue told a buyer at one time: how long until the call, None for no time."""

    position: int
    at_ms: int
    eta_ms: int | None


class Evening:
    """One evening. ``called_at`` and ``fates`` are by buyer, in order of arrival; ``called`` is the
    buyers in the order in which they were called."""

    def __init__(self, rules: Rules, crowd: Crowd) -> None:
        self.rules = rules
        self.crowd = crowd
        self.called_at = array("q", [NEVER]) * len(crowd.arrivals)
        self.fates = bytearray(len(crowd.arrivals))
        self.called = array("q")
        self.moments: list[Moment] = []
        self.told: list[Told] = []
        self.available = rules.units
        self.held = 0
        self.first_empty_ms: int | None = None
        self.gone_ms: int | None = None
        # Units that will be paid or come back: when, and whether they come back.
        self._held: list[tuple[int, bool]] = []

    @property
    def next_ms(self) -> int | None:
        """When the next held unit is paid or comes back."""
        return self._held[0][0] if self._held else None

    def sell(self, buyer: int, at_ms: int, pay_ms: int | None) -> None:
        """An order is accepted; there is a unit for it."""
        self.available -= 1
        self.held += 1
        self.fates[buyer] = Fate.LAPSED if pay_ms is None else Fate.PAID
        due_ms = at_ms + (self.rules.hold_ms if pay_ms is None else pay_ms)
        heapq.heappush(self._held, (due_ms, pay_ms is None))
        if self.available == 0 and self.first_empty_ms is None:
            self.first_empty_ms = at_ms

    def settle(self) -> tuple[int, bool]:
        """The next held unit is paid or comes back: when, and whether it came back."""
        at_ms, comes_back = heapq.heappop(self._held)
        self.held -= 1
        self.available += comes_back
        if self.available + self.held == 0:
            self.gone_ms = at_ms
        return at_ms, comes_back

    def call(self, buyer: int, at_ms: int) -> None:
        """It is a buyer's turn."""
        self.called_at[buyer] = at_ms
        self.fates[buyer] = Fate.ABSENT
        self.called.append(buyer)

    def settle_all(self) -> None:
        """The sale is over: what is held is still paid, or comes back and stays."""
        while self._held:
            self.settle()
