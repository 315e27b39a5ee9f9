"""Sales that were created under the id of one that was removed.

An order's id is computed from sale, buyer and key, so the new sale's orders may have the ids of old
ones that are paid. The ledger keeps the old ones and takes nothing of the new sale, and whoever
creates a sale with a ledger named is told so; this is for the one who did not name it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from seckill.engine import Engine
from seckill.errors import LedgerForked
from seckill.keys import shard_keys

if TYPE_CHECKING:
    from seckill.ledger.ledger import Ledger

__all__ = ["REMEDY", "find", "tell_fork"]

_log = logging.getLogger("seckill.ledger")

REMEDY: Final = (
    "pause it (seckill sale pause {sale}), sell what is left under another id, and pay back what"
    " was paid: its orders may have the ids of the removed sale's"
)


async def find(engine: Engine, rows: Iterable[dict[str, Any]]) -> set[str]:
    """Which of these sales, rows of seckill_sales, are removed and in Redis as other ones."""
    removed = [row for row in rows if row["removed_at_ms"]]
    found = set()
    asked = [("HGET", shard_keys(row["sale"])[0], "made") for row in removed]
    for row, made in zip(removed, await engine._calls.read_many(asked), strict=True):
        # One that is just being removed is still there, as itself.
        if isinstance(made, bytes) and made.decode() != row["made"]:
            found.add(row["sale"])
    return found


async def tell_fork(ledger: Ledger, error: LedgerForked) -> None:
    """Logs that nothing more of a sale is written. One whose own is removed is not fenced, because
    there is nothing to rebuild, so this says what to do about it."""
    row = await ledger.sale(error.sale)
    remedy = f"; nothing of it is written: {REMEDY.format(sale=error.sale)}"
    _log.error("%s%s", error, remedy if row["removed_at_ms"] else "")
