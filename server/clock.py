"""The clock that sales go by, for countdowns: Redis's.

Each answer of Redis says that its clock is ahead of ours by something between two bounds: it was
read after we asked, and before we had the answer. An answer that took long says little, so it only
narrows what earlier ones have said: a busy intake tells the time as well as an idle one.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import Final

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, RedisUnavailable

from .wire import TimeDocument

__all__ = ["Clock"]

FRESH_S: Final = 1.0
ASK_S: Final = 1.0
STALE_S: Final = 30.0
# Two clocks that nobody sets part by no more than this: it is as fast as NTP may pull at one.
_DRIFT: Final = 0.000_5


class Clock:
    """Asks at most once a second however many look, and counts on by our own clock in between, and
    for 30 seconds more if Redis does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking: asyncio.Task[None] | None = None
        self._fresh_until_s = 0.0
        self._learned_ms = -inf
        self._least_ms, self._most_ms = -inf, inf

    async def read(self) -> TimeDocument:
        """The time now. Raises SeckillError when Redis does not tell it."""
        if monotonic() >= self._fresh_until_s:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
                self._asking.add_done_callback(self._asked)
            # Shielded, because the others who wait for the same answer outlive this caller.
            await asyncio.shield(self._asking)
        return TimeDocument(int(monotonic() * 1000 + (self._least_ms + self._most_ms) / 2))

    async def _ask(self) -> None:
        asked_ms = monotonic() * 1000
        try:
            async with asyncio.timeout(ASK_S):
                now_ms = await self._engine.now_ms()
        except (TimeoutError, OutcomeUnknown, RedisUnavailable):
            if monotonic() * 1000 - self._learned_ms > STALE_S * 1000:
                raise RedisUnavailable("no answer in time") from None
        else:
            self._learn(now_ms, asked_ms, monotonic() * 1000)
        self._fresh_until_s = monotonic() + FRESH_S

    def _learn(self, now_ms: int, asked_ms: float, answered_ms: float) -> None:
        """What Redis told, a whole millisecond that was under way when it looked."""
        told = (now_ms - answered_ms, now_ms + 1 - asked_ms)
        apart_ms = (answered_ms - self._learned_ms) * _DRIFT
        least_ms = max(told[0], self._least_ms - apart_ms)
        most_ms = min(told[1], self._most_ms + apart_ms)
        if least_ms > most_ms:
            # A clock was set, so what was known is of no use any more.
            least_ms, most_ms = told
        self._least_ms, self._most_ms, self._learned_ms = least_ms, most_ms, answered_ms

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        # Read even if nobody waits any more, or asyncio complains about it.
        if not task.cancelled():
            task.exception()
