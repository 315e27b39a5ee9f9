"""Orders: what looks different at first is looked at again, and then it has a name or was nothing.

An order's versions only move up, and what one version reads never changes. So the order in which
the sides are read decides, and a running sale raises no alarm:

    Redis before   what the ledger must have, once it has caught up with that moment
    the ledger     the order's row, its events, and the row again
    Redis after    what is at least as new as anything in the ledger

The order's events decide: the row is compared with them, and so is Redis' record, each by itself.
Where events are lost, one that is further than they are may be right, if so many are missing for it
and for all the others together; and then it is the row and the record that are compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import update

from seckill.ledger.database import our_errors
from seckill.ledger.drift import Drift, DriftKind, Drifts
from seckill.ledger.reconcile_gaps import Claim, Gaps
from seckill.ledger.reconcile_rows import (
    Sides,
    drift_of,
    is_row_of_record,
    made_of,
    record_row,
    row_differs,
)
from seckill.ledger.reconcile_sides import PART, LedgerSide, RedisSide
from seckill.ledger.rows import Known, order_of
from seckill.ledger.statements import put_orders
from seckill.ledger.tables import ORDERS

__all__ = ["Judge"]

Row = dict[str, Any]

ROUNDS: Final = 5
_MISSING: Final = (DriftKind.ORDER_MISSING_IN_LEDGER, DriftKind.ORDER_BEHIND_IN_LEDGER)


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
        self._claiming: set[str] = set()
        self._settled = False
        self._all_fit = True
        self._asked = ""
        self.gaps = Gaps()
        self._all_events = False
        # Events that differ, and their orders: nobody knows what is right.
        self.differing: set[int] = set()
        self.disputed: set[str] = set()
        self.unjudged = 0
        """Orders that the ledger may be about to write, which it could not be waited for."""

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

    async def settle(self) -> None:
        """All orders were compared, so it is known what the lost events would have to explain."""
        await self.flush()
        self._settled, self._all_fit = True, self.gaps.fit()
        self._asked = (
            f"the events that are lost, {self.gaps.room(0):,}, can't explain all the records"
        )
        self._asked += f" that are further than theirs, {self.gaps.claimed:,} versions"
        await self.add(self._claiming, by_history=True)
        await self.flush()

    async def proven(self, orders: Collection[str]) -> set[str]:
        """Those whose record in Redis is what the ledger's row and its events both say."""
        await self._catch_up()
        listed, found = sorted(orders), set[str]()
        for start in range(0, len(listed), PART):
            part = listed[start : start + PART]
            said = made_of(self._known, await self._book.history(part))
            rows, now = await self._book.records(part), await self._redis.records(part)
            for order in part:
                row, _, _ = said.get(order, ({"record": None}, 0, 0))
                is_same = now.get(order) == rows.get(order) == row["record"]
                if order in now and is_same and order not in self.disputed | self._named:
                    found.add(order)
        return found

    def is_named(self, order: str) -> bool:
        """Whether something is wrong with this order."""
        return order in self._named or order in self.disputed or order in self._subjects

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
        said = made_of(self._known, await self._book.history(orders))
        again = await self._book.rows(orders)
        now = await self._redis.records(orders)
        moving = []
        for order in orders:
            row = rows.get(order)
            if row != again.get(order):
                moving.append(order)
                continue
            events = said.get(order, (None, 0, 0))
            sides = Sides(order, before.get(order), now.get(order), row, *events)
            if not self._all_events and (self._is_ahead(sides) or self._stands_alone(sides)):
                self._later.add(order)
                continue
            if self._all_events and self._claims(sides, caught_up=caught_up):
                self._claiming.add(order)
                continue
            for finding in self._name(sides, caught_up=caught_up):
                await self._found(finding, sides)
        return moving

    # -- naming -------------------------------------------------------------------------------

    def _is_ahead(self, sides: Sides) -> bool:
        """Whether row or record are of a higher version than any event that is here."""
        by_events = sides.said["version"] if sides.said else 0
        version = sides.row["version"] if sides.row else 0
        return max(version, self._version(sides.order, sides.now) or 0) > by_events

    def _is_explained(self, sides: Sides, version: int) -> bool:
        """Whether enough events are lost to have led to this version."""
        by_events = sides.said["version"] if sides.said else 0
        later = self.gaps.room(sides.seq) + self.gaps.known(sides.order, sides.seq)
        return sides.order in self.disputed or later >= version - by_events

    def _claims(self, sides: Sides, *, caught_up: bool) -> bool:
        """Notes how many lost events this order needs. Whether that is for its record in Redis, and
        has to wait until all are known."""
        if self._settled or sides.order in self.disputed:
            return False
        by_events = sides.said["version"] if sides.said else 0
        version = sides.row["version"] if sides.row else 0
        seen = (self._version(sides.order, sides.before) or 0) if caught_up else 0
        of_row, in_all = (
            each - by_events if each > by_events and self._is_explained(sides, each) else 0
            for each in (version, max(version, seen))
        )
        beyond = max(0, in_all - of_row)
        self.gaps.claim(sides.order, Claim(sides.seq, of_row, beyond))
        return self.gaps.needs(sides.order)

    def _is_one_too_many(self, sides: Sides, seen: int) -> bool:
        """Whether it would need a lost event that it can't be granted: more want one than there
        are, or it has only come to want one since they were counted."""
        by_events = sides.said["version"] if sides.said else 0
        version = sides.row["version"] if sides.row else 0
        if not self._settled or sides.order in self.disputed or seen <= max(by_events, version):
            return False
        if seen - by_events <= self.gaps.known(sides.order, sides.seq):
            return False
        return not self._all_fit or not self.gaps.needs(sides.order)

    def _stands_alone(self, sides: Sides) -> bool:
        """Whether row and record agree with each other, and the order's events say otherwise."""
        _, _, now, row, said, _, _ = sides
        return (
            (now is not None and row is not None and said is not None)
            and row["record"] == now != said["record"]
            and is_row_of_record(self._known, row)
        )

    def _name(self, sides: Sides, *, caught_up: bool) -> list[_Finding]:
        """What is wrong with an order on either side."""
        order, before, now, row, said, _, newest = sides
        in_redis = self._version(order, now)
        if in_redis is None:
            unreadable = _Finding(drift_of(DriftKind.ORDER_UNREADABLE, sides))
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
        # An event of the ledger that can't be held against the stream proves nothing against both.
        is_alone = self._stands_alone(sides) and self.gaps.is_only_here(newest)
        if seen > by_events and not self._is_explained(sides, seen):
            forged = _Finding(drift_of(DriftKind.ORDER_FORGED, sides))
            return [forged] if is_alone else [forged, *self._name_row(sides)]
        if self._is_one_too_many(sides, seen):
            drift = drift_of(DriftKind.ORDER_FORGED, sides)
            return [_Finding(Drift(drift.kind, f"{drift.text}; {self._asked}", order))]
        if is_alone and seen <= by_events and order not in self.disputed:
            drift = drift_of(DriftKind.EVENT_DIFFERS, sides)
            return [_Finding(Drift(drift.kind, drift.text, order, newest, newest))]
        if seen > by_events or said is None or order in self.disputed:
            return self._name_both(sides, in_redis, seen)
        found = self._name_row(sides)
        if now is None:
            found.append(_Finding(drift_of(DriftKind.ORDER_MISSING_IN_REDIS, sides)))
        elif in_redis < by_events:
            found.append(_Finding(drift_of(DriftKind.ORDER_BEHIND_IN_REDIS, sides)))
        elif in_redis == by_events and now != said["record"]:
            found.append(_Finding(drift_of(DriftKind.ORDER_FORGED, sides)))
        return found

    def _name_row(self, sides: Sides) -> list[_Finding]:
        """What is wrong with the row, by the order's events."""
        _, _, now, row, said, _, _ = sides
        if row is None:
            if said is None:
                return []
            drift = drift_of(DriftKind.ORDER_MISSING_IN_LEDGER, sides)
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
        return [_Finding(drift_of(DriftKind.ORDER_ROW_DIFFERS, sides), dict(said), _BY_EVENTS)]

    def _name_both(self, sides: Sides, in_redis: int, seen: int) -> list[_Finding]:
        """The row against Redis' record: the events that would decide are lost."""
        order, _, now, row, said, _, _ = sides
        version = row["version"] if row else 0
        if now is None:
            of_row = self._name_row(sides)
            if row is None or (said is None and of_row):
                return of_row
            return [_Finding(drift_of(DriftKind.ORDER_MISSING_IN_REDIS, sides)), *of_row]
        if row is None:
            if order in self._subjects or not seen:
                return []
            return [self._from_record(DriftKind.ORDER_MISSING_IN_LEDGER, sides)]
        if in_redis < version:
            return [_Finding(drift_of(DriftKind.ORDER_BEHIND_IN_REDIS, sides))]
        if in_redis == version and row["record"] != now:
            return [_Finding(drift_of(DriftKind.ORDER_DIFFERS, sides))]
        if version < seen:
            if order in self._subjects:
                return []
            return [self._from_record(DriftKind.ORDER_BEHIND_IN_LEDGER, sides)]
        return self._by_its_record(sides) if row["record"] == now else []

    def _by_its_record(self, sides: Sides) -> list[_Finding]:
        """A row that has Redis' record, and may still say something else in its other columns."""
        if sides.row is None or is_row_of_record(self._known, sides.row):
            return []
        finding = self._from_record(DriftKind.ORDER_ROW_DIFFERS, sides)
        text = "the row is not what its record says"
        return [finding._replace(drift=Drift(finding.drift.kind, text, sides.order))]

    def _from_record(self, kind: DriftKind, sides: Sides) -> _Finding:
        drift = drift_of(kind, sides)
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

    # -- mending ------------------------------------------------------------------------------

    async def _found(self, finding: _Finding, sides: Sides) -> None:
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
