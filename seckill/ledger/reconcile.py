"""Reconcile: whether Redis, the stream and the ledger tell the same story of a sale, while it runs.

1. Note how far Redis is, and wait until the ledger has got there.
2. Events: the ledger's against the stream's, one by one (reconcile_events.py).
3. Orders: Redis' records against the ledger's rows, both ways (reconcile_orders.py).
4. Stock: what Redis counts against what its orders hold (reconcile_stock.py).
5. The rows of the sale and its items.

Every read is a small one and memory is bounded, so it may run at any time. With ``fix`` it writes
to the ledger only, and only what Redis, the stream or the ledger's own events prove.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import update

from seckill import redis as servers
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.ledger.database import our_errors
from seckill.ledger.drift import Drift, DriftKind, Drifts, Report
from seckill.ledger.ledger import Ledger
from seckill.ledger.reconcile_events import EventComparison, History
from seckill.ledger.reconcile_orders import Judge, is_row_of_record
from seckill.ledger.reconcile_sides import LedgerSide, Picture, RedisSide
from seckill.ledger.reconcile_stock import OrderCount, compare_stock
from seckill.ledger.rows import Known
from seckill.ledger.statements import put_items
from seckill.ledger.tables import ITEMS, SALES
from seckill.order import order_id_shard
from seckill.sale import check_sale_id

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["PATIENCE_S", "reconcile"]

PATIENCE_S: Final = 30.0
"""How long the ledger is waited for, by default."""
POLL_MIN_S: Final = 0.02
POLL_MAX_S: Final = 0.5
NEW_S: Final = 5.0
"""How long a sale may be without a row in the ledger, or without a consumer."""
CONSUMERS_SHOWN: Final = 3

_Told = Callable[[str, int, int], None]


async def reconcile(
    engine: Engine,
    ledger: Ledger,
    sale: str,
    *,
    fix: bool = False,
    patience_s: float = PATIENCE_S,
    progress: _Told | None = None,
) -> Report:
    """Compares Redis, stream and ledger of one sale, and mends the safe kinds with ``fix``.

    Engine and ledger must be started. ``progress`` is told what is being compared, how many are
    done and of how many. Raises InvalidInput, UnknownSale (on neither side), UpgradeNeeded,
    RedisUnavailable, LedgerUnavailable and LedgerRefused.
    """
    check_sale_id(sale, "sale")
    pool = servers.connect_pool(engine.url, connections=2, timeout_s=servers.CONNECT_SECONDS)
    try:
        with servers.our_errors():
            client = servers.connect_client(pool)
            work = _Reconciliation(client, ledger, sale, fix=fix, patience_s=patience_s)
            work.told = progress or work.told
            return await work.run()
    finally:
        await pool.disconnect()


class _Reconciliation:
    """One sale, once."""

    def __init__(
        self, client: Redis, ledger: Ledger, sale: str, *, fix: bool, patience_s: float
    ) -> None:
        self._redis = RedisSide(client, sale)
        self._book = LedgerSide(ledger, sale)
        self._ledger = ledger
        self._sale = sale
        self._fix = fix
        self._patience_s = patience_s
        self._drifts = Drifts()
        self._began_s = monotonic()
        self._waited_s = 0.0
        self._behind = False
        self._undecided: list[str] = []
        self.told: _Told = lambda what, done, of: None

    async def run(self) -> Report:
        """Compares everything that can be compared."""
        # The ledger before Redis, which is then never the one that is behind.
        row = await self._book.row()
        last, _ = await self._ledger.last(self._sale)
        picture = await self._redis.picture()
        if picture is None:
            # It may have been removed just now, which the ledger is told first.
            row = await self._book.row()
            if row is None:
                raise UnknownSale(self._sale)
            if row["state"] != "settled" and not row["removed_at_ms"]:
                text = f"the ledger has it {row['state']}, with events up to {last:,}"
                self._add(DriftKind.SALE_MISSING_IN_REDIS, text)
            return self._report(seq=last)
        if row is None and not await self._is_new():
            if not await self._make_sale(picture):
                return self._report(seq=picture.seq)
        elif row is None:
            return await self.run()
        elif not self._is_same_sale(row, last, picture):
            return self._report(seq=picture.seq)
        return await self._compare(picture)

    async def _is_new(self) -> bool:
        """Whether a runner has just found the sale, which it does every two seconds."""
        until_s = monotonic() + min(self._patience_s, NEW_S)
        while monotonic() < until_s:
            await asyncio.sleep(POLL_MAX_S)
            if await self._book.row() is not None:
                return True
        return False

    async def _make_sale(self, picture: Picture) -> bool:
        """The ledger does not know the sale. Whether it does now."""
        if self._fix:
            await self._ledger.know(picture.known)
        text = f"Redis has it {picture.state}, with {picture.seq:,} events"
        self._add(DriftKind.SALE_MISSING_IN_LEDGER, text, mended=self._fix)
        return self._fix

    def _is_same_sale(self, row: dict[str, Any], last: int, picture: Picture) -> bool:
        """Whether Redis has all of the sale that the ledger knows."""
        if picture.state == "fenced":
            self._add(DriftKind.REDIS_BEHIND, f"the sale is fenced: {picture.reason}")
            return False
        if row["made"] != picture.known.made:
            text = f"Redis has the one made as {picture.known.made}, the ledger {row['made']}"
            self._add(DriftKind.SALE_MADE_ANEW, text)
            return False
        seen = max(last, row["seen_seq"])
        if picture.seq < seen:
            text = f"Redis is at event {picture.seq:,}, and was seen at {seen:,}; "
            text += f"the ledger's last is {last:,}"
            self._add(DriftKind.REDIS_BEHIND, text)
            return False
        return True

    async def _compare(self, picture: Picture) -> Report:
        known = picture.known
        through = picture.seq
        if not await self._catch_up(through):
            through = await self._applied(through)
        # After the wait: what was refused up to there is among them.
        letters = await self._redis.letters()
        for seq, (subject, cause) in sorted(letters.items()):
            self._drifts.add(Drift(DriftKind.DEAD_LETTER, cause, subject, seq, seq))
        judge = Judge(
            self._redis,
            self._book,
            known,
            self._drifts,
            subjects={subject for subject, _ in letters.values()},
            fix=self._fix,
            catch_up=self._catch_up_now,
        )
        events = EventComparison(
            self._redis,
            self._book,
            known,
            judge,
            self._drifts,
            letters=letters,
            fix=self._fix,
            progress=lambda done: self.told("events", done, through),
        )
        history = await events.run(through)
        await judge.flush()
        start = await self._redis.picture()
        count = await self._compare_orders(judge, known, picture.orders, whole=history.whole)
        stock = None if start is None else await compare_stock(self._redis, start, count)
        for drift in stock or ():
            self._drifts.add(drift)
        if stock is None:
            self._undecided.append("stock: the sale changed too fast, or was removed meanwhile")
        await self._compare_sale(picture, history, through)
        await self._compare_items(picture, history, through)
        if judge.unjudged and not self._behind:
            self._undecided.append(f"{judge.unjudged:,} orders: the ledger did not get there")
        return self._report(
            seq=picture.seq,
            events=through,
            orders=(start or picture).orders,
            skus=len(known.sale.items),
            stream_from=events.stream_from,
        )

    async def _compare_orders(
        self, judge: Judge, known: Known, orders: int, *, whole: bool
    ) -> OrderCount:
        """Both ways: what Redis has, and then what only the ledger has. Unless the ledger's events
        are ``whole``, the rows have to fit their records, too."""
        count = OrderCount()
        done = 0
        async for records in self._redis.scan():
            count.feed(records)
            good = [order for order in records if _is_order_id(order)]
            for order in records.keys() - set(good):
                self._add(DriftKind.ORDER_UNREADABLE, f"{order[:60]!r} is no order id")
            there = await self._book.records(good)
            await judge.add([order for order in good if there.get(order) != records[order]])
            if not whole:
                rows = await self._book.rows(good)
                bad = [name for name, row in rows.items() if not is_row_of_record(known, row)]
                await judge.add(bad, by_history=True)
            done += len(records)
            self.told("orders in Redis", done, max(done, orders))
        done = 0
        async for ids in self._book.ids():
            there = await self._redis.records(ids)
            await judge.add([order for order in ids if order not in there])
            done += len(ids)
            self.told("orders in the ledger", done, max(done, orders))
        await judge.flush()
        return count

    # -- waiting for the ledger ---------------------------------------------------------------

    async def _catch_up_now(self) -> bool:
        return not self._behind and await self._catch_up(await self._redis.seq())

    async def _catch_up(self, through: int) -> bool:
        """Waits until the ledger has everything up to this seq. False, and a drift, when it does
        not get there in time."""
        began_s = monotonic()
        pause_s = POLL_MIN_S
        while True:
            progress = await self._redis.progress()
            if progress.applied >= through:
                break
            first = max(0, progress.applied) + 1
            if (not progress.exists or pause_s >= POLL_MAX_S) and await self._book.count(
                first, through
            ) == through - first + 1:
                break  # Written, if not acknowledged.
            rest_s = began_s + self._patience_s - monotonic()
            if not progress.exists:
                rest_s -= max(0.0, self._patience_s - NEW_S)
            if rest_s <= 0:
                await self._tell_behind(through)
                return False
            await asyncio.sleep(min(pause_s, rest_s))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
        self._waited_s += monotonic() - began_s
        return True

    async def _applied(self, through: int) -> int:
        return max(0, min(through, (await self._redis.progress()).applied))

    async def _tell_behind(self, through: int) -> None:
        self._behind = True
        progress = await self._redis.progress()
        if not progress.exists:
            text = f"no consumer has ever read the stream, which has {through:,} events"
        else:
            applied = max(0, progress.applied)
            text = f"it has all up to event {applied:,} of {through:,}"
            text += f" after {self._patience_s:g} s of waiting"
        if progress.pending:
            held = [
                f"{name} holds {pending:,} for {idle / 1000:,.0f} s"
                for name, pending, idle in await self._redis.consumers()
            ]
            more = len(held) - CONSUMERS_SHOWN
            text += f"; of {progress.pending:,} entries taken, " + ", ".join(held[:CONSUMERS_SHOWN])
            text += f" and {more} more consumers some" if more > 0 else ""
        behind = through - max(0, progress.applied)
        drift = Drift(DriftKind.LEDGER_BEHIND, text, "", through - behind + 1, through)
        self._drifts.add(drift)

    # -- the rows of the sale and its items ---------------------------------------------------

    async def _compare_sale(self, picture: Picture, history: History, through: int) -> None:
        sale, (state, reason, seq) = picture.known.sale, history.state
        if (
            state
            and history.whole
            and through == picture.seq
            and (state, reason) != (picture.state, picture.reason if state == "paused" else "")
        ):
            text = f"Redis: {_state(picture.state, picture.reason)}; by its events: "
            self._add(DriftKind.STATE_DIFFERS, text + _state(state, reason))
        right: dict[str, Any] = {
            "definition": sale.definition().decode(),
            "origin_ms": picture.known.origin_ms,
            "opens_ms": sale.opens_ms,
            "ends_ms": sale.ends_ms,
        }
        row = await self._book.row() or {}
        if state and _is_judged(history, row.get("state_seq", 0), seq, through):
            right |= {"state": state, "reason": reason, "state_seq": seq}
        wrong = [name for name, value in right.items() if row.get(name) != value]
        if not wrong or not row:
            return
        if self._fix:
            where = (SALES.c.sale == self._sale, SALES.c.state_seq == row["state_seq"])
            await self._execute(update(SALES).where(*where).values(right))
            row = await self._book.row() or {}
        mended = self._fix and all(row.get(name) == right[name] for name in wrong)
        text = f"the row differs in {', '.join(wrong)}"
        self._add(DriftKind.SALE_ROW_DIFFERS, text, mended=mended)

    async def _compare_items(self, picture: Picture, history: History, through: int) -> None:
        rows = await self._book.items()
        for position, item in enumerate(picture.known.sale.items):
            row = rows.pop(position, None)
            total, seq = history.totals.get(position, (item.total, 0))
            right: dict[str, Any] = {
                "sku": item.sku,
                "title": item.title,
                "price_fen": item.price_fen,
            }
            if row is None or _is_judged(history, row["total_seq"], seq, through):
                right |= {"total": total, "total_seq": seq}
            wrong = [name for name, value in right.items() if row is None or row[name] != value]
            if wrong:
                mended = self._fix and await self._mend_item(position, right, row)
                text = "it is missing" if row is None else _difference(wrong, row, right)
                self._add(DriftKind.ITEM_ROW_DIFFERS, text, sku=item.sku, mended=mended)
        for row in rows.values():
            text = "the sale has no such item"
            self._add(DriftKind.ITEM_ROW_DIFFERS, text, sku=str(row["sku"]))

    async def _mend_item(
        self, position: int, right: dict[str, Any], row: dict[str, Any] | None
    ) -> bool:
        if row is None:
            whole = {"sale": self._sale, "position": position} | right
            with our_errors():
                async with self._ledger.engine.begin() as connection:
                    await put_items(connection, [whole])
        else:
            key = (ITEMS.c[name] == row[name] for name in ("sale", "position", "total_seq"))
            await self._execute(update(ITEMS).where(*key).values(right))
        there = (await self._book.items()).get(position)
        return there is not None and all(there[name] == right[name] for name in right)

    async def _execute(self, statement: Any) -> None:
        with our_errors():
            async with self._ledger.engine.begin() as connection:
                await connection.execute(statement)

    # -- telling ------------------------------------------------------------------------------

    def _add(self, kind: DriftKind, text: str, *, sku: str = "", mended: bool = False) -> None:
        self._drifts.add(Drift(kind, text, sku=sku, mended=mended))

    def _report(self, **compared: int) -> Report:
        return Report(
            self._sale,
            **compared,
            waited_s=round(self._waited_s, 3),
            took_s=round(monotonic() - self._began_s, 3),
            left=self._drifts.left,
            mended=self._drifts.mended,
            drifts=self._drifts.kept,
            undecided=tuple(self._undecided),
        )


def _is_judged(history: History, row_seq: int, seq: int, through: int) -> bool:
    """Whether the ledger's events say what a row of the sale or an item must be: the row may be of
    an event after those that were compared, or of one that is missing."""
    return row_seq <= seq or (history.whole and row_seq <= through)


def _is_order_id(order: str) -> bool:
    try:
        order_id_shard(order)
    except ValueError:
        return False
    return True


def _state(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason and state == "paused" else state


def _difference(names: list[str], row: dict[str, Any], right: dict[str, Any]) -> str:
    return "; ".join(f"{name} is {row[name]!r}, not {right[name]!r}" for name in names[:3])
