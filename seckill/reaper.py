"""Sweeps deadlines: every running sale, several times a second, bounded at each step.

Any number of processes may sweep at once: expire.lua decides, and repeating it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from seckill.errors import OutcomeUnknown, RedisUnavailable, SeckillError
from seckill.shard import read_states
from seckill.status import Status

if TYPE_CHECKING:
    from seckill.engine import Engine

__all__ = ["Reaper", "unsettled"]

SWEEP_ORDERS: Final = 200
SWEEPS_A_ROUND: Final = 50
REFRESH_S: Final = 2.0

_log = logging.getLogger("seckill.reaper")
_T = TypeVar("_T")


class Reaper:
    """A background task. ``expire`` sweeps one sale once, ``sales`` names those that still run."""

    def __init__(
        self,
        expire: Callable[[str, int], Awaitable[tuple[Status, bool]]],
        sales: Callable[[], Awaitable[list[str]]],
        *,
        interval_ms: int,
    ) -> None:
        self._expire = expire
        self._sales = sales
        self._interval_s = interval_ms / 1000
        self._task: asyncio.Task[None] | None = None
        self._paused: set[str] = set()
        self._failing: set[str] = set()

    def start(self) -> None:
        """Starts sweeping."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops sweeping. A sweep cut off in the middle is one that Redis finishes alone."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            # More than once: what we await may swallow it, as asyncio.wait_for does before 3.12.
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)

    async def _run(self) -> None:
        sales: list[str] = []
        refresh_at = 0.0
        while self._task is not None:
            if monotonic() >= refresh_at:
                refresh_at = monotonic() + REFRESH_S
                sales = await self._guarded("", self._sales) or sales
            for sale in sales:
                # Each by itself: a sale whose keys are damaged must not starve the others.
                await self._guarded(f" of sale {sale}", partial(self._sweep, sale))
            await asyncio.sleep(self._interval_s)

    async def _guarded(self, whose: str, step: Callable[[], Awaitable[_T]]) -> _T | None:
        """Awaits one step. ``whose`` deadlines it is about: " of sale s", or "" for those of all
        the server. What goes wrong is logged when it begins, and never ends the task: a
        process without its reaper would silently stop giving units back."""
        try:
            result = await step()
        except SeckillError as error:
            if isinstance(error, (OutcomeUnknown, RedisUnavailable)):
                whose = ""  # The server is away: one line for all its sales.
            if whose not in self._failing:
                _log.warning("deadlines%s are not swept: %s", whose, error)
            self._failing.add(whose)
            return None
        except Exception:  # noqa: BLE001
            _log.exception("the sweep of deadlines%s failed and goes on", whose)
            return None
        self._failing -= {whose, ""}
        return result

    async def _sweep(self, sale: str) -> None:
        for _ in range(SWEEPS_A_ROUND):
            status, more = await self._expire(sale, SWEEP_ORDERS)
            if status is Status.CLOCK_JUMP:
                if sale not in self._paused:
                    _log.error("sale %s is paused: %s", sale, status.meaning)
                    self._paused.add(sale)
                return
            self._paused.discard(sale)
            if not more:
                return


async def unsettled(engine: Engine) -> list[str]:
    """The sales whose deadlines still matter. What an engine knows of a sale that is not there any
    more, or was made anew, it forgets."""
    names = await engine.sales()
    found = await read_states(engine._calls, names)
    running = []
    for name, header in zip(names, found, strict=True):
        if isinstance(header, Exception):
            running.append(name)  # Its own sweep fails and says so; the others go on.
            continue
        state, definition_id = header
        shard = engine.at_hand(name)
        # A sale that is not open yet may have a list of tickets to close and to draw.
        has_queue = shard is not None and shard.queue is not None
        if state not in (None, b"settled") and (state != b"created" or has_queue):
            running.append(name)
        if shard and not shard.is_of(definition_id):
            # Lost and made anew under the same id, or lost: what is known of it is wrong.
            await engine._forget(shard)
    return running
