"""Orders: what looks different at first is looked at again, and then it has a name or was nothing.

An order's versions only move up, and what one version reads never changes. So the order in which
the sides are read decides, and a running sale raises no alarm:

    Redis before   what the ledger must have, once it has caught up with that moment
    the ledger     the order's row, its events, and the row again
    Redis after    what is at least as new as anything in the ledger

The order's events decide: the row is compared with them, and so is Redis' record, each by itself.
Where events are lost, one that is further than they are may be right, if so many are missing; and
then it is the row and the record that are compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import update

from seckill.ledger.database import our_errors
from seckill.ledger.drift import Drift, DriftKind, Drifts
from seckill.ledger.reconcile_sides import PART, LedgerSide, RedisSide
from seckill.ledger.rows import Known, Raw, newest_orders, order_of, order_row, raw_event
from seckill.ledger.statements import put_orders
from seckill.ledger.tables import ORDERS
from seckill.order import STATES

__all__ = ["Judge", "is_row_of_record", "row_differs"]

Row = dict[str, Any]

ROUNDS: Final = 5
# What a row says of the order itself, beside when it was reserved and with which attrs.
_COLUMNS: Final = tuple(
    column.name for column in ORDERS.columns if column.name not in ("held_ms", "attrs")
)
_MISSING: Final = (DriftKind.ORDER_MISSING_IN_LEDGER, DriftKind.ORDER_BEHIND_IN_LEDGER)


def row_differs(said: Row, row: Row | None) -> bool:
    """Whether an order's row is not what some of its events say; ``said`` is made of those. A row
    of a higher version may be."""
    if row is None or row["version"] < said["version"]:
        return True
    if said["held_ms"] and (said["held_ms"], said["attrs"]) != (row["held_ms"], row["attrs"]):
        return True
    if row["version"] > said["version"]:
        # Only the number was changed.
        return bool(row["record"] == said["record"])
    return any(row[name] != said[name] for name in _COLUMNS)


def record_row(known: Known, order: str, record: str) -> Row:
    """An order's row as far as its record alone tells it: not when it was reserved or changed, nor
    its attrs. Raises LookupError or ValueError for a damaged one."""
    # Any word but "held" lets a whole record follow.
    return order_row(known, Raw(0, 0, order, f"record||{record}"), {})


def is_row_of_record(known: Known, row: Row) -> bool:
    """Whether a row says what its own record does."""
    try:
        right = record_row(known, row["id"], row["record"])
    except (LookupError, ValueError):
        return False
    return all(row[name] == right[name] for name in _COLUMNS if name != "changed_ms")


class _Sides(NamedTuple):
    """What there is of an order: Redis' record before and after, its row, and what its ``events``
    make of it, the last of which was ``seq``."""

    order: str
    before: str | None
    now: str | None
    row: Row | None
    said: Row | None
    seq: int


class _Finding(NamedTuple):
    """A drift, and the row that mends it, where there is one, with where that is from."""

    drift: Drift
    right: Row | None = None
    source: str = ""


_BY_EVENTS: Final = "from the ledger's own events"
_BY_RECORD: Final = "from Redis' record"


class Judge:
    """Decides on the orders that are brought before it, ``PART`` at a time.

    ``catch_up`` waits until the ledger has what Redis has now, and says whether it got there.
    Those for which it has to be known which events are lost wait until ``finish``.
    """

    def __init__(
        self,
        redis: RedisSide,
        book: LedgerSide,
        known: Known,
        drifts: Drifts,
        *,
        subjects: Iterable[str],
        fix: bool,
        catch_up: Callable[[], Awaitable[bool]],
    ) -> None:
        self._redis = redis
        self._book = book
        self._known = known
        self._drifts = drifts
        self._subjects = frozenset(subjects)
        self._fix = fix
        self._catch_up = catch_up
        self._waiting: set[str] = set()
        self._by_history: set[str] = set()
        self._named: set[str] = set()
        self._later: set[str] = set()
        self._lost: list[tuple[int, int]] = []
        self._all_events = False
        # Events that differ, and their orders: nobody knows what is right.
        self.differing: set[int] = set()
        self.disputed: set[str] = set()
        self.unjudged = 0
        """Orders that the ledger may be about to write, which it could not be waited for."""

    def lose(self, first: int, last: int) -> None:
        """Notes events that the ledger does not have."""
        if self._lost and self._lost[-1][1] + 1 == first:
            first = self._lost.pop()[0]
        self._lost.append((first, last))

    def is_lost(self, seq: int) -> bool:
        """Whether the ledger does not have this event, or another one."""
        return any(first <= seq <= last for first, last in self._lost)

    async def add(self, orders: Collection[str], *, by_history: bool = False) -> None:
        """Brings orders that look different; ``by_history``: to the ledger's own events."""
        self._waiting.update(order for order in orders if order not in self._named)
        if by_history:
            self._by_history.update(orders)
        if len(self._waiting) >= PART:
            await self.flush()

    async def finish(self) -> None:
        """All events were compared, so it is known which are lost."""
        await self.flush()
        self._all_events = True
        later, self._later = self._later, set()
        await self.add(later, by_history=True)
        await self.flush()

    async def flush(self) -> None:
        """Decides on all that wait."""
        orders = sorted(self._waiting)
        by_history, self._by_history = self._by_history, set()
        self._waiting.clear()
        for start in range(0, len(orders), PART):
            await self._judge(orders[start : start + PART], by_history)

    async def _judge(self, orders: list[str], by_history: set[str]) -> None:
        before = await self._redis.records(orders)
        caught_up = await self._catch_up()
        records = await self._book.records(orders)
        now = await self._redis.records(orders)
        # Most have only been on their way, and need no look at their history.
        rest = [
            order
            for order in orders
            if order in by_history or now.get(order) != records.get(order) or order not in now
        ]
        for _ in range(ROUNDS):
            if not rest:
                return
            rest = await self._look(rest, before, caught_up=caught_up)

    async def _look(
        self, orders: list[str], before: dict[str, str], *, caught_up: bool
    ) -> list[str]:
        """Names what can be named. Returns those that have changed while they were looked at."""
        rows = await self._book.rows(orders)
        said = self._said(await self._book.history(orders))
        again = await self._book.rows(orders)
        now = await self._redis.records(orders)
        moving = []
        for order in orders:
            row = rows.get(order)
            if row != again.get(order):
                moving.append(order)
                continue
            events = said.get(order, (None, 0))
            sides = _Sides(order, before.get(order), now.get(order), row, *events)
            if not self._all_events and self._is_ahead(sides):
                self._later.add(order)
                continue
            for finding in self._name(sides, caught_up=caught_up):
                await self._found(finding, sides)
        return moving

    def _said(self, history: dict[str, list[Row]]) -> dict[str, tuple[Row, int]]:
        """The orders' rows as the ledger's own events would have them, and the last of those."""
        said: dict[str, tuple[Row, int]] = {}
        for order, rows in history.items():
            raws = []
            for row in rows:
                try:
                    raw = raw_event(*(row[n] for n in ("seq", "at_ms", "kind", "subject", "body")))
                    order_row(self._known, raw, {})
                except (LookupError, ValueError):
                    continue  # Named by the comparison of the events.
                raws.append(raw)
            if raws:
                [newest] = newest_orders(self._known, raws)
                said[order] = newest, raws[-1].seq
        return said

    # -- naming -------------------------------------------------------------------------------

    def _is_ahead(self, sides: _Sides) -> bool:
        """Whether row or record are of a higher version than any event that is here."""
        by_events = sides.said["version"] if sides.said else 0
        version = sides.row["version"] if sides.row else 0
        return max(version, self._version(sides.order, sides.now) or 0) > by_events

    def _is_explained(self, sides: _Sides, version: int) -> bool:
        """Whether enough events are lost to have led to this version."""
        by_events = sides.said["version"] if sides.said else 0
        later = sum(max(0, last - max(first, sides.seq + 1) + 1) for first, last in self._lost)
        return sides.order in self.disputed or later >= version - by_events

    def _name(self, sides: _Sides, *, caught_up: bool) -> list[_Finding]:
        """What is wrong with an order on either side."""
        order, before, now, row, said, _ = sides
        in_redis = self._version(order, now)
        if in_redis is None:
            unreadable = _Finding(self._drift(DriftKind.ORDER_UNREADABLE, sides))
            return [unreadable, *(self._name_row(sides) if said is not None else [])]
        seen = self._version(order, before) or 0
        by_events = said["version"] if said else 0
        if now is not None and seen > by_events and not caught_up:
            # Its event may be in the stream, and the ledger about to write it. Events without a
            # row are another thing: both are written at once.
            if row is None and said is None:
                self.unjudged += order not in self._subjects
                return []
            self.unjudged += row is not None and row["version"] < seen
            return self._name_row(sides) if said is not None else []
        if seen > by_events and not self._is_explained(sides, seen):
            forged = _Finding(self._drift(DriftKind.ORDER_FORGED, sides))
            return [forged, *self._name_row(sides)]
        if seen > by_events or said is None or order in self.disputed:
            return self._name_both(sides, in_redis, seen)
        found = self._name_row(sides)
        if now is None:
            found.append(_Finding(self._drift(DriftKind.ORDER_MISSING_IN_REDIS, sides)))
        elif in_redis < by_events:
            found.append(_Finding(self._drift(DriftKind.ORDER_BEHIND_IN_REDIS, sides)))
        elif in_redis == by_events and now != said["record"]:
            found.append(_Finding(self._drift(DriftKind.ORDER_FORGED, sides)))
        return found

    def _name_row(self, sides: _Sides) -> list[_Finding]:
        """What is wrong with the row, by the order's events."""
        _, _, now, row, said, _ = sides
        if row is None:
            if said is None:
                return []
            drift = self._drift(DriftKind.ORDER_MISSING_IN_LEDGER, sides)
            return [_Finding(drift, dict(said), _BY_EVENTS)]
        if said is None:
            if self._is_explained(sides, row["version"]):
                return []
            text = "no event has led to this row; whoever wrote it must take it out"
            return [_Finding(Drift(DriftKind.ORDER_ROW_DIFFERS, text, sides.order))]
        if row["version"] > said["version"] and self._is_explained(sides, row["version"]):
            if row["record"] != said["record"] and now == row["record"]:
                return self._by_its_record(sides)
            if (self._version(sides.order, now) or 0) >= row["version"]:
                return []
        if row["version"] == said["version"] and not row_differs(said, row):
            return []
        return [_Finding(self._drift(DriftKind.ORDER_ROW_DIFFERS, sides), dict(said), _BY_EVENTS)]

    def _name_both(self, sides: _Sides, in_redis: int, seen: int) -> list[_Finding]:
        """The row against Redis' record: the events that would decide are lost."""
        order, _, now, row, said, _ = sides
        version = row["version"] if row else 0
        if now is None:
            of_row = self._name_row(sides)
            if row is None or (said is None and of_row):
                return of_row
            return [_Finding(self._drift(DriftKind.ORDER_MISSING_IN_REDIS, sides)), *of_row]
        if row is None:
            if order in self._subjects or not seen:
                return []
            return [self._from_record(DriftKind.ORDER_MISSING_IN_LEDGER, sides)]
        if in_redis < version:
            return [_Finding(self._drift(DriftKind.ORDER_BEHIND_IN_REDIS, sides))]
        if in_redis == version and row["record"] != now:
            return [_Finding(self._drift(DriftKind.ORDER_DIFFERS, sides))]
        if version < seen:
            if order in self._subjects:
                return []
            return [self._from_record(DriftKind.ORDER_BEHIND_IN_LEDGER, sides)]
        return self._by_its_record(sides) if row["record"] == now else []

    def _by_its_record(self, sides: _Sides) -> list[_Finding]:
        """A row that has Redis' record, and may still say something else in its other columns."""
        if sides.row is None or is_row_of_record(self._known, sides.row):
            return []
        finding = self._from_record(DriftKind.ORDER_ROW_DIFFERS, sides)
        text = "the row is not what its record says"
        return [finding._replace(drift=Drift(finding.drift.kind, text, sides.order))]

    def _from_record(self, kind: DriftKind, sides: _Sides) -> _Finding:
        drift = self._drift(kind, sides)
        if sides.order in self.disputed or sides.now is None:
            return _Finding(drift)
        right = record_row(self._known, sides.order, sides.now)
        if sides.row is not None and sides.row["record"] == sides.now:
            right["changed_ms"] = sides.row["changed_ms"]
        for each in (sides.said, sides.row):
            if each is not None:
                right["held_ms"] = right["held_ms"] or each["held_ms"]
                right["attrs"] = right["attrs"] or each["attrs"]
        return _Finding(drift, right, _BY_RECORD)

    def _version(self, order: str, record: str | None) -> int | None:
        """A record's version, 0 for none, None for one that can't be read."""
        if record is None:
            return 0
        try:
            return order_of(self._known, order, record).version
        except (LookupError, ValueError):
            return None

    def _drift(self, kind: DriftKind, sides: _Sides) -> Drift:
        order, _, now, row, said, _ = sides
        quoted = (DriftKind.ORDER_DIFFERS, DriftKind.ORDER_FORGED, DriftKind.ORDER_UNREADABLE)
        shown = _quoted if kind in quoted else _shown
        if kind is DriftKind.ORDER_ROW_DIFFERS and row and said:
            names = [name for name in said if row[name] != said[name]]
            text = f"its events say {_shown(said['record'])}; the row differs in "
            text += ", ".join(names)
        elif said is not None:
            ledger = "its row too" if row is not None and row["record"] == now else "not so its row"
            text = f"Redis: {shown(now)}; its events: {shown(said['record'])}"
            text += f" ({ledger})" if kind is DriftKind.ORDER_FORGED else ""
        else:
            text = f"Redis: {shown(now)}; ledger: {shown(row['record'] if row else None)}"
        return Drift(kind, text, order)

    # -- mending ------------------------------------------------------------------------------

    async def _found(self, finding: _Finding, sides: _Sides) -> None:
        drift = finding.drift
        if drift.kind in _MISSING and drift.order in self._subjects:
            return
        if drift.kind is DriftKind.ORDER_FORGED:
            # An event that the ledger has refused since we looked may have led to it.
            letters = await self._redis.letters()
            if drift.order in {subject for subject, _ in letters.values()}:
                return
        self._named.add(drift.order)
        if self._fix and finding.right is not None and await self._mend(finding.right, sides.row):
            text = f"written {finding.source} ({drift.text})"
            drift = Drift(drift.kind, text, drift.order, mended=True)
        self._drifts.add(drift)

    async def _mend(self, right: Row, row: Row | None) -> bool:
        """Writes the row. False: somebody else has written it since."""
        await self._put(right, row)
        there = (await self._book.rows([right["id"]])).get(right["id"])
        return not row_differs(right, there)

    async def _put(self, right: Row, row: Row | None) -> None:
        with our_errors():
            async with self._book.ledger.engine.begin() as connection:
                if row is None:
                    await put_orders(connection, [right])
                    return
                # Only if it is still the row that was judged: a consumer may have moved it up.
                key = (ORDERS.c[name] == row[name] for name in ("sale", "id", "version", "record"))
                await connection.execute(update(ORDERS).where(*key).values(right))


def _shown(record: str | None) -> str:
    """What a record says, in short; the whole of it when it is none."""
    if record is None or record[:1] not in STATES or not record[1:2].isalnum():
        return _quoted(record)
    return f"{STATES[record[0]]} (version {int(record[1], 36)})"


def _quoted(record: str | None) -> str:
    return "nothing" if record is None else repr(record if len(record) <= 90 else record[:87] + "…")
