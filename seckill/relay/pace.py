"""When to send: how long an event waits between attempts, and whose turn it is."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Hashable
from typing import Final

import msgspec

__all__ = ["Pace", "Turns"]

TROUBLED_MIN: Final = 5
"""Orders that fail in a row before the endpoint itself is taken for down."""
OLD_PART: Final = 4
"""While new events wait, retries get one turn in so many, and one place in so many."""

_log = logging.getLogger("seckill.relay")


class Pace(msgspec.Struct, frozen=True):
    """Waits in seconds. An event waits ``first_s`` after its first failure and twice as long after
    each further one, up to ``longest_s``; a Retry-After counts up to ``retry_after_max_s``. While
    the endpoint is down there is one attempt every ``first_s`` as long as it answers at all, and
    else one after longer and longer waits, up to ``probe_s``."""

    first_s: float = 0.5
    longest_s: float = 60.0
    retry_after_max_s: float = 600.0
    probe_s: float = 5.0

    def wait_s(self, failures: int, retry_after_s: float) -> float:
        """How long to wait after so many failures, with jitter, so that not all come at once."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        asked = min(retry_after_s, self.retry_after_max_s)
        return max(longest * random.uniform(0.5, 1.0), asked * random.uniform(1.0, 1.1))


class Turns:
    """At most ``in_flight`` attempts at once, over all sales.

    When several orders have failed and nothing has succeeded since, the endpoint is down. Then it
    is asked once in a while, by one event at a time, until it answers 2xx. That event is drawn by
    lot, because the next ones in line may be the very ones that the endpoint can't take. For the
    same reason events that were never sent come first, but retries have a part of the turns, so
    that they don't wait for ever; only a part of the places, because they may hang.
    """

    def __init__(self, in_flight: int, pace: Pace) -> None:
        self._in_flight = in_flight
        self._pace = pace
        self._busy = 0
        self._busy_old = 0
        self._before_old = OLD_PART - 1
        self._new: deque[asyncio.Future[None]] = deque()
        self._old: deque[asyncio.Future[None]] = deque()
        self._troubled: set[Hashable] = set()
        self._probe_wait_s = min(pace.first_s, pace.probe_s)
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> int:
        """Attempts that are under way."""
        return self._busy

    @property
    def down(self) -> bool:
        """Whether the endpoint seems to take nothing at all."""
        return len(self._troubled) >= TROUBLED_MIN

    async def take(self, *, new: bool) -> None:
        """Waits for a turn: of an event that was never sent, or of a retry. Each is given back with
        ``give`` or ``skip``, as it was taken."""
        waiter = asyncio.get_running_loop().create_future()
        line = self._new if new else self._old
        line.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.skip(new=new)
            elif waiter in line:
                line.remove(waiter)
            raise

    def skip(self, *, new: bool) -> None:
        """Gives a turn back of which no use was made."""
        self._leave(new=new)
        self._admit()

    def give(
        self, subject: Hashable, cause: str = "", *, new: bool, answered: bool = False
    ) -> None:
        """Gives a turn back after an attempt; ``cause`` says why it failed, if it did.
        ``answered``: the endpoint itself refused it, so something is alive there."""
        self._leave(new=new)
        was_down = self.down
        if not cause:
            self._troubled.clear()
            self._probe_wait_s = min(self._pace.first_s, self._pace.probe_s)
            if was_down:
                _log.warning("the endpoint answers again")
        elif was_down or len(self._troubled) < TROUBLED_MIN:
            self._troubled.add(subject)
            if self.down:
                if not was_down:
                    _log.warning("the endpoint is down (%s); it is asked now and then", cause)
                self._wait(answered=answered)
        self._admit()

    def _leave(self, *, new: bool) -> None:
        self._busy -= 1
        self._busy_old -= not new

    def _wait(self, *, answered: bool) -> None:
        """Puts the next probe off, once for all attempts that were under way together. What answers
        may refuse single orders only, so the search for one that it takes doesn't slow down."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_at:
            if answered:
                self._probe_wait_s = min(self._pace.first_s, self._pace.probe_s)
            self._next_at = now + self._probe_wait_s * random.uniform(0.5, 1.0)
            self._probe_wait_s = min(self._probe_wait_s * 2, self._pace.probe_s)

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._new or self._old:
            if self._busy >= (1 if self.down else self._in_flight):
                return
            if self.down and (wait_s := self._next_at - loop.time()) > 0:
                if self._timer is None:
                    self._timer = loop.call_later(wait_s, self._ring)
                return
            old = self._is_old_next()
            waiter = self._pick(self._old if old else self._new)
            if not waiter.done():
                self._busy += 1
                self._busy_old += old
                self._before_old = OLD_PART - 1 if old else max(0, self._before_old - 1)
                waiter.set_result(None)

    def _is_old_next(self) -> bool:
        if not (self._new and self._old):
            return bool(self._old)
        return self._before_old == 0 and self._busy_old < max(1, self._in_flight // OLD_PART)

    def _pick(self, line: deque[asyncio.Future[None]]) -> asyncio.Future[None]:
        if self.down:
            line.rotate(-random.randrange(len(line)))
        return line.popleft()

    def _ring(self) -> None:
        self._timer = None
        self._admit()
