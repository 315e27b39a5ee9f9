"""When to try: how long an event waits between attempts, and whose turn it is.

What takes the events is called the endpoint here, be it an HTTP server or a function that writes to
a database.
"""

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

_log = logging.getLogger("seckill.consumer")


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


class _Waiting:
    """Who waits for a turn, by sale: the sales go round, so that the few events of tonight's sale
    do not wait behind thousands that are left of another one."""

    def __init__(self) -> None:
        self._by_sale: dict[str, deque[asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_sale)

    def add(self, sale: str, waiter: asyncio.Future[None]) -> None:
        self._by_sale.setdefault(sale, deque()).append(waiter)

    def remove(self, sale: str, waiter: asyncio.Future[None]) -> None:
        """Takes a waiter out, if it is still here."""
        line = self._by_sale.get(sale)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._by_sale[sale]

    def next(self, *, by_lot: bool) -> asyncio.Future[None]:
        """The one whose turn it is, or anyone of anywhere."""
        sale = random.choice(list(self._by_sale)) if by_lot else next(iter(self._by_sale))
        line = self._by_sale.pop(sale)
        if by_lot:
            line.rotate(-random.randrange(len(line)))
        waiter = line.popleft()
        if line:
            self._by_sale[sale] = line  # Behind all others.
        return waiter


class Turns:
    """At most ``in_flight`` attempts at once, over all sales. ``name`` is for the log.

    When several orders have failed and nothing has succeeded since, the endpoint is down. Then it
    is asked once in a while, by one event at a time, until it answers 2xx. That event is drawn by
    lot, because the next ones in line may be the very ones that the endpoint can't take. For the
    same reason events that were never sent come first, but retries have a part of the turns, so
    that they don't wait for ever; only a part of the places, because they may hang.
    """

    def __init__(self, in_flight: int, pace: Pace, name: str = "") -> None:
        self._name = name
        self._in_flight = in_flight
        self._pace = pace
        self._busy = 0
        self._busy_old = 0
        self._before_old = OLD_PART - 1
        self._new = _Waiting()
        self._old = _Waiting()
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

    async def take(self, sale: str = "", *, new: bool) -> None:
        """Waits for a turn: of an event that was never sent, or of a retry. Each is given back with
        ``give`` or ``skip``, as it was taken."""
        waiter = asyncio.get_running_loop().create_future()
        line = self._new if new else self._old
        line.add(sale, waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.skip(new=new)
            else:
                line.remove(sale, waiter)
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
                _log.warning("%s: events are taken again", self._name)
        elif was_down or len(self._troubled) < TROUBLED_MIN:
            self._troubled.add(subject)
            if self.down:
                if not was_down:
                    said = "%s: nothing is taken (%s); one event is tried now and then"
                    _log.warning(said, self._name, cause)
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
            waiter = (self._old if old else self._new).next(by_lot=self.down)
            if not waiter.done():
                self._busy += 1
                self._busy_old += old
                self._before_old = OLD_PART - 1 if old else max(0, self._before_old - 1)
                waiter.set_result(None)

    def _is_old_next(self) -> bool:
        if not (self._new and self._old):
            return bool(self._old)
        return self._before_old == 0 and self._busy_old < max(1, self._in_flight // OLD_PART)

    def _ring(self) -> None:
        self._timer = None
        self._admit()
