"""The ledger, written by the intake's own workers (``ledger.inside``).

Orders never wait for it: a database that is away holds nothing up but the rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerRefused, LedgerUnavailable, MissingExtra

from . import settings
from .problems import LEDGER_UNAVAILABLE, Problem

if TYPE_CHECKING:
    from seckill.ledger.run import Written

__all__ = ["check_ledger", "check_new", "check_owner", "writing"]

_log = logging.getLogger("seckill.ledger")

ASK_S: Final = 5.0

_REMEDY = "write sqlite:///FILE, postgresql://… or mysql://…"


def check_ledger(url: str) -> None:
    """Raises InvalidInput for a URL that is no database's, or whose driver is not installed."""
    if not url:
        return
    try:
        from seckill.ledger.database import check_url
    except ModuleNotFoundError as error:
        module = error.name or "sqlalchemy"
        raise InvalidInput("ledger.url", str(MissingExtra("ledger", module)), _REMEDY) from None
    try:
        check_url(url)
    except MissingExtra as error:
        raise InvalidInput("ledger.url", str(error), _REMEDY) from None


async def check_new(engine: Engine, ledger: settings.Ledger, sale: str) -> None:
    """To be asked before a sale is created. Raises InvalidInput for one that Redis has lost, or an
    id that is used up; Problem when nobody can tell."""
    if ledger.url:
        from seckill.ledger.existing import ExistingLedger, NoLedger
        from seckill.ledger.fence import check_new
        from seckill.ledger.mark import OtherLedger

        try:
            async with ExistingLedger(ledger.url) as book:
                await check_new(engine, book, sale)
        except NoLedger:
            return
        except (LedgerUnavailable, LedgerRefused, OtherLedger) as error:
            raise Problem(LEDGER_UNAVAILABLE, str(error)) from None


async def check_owner(engine: Engine, ledger: settings.Ledger) -> None:
    """To be asked when the intake starts, or gets other settings. Raises OtherLedger if the server
    of sales belongs to another ledger; a database that is away can be asked later."""
    if not ledger.url:
        return
    from seckill.ledger import Ledger
    from seckill.ledger.mark import check_mark

    try:
        async with asyncio.timeout(ASK_S), Ledger(ledger.url) as book:
            await check_mark(engine, book)
    except (LedgerUnavailable, LedgerRefused, TimeoutError):
        # Whoever writes the ledger waits for it, and says so.
        return


@asynccontextmanager
async def writing(engine: Engine, ledger: settings.Ledger) -> AsyncIterator[None]:
    """Writes the ledger for as long as this lasts, if the settings say so. A server of sales that
    has come to belong to another ledger must not end the intake: that is told and waited for."""
    if not ledger.url or not ledger.inside:
        yield
        return
    from seckill.ledger.keep import Keeper

    keeper = Keeper(
        engine,
        ledger.url,
        keep_events_s=ledger.keep_events_s,
        keep_sales_days=ledger.keep_sales_days,
        retention_days=ledger.retention_days,
        patient=True,
    )
    task = asyncio.create_task(keeper.run())
    task.add_done_callback(_told)
    try:
        yield
    finally:
        keeper.stop()
        await asyncio.gather(task, return_exceptions=True)


def _told(task: asyncio.Task[Written]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("the ledger is not written any more: a bug, please report it: %r", error)
