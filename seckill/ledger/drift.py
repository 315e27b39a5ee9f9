"""Drift: what Redis, the stream and the ledger can disagree on, each kind with what it means and
what to do about it.

A sale's records and events never change once they are written, and a version only moves up, so two
sides that differ are told apart from two moments of one sale.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from seckill.ledger.reused import REMEDY

__all__ = ["Drift", "DriftKind", "Drifts", "Report", "Side"]

KEPT_MAX: Final = 100
"""Drifts of one kind that a report lists; the others are counted."""


class Side(StrEnum):
    """Where something is wrong, as far as the others can tell."""

    REDIS = "Redis"
    STREAM = "stream"
    LEDGER = "ledger"
    UNKNOWN = "unknown"


class DriftKind(StrEnum):
    """What two sides disagree on. See ``KINDS`` for each one's meaning and remedy."""

    SALE_MISSING_IN_REDIS = "sale_missing_in_redis"
    SALE_MADE_ANEW = "sale_made_anew"
    SALE_FORKED = "sale_forked"
    SALE_ID_REUSED = "sale_id_reused"
    REDIS_BEHIND = "redis_behind"
    EVENT_DIFFERS = "event_differs"
    SALE_MISSING_IN_LEDGER = "sale_missing_in_ledger"
    LEDGER_BEHIND = "ledger_behind"
    DEAD_LETTER = "dead_letter"
    EVENT_MISSING_IN_LEDGER = "event_missing_in_ledger"
    EVENT_LOST = "event_lost"
    EVENT_MISSING_IN_STREAM = "event_missing_in_stream"
    EVENT_UNREADABLE = "event_unreadable"
    ORDER_MISSING_IN_LEDGER = "order_missing_in_ledger"
    ORDER_BEHIND_IN_LEDGER = "order_behind_in_ledger"
    ORDER_ROW_DIFFERS = "order_row_differs"
    ORDER_MISSING_IN_REDIS = "order_missing_in_redis"
    ORDER_BEHIND_IN_REDIS = "order_behind_in_redis"
    ORDER_FORGED = "order_forged"
    ORDER_DIFFERS = "order_differs"
    ORDER_UNREADABLE = "order_unreadable"
    STOCK_DIFFERS = "stock_differs"
    TOTAL_DIFFERS = "total_differs"
    ORDER_NOT_QUEUED = "order_not_queued"
    PURSE_DIFFERS = "purse_differs"
    SETTING_DIFFERS = "setting_differs"
    STATE_DIFFERS = "state_differs"
    SALE_ROW_DIFFERS = "sale_row_differs"
    ITEM_ROW_DIFFERS = "item_row_differs"
    REFUSALS_UNREADABLE = "refusals_unreadable"

    @property
    def side(self) -> Side:
        """The side that is wrong."""
        return KINDS[self].side

    @property
    def meaning(self) -> str:
        """One sentence for a person."""
        return KINDS[self].meaning

    @property
    def fixable(self) -> bool:
        """Whether ``--fix`` can mend it, where what it needs is still there."""
        return KINDS[self].fixable

    def remedy(self, sale: str) -> str:
        """What to do about it."""
        return KINDS[self].remedy.format(sale=sale)


class _About(NamedTuple):
    side: Side
    meaning: str
    remedy: str
    fixable: bool = False


_FIX: Final = "seckill reconcile {sale} --fix"
_REBUILD: Final = "seckill rebuild {sale}"
_FORCED: Final = _REBUILD + " --force"
_EDITED: Final = (
    "find out who writes to the sale's keys in Redis, which --fix leaves alone because the sale"
    " sells by them; to put the ledger's story there, "
)

KINDS: Final[dict[DriftKind, _About]] = {
    DriftKind.SALE_MISSING_IN_REDIS: _About(
        Side.REDIS, "Redis has lost the sale, which is not over in the ledger", _REBUILD
    ),
    DriftKind.SALE_MADE_ANEW: _About(
        Side.REDIS,
        "the sale in Redis is another one, made under the same id after the ledger's was lost",
        _REBUILD + "; what the new one has sold is for you to decide, see docs/recovery.md",
    ),
    DriftKind.SALE_FORKED: _About(
        Side.UNKNOWN,
        "Redis lost events and went on with others, so the two tell different stories from there",
        f"seckill pause {{sale}}, then {_FORCED} --admit, see docs/recovery.md; nothing is"
        " overwritten on either side",
    ),
    DriftKind.SALE_ID_REUSED: _About(
        Side.REDIS,
        "a sale was created under the id of one that was removed, and no ledger has its orders",
        REMEDY,
    ),
    DriftKind.REDIS_BEHIND: _About(Side.REDIS, "Redis came back with less than was seen", _REBUILD),
    DriftKind.EVENT_DIFFERS: _About(
        Side.UNKNOWN,
        "Redis and ledger tell two stories of this event: one of them was edited",
        "pause the sale, then see docs/recovery.md; nothing is overwritten on either side",
    ),
    DriftKind.SALE_MISSING_IN_LEDGER: _About(
        Side.LEDGER, "the ledger does not know this sale", f"seckill ledger run, or {_FIX}", True
    ),
    DriftKind.LEDGER_BEHIND: _About(
        Side.LEDGER,
        "the ledger has not got as far as Redis yet, so what follows there could not be compared",
        "seckill ledger run (is one running, and does its log complain?)",
    ),
    DriftKind.DEAD_LETTER: _About(
        Side.LEDGER,
        "the ledger refused this event, and it waits as a dead letter",
        "mend what its cause says, then seckill dead retry {sale} --all --group ledger",
    ),
    DriftKind.EVENT_MISSING_IN_LEDGER: _About(
        Side.LEDGER, "the stream has this event, the ledger does not", _FIX, True
    ),
    DriftKind.EVENT_LOST: _About(
        Side.LEDGER,
        "neither the ledger nor the stream has this event any more",
        "restore seckill_events from a backup, or leave the gap: what it did to its order shows in"
        " Redis' record, which --fix takes over where the gap has room for it",
    ),
    DriftKind.EVENT_MISSING_IN_STREAM: _About(
        Side.STREAM,
        "the stream has lost this event without a trim; a group that had not read it never will",
        "the ledger has it (seckill_events): hand it to those readers by hand",
    ),
    DriftKind.EVENT_UNREADABLE: _About(
        Side.LEDGER,
        "the ledger's row of this event was damaged, and the stream no longer has it",
        "restore the row of seckill_events from a backup",
    ),
    DriftKind.ORDER_MISSING_IN_LEDGER: _About(
        Side.LEDGER, "Redis has this order, the ledger has no row of it", _FIX, True
    ),
    DriftKind.ORDER_BEHIND_IN_LEDGER: _About(
        Side.LEDGER, "the ledger's row is of a lower version than Redis' record", _FIX, True
    ),
    DriftKind.ORDER_ROW_DIFFERS: _About(
        Side.LEDGER,
        "the order's row is not what the ledger's own events say",
        _FIX,
        True,
    ),
    DriftKind.ORDER_MISSING_IN_REDIS: _About(
        Side.REDIS, "the ledger has this order, Redis does not", _EDITED + _FORCED
    ),
    DriftKind.ORDER_BEHIND_IN_REDIS: _About(
        Side.REDIS, "Redis' record is of a lower version than the ledger's row", _EDITED + _FORCED
    ),
    DriftKind.ORDER_FORGED: _About(
        Side.REDIS,
        "Redis holds a record of this order to which no event has led",
        _EDITED + _FORCED,
    ),
    DriftKind.ORDER_DIFFERS: _About(
        Side.UNKNOWN,
        "the same version of this order reads differently on the two sides, and its events are"
        " gone",
        _EDITED + _FORCED,
    ),
    DriftKind.ORDER_UNREADABLE: _About(
        Side.REDIS, "Redis holds something that is no record of an order", _EDITED + _FORCED
    ),
    DriftKind.STOCK_DIFFERS: _About(
        Side.REDIS, "Redis counts other units than its orders hold", _EDITED + _FORCED
    ),
    DriftKind.TOTAL_DIFFERS: _About(
        Side.REDIS,
        "an SKU's total in Redis is not what it began with and every change of stock since",
        _EDITED + _FORCED,
    ),
    DriftKind.ORDER_NOT_QUEUED: _About(
        Side.REDIS,
        "this order waits in no queue, so it would never lapse and its units never come back",
        _FIX,
        True,
    ),
    DriftKind.PURSE_DIFFERS: _About(
        Side.REDIS,
        "what Redis says that a buyer has had is not what his orders say, so limits don't hold",
        _EDITED + _FORCED,
    ),
    DriftKind.SETTING_DIFFERS: _About(
        Side.REDIS,
        "a setting of the sale in Redis is not what it was created with, or a change of stock is"
        " not noted and its key would do it again",
        _EDITED + _FORCED,
    ),
    DriftKind.STATE_DIFFERS: _About(
        Side.REDIS,
        "the sale's state in Redis is not what its events say",
        "bring it to where it should be: seckill pause, resume or sale close {sale}",
    ),
    DriftKind.SALE_ROW_DIFFERS: _About(
        Side.LEDGER,
        "the sale's row is not what its definition and the ledger's own events say",
        _FIX,
        True,
    ),
    DriftKind.ITEM_ROW_DIFFERS: _About(
        Side.LEDGER,
        "an item's row is not what its sale and the ledger's own events say",
        _FIX,
        True,
    ),
    DriftKind.REFUSALS_UNREADABLE: _About(
        Side.REDIS,
        "the counts of refusals in Redis hold something that is no count",
        "take that out with a Redis client (HDEL, or DEL if it is no hash); the report loses what"
        " it had counted, and nothing else depends on it",
    ),
}


class Drift(msgspec.Struct, frozen=True):
    """One disagreement. ``seq`` to ``last_seq`` are the events it is about; 0 or empty is what
    does not apply. ``text`` says what is seen on either side."""

    kind: DriftKind
    text: str
    order: str = ""
    seq: int = 0
    last_seq: int = 0
    sku: str = ""
    mended: bool = False

    @property
    def count(self) -> int:
        """How many events or other things it is about."""
        return max(1, self.last_seq - self.seq + 1) if self.seq else 1


class Drifts:
    """Collects drifts in bounded memory: of each kind how many, and the first of them."""

    def __init__(self) -> None:
        self.left: dict[DriftKind, int] = {}
        self.mended: dict[DriftKind, int] = {}
        self._kept: dict[DriftKind, list[Drift]] = {}

    def add(self, drift: Drift) -> None:
        """Counts a drift, and keeps it while there is room."""
        counts = self.mended if drift.mended else self.left
        counts[drift.kind] = counts.get(drift.kind, 0) + drift.count
        kept = self._kept.setdefault(drift.kind, [])
        if len(kept) < KEPT_MAX:
            kept.append(drift)

    @property
    def kept(self) -> tuple[Drift, ...]:
        """Those that were kept, the gravest kinds first."""
        return tuple(drift for kind in DriftKind for drift in self._kept.get(kind, ()))


class Report(msgspec.Struct, frozen=True):
    """What was compared of one sale, as of event ``seq``, and what differs.

    ``events`` and ``orders`` are how many were compared; the stream begins with ``stream_from``
    (0: it is empty). ``left`` and ``mended`` count the drifts by kind, ``drifts`` are the first 100
    of each. ``undecided`` says what could not be compared, and why.
    """

    sale: str
    seq: int = 0
    events: int = 0
    orders: int = 0
    skus: int = 0
    stream_from: int = 0
    waited_s: float = 0.0
    took_s: float = 0.0
    left: dict[DriftKind, int] = msgspec.field(default_factory=dict)
    mended: dict[DriftKind, int] = msgspec.field(default_factory=dict)
    drifts: tuple[Drift, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no drift is left."""
        return not self.left

    @property
    def decided(self) -> bool:
        """Whether everything could be compared."""
        return not self.undecided
