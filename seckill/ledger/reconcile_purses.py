"""Purses: whether what Redis says that a buyer has had is what his orders have left behind.

A purse decides over limits, so one that was emptied lets its buyer have everything once more. The
orders are added up while they are scanned. What looks different after that is added up again, this
time exactly as of one event: by the orders that a second scan shows, and the events since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.purses import Purses
from seckill.ledger.reconcile_sides import PART, Picture, RedisSide
from seckill.ledger.reconcile_stock import changed_orders

__all__ = ["PurseCount", "compare_purses"]

ROUNDS: Final = 3
TOGETHER: Final = 100 * PART
"""Buyers whose orders are looked at in one scan."""


class PurseCount:
    """What the orders of a scan have left behind."""

    def __init__(self) -> None:
        self._purses = Purses()

    def feed(self, records: Mapping[str, str]) -> None:
        """Adds some orders. A damaged record is named elsewhere."""
        for order, record in records.items():
            _add(self._purses, order, record)

    def buyers(self) -> dict[str, str]:
        """Each buyer's purse."""
        return dict(self._purses.buyers())


async def compare_purses(redis: RedisSide, count: PurseCount) -> list[Drift] | None:
    """The buyers whose purses are wrong. None: the sale changed too fast to tell."""
    wanted = count.buyers()
    suspects: list[str] = []
    async for purses in redis.purses():
        suspects += [buyer for buyer, purse in purses.items() if wanted.pop(buyer, None) != purse]
    # Those that are left have no purse at all, unless the scan met them while it was written.
    suspects = sorted({*suspects, *wanted})
    found: list[Drift] = []
    for at in range(0, len(suspects), TOGETHER):
        part = await _judge(redis, suspects[at : at + TOGETHER])
        if part is None:
            return None
        found += part
    return found


async def _judge(redis: RedisSide, buyers: list[str]) -> list[Drift] | None:
    """Exactly, and a difference is believed when it is seen twice."""
    found: dict[str, str] | None = None
    for _ in range(ROUNDS):
        before, found = found, await _differing(redis, buyers)
        if found is None:
            continue
        if not found:
            return []
        if before is not None:
            same = {buyer: text for buyer, text in found.items() if buyer in before}
            return [Drift(DriftKind.PURSE_DIFFERS, text) for text in same.values()]
        buyers = sorted(found)
    return None


async def _differing(redis: RedisSide, buyers: list[str]) -> dict[str, str] | None:
    start = await redis.picture()
    if start is None:
        return {}
    among, orders = frozenset(buyers), {}
    async for records in redis.scan():
        orders.update(_of(records, among))
    found: dict[str, str] = {}
    for at in range(0, len(buyers), PART):
        part = buyers[at : at + PART]
        seq, there = await redis.purses_of(part)
        wanted = await _wanted(redis, start, seq, orders, frozenset(part))
        if wanted is None:
            return None
        for buyer in part:
            if wanted.get(buyer) != there.get(buyer):
                text = f"buyer {buyer!r}: Redis {_shown(there.get(buyer))},"
                text += f" by his orders {_shown(wanted.get(buyer))}"
                found[buyer] = text
    return found


async def _wanted(
    redis: RedisSide, start: Picture, seq: int, orders: dict[str, str], buyers: frozenset[str]
) -> dict[str, str] | None:
    """The purses of some buyers as of an event. None: the stream does not have all events."""
    changed = await changed_orders(redis, start, seq)
    if changed is None:
        return None
    purses = Purses()
    # What the scan has shown was before that event, and what has changed until then is known.
    for order, record in (_of(orders, buyers) | _of(changed, buyers)).items():
        _add(purses, order, record)
    return dict(purses.buyers())


def _of(records: Mapping[str, str], buyers: frozenset[str]) -> dict[str, str]:
    return {
        order: record
        for order, record in records.items()
        if len(parts := record.split("|", 3)) > 2 and parts[2] in buyers
    }


def _add(purses: Purses, order: str, record: str) -> None:
    try:
        purses.add(order, record)
    except (LookupError, ValueError):
        return


def _shown(purse: str | None) -> str:
    return "nothing" if purse is None else repr(purse if len(purse) <= 60 else purse[:57] + "…")
