"""A ledger that must be there already, for everybody but those who keep it: its tables are neither
made nor changed, so that a right to read is enough to read it, and a mistyped name makes nothing.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, inspect

from seckill.errors import LedgerRefused
from seckill.ledger.database import our_errors
from seckill.ledger.ledger import Ledger
from seckill.ledger.migrate import VERSION_TABLE, is_current
from seckill.ledger.tables import SALES

__all__ = ["ExistingLedger", "NoLedger"]


class NoLedger(LedgerRefused):
    """The database, if there is one, has no ledger."""


class ExistingLedger(Ledger):
    """A ledger whose tables are looked at when it is started, and not brought up to date."""

    async def start(self) -> None:
        """Raises NoLedger; LedgerRefused when its tables are of an earlier version;
        LedgerUnavailable."""
        if self.file is not None and not self.file.exists():
            raise NoLedger(f"{self._shown} {_NONE_YET}")
        try:
            with our_errors():
                async with self.engine.connect() as connection:
                    is_there, is_done = await connection.run_sync(_look)
            if not is_there:
                raise NoLedger(f"{self._shown} {_NONE_YET}")
            if not is_done:
                raise LedgerRefused(f"{self._shown} {_EARLIER}")
        except BaseException:
            # Who is not started is not closed either.
            await self.aclose()
            raise

    @property
    def _shown(self) -> str:
        at = self.engine.url
        return at.set(drivername=at.get_backend_name()).render_as_string(hide_password=True)


_NONE_YET: Final = (
    "has no ledger yet; `seckill ledger run` makes it and keeps it, `seckill ledger migrate` only"
    " makes its tables"
)
_EARLIER: Final = "has a ledger of an earlier version; bring it up to date: seckill ledger migrate"


def _look(connection: Connection) -> tuple[bool, bool]:
    """Whether there are tables, and whether they serve this version."""
    tables = inspect(connection)
    if not (tables.has_table(VERSION_TABLE) and tables.has_table(SALES.name)):
        return False, False
    return True, is_current(connection)
