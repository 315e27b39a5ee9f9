"""How wrong it was what buyers were told to wait, of some of those who joined in this process."""

from __future__ import annotations

from random import randrange
from time import monotonic
from typing import Final, NamedTuple

from seckill.engine import Engine
from seckill.queue import Place
from seckill.status import Status
from seckill.tally import Histogram

__all__ = ["BOUNDS_S", "EtaErrors"]

BOUNDS_S: Final = (-600, -300, -120, -60, -30, -10, -5, -2, 0, 2, 5, 10, 30, 60, 120, 300, 600)
# A sample's cost is bounded in memory, and in what is looked at each second.
SAMPLES_MAX: Final = 500
SAMPLES_PER_S: Final = 10
# A ticket that is as late as this counts as if it were called now.
OVERDUE_MS: Final = 600_000


class _Told(NamedTuple):
    sale: str
    number: int
    due_ms: int


class EtaErrors:
    """``seconds``: when buyers were called, minus when they had been told they would be."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = Histogram(BOUNDS_S)
        self._told: list[_Told] = []
        self._next_s = 0.0

    def told(self, sale: str, place: Place) -> None:
        """A buyer has just joined, and was told this."""
        now_s = monotonic()
        if place.eta_ms is None or now_s < self._next_s:
            return
        self._next_s = now_s + 1 / SAMPLES_PER_S
        told = _Told(sale, place.number, place.at_ms + place.eta_ms)
        if len(self._told) < SAMPLES_MAX:
            self._told.append(told)
        else:
            # Whoever joins late counts as well when many joined before.
            self._told[randrange(SAMPLES_MAX)] = told

    def look(self) -> None:
        """Counts those who were called since."""
        self._told = [told for told in self._told if self._still_waits(told)]

    def _still_waits(self, told: _Told) -> bool:
        shard = self._engine.at_hand(told.sale)
        queue = None if shard is None else shard.queue
        if queue is None:
            return False
        called_ms, view = queue.called_ms(told.number), queue.view
        if called_ms is None:
            stopped = view.refusal not in (None, Status.NOT_OPEN)
            if stopped or view.available + view.held == 0:
                return False  # Nobody knew that it would stop.
            if view.raw_ms - told.due_ms < OVERDUE_MS:
                return True
            called_ms = view.raw_ms
        if called_ms:
            self.seconds.add((called_ms - told.due_ms) / 1_000)
        return False
