"""The clock that sales go by, for countdowns: Redis's."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

from seckill.engine import Engine
from seckill.errors import RedisUnavailable

from .wire import TimeDocument

__all__ = ["Clock"]

FRESH_S: Final = 1.0
ASK_S: Final = 1.0


class Clock:
    """Asks at most once a second however many look, and counts on by our own clock in between."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking: asyncio.Task[None] | None = None
        self._fresh_until_s = 0.0
        self._ahead_ms = 0.0

    async def read(self) -> TimeDocument:
        """The time now. Raises SeckillError when Redis does not tell it."""
        if monotonic() >= self._fresh_until_s:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
                self._asking.add_done_callback(self._asked)
            # Shielded, because the others who wait for the same answer outlive this caller.
            await asyncio.shield(self._asking)
        return TimeDocument(int(monotonic() * 1000 + self._ahead_ms))

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                now_ms = await self._engine.now_ms()
        except TimeoutError:
            raise RedisUnavailable("no answer in time") from None
        self._ahead_ms = now_ms - monotonic() * 1000
        self._fresh_until_s = monotonic() + FRESH_S

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        # Read even if nobody waits any more, or asyncio complains about it.
        if not task.cancelled():
            task.exception()
