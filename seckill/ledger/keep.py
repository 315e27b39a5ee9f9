"""A ledger that is kept: the events of all sales go into it, and what hangs on that is done.

    always         the events, see run.py
    every 2 s      how far Redis is, and whether it has lost something (fence.py)
    every minute   what the ledger and everybody else has had is taken out of the streams (trim.py)
    every hour     settled sales leave Redis, and old sales' buyers are forgotten, if that is wanted

Any number of processes may keep the same ledger: each step may be done twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from seckill import redis as servers
from seckill.engine import Engine
from seckill.errors import LedgerRefused, LedgerUnavailable, SeckillError, UnknownSale
from seckill.ledger import fence
from seckill.ledger.forget import retire
from seckill.ledger.ledger import Ledger
from seckill.ledger.remove import remove_settled
from seckill.ledger.run import LedgerRunner, Written
from seckill.refusals import refusals_json
from seckill.trim import trim

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Keeper"]

TRIM_S: Final = 60.0
HOUR_S: Final = 3_600.0
DAY_MS: Final = 86_400_000
RETRY_S: Final = 2.0
CHORE_S: Final = 15.0
_NONE: Final = "{}"

_log = logging.getLogger("seckill.ledger")


class Keeper:
    """Keeps the ledger of all sales, or of ``sales``, until ``stop``. The engine must be started;
    it belongs to the caller.

    ``keep_events_s`` is how long events stay in Redis that everybody has had. ``keep_sales_days``
    is how long a settled sale does, and ``retention_days`` how long the ledger knows the buyers of
    a sale after its end; 0 is for ever. With ``patient`` a Redis that belongs to another ledger is
    waited for, as a database that is away is. Raises InvalidInput (the URL), MissingExtra.
    """

    def __init__(
        self,
        engine: Engine,
        url: str,
        *,
        keep_events_s: int = 86_400,
        keep_sales_days: int = 0,
        retention_days: int = 0,
        sales: Sequence[str] = (),
        once: bool = False,
        patient: bool = False,
    ) -> None:
        self._engine = engine
        self.ledger = Ledger(url)
        self._keep_events_ms = keep_events_s * 1000
        self._keep_sales_days = keep_sales_days
        self._retention_days = retention_days
        self._once = once
        self._stopping = asyncio.Event()
        self._runner = LedgerRunner(
            engine, self.ledger, sales=sales, once=once, patient=patient, chores=self._do_chores
        )
        self._trim_at = self._hourly_at = monotonic()
        self._slow: asyncio.Task[None] | None = None
        self._failing: set[str] = set()
        self._refusals: dict[str, str] = {}

    def stop(self) -> None:
        """Begins the end: what was read is written and acknowledged."""
        self._stopping.set()
        self._runner.stop()

    async def run(self) -> Written:
        """Keeps it until ``stop``, or with ``once`` until nothing is left to write.

        With ``once`` raises what goes wrong; else a database or a server that is away is waited
        for, and only UnknownSale is raised, for a sale that was named, and OtherLedger, if the
        Redis is another's from the start.
        """
        try:
            await self._start()
            return await self._runner.run()
        finally:
            if self._slow is not None:
                # Whatever it was about is done again later.
                self._slow.cancel()
                await asyncio.wait({self._slow})
            await self.ledger.aclose()

    async def _start(self) -> None:
        told = ""
        while not self._stopping.is_set():
            try:
                await self.ledger.start()
                return
            except (LedgerUnavailable, LedgerRefused) as error:
                if self._once:
                    raise
                if str(error) != told:
                    _log.error("the ledger can't be written: %s", error)
                told = str(error)
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    # -- chores -------------------------------------------------------------------------------

    async def _do_chores(self, client_of: Callable[[str], Redis]) -> None:
        """What is to be done from time to time. One that fails is told of once and done later."""
        await self._guarded("fence", fence.check(self._engine, self.ledger))
        now_s = monotonic()
        for sale in self._runner.sales:
            await self._guarded(f"refusals of {sale}", self._note_refusals(client_of(sale), sale))
        if now_s >= self._trim_at and not self._once:
            self._trim_at = now_s + TRIM_S
            for sale in self._runner.sales:
                await self._guarded(f"trim {sale}", self._trim(client_of(sale), sale))
        if now_s >= self._hourly_at and not self._once:
            self._hourly_at = now_s + HOUR_S
            if self._slow is None or self._slow.done():
                # By itself, because it may take long, and the events must not wait for it.
                self._slow = asyncio.create_task(
                    self._guarded("end of life", self._hourly(), seconds=HOUR_S)
                )

    async def _guarded(
        self, what: str, chore: Awaitable[object], *, seconds: float = CHORE_S
    ) -> None:
        try:
            with servers.our_errors():
                # A database that hangs must not hold up the events, nor the end.
                async with asyncio.timeout(seconds):
                    await chore
        except Exception as error:  # noqa: BLE001 - a keeper that ended would fence nothing any more
            if what not in self._failing:
                said = error if isinstance(error, SeckillError) else repr(error)
                _log.warning("%s: %s", what, said)
            self._failing.add(what)
        else:
            self._failing.discard(what)

    async def _note_refusals(self, client: Redis, sale: str) -> None:
        """Keeps what the engines have counted, which Redis forgets with the sale."""
        counts = await refusals_json(client, sale)
        if self._refusals.get(sale, _NONE) != counts:
            await self.ledger.refused(sale, counts)
            self._refusals[sale] = counts

    async def _trim(self, client: Redis, sale: str) -> None:
        try:
            await trim(client, sale, keep_ms=self._keep_events_ms)
        except UnknownSale:
            return  # It was removed just now.

    async def _hourly(self) -> None:
        now_ms = int(time.time() * 1000)
        if self._keep_sales_days:
            before_ms = now_ms - self._keep_sales_days * DAY_MS
            await remove_settled(self._engine, self.ledger, before_ms=before_ms)
        if self._retention_days:
            retired = await retire(self.ledger, before_ms=now_ms - self._retention_days * DAY_MS)
            if retired.waiting:
                names = ", ".join(retired.waiting)
                _log.warning("buyers of %s are forgotten once they have left Redis", names)
