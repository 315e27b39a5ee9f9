"""The stock of sales, fed to the sockets that watch them.

One task a sale reads while somebody watches, and however many do: a frame is made once, only when
something has changed, and all sockets get the same bytes. A socket that still has frames to take is
left out, and gets the newest when it has taken them.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from seckill.engine import Engine
from seckill.errors import SeckillError
from seckill.snapshot import Snapshot

from .metrics import Metrics
from .wire import encode, phase_of
from .wire_socket import StockDocument, StockLine, frame

if TYPE_CHECKING:
    from .socket_session import Session

__all__ = ["StockFeed"]

_log = logging.getLogger("seckill.server")

READ_S: Final = 0.3
LOOK_S: Final = 1.0
# So many sockets are told before anybody else has a turn.
TOLD_MAX: Final = 200
# Telling very many may take a fifth of this process's time, and no more.
SHARE: Final = 4.0


class _Watched:
    """One sale, and who watches it."""

    def __init__(self) -> None:
        # In the order in which they came.
        self.sessions: dict[Session, None] = {}
        # Who was not told the newest.
        self.late: dict[Session, None] = {}
        self.known: tuple[object, ...] = ()
        self.frame = b""
        self.task: asyncio.Task[None] | None = None


class StockFeed:
    """Feeds the stock of sales to sockets."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._sales: dict[str, _Watched] = {}
        self._failing = False

    def watch(self, session: Session) -> None:
        """Begins to feed a socket, at once if something is known. Again means nothing."""
        if session.ending:
            return
        watched = self._sales.setdefault(session.sale, _Watched())
        if session in watched.sessions:
            return
        watched.sessions[session] = None
        if watched.frame:
            self._tell(watched, session)
        if watched.task is None:
            watched.task = asyncio.create_task(self._read_on(session.sale, watched))

    def forget(self, session: Session) -> None:
        """Ends that."""
        watched = self._sales.get(session.sale)
        if watched is not None:
            watched.sessions.pop(session, None)
            watched.late.pop(session, None)

    async def aclose(self) -> None:
        """Reads nothing any more."""
        tasks = [watched.task for watched in self._sales.values() if watched.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sales.clear()

    async def _read_on(self, sale: str, watched: _Watched) -> None:
        while watched.sessions:
            spent_s = 0.0
            try:
                async with asyncio.timeout(LOOK_S):
                    now = await self._engine.snapshot(sale)
                self._failing = False
            except (SeckillError, TimeoutError) as error:
                if not self._failing:
                    _log.warning("the stock of a sale can't be fed: %s", error)
                self._failing = True
            except Exception:  # noqa: BLE001 - logged; it is fed again when this is mended
                if not self._failing:
                    _log.exception("the stock of a sale can't be fed")
                self._failing = True
            else:
                spent_s = await self._tell_all(watched, now)
            await asyncio.sleep(max(READ_S, SHARE * spent_s))
        if self._sales.get(sale) is watched:
            del self._sales[sale]

    async def _tell_all(self, watched: _Watched, now: Snapshot) -> float:
        """Tells those who do not know it. Returns the seconds that took."""
        items = [StockLine(sku, stock.available) for sku, stock in now.stock.items()]
        phase = phase_of(now)
        known = (phase, *(line.available for line in items))
        behind = list(watched.late)
        if known != watched.known:
            watched.known = known
            watched.frame = frame(encode(StockDocument("stock", phase, items, now.at_ms)))
            behind = list(watched.sessions)
        spent_s = 0.0
        for start in range(0, len(behind), TOLD_MAX):
            began_s = monotonic()
            for session in behind[start : start + TOLD_MAX]:
                if session in watched.sessions:
                    self._tell(watched, session)
            spent_s += monotonic() - began_s
            await asyncio.sleep(0)
        return spent_s

    def _tell(self, watched: _Watched, session: Session) -> None:
        if session.feed(watched.frame):
            watched.late.pop(session, None)
            self._metrics.feed_frames += 1
        else:
            watched.late[session] = None
