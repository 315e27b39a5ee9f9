"""Orders: what looks different at first is looked at again, and then it has a name or was nothing.

An order's versions only move up, and what one version reads never changes. So the order in which
the sides are read decides, and a running sale raises no alarm:

    Redis before   what the ledger must have, once it has caught up with that moment
    the ledger     the order's row, its events, and the row again
    Redis after    what is at least as new as anything in the ledger
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final

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
_MENDABLE: Final = (*_MISSING, DriftKind.ORDER_ROW_DIFFERS)


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


class Judge:
    """Decides on the orders that are brought before it, ``PART`` at a time.

    ``catch_up`` waits until the ledger has what Redis has now, and says whether it got there.
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
        self.unjudged = 0
        """Orders that the ledger may be about to write, which it could not be waited for."""

    async def add(self, orders: Collection[str], *, by_history: bool = False) -> None:
        """Brings orders that look different; ``by_history``: to the ledger's own events."""
        self._waiting.update(order for order in orders if order not in self._named)
        if by_history:
            self._by_history.update(orders)
        if len(self._waiting) >= PART:
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
            drift = self._name(order, before.get(order), row, said.get(order), now.get(order))
            if drift is None or (drift.kind in _MISSING and order in self._subjects):
                continue
            if drift.kind in _MISSING and not caught_up and not (said.get(order) and row is None):
                # The ledger may be about to write it. Its events without a row are another thing:
                # both are written at once.
                self.unjudged += 1
            else:
                await self._found(drift, row, said.get(order), now.get(order))
        return moving

    def _said(self, history: dict[str, list[Row]]) -> dict[str, Row]:
        """The orders' rows as the ledger's own events would have them."""
        said: dict[str, Row] = {}
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
                [said[order]] = newest_orders(self._known, raws)
        return said

    # -- naming -------------------------------------------------------------------------------

    def _name(
        self, order: str, before: str | None, row: Row | None, said: Row | None, now: str | None
    ) -> Drift | None:
        """What is wrong with an order, given what each side holds of it."""
        in_redis = self._version(order, now)
        if in_redis is None:
            return self._drift(DriftKind.ORDER_UNREADABLE, order, row, now)
        version = row["version"] if row else 0
        by_events = said["version"] if said else 0
        if now is None:
            if not row and not said:
                return None
            return self._drift(DriftKind.ORDER_MISSING_IN_REDIS, order, row, now)
        if row is None:
            kind = DriftKind.ORDER_MISSING_IN_LEDGER
            if by_events <= in_redis:
                return self._drift(kind, order, row, now)
            return self._drift(DriftKind.ORDER_BEHIND_IN_REDIS, order, said, now)
        if said is not None and self._is_against_events(row, said, in_redis, now):
            return self._drift(DriftKind.ORDER_ROW_DIFFERS, order, row, now, said)
        if in_redis < max(version, by_events):
            newer = row if version >= by_events or said is None else said
            return self._drift(DriftKind.ORDER_BEHIND_IN_REDIS, order, newer, now)
        if in_redis == version and row["record"] != now:
            return self._drift(DriftKind.ORDER_DIFFERS, order, row, now, said)
        if version < (self._version(order, before) or 0):
            return self._drift(DriftKind.ORDER_BEHIND_IN_LEDGER, order, row, now)
        if row["record"] == now and not is_row_of_record(self._known, row):
            # Those of its events that would say so are missing.
            return Drift(DriftKind.ORDER_ROW_DIFFERS, "the row is not what its record says", order)
        return None

    def _is_against_events(self, row: Row, said: Row, in_redis: int, now: str) -> bool:
        """Whether the row is not what its events say, while Redis does not contradict them."""
        if in_redis < said["version"] or (in_redis == said["version"] and now != said["record"]):
            return False
        if row["version"] > said["version"]:
            # An event is missing, unless Redis does not know of this version either.
            return bool(in_redis < row["version"])
        return row_differs(said, row)

    def _version(self, order: str, record: str | None) -> int | None:
        """A record's version, 0 for none, None for one that can't be read."""
        if record is None:
            return 0
        try:
            return order_of(self._known, order, record).version
        except (LookupError, ValueError):
            return None

    def _drift(
        self, kind: DriftKind, order: str, row: Row | None, now: str | None, said: Row | None = None
    ) -> Drift:
        shown = _shown
        if kind in (DriftKind.ORDER_DIFFERS, DriftKind.ORDER_UNREADABLE):
            shown = _quoted
        text = f"Redis: {shown(now)}; ledger: {shown(row['record'] if row else None)}"
        if kind is DriftKind.ORDER_ROW_DIFFERS and row and said:
            names = [name for name in said if row[name] != said[name]]
            text = f"its events say {_shown(said['record'])}; the row differs in {', '.join(names)}"
        elif kind is DriftKind.ORDER_DIFFERS and said and row:
            agrees = "the ledger's row" if said["record"] == row["record"] else "neither"
            agrees = "Redis" if said["record"] == now else agrees
            text += f"; the ledger's events agree with {agrees}"
        return Drift(kind, text, order)

    # -- mending ------------------------------------------------------------------------------

    async def _found(
        self, drift: Drift, row: Row | None, said: Row | None, now: str | None
    ) -> None:
        self._named.add(drift.order)
        mended = ""
        if self._fix and drift.kind in _MENDABLE and now is not None:
            mended = await self._mend(drift, row, said, now)
        if mended:
            drift = Drift(drift.kind, f"{mended} ({drift.text})", drift.order, mended=True)
        self._drifts.add(drift)

    async def _mend(self, drift: Drift, row: Row | None, said: Row | None, now: str) -> str:
        """Writes the row as its events, or else Redis, have it. Says from where; "" if it could not
        be done, because somebody else has written it since."""
        in_redis = self._version(drift.order, now) or 0
        by_events = said["version"] if said else 0
        is_same = row is not None and row["record"] == now
        if said is not None and (
            by_events == in_redis and said["record"] == now
            if drift.kind in _MISSING
            else not is_same or by_events == in_redis
        ):
            right, source = dict(said), "from the ledger's own events"
        elif in_redis > by_events:
            right, source = record_row(self._known, drift.order, now), "from Redis' record"
            if row is not None and is_same:
                right["changed_ms"] = row["changed_ms"]
        else:
            return ""
        known = [each for each in (said, row) if each is not None]
        right["held_ms"] = right["held_ms"] or max((each["held_ms"] for each in known), default=0)
        right["attrs"] = right["attrs"] or next((e["attrs"] for e in known if e["attrs"]), "")
        await self._put(right, row)
        there = (await self._book.rows([drift.order])).get(drift.order)
        return "" if row_differs(right, there) else f"written {source}"

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
