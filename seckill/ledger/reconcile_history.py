"""What the events of a sale say of the sale itself, and where two stories of it part."""

from __future__ import annotations

from typing import Any, NamedTuple

from seckill.ledger.drift import KEPT_MAX, Drift, DriftKind, Drifts
from seckill.ledger.reconcile_sides import LedgerSide, RedisSide
from seckill.ledger.rows import Known, Raw, decode, sale_state
from seckill.sale import Sale
from seckill.stream import EventKind

__all__ = ["History", "SaleStory", "TwoStories", "created_as", "left_out_after"]


class SaleStory:
    """What events of the sale, in any order, say of it: its state and reason with the event that
    gave it, by index the total that the last change of stock left, with that event, and by key
    every change of stock as ``index:units``."""

    def __init__(self) -> None:
        self.state = ("created", "", 0)
        self.totals: dict[int, tuple[int, int]] = {}
        self.changes: dict[str, str] = {}

    def tell(self, known: Known, raw: Raw) -> None:
        """Takes an event in. Raises LookupError or ValueError for a damaged one."""
        event = decode(known, raw)
        state = sale_state(event)
        if state is not None:
            self.state = max(self.state, (*state, raw.seq), key=lambda each: each[2])
        elif event.kind is EventKind.STOCK_CHANGED:
            key, place, units, total = event.detail.rsplit("|", 3)
            index, new = int(place), (int(total), raw.seq)
            self.changes[key] = f"{index}:{int(units)}"
            self.totals[index] = max(self.totals.get(index, (0, 0)), new, key=lambda each: each[1])


class History(NamedTuple):
    """What the ledger's events say of the sale itself. ``whole`` is whether no event is missing
    among them; in the stream what follows them begins at ``after``."""

    story: SaleStory
    whole: bool
    after: str


async def created_as(redis: RedisSide, book: LedgerSide) -> tuple[Sale | None, bool]:
    """The sale by its first event, in the stream or in the ledger; None when that is in neither.
    And whether the two say the same, and can be read."""
    told: list[Raw] = []
    async for raws in redis.events():
        told += [raw for raw in raws[:1] if raw.seq == 1]
        break
    for row in await book.events(1, 1):
        if row["seq"] == 1:
            kind = row["kind"].removeprefix("sale_")
            told.append(Raw(1, row["at_ms"], row["subject"], f"{kind}|{row['body']}"))
    found = [_definition(raw, book.sale) for raw in told]
    if not found:
        return None, True
    return found[-1], found[0] is not None and all(sale == found[0] for sale in found)


def _definition(raw: Raw, sale: str) -> Sale | None:
    word, _, body = raw.value.partition("|")
    try:
        created = Sale.from_definition(body.encode())
    except (LookupError, ValueError, TypeError):
        return None
    return created if (word, created.id) == ("created", sale) else None


class TwoStories:
    """Events that both sides have and that differ, brought in their order. Those after which no
    more are the same are a fork, the others were edited one by one."""

    def __init__(self, drifts: Drifts) -> None:
        self._drifts = drifts
        self._kept: list[Drift] = []
        self._count = 0
        self._last = 0
        self.since = 0
        """The first of those that differ just now; 0 for none."""
        self.forked = False

    def differ(self, drift: Drift) -> None:
        """An event that differs."""
        self.since = self.since or drift.seq
        self._last = drift.seq
        self._count += 1
        if len(self._kept) < KEPT_MAX:
            self._kept.append(drift)

    def same(self) -> None:
        """An event that is the same: what differed before it was no fork."""
        for drift in self._kept:
            self._drifts.add(drift)
        if more := self._count - len(self._kept):
            text = f"{more:,} more"
            self._drifts.add(
                Drift(DriftKind.EVENT_DIFFERS, text, "", self._last - more + 1, self._last)
            )
        self._kept, self._count, self.since = [], 0, 0

    def finish(self) -> None:
        """No more events follow."""
        if self.since:
            self.forked = True
            text = f"from event {self.since:,} on: {self._kept[0].text}"
            self._drifts.add(Drift(DriftKind.SALE_FORKED, text, "", self.since, self._last))


def left_out_after(row: dict[str, Any] | None) -> int | None:
    """The last event that the ledger had when the sale was rebuilt, if that is what this event
    tells."""
    if row is None or row["kind"] != EventKind.SALE_REBUILT:
        return None
    last = row["body"].partition("|")[0]
    return int(last) if last.isdecimal() else row["seq"] - 1
