"""Events: the ledger's against the stream's, and the orders' rows against the ledger's own events.

Every event up to the seq that was waited for must be in the ledger, but for dead letters and for
the gap just before a rebuild. The stream may begin later, where a trim has left off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from seckill.errors import SeckillError
from seckill.ledger.drift import Drift, DriftKind, Drifts
from seckill.ledger.reconcile_orders import Judge, row_differs
from seckill.ledger.reconcile_sides import LedgerSide, RedisSide, is_rebuilt
from seckill.ledger.rows import (
    Known,
    Raw,
    decode,
    event_row,
    newest_orders,
    order_row,
    raw_event,
    sale_state,
)
from seckill.stream import SALE_SUBJECT, EventKind

__all__ = ["EventComparison", "History"]

Row = dict[str, Any]

_RAW: Final = ("seq", "at_ms", "kind", "subject", "body")


class History(NamedTuple):
    """What the ledger's events say of the sale itself: its state and reason with the event that
    gave it ("" where events don't say), and by index the total that the last change of stock left,
    with that event. ``whole`` is whether no event is missing among them."""

    state: tuple[str, str, int]
    totals: dict[int, tuple[int, int]]
    whole: bool


class EventComparison:
    """Walks through the events of both sides at once, a part of each at a time."""

    def __init__(
        self,
        redis: RedisSide,
        book: LedgerSide,
        known: Known,
        judge: Judge,
        drifts: Drifts,
        *,
        letters: Iterable[int],
        fix: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._redis = redis
        self._book = book
        self._known = known
        self._judge = judge
        self._drifts = drifts
        self._letters = frozenset(letters)
        self._fix = fix
        self._progress = progress
        self._state = ("created", "", 0)
        self._totals: dict[int, tuple[int, int]] = {}
        self._whole = True
        self.stream_from = 0
        """The first event that the stream has; 0 when it is empty."""
        self._rebuilt = False

    async def run(self, through: int) -> History:
        """Compares everything up to and including this seq."""
        at = 1
        beyond: Raw | None = None
        async for raws in self._redis.events():
            if not self.stream_from:
                self.stream_from = raws[0].seq
                self._rebuilt = is_rebuilt(raws[0])
            beyond = next((raw for raw in raws if raw.seq > through), None)
            for run in _runs([raw for raw in raws if raw.seq <= through]):
                if run[0].seq > at:
                    await self._gap(at, run[0].seq - 1, before=run[0])
                if run[0].seq < at:
                    text = f"the stream has it again, as {_shown(run[0].value)}"
                    self._add(DriftKind.EVENT_DIFFERS, run[0].seq, run[0].seq, text)
                    continue
                await self._run(run)
                at = run[-1].seq + 1
                self._progress(at - 1)
            if raws[-1].seq >= through:
                break
        if at <= through:
            await self._gap(at, through, before=beyond)
        return History(self._state, self._totals, self._whole)

    # -- what the stream has ------------------------------------------------------------------

    async def _run(self, raws: Sequence[Raw]) -> None:
        """Events without a gap in the stream."""
        there: dict[int, Row] = {}
        first, last = raws[0].seq, raws[-1].seq
        while first <= last:
            rows = await self._book.events(first, last)
            there |= {row["seq"]: row for row in rows}
            first = rows[-1]["seq"] + 1 if rows else last + 1
        missing, same = [], []
        for raw in raws:
            row = there.get(raw.seq)
            if row is None:
                missing.append(raw)
            elif row == self._row_of(raw):
                same.append(row)
            else:
                text = f"the stream says {_shown(raw.value)}, the ledger {_shown(_value(row))}"
                order = "" if raw.subject == SALE_SUBJECT else raw.subject
                self._drifts.add(Drift(DriftKind.EVENT_DIFFERS, text, order, raw.seq, raw.seq))
        await self._look_at(same)
        await self._take_over([raw for raw in missing if raw.seq not in self._letters])
        self._whole &= not (missing and self._letters.intersection(raw.seq for raw in missing))

    def _row_of(self, raw: Raw) -> Row | None:
        try:
            return event_row(self._known.sale.id, raw)
        except LookupError:
            return None

    async def _take_over(self, raws: list[Raw]) -> None:
        """Events that only the stream has."""
        if not raws:
            return
        mended: set[int] = set()
        problem = "the stream has what the ledger lacks"
        if self._fix:
            mended, said = await self._mend(raws)
            problem = said or problem
        self._whole &= len(mended) == len(raws)
        for part in _runs(raws):
            for done in (True, False):
                for same in _runs([raw for raw in part if (raw.seq in mended) == done]):
                    text = "written from the stream" if done else problem
                    self._add(
                        DriftKind.EVENT_MISSING_IN_LEDGER,
                        same[0].seq,
                        same[-1].seq,
                        text,
                        order=same[0].subject if len(same) == 1 else "",
                        mended=done,
                    )
        await self._look_at([event_row(self._known.sale.id, r) for r in raws if r.seq in mended])

    async def _mend(self, raws: list[Raw]) -> tuple[set[int], str]:
        """Writes them, one by one where the ledger refuses some; which were written."""
        try:
            await self._book.ledger.write([(self._known, raws)])
        except (LookupError, ValueError, SeckillError) as error:
            if len(raws) == 1:
                return set(), f"it can't be written: {type(error).__name__}: {error}"
        else:
            return {raw.seq for raw in raws}, ""
        mended: set[int] = set()
        problem = ""
        for raw in raws:
            done, said = await self._mend([raw])
            mended |= done
            problem = said or problem
        return mended, problem

    # -- what the stream has not --------------------------------------------------------------

    async def _gap(self, first: int, last: int, *, before: Raw | None) -> None:
        """Events that are not in the stream; ``before`` is the one that follows them there."""
        # Read after the stream was, because it may have been trimmed meanwhile.
        trimmed = await self._redis.trimmed_seq()
        if self._rebuilt and before is not None and before.seq == self.stream_from:
            # What was before a rebuild is in the ledger only.
            trimmed = last
        at = first
        while at <= last:
            rows = await self._book.events(at, last)
            for run in _row_runs(rows):
                if run[0]["seq"] > at:
                    self._lost(
                        at, run[0]["seq"] - 1, legal=run[0]["kind"] == EventKind.SALE_REBUILT
                    )
                at = run[-1]["seq"] + 1
                start = max(run[0]["seq"], trimmed + 1)
                if start < at:
                    text = "the ledger has what the stream has lost"
                    self._add(DriftKind.EVENT_MISSING_IN_STREAM, start, at - 1, text)
            if not rows:
                self._lost(at, last, legal=before is not None and is_rebuilt(before))
                at = last + 1
            await self._look_at(rows)
            self._progress(at - 1)

    def _lost(self, first: int, last: int, *, legal: bool) -> None:
        if legal:
            return
        self._whole = False
        text = "missing here, and no longer in the stream"
        for letter in [*sorted(seq for seq in self._letters if first <= seq <= last), last + 1]:
            if first < letter:
                self._add(DriftKind.EVENT_LOST, first, letter - 1, text)
            first = letter + 1

    # -- the ledger's own events --------------------------------------------------------------

    async def _look_at(self, rows: Sequence[Row]) -> None:
        """Follows what the ledger's events say, and finds the orders whose rows say otherwise."""
        try:
            raws = [raw_event(*(row[name] for name in _RAW)) for row in rows]
            newest = {row["id"]: row for row in newest_orders(self._known, raws)}
        except (LookupError, ValueError):
            # One by one, to leave out what can't be read.
            raws = [raw for row in rows if (raw := self._readable(row)) is not None]
            newest = {row["id"]: row for row in newest_orders(self._known, raws)}
        for raw in raws:
            if raw.subject == SALE_SUBJECT:
                self._follow(raw)
        there = await self._book.rows(newest)
        await self._judge.add(
            [order for order, row in newest.items() if row_differs(row, there.get(order))],
            by_history=True,
        )

    def _readable(self, row: Row) -> Raw | None:
        try:
            raw = raw_event(*(row[name] for name in _RAW))
            if raw.subject != SALE_SUBJECT:
                order_row(self._known, raw, {})
        except (LookupError, ValueError) as error:
            self._unreadable(row["seq"], error)
            return None
        return raw

    def _unreadable(self, seq: int, error: Exception) -> None:
        text = f"the ledger's row can't be read: {error!r}"
        self._add(DriftKind.EVENT_UNREADABLE, seq, seq, text)
        self._whole = False

    def _follow(self, raw: Raw) -> None:
        """In any order: what was missing and is there now comes after the others."""
        try:
            event = decode(self._known, raw)
        except (LookupError, ValueError) as error:
            self._unreadable(raw.seq, error)
            return
        state = sale_state(event)
        if state is not None:
            self._state = max(self._state, (*state, raw.seq), key=lambda each: each[2])
        elif event.kind is EventKind.STOCK_CHANGED:
            _, index, _, total = event.detail.rsplit("|", 3)
            before = self._totals.get(int(index), (0, 0))
            self._totals[int(index)] = max(before, (int(total), raw.seq), key=lambda each: each[1])

    def _add(
        self,
        kind: DriftKind,
        first: int,
        last: int,
        text: str,
        *,
        order: str = "",
        mended: bool = False,
    ) -> None:
        order = "" if order == SALE_SUBJECT else order
        self._drifts.add(Drift(kind, text, order, first, last, mended=mended))


def _value(row: Row) -> str:
    return f"{row['kind']}|{row['body']}"


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "…")


def _runs(raws: Sequence[Raw]) -> list[list[Raw]]:
    """The same in pieces without a gap between their seqs."""
    runs: list[list[Raw]] = []
    for raw in raws:
        if runs and raw.seq == runs[-1][-1].seq + 1:
            runs[-1].append(raw)
        else:
            runs.append([raw])
    return runs


def _row_runs(rows: Sequence[Row]) -> list[list[Row]]:
    runs: list[list[Row]] = []
    for row in rows:
        if runs and row["seq"] == runs[-1][-1]["seq"] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
