"""Events: the ledger's against the stream's, and the orders' rows against the ledger's own events.

Every event up to the seq that was waited for must be in the ledger, but for dead letters and for
the gap that a rebuild leaves. The stream may begin later, where a trim has left off. Events past
that seq which both have must be the same: where they are not to the end, the sale has forked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from seckill.errors import SeckillError
from seckill.ledger.drift import Drift, DriftKind, Drifts
from seckill.ledger.reconcile_history import (
    History,
    SaleStory,
    TwoStories,
    left_out_after,
)
from seckill.ledger.reconcile_orders import Judge
from seckill.ledger.reconcile_rows import row_differs
from seckill.ledger.reconcile_sides import LedgerSide, RedisSide, is_rebuilt
from seckill.ledger.rows import (
    Known,
    Raw,
    event_row,
    newest_orders,
    order_row,
    raw_event,
)
from seckill.stream import SALE_SUBJECT

__all__ = ["EventComparison"]

SEQ_MAX: Final = 2**62

Row = dict[str, Any]

_RAW: Final = ("seq", "at_ms", "kind", "subject", "body")


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
        self._story = SaleStory()
        self._whole = True
        self._last_ms = 0
        self._ahead: dict[str, int] = {}
        self._two = TwoStories(drifts)
        # Those that only the stream has; a fork, if it is one, says all there is to say of them.
        self._after_fork: list[tuple[int, int]] = []
        self.stream_from = 0
        """The first event that the stream has; 0 when it is empty."""
        self._rebuilt = False

    async def run(self, through: int, upto: int) -> History:
        """Compares everything up to and including ``through``, and up to ``upto`` what both sides
        have."""
        at = 1
        beyond: Raw | None = None
        async for raws in self._redis.events():
            if not self.stream_from:
                self.stream_from = raws[0].seq
                self._rebuilt = is_rebuilt(raws[0])
            beyond = beyond or next((raw for raw in raws if raw.seq > through), None)
            for run in _runs([raw for raw in raws if raw.seq <= through]):
                if run[0].seq > at:
                    await self._gap(at, run[0].seq - 1, before=run[0])
                again = [raw for raw in run if raw.seq < at]
                if again:
                    text = f"the stream has it again, as {_shown(again[0].value)}"
                    self._add(DriftKind.EVENT_DIFFERS, again[0].seq, again[-1].seq, text)
                if len(again) == len(run):
                    continue
                await self._run(run[len(again) :])
                at = run[-1].seq + 1
                self._progress(at - 1)
            later = [raw for raw in raws if through < raw.seq <= upto]
            if later:
                await self._compare_both(later)
            if raws[-1].seq >= upto:
                break
        if at <= through:
            await self._gap(at, through, before=beyond)
        self._two.finish()
        await self._follow_up(through)
        after = f"{self._last_ms}-{through + 1}"
        return History(self._story, self._whole, after)

    @property
    def forked(self) -> bool:
        """Whether the two sides differ from some event to the last that both have."""
        return self._two.forked

    async def _compare_both(self, raws: Sequence[Raw]) -> None:
        """Events that the ledger need not have."""
        there = await self._rows(raws[0].seq, raws[-1].seq)
        for raw in raws:
            if raw.seq in there:
                self._is_same(raw, there[raw.seq])

    async def _rows(self, first: int, last: int) -> dict[int, Row]:
        there: dict[int, Row] = {}
        while first <= last:
            rows = await self._book.events(first, last)
            there |= {row["seq"]: row for row in rows}
            first = rows[-1]["seq"] + 1 if rows else last + 1
        return there

    def _is_same(self, raw: Raw, row: Row) -> bool:
        if row == self._row_of(raw):
            self._two.same()
            for first, last in self._after_fork:
                text = "the stream has what the ledger lacks"
                self._add(DriftKind.EVENT_MISSING_IN_LEDGER, first, last, text)
            self._after_fork.clear()
            return True
        text = f"the stream says {_shown(raw.value)}, the ledger {_shown(_value(row))}"
        order = "" if raw.subject == SALE_SUBJECT else raw.subject
        self._two.differ(Drift(DriftKind.EVENT_DIFFERS, text, order, raw.seq, raw.seq))
        for subject in {raw.subject, row["subject"]}:
            self._judge.disputed.add(subject)
        # Nobody can say what it was.
        self._judge.differing.add(raw.seq)
        self._judge.gaps.lose_known(raw.seq, {raw.subject, row["subject"]})
        self._whole = False
        return False

    # -- what the stream has ------------------------------------------------------------------

    async def _run(self, raws: Sequence[Raw]) -> None:
        """Events without a gap in the stream."""
        there = await self._rows(raws[0].seq, raws[-1].seq)
        missing, same = [], []
        for raw in raws:
            row = there.get(raw.seq)
            if row is None:
                missing.append(raw)
            elif self._is_same(raw, row):
                same.append(row)
        self._last_ms = raws[-1].at_ms
        await self._look_at(same)
        await self._take_over([raw for raw in missing if raw.seq not in self._letters])
        refused = [raw for raw in missing if raw.seq in self._letters]
        self._whole &= not refused
        for raw in refused:
            self._judge.gaps.lose_known(raw.seq, [raw.subject])

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
        since = self._two.since
        good = [raw for raw in raws if not since or raw.seq < since]
        if self._fix and good:
            mended, said = await self._mend(good)
            problem = said or problem
        for raw in raws:
            if raw.seq not in mended:
                self._judge.gaps.lose_known(raw.seq, [raw.subject])
        for raw in raws[len(good) :]:
            if self._after_fork and self._after_fork[-1][1] + 1 == raw.seq:
                self._after_fork[-1] = (self._after_fork[-1][0], raw.seq)
            else:
                self._after_fork.append((raw.seq, raw.seq))
        self._whole &= len(mended) == len(raws)
        self._tell_missing(good, mended, problem)
        written = [event_row(self._known.sale.id, raw) for raw in good if raw.seq in mended]
        await self._look_at(written)

    def _tell_missing(self, raws: Sequence[Raw], mended: set[int], problem: str) -> None:
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
                    self._lost(at, run[0]["seq"] - 1, left_out_after(run[0]))
                at = run[-1]["seq"] + 1
                self._judge.gaps.only_here(run[0]["seq"], at - 1)
                start = max(run[0]["seq"], trimmed + 1)
                if start < at:
                    text = "the ledger has what the stream has lost"
                    self._add(DriftKind.EVENT_MISSING_IN_STREAM, start, at - 1, text)
            if not rows:
                self._lost(at, last, left_out_after(before and self._row_of(before)))
                at = last + 1
            else:
                self._last_ms = rows[-1]["at_ms"]
            await self._look_at(rows)
            self._progress(at - 1)

    def _lost(self, first: int, last: int, left_out_after: int | None) -> None:
        """Events that are nowhere. A rebuild that follows has left out those after the last that
        the ledger had then; all before it must be there."""
        if left_out_after is not None:
            last = min(last, left_out_after)
        if first > last:
            return
        self._whole = False
        self._judge.gaps.lose(first, last)
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
        for order, said in newest.items():
            if order in there and there[order]["version"] > said["version"]:
                self._ahead[order] = there[order]["version"]
            else:
                self._ahead.pop(order, None)
        await self._judge.add(
            [order for order, row in newest.items() if row_differs(row, there.get(order))],
            by_history=True,
        )

    async def _follow_up(self, through: int) -> None:
        """Rows of a later version than the events that were compared: an event that has come since
        must have led to it."""
        while self._ahead:
            rows = await self._book.events(through + 1, SEQ_MAX)
            if not rows:
                break
            through = rows[-1]["seq"]
            raws = [raw for row in rows if (raw := self._readable(row)) is not None]
            for said in newest_orders(self._known, raws):
                if said["version"] >= self._ahead.get(said["id"], 0):
                    self._ahead.pop(said["id"], None)
        await self._judge.add(list(self._ahead), by_history=True)

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
        self._judge.gaps.lose(seq, seq)

    def _follow(self, raw: Raw) -> None:
        """In any order: what was missing and is there now comes after the others."""
        try:
            self._story.tell(self._known, raw)
        except (LookupError, ValueError) as error:
            self._unreadable(raw.seq, error)

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
