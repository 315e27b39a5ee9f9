"""Sweeps deadlines: every running sale, several times a second, bounded at each step.

Any number of processes may sweep at once: expire.lua decides, and repeating it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from seckill.errors import SeckillError
from seckill.status import Status

__all__ = ["Reaper"]

SWEEP_ORDERS: Final = 200
SWEEPS_A_ROUND: Final = 50
REFRESH_S: Final = 2.0

_log = logging.getLogger("seckill.reaper")


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
        failing = False
        while self._task is not None:
            try:
                if monotonic() >= refresh_at:
                    sales = await self._sales()
                    refresh_at = monotonic() + REFRESH_S
                for sale in sales:
                    await self._sweep(sale)
                failing = False
            except SeckillError as error:
                if not failing:
                    _log.warning("deadlines are not swept: %s", error)
                failing = True
            except Exception:  # noqa: BLE001
                # Without its reaper a process would silently stop giving units back.
                _log.exception("the sweep failed and goes on")
            await asyncio.sleep(self._interval_s)

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
