"""Waiting until the ledger has what Redis has, before anything that it lacks is called missing."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.reconcile_sides import LedgerSide, RedisSide

__all__ = ["NEW_S", "POLL_MAX_S", "Patience"]

POLL_MIN_S: Final = 0.02
POLL_MAX_S: Final = 0.5
NEW_S: Final = 5.0
"""How long a sale may be without a row in the ledger, or without a consumer."""
CONSUMERS_SHOWN: Final = 3


class Patience:
    """How long the ledger of one sale is waited for. ``waited_s`` is how long it was, and
    ``behind`` whether it did not get there in time."""

    def __init__(self, redis: RedisSide, book: LedgerSide, patience_s: float) -> None:
        self._redis = redis
        self._book = book
        self._patience_s = patience_s
        self.waited_s = 0.0
        self.behind = False

    async def catch_up_now(self) -> bool:
        """The same for all that Redis has now; False without waiting once it was late."""
        return not self.behind and await self.catch_up(await self._redis.seq())

    async def catch_up(self, through: int) -> bool:
        """Waits until the ledger has everything up to this seq. False: it did not get there."""
        began_s = monotonic()
        pause_s = POLL_MIN_S
        while True:
            progress = await self._redis.progress()
            if progress.applied >= through:
                break
            first = max(0, progress.applied) + 1
            if (not progress.exists or pause_s >= POLL_MAX_S) and await self._book.count(
                first, through
            ) == through - first + 1:
                break  # Written, if not acknowledged.
            rest_s = began_s + self._patience_s - monotonic()
            if not progress.exists:
                rest_s -= max(0.0, self._patience_s - NEW_S)
            if rest_s <= 0:
                self.behind = True
                return False
            await asyncio.sleep(min(pause_s, rest_s))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
        self.waited_s += monotonic() - began_s
        return True

    async def applied(self, through: int) -> int:
        """How far it is, at most ``through``."""
        return max(0, min(through, (await self._redis.progress()).applied))

    async def drift(self, through: int) -> Drift:
        """What is told of a ledger that did not get as far as ``through``."""
        progress = await self._redis.progress()
        if not progress.exists:
            text = f"no consumer has ever read the stream, which has {through:,} events"
        else:
            applied = max(0, progress.applied)
            text = f"it has all up to event {applied:,} of {through:,}"
            text += f" after {self._patience_s:g} s of waiting"
        if progress.pending:
            held = [
                f"{name} holds {pending:,} for {idle / 1000:,.0f} s"
                for name, pending, idle in await self._redis.consumers()
            ]
            more = len(held) - CONSUMERS_SHOWN
            text += f"; of {progress.pending:,} entries taken, " + ", ".join(held[:CONSUMERS_SHOWN])
            text += f" and {more} more consumers some" if more > 0 else ""
        behind = through - max(0, progress.applied)
        return Drift(DriftKind.LEDGER_BEHIND, text, "", through - behind + 1, through)
