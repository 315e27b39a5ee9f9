"""Reconcile: whether Redis, the stream and the ledger tell the same story of a sale, while it runs.

1. Note how far Redis is, and wait until the ledger has got there.
2. Events: the ledger's against the stream's, one by one (reconcile_events.py).
3. Orders: Redis' records and the ledger's rows against the events (reconcile_orders.py).
4. Stock: what Redis counts against what its orders hold, and its settings (reconcile_stock.py).
5. Queues and purses in Redis against its orders (reconcile_queues.py, reconcile_purses.py).
6. The rows of the sale and its items against the events (reconcile_sale.py).

Every read is a small one, so it may run at any time. The events are the truth, and what the sale is
comes from the first of them. With ``fix`` it writes to the ledger, and only what the events prove,
or where they are lost what Redis has in their place; in Redis it does nothing but put orders back
into their queues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from seckill import redis as servers
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.keys import stream_key
from seckill.ledger.database import our_errors
from seckill.ledger.drift import Drift, DriftKind, Drifts, Report
from seckill.ledger.ledger import Ledger
from seckill.ledger.reconcile_events import EventComparison
from seckill.ledger.reconcile_history import History, created_as
from seckill.ledger.reconcile_orders import Judge
from seckill.ledger.reconcile_purses import PurseCount, compare_purses
from seckill.ledger.reconcile_queues import Waiting, compare_queues, is_order_id, requeue
from seckill.ledger.reconcile_rows import is_row_of_record
from seckill.ledger.reconcile_sale import SaleRows, compare_refusals
from seckill.ledger.reconcile_sides import LedgerSide, Picture, RedisSide
from seckill.ledger.reconcile_stock import OrderCount, StockChanges, compare_stock
from seckill.ledger.reconcile_wait import NEW_S, POLL_MAX_S, Patience
from seckill.ledger.report import left_out
from seckill.ledger.rows import Known
from seckill.sale import check_sale_id
from seckill.servers import OwnClient

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["PATIENCE_S", "reconcile"]

PATIENCE_S: Final = 30.0
"""How long the ledger is waited for, by default."""

_Told = Callable[[str, int, int], None]
_TOO_FAST: Final = "the sale changed too fast, or was removed meanwhile"


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
    with servers.our_errors():
        async with OwnClient(engine.url, stream_key(sale), connections=2) as client:
            work = _Reconciliation(engine, client, ledger, sale, fix=fix, patience_s=patience_s)
            work.told = progress or work.told
            return await work.run()


class _Reconciliation:
    """One sale, once."""

    def __init__(
        self,
        engine: Engine,
        client: Redis,
        ledger: Ledger,
        sale: str,
        *,
        fix: bool,
        patience_s: float,
    ) -> None:
        self._engine = engine
        self._redis = RedisSide(client, sale)
        self._book = LedgerSide(ledger, sale)
        self._ledger = ledger
        self._sale = sale
        self._fix = fix
        self._patience_s = patience_s
        self._patience = Patience(self._redis, self._book, patience_s)
        self._drifts = Drifts()
        self._began_s = monotonic()
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
            if await self._book.row() is None:
                raise UnknownSale(self._sale)
            state = await self._compare_row()
            if state != "settled":
                text = f"the ledger has it {state}, with events up to {last:,}"
                self._add(DriftKind.SALE_MISSING_IN_REDIS, text)
            return self._report(seq=last)
        if row is None and not await self._is_new():
            if not await self._make_sale(picture):
                return self._report(seq=picture.seq)
        elif row is None:
            return await self.run()
        elif not await self._is_same_sale(row, last, picture):
            await self._compare_row()
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
            await self._ledger.know(await self._known(picture))
        text = f"Redis has it {picture.state}, with {picture.seq:,} events"
        self._add(DriftKind.SALE_MISSING_IN_LEDGER, text, mended=self._fix)
        return self._fix

    async def _is_same_sale(self, row: dict[str, Any], last: int, picture: Picture) -> bool:
        """Whether Redis has all of the sale that the ledger knows."""
        seen, is_fenced = max(last, row["seen_seq"]), picture.state == "fenced"
        if row["made"] != picture.known.made and not is_fenced:
            text = f"Redis has the one made as {picture.known.made}, the ledger {row['made']}"
            is_reused = bool(row["removed_at_ms"])
            self._add(DriftKind.SALE_ID_REUSED if is_reused else DriftKind.SALE_MADE_ANEW, text)
            return False
        if picture.seq >= seen and not is_fenced:
            return True
        if row["made"] == picture.known.made and await self._has_forked(picture, last):
            return False
        text = f"Redis is at event {picture.seq:,}, and was seen at {seen:,}; "
        text += f"the ledger's last is {last:,}"
        if is_fenced:
            text = f"the sale is fenced: {picture.reason}"
        self._add(DriftKind.REDIS_BEHIND, text)
        return False

    async def _has_forked(self, picture: Picture, last: int) -> bool:
        """Whether a sale that is fenced or behind has other events than the ledger as well."""
        known = await self._ledger.known(self._sale)
        events = self._events(self._judge(known, ()), known, ())
        await events.run(0, min(picture.seq, last))
        return events.forked

    async def _known(self, picture: Picture) -> Known:
        """The sale as its first event has it; neither its header nor its row is believed."""
        row = await self._book.row()
        sale, is_sure = await created_as(self._redis, self._book)
        if not is_sure:
            # Every row would be mended by it.
            self._fix = False
        sale = sale or picture.known.sale
        origin_ms = picture.known.origin_ms
        if row is not None and sale.opens_ms == row["origin_ms"]:
            # Both begin as the same, and whoever says so is right.
            origin_ms = sale.opens_ms
        return Known(sale, origin_ms, picture.known.made)

    # -- comparing ----------------------------------------------------------------------------

    def _judge(self, known: Known, subjects: Iterable[str]) -> Judge:
        return Judge(
            self._redis,
            self._book,
            known,
            self._drifts,
            subjects=subjects,
            fix=self._fix,
            catch_up=self._patience.catch_up_now,
        )

    def _events(
        self, judge: Judge, known: Known, letters: Iterable[int], of: int = 0
    ) -> EventComparison:
        return EventComparison(
            self._redis,
            self._book,
            known,
            judge,
            self._drifts,
            letters=letters,
            fix=self._fix,
            progress=lambda done: self.told("events", done, of),
        )

    async def _compare(self, picture: Picture) -> Report:
        known = await self._known(picture)
        through = picture.seq
        behind: Drift | None = None
        if not await self._patience.catch_up(through):
            behind = await self._patience.drift(through)
            through = await self._patience.applied(through)
        # After the wait: what was refused up to there is among them.
        letters = await self._redis.letters()
        judge = self._judge(known, {subject for subject, _ in letters.values()})
        events = self._events(judge, known, letters, through)
        history = await events.run(through, picture.seq)
        compared = {"seq": picture.seq, "events": through, "stream_from": events.stream_from}
        if events.forked:
            # Which is why the ledger is behind, if it is, and why nothing that follows can agree.
            return self._report(**compared, skus=len(known.sale.items))
        if behind is not None:
            self._drifts.add(behind)
        for seq, (subject, cause) in sorted(letters.items()):
            self._drifts.add(Drift(DriftKind.DEAD_LETTER, cause, subject, seq, seq))
        await judge.finish()
        start = await self._redis.picture() or picture
        await self._compare_orders(judge, known, start, history, through)
        if through == picture.seq:
            self._compare_state(picture, history)
        refusals = await compare_refusals(self._redis, self._drifts)
        await SaleRows(
            self._book,
            known,
            self._drifts,
            fix=self._fix,
            is_lost=judge.gaps.is_lost,
            differing=judge.differing,
            refusals=refusals,
        ).compare()
        if judge.unjudged and behind is None:
            self._undecided.append(f"{judge.unjudged:,} orders: the ledger did not get there")
        return self._report(**compared, orders=start.orders, skus=len(known.sale.items))

    async def _compare_orders(
        self, judge: Judge, known: Known, start: Picture, history: History, through: int
    ) -> None:
        """Orders, both ways: what Redis has, and then what only the ledger has. And what hangs on
        the orders in Redis."""
        count, waiting, purses = OrderCount(), Waiting(), PurseCount()
        done = 0
        async for records in self._redis.scan():
            for counter in (count, waiting, purses):
                counter.feed(records)
            await self._compare_records(judge, known, records, whole=history.whole)
            done += len(records)
            self.told("orders in Redis", done, max(done, start.orders))
        changes = None
        if history.whole:
            changes = StockChanges(history.story.changes, through, history.after)
        self._tell("stock", await compare_stock(self._redis, known, start, count, changes))
        self._tell("purses", await compare_purses(self._redis, purses))
        nameless = await self._book.has_orders_without_events()
        done = 0
        async for ids in self._book.ids():
            there = await self._redis.records(ids)
            wanted = [order for order in ids if nameless or order not in there]
            await judge.add(wanted, by_history=nameless)
            done += len(ids)
            self.told("orders in the ledger", done, max(done, start.orders))
        await judge.settle()
        await self._compare_queues(judge, waiting)

    async def _compare_queues(self, judge: Judge, waiting: Waiting) -> None:
        """A record to which no event has led must not be queued: when it lapsed, units would come
        back that were never taken."""
        unqueued = await compare_queues(self._redis, waiting)
        if not unqueued:
            return
        proven = await judge.proven([drift.order for drift in unqueued])
        good = [drift for drift in unqueued if drift.order in proven]
        if self._fix and good:
            good = await requeue(self._engine, self._sale, good)
        self._tell("queues", good)
        bad = {drift.order for drift in unqueued} - proven
        if unknown := [order for order in bad if not judge.is_named(order)]:
            text = (
                f"{len(unknown):,} orders that wait in none: no event here leads to their records"
            )
            self._undecided.append(f"queues: {text}")

    async def _compare_records(
        self, judge: Judge, known: Known, records: dict[str, str], *, whole: bool
    ) -> None:
        """Records against the rows. Unless the ledger's events are ``whole``, the rows have to fit
        their own records, too."""
        good = [order for order in records if is_order_id(order)]
        for order in records.keys() - set(good):
            self._add(DriftKind.ORDER_UNREADABLE, f"{order[:60]!r} is no order id")
        there = await self._book.records(good)
        await judge.add([order for order in good if there.get(order) != records[order]])
        if not whole:
            rows = await self._book.rows(good)
            bad = [name for name, row in rows.items() if not is_row_of_record(known, row)]
            await judge.add(bad, by_history=True)

    def _compare_state(self, picture: Picture, history: History) -> None:
        reason = picture.reason if picture.state == "paused" else ""
        state = history.story.state[:2]
        if history.whole and state != (picture.state, reason):
            text = f"Redis: {_state(picture.state, reason)}; by its events: {_state(*state)}"
            self._add(DriftKind.STATE_DIFFERS, text)

    async def _compare_row(self) -> str:
        """The sale's row by itself, where Redis can't be compared. Returns the state that the
        ledger's events say."""
        with our_errors():
            async with self._ledger.engine.connect() as connection:
                never = await left_out(connection, self._sale)
        events, _ = await self._ledger.counts(self._sale)
        last, _ = await self._ledger.last(self._sale)
        known = await self._ledger.known(self._sale)
        rows = SaleRows(
            self._book,
            known,
            self._drifts,
            fix=self._fix,
            is_lost=lambda seq: seq <= last and events + never < last,
        )
        return (await rows.compare()).state[0]

    # -- telling ------------------------------------------------------------------------------

    def _tell(self, what: str, drifts: list[Drift] | None) -> None:
        for drift in drifts or ():
            self._drifts.add(drift)
        if drifts is None:
            self._undecided.append(f"{what}: {_TOO_FAST}")

    def _add(self, kind: DriftKind, text: str, *, mended: bool = False) -> None:
        self._drifts.add(Drift(kind, text, mended=mended))

    def _report(self, **compared: int) -> Report:
        return Report(
            self._sale,
            **compared,
            waited_s=round(self._patience.waited_s, 3),
            took_s=round(monotonic() - self._began_s, 3),
            left=self._drifts.left,
            mended=self._drifts.mended,
            drifts=self._drifts.kept,
            undecided=tuple(self._undecided),
        )


def _state(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason and state == "paused" else state
