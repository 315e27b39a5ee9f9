"""Brings a sale back into a Redis that has lost it, or a part of it, from what the ledger has.

    fence        whatever is left of the sale takes no call any more (lua/fence.lua)
    begin        only this rebuild may put one in its place (lua/rebuild_begin.lua)
    claim        the ledger expects another ``made`` from now on: see below
    load         orders, buyers and queues go under keys beside the sale's (lua/rebuild_load.lua)
    admit        orders that only Redis knew are found, and taken in if that is wanted
    found        header, stock and the event ``sale_rebuilt`` (lua/rebuild_found.lua)
    swap         in one step it takes the fenced sale's place, paused (lua/rebuild.lua)

A rebuild that was cut off anywhere leaves the sale fenced, and is simply begun anew. The ledger is
told of the new ``made`` before the swap: were it the other way round, a sale would be in Redis that
the ledger takes for a wrong one. And a second rebuild at the same time makes the first one fail.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from sqlalchemy import select, update

from seckill.engine import Engine
from seckill.errors import InvalidInput, LedgerUnavailable, SeckillError, UpgradeNeeded
from seckill.fencing import CLOCK_JUMP_MS, name_of
from seckill.keys import LEDGER_GROUP, NAMES, SALES, group_keys, refusals_key, shard_keys
from seckill.ledger import strangers
from seckill.ledger.database import our_errors
from seckill.ledger.fence import fence
from seckill.ledger.ledger import Ledger
from seckill.ledger.mark import check_mark, own
from seckill.ledger.parts import Parts, ahead
from seckill.ledger.purses import Purses
from seckill.ledger.rebuild_queue import keep_queue
from seckill.ledger.rows import Known
from seckill.ledger.tables import EVENTS, ORDERS
from seckill.ledger.tables import SALES as SALE_ROWS
from seckill.status import Status
from seckill.stream import EventKind

__all__ = ["Rebuilt", "rebuild"]

SEQ_GAP: Final = 1_000_000
"""How far the new events are past all that anybody has seen. Events of the last moment may have
gone out, with their seq as idempotency keys, and been lost in Redis before anybody counted them."""
PART: Final = 1_000
READ: Final = 10_000
UNKNOWN_SHOWN: Final = 20
FORCED: Final = "somebody wants it to be rebuilt"


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild has done.

    ``done`` is False where it has changed nothing: nothing was wrong with the sale, or Redis has
    ``unknown`` orders (at most 20 of them, ``unknown_count`` in all) that the ledger does not know.
    ``admitted`` of them were taken in, of which ``expired`` found no unit or were over a limit.
    ``queue_lost``: the sale has a queue, which begins anew, so everybody joins again.

    The ledger ends at event ``last_seq`` of ``last_ms``; Redis was last seen at ``seen_seq``, at
    ``seen_at_ms`` of the ledger's own clock. So at least ``lost_events`` are lost, and an unknown
    number of later ones: orders may have been acknowledged of which nobody told the ledger, and
    ``reason`` may name a later event, of which an engine had been told. ``holes`` events before the
    last are missing in the ledger as well.
    """

    sale: str
    done: bool
    reason: str = ""
    state: str = ""
    seq: int = 0
    orders: int = 0
    last_seq: int = 0
    last_ms: int = 0
    seen_seq: int = 0
    seen_at_ms: int = 0
    at_ms: int = 0
    spared_ms: int = 0
    holes: int = 0
    groups: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unknown_count: int = 0
    admitted: int = 0
    expired: int = 0
    queue_lost: bool = False

    @property
    def lost_events(self) -> int:
        """How many events are lost at least."""
        return max(0, self.seen_seq - self.last_seq)


class _Extent(msgspec.Struct, frozen=True):
    """How much the ledger has of a sale, and who rebuilds it."""

    made: str
    last_seq: int
    last_ms: int
    events: int


async def rebuild(
    engine: Engine, ledger: Ledger, sale: str, *, admit: bool = False, force: bool = False
) -> Rebuilt:
    """Rebuilds one sale; it is paused then, unless it was over. See ``Rebuilt`` for what it says.

    ``force`` rebuilds it even if Redis has all that the ledger has: its keys were edited, or the
    two tell different stories. ``admit`` takes in orders that only Redis knows, as long as stock
    and limits last. Stop the ledger's runners or not: what they write meanwhile makes this fail,
    never go wrong. Raises UnknownSale, InvalidInput, OtherLedger, LedgerUnavailable, NotAdmitted,
    and whatever a call to Redis raises.
    """
    await own(engine, ledger)
    known, row = await ledger.known(sale), await ledger.sale(sale)
    if row["removed_at_ms"]:
        remedy = "read its orders in the ledger"
        raise InvalidInput("sale", f"{sale!r} was over and was removed from Redis", remedy)
    made: bytes | None = await engine._calls.attempt(
        lambda: engine._calls.client_of(shard_keys(sale)[0]).hget(shard_keys(sale)[0], "made")
    )
    found = await fence(engine, ledger, sale, made, wanted=FORCED if force else "")
    if found is None:
        # A list of sales that was lost is mended even so.
        await engine._calls.attempt(lambda: engine._calls.client_of(SALES).sadd(SALES, sale))
        return Rebuilt(sale=sale, done=False)
    return await _Rebuild(engine, ledger, known, found.reason).run(admit=admit)


class _Rebuild:
    """One attempt. ``run`` is called once."""

    def __init__(self, engine: Engine, ledger: Ledger, known: Known, reason: str) -> None:
        self._engine = engine
        self._ledger = ledger
        self._known = known
        self._reason = reason
        self._sale = known.sale.id
        self._real = shard_keys(self._sale)
        # Beside the sale's own, under the same hash tag.
        self._built = tuple(
            key.removesuffix(name) + f"rebuild-{name}"
            for key, name in zip(self._real, NAMES, strict=True)
        )
        self._token = secrets.token_hex(8)
        self._purses = Purses()

    async def run(self, *, admit: bool) -> Rebuilt:
        await strangers.check_definition(self._engine, self._known.sale, self._real)
        try:
            return await self._run_all(admit=admit)
        finally:
            # Whatever comes of it; and what this can't say is less than what went wrong.
            with suppress(SeckillError):
                await self._unlink()

    async def _run_all(self, *, admit: bool) -> Rebuilt:
        # Before the ledger is told, so that of two at the same time it is not told of the one by
        # whom Redis does not go.
        await self._run("rebuild_begin", self._real)
        # Later than the one in whose place it comes, by whichever clock.
        before_ms = int(self._known.made.rpartition(":")[2] or 0)
        made = f"{self._token}:{max(await self._engine.now_ms(), before_ms + 1)}"
        await self._claim(made)
        # Read after that: whoever writes to the ledger checks whose sale it is in the same step.
        row, extent = await self._ledger.sale(self._sale), await self._extent()
        seen_seq = max(extent.last_seq, row["seen_seq"], await self._last_seq())
        done = Rebuilt(
            sale=self._sale,
            done=False,
            reason=self._reason,
            last_seq=extent.last_seq,
            last_ms=extent.last_ms,
            seen_seq=seen_seq,
            seen_at_ms=row["seen_at_ms"],
        )
        await self._load()
        others = await strangers.find(self._engine, self._real, self._built)
        if others and not admit:
            shown = tuple(sorted(other.id for other in others)[:UNKNOWN_SHOWN])
            return msgspec.structs.replace(done, unknown=shown, unknown_count=len(others))
        holes = await self._holes(extent)
        state = _state_after(row["state"], sells=any(other.wants for other in others))
        at_ms, spared_ms = await self._found(made, state, done)
        admitted = strangers.Admitted(0, 0)
        if others:
            origin = (self._known.sale, self._real, self._built)
            admitted = await strangers.admit(self._engine, origin, self._token, others)
        now = await self._extent()
        if now.made != made:
            raise Overtaken(self._sale)
        if now != extent:
            problem = "the ledger was written to meanwhile; run this again"
            raise LedgerUnavailable(f"sale {self._sale!r} was not rebuilt: {problem}")
        # It may have been adopted by another one meanwhile.
        await check_mark(self._engine, self._ledger)
        letters = group_keys(self._sale, LEDGER_GROUP)
        client = self._engine._calls.client_of(self._real[0])
        listed = self._engine._calls.client_of(SALES)
        # Before the swap: whoever finds the sale gone on, finds it in the list of sales as well.
        await self._engine._calls.attempt(lambda: listed.sadd(SALES, self._sale))
        # The ledger's dead letters are of the old stream: their orders were admitted, or are gone.
        await self._engine._calls.attempt(lambda: client.unlink(letters.dead, letters.again))
        # While it is fenced nobody joins.
        queue_goes_on = await keep_queue(
            self._engine, self._sale, self._bodies, nothing_lost=self._reason == FORCED
        )
        if queue_goes_on and self._known.sale.admission is not None:
            # A new queue says so itself, when it is opened.
            key = self._built[0]
            await self._engine._calls.attempt(lambda: client.hset(key, "queue", 1))
        _, seq, groups = await self._run("rebuild", (*self._real, *self._built), LEDGER_GROUP)
        await self._bring_refusals(row["refusals"])
        return msgspec.structs.replace(
            done,
            done=True,
            state=state,
            seq=seq,
            orders=self._purses.orders,
            at_ms=at_ms,
            spared_ms=spared_ms,
            holes=holes,
            groups=tuple(sorted(group.decode() for group in groups)),
            unknown_count=len(others),
            admitted=admitted.orders,
            expired=admitted.expired,
            queue_lost=self._known.sale.admission is not None and not queue_goes_on,
        )

    async def _last_seq(self) -> int:
        """How far the sale is that is to be replaced: a ledger that was restored from a backup may
        never have heard of that."""
        key = self._real[0]
        client = self._engine._calls.client_of(key)
        return int(await self._engine._calls.attempt(lambda: client.hget(key, "seq")) or 0)

    async def _run(self, verb: str, keys: tuple[str, ...], *args: Any) -> Any:
        reply = await self._engine._calls.run(verb, keys, self._token, *args)
        status = Status(reply[0])
        if status is Status.UPGRADE_NEEDED:
            raise UpgradeNeeded(self._sale)
        if status is not Status.DONE:
            raise Overtaken(self._sale)
        return reply

    async def _unlink(self) -> None:
        """Takes away what was built, unless it is another one's by now."""
        token = self._token.encode()
        client = self._engine._calls.client_of(self._real[0])
        owner = await self._engine._calls.attempt(lambda: client.hget(self._built[0], "token"))
        if owner == token:
            await self._engine._calls.attempt(lambda: client.unlink(*self._built))

    async def _bring_refusals(self, counts: str) -> None:
        """What was refused before the loss, as the ledger has it."""
        key = refusals_key(self._sale)
        client = self._engine._calls.client_of(key)
        try:
            known: Any = msgspec.json.decode(counts or "{}", type=dict[str, int])
        except msgspec.MsgspecError:
            return  # Somebody has edited them; reconcile names it, and no sale depends on them.
        if known and not await self._engine._calls.attempt(lambda: client.exists(key)):
            await self._engine._calls.attempt(lambda: client.hset(key, mapping=known))

    # -- the ledger ---------------------------------------------------------------------------

    async def _claim(self, made: str) -> None:
        with our_errors():
            async with self._ledger.engine.begin() as connection:
                row = update(SALE_ROWS).where(
                    SALE_ROWS.c.sale == self._sale, SALE_ROWS.c.made == self._known.made
                )
                claimed = await connection.execute(row.values(made=made))
        if not claimed.rowcount:
            # Another one has told the ledger since we looked, and may be at its end already.
            raise Overtaken(self._sale)

    async def _extent(self) -> _Extent:
        last_seq, last_ms = await self._ledger.last(self._sale)
        events, _ = await self._ledger.counts(self._sale)
        made = (await self._ledger.sale(self._sale))["made"]
        return _Extent(made, last_seq, last_ms, events)

    async def _bodies(self, kind: EventKind) -> list[tuple[int, str]]:
        """Seq and detail of all events of one kind, in order."""
        query = (
            select(EVENTS.c.seq, EVENTS.c.body)
            .where(EVENTS.c.sale == self._sale, EVENTS.c.kind == str(kind))
            .order_by(EVENTS.c.seq)
        )
        with our_errors():
            async with self._ledger.engine.connect() as connection:
                return [(row[0], row[1]) for row in await connection.execute(query)]

    async def _holes(self, extent: _Extent) -> int:
        """How many events before the last one the ledger does not have. Those that an earlier
        rebuild has left out were never there."""
        gaps = 0
        for seq, detail in await self._bodies(EventKind.SALE_REBUILT):
            gaps += seq - int(detail.partition("|")[0]) - 1
        return extent.last_seq - gaps - extent.events

    # -- Redis --------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Everything but the header and the stock, part by part: no call holds the server up. While
        it takes one part, the next is being made, and the database looks for more."""
        purses, parts = self._purses, Parts(self._put)
        try:
            pairs: list[str] = []
            async for rows in ahead(self._orders()):
                for order, record in rows:
                    purses.add(order, record)
                    pairs += (order, record)
                    if len(pairs) == 2 * PART:
                        await parts.send([pairs, [], [], []])
                        pairs = []
            # Also when it is empty: the first part clears what an earlier attempt has left.
            await parts.send([pairs, [], [], []])
            buyers = [text for pair in purses.buyers() for text in pair]
            holds, paying = purses.queue("h"), purses.queue("p")
            for at in range(0, max(len(buyers) // 2, len(holds), len(paying)), PART):
                upto = at + PART
                part = [[], buyers[2 * at : 2 * upto], holds[at:upto], paying[at:upto]]
                await parts.send(part)
            await parts.flush()
        finally:
            await parts.stop()

    async def _put(self, number: int, part: list[list[str]]) -> None:
        await self._run("rebuild_load", self._built, number, msgspec.msgpack.encode(part))

    async def _orders(self) -> AsyncIterator[Sequence[Any]]:
        """Id and record of every order in the ledger."""
        after = ""
        while True:
            query = (
                select(ORDERS.c.id, ORDERS.c.record)
                .where(ORDERS.c.sale == self._sale, ORDERS.c.id > after)
                .order_by(ORDERS.c.id)
                .limit(READ)
            )
            with our_errors():
                async with self._ledger.engine.connect() as connection:
                    rows = (await connection.execute(query)).all()
            yield rows
            if len(rows) < READ:
                return
            after = rows[-1][0]

    async def _found(self, made: str, state: str, done: Rebuilt) -> tuple[int, int]:
        """Header, stock and event; the sale's time and until when holds are spared."""
        sale, origin_ms, purses = self._known.sale, self._known.origin_ms, self._purses
        header: list[Any] = [
            "made",
            made,
            "server",
            name_of(await self._engine._calls.run_id(self._real[0])),
        ]
        for name, value in (
            ("definition_id", sale.definition_id),
            ("definition", sale.definition().decode()),
            ("origin_ms", origin_ms),
            ("opens_ms", sale.opens_ms),
            ("ends_ms", sale.ends_ms),
            ("hold_ms", sale.hold_ms),
            ("pay_ms", sale.pay_ms),
            ("limit_per_order", sale.limit_per_order),
            ("limit_per_buyer", sale.limit_per_buyer),
            ("max_lapsed", sale.max_lapsed),
            ("clock_jump_ms", CLOCK_JUMP_MS),
        ):
            header += (name, value)
        totals = [item.total for item in sale.items]
        for _, detail in await self._bodies(EventKind.STOCK_CHANGED):
            key, place, units, _ = detail.rsplit("|", 3)
            totals[int(place)] += int(units)
            header += (f"stock:{key}", f"{place}:{units}")
        stock: list[Any] = []
        for index, item in enumerate(sale.items):
            total = totals[index] - purses.units["gone"][index]
            held, confirmed = purses.units["held"][index], purses.units["confirmed"][index]
            stock += (f"{index}:available", total - held - confirmed, f"{index}:held", held)
            stock += (f"{index}:confirmed", confirmed, f"{index}:total", total)
            stock += (f"{index}:limit", item.limit_per_buyer)
        longest_ms = purses.longest_ms()
        rest_ms = max(0, origin_ms + longest_ms - done.last_ms) if longest_ms else 0
        numbers = (done.last_seq, done.last_ms, purses.orders, done.seen_seq, rest_ms)
        fields = msgspec.msgpack.encode((header, stock))
        seq = done.seen_seq + SEQ_GAP
        reply = await self._run("rebuild_found", self._built, seq, state, *numbers, fields)
        return reply[1], reply[2]


class Overtaken(SeckillError):
    """Somebody else has this sale in hand. Nothing was changed."""

    def __init__(self, sale: str) -> None:
        super().__init__(f"sale {sale!r} was not rebuilt: another rebuild of it has begun")


def _state_after(state: str, *, sells: bool) -> str:
    """The state in which a sale comes back. One that was never opened, as far as the ledger knows,
    must have been if it has orders."""
    if state == "created":
        return "paused" if sells else "created"
    return state if state in ("closed", "settled") else "paused"
