"""The facade: everything a mall calls. One engine belongs to one event loop; any number of engines,
in any number of processes, may serve the same sales.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from seckill import order as orders
from seckill import redis as servers
from seckill.calls import Calls
from seckill.durability import Durability, checked_durability, fsync_of
from seckill.errors import (
    EngineClosed,
    InvalidInput,
    OutcomeUnknown,
    SeckillError,
    UnknownSale,
    UpgradeNeeded,
)
from seckill.fencing import CLOCK_JUMP_MS
from seckill.keys import SALES, shard_keys
from seckill.lane import Lane
from seckill.lease import LEASE_MS_MAX
from seckill.order import Order, Outcome, StockOutcome, Wish
from seckill.queues import Queues
from seckill.reaper import Reaper, unsettled
from seckill.roll_call import RollCall
from seckill.sale import Sale, check_buyer, check_key, check_payment, check_sale_id, show
from seckill.servers import OwnClient
from seckill.shard import Shard, ShardOptions, read_shard
from seckill.snapshot import Snapshot, read_snapshot
from seckill.status import Status
from seckill.stream import Event, consume, read_all

if TYPE_CHECKING:
    from seckill.embedded import EmbeddedServer

__all__ = ["Engine"]

REASON_MAX: Final = 200


class Engine:
    """Sells units and never one too many.

    ``durability="aof"`` demands a server that has every acknowledged order on disk,
    ``"replicas:N"`` waits until N replicas have it, ``"memory"`` accepts that a crash may lose
    some. ``timeout_ms`` is how long a call may take before its outcome is called unknown.
    ``lane_depth`` bounds the orders that wait,
    ``batch_max`` those of one script call. ``sweep_ms`` is the pause between two sweeps of the
    deadlines; 0 leaves sweeping to other processes. ``lease_ms`` is how old "sold out" and "not
    open" may be when a storm is answered from memory; 0 always asks Redis.

    Used as an async context manager, or with ``start`` and ``aclose``.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "aof",
        allow_unverified: bool = False,
        timeout_ms: int = 3_000,
        lane_depth: int = 10_000,
        batch_max: int = 256,
        sweep_ms: int = 500,
        lease_ms: int = 200,
    ) -> None:
        for name, value, low, high in (
            ("timeout_ms", timeout_ms, 1, 600_000),
            ("lane_depth", lane_depth, 1, 1_000_000),
            ("batch_max", batch_max, 1, 1_000),
            ("sweep_ms", sweep_ms, 0, 60_000),
            ("lease_ms", lease_ms, 0, LEASE_MS_MAX),
        ):
            if type(value) is not int or not low <= value <= high:
                raise InvalidInput(name, f"{show(value)} is out of range", f"pass {low} to {high}")
        self.url = url
        self.durability = checked_durability(durability)
        self._allow_unverified = allow_unverified
        self._shard_options = ShardOptions(timeout_ms, lane_depth, batch_max, lease_ms)
        self._sweep_ms = sweep_ms
        self._server: EmbeddedServer | None = None
        self._calls = Calls(timeout_ms=timeout_ms)
        self._roll = RollCall(self._calls, lambda: self._shards, self._forget)
        self._started = False
        self._shards: dict[str, Shard] = {}
        self._reaper: Reaper | None = None
        self.facts: servers.ServerFacts | None = None
        self.queue = Queues(self)

    @property
    def started(self) -> bool:
        """Whether calls are taken: between start and aclose."""
        return self._started

    @classmethod
    def embedded(cls, data_dir: str | Path, **options: Any) -> Self:
        """An engine with a server of its own, whose data lives in ``data_dir``.

        Takes the options of ``Engine``. Needs the extra ``embedded``, or a server named by
        SECKILL_REDIS_SERVER or found on PATH. Raises EmbeddedError at start.
        """
        from seckill.embedded import EmbeddedServer

        engine = cls("", **options)
        engine._server = EmbeddedServer(data_dir, appendfsync=fsync_of(engine.durability))
        return engine

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Connects and checks the server.

        Raises UnsuitableServer, RedisUnavailable, EmbeddedError or InvalidInput (the URL).
        """
        if self._started:
            return
        try:
            if self._server is not None:
                self.url = await asyncio.to_thread(self._server.start)
            self.facts = await self._calls.open(
                self.url, self.durability, allow_unverified=self._allow_unverified
            )
        except BaseException:
            await self.aclose()
            raise
        self._started = True
        # Whoever was connected to a server that has just been started here is gone, or late.
        self._roll.start(waits=self._server is None)
        if self._sweep_ms:
            self._reaper = Reaper(self._expire, lambda: unsettled(self), interval_ms=self._sweep_ms)
            self._reaper.start()

    async def aclose(self) -> None:
        """Answers what waits, then disconnects and stops an embedded server. Can be repeated."""
        if self._reaper is not None:
            await self._reaper.stop()
            self._reaper = None
        await self.queue.aclose()
        await self._roll.aclose()
        self._started = False
        shards, self._shards = list(self._shards.values()), {}
        try:
            await asyncio.gather(*(shard.aclose() for shard in shards))
        finally:
            await self._calls.aclose()
            if self._server is not None:
                await asyncio.to_thread(self._server.stop)

    # -- a sale's life ------------------------------------------------------------------------

    async def create(self, sale: Sale) -> Outcome:
        """Writes a sale. CREATED, EXISTS (the same definition), CONFLICT (another one)."""
        client = self._calls.client_of(SALES)
        self._roll.created[sale.id] = sale
        # First into the list: a listed sale that does not exist is harmless, the reverse is not.
        await self._calls.attempt(lambda: client.sadd(SALES, sale.id))
        items = [part for item in sale.items for part in (item.total, item.limit_per_buyer)]
        reply = await self._calls.run(
            "create",
            shard_keys(sale.id),
            sale.definition_id,
            sale.definition(),
            await self._calls.run_id(shard_keys(sale.id)[0]),
            sale.opens_ms,
            sale.ends_ms,
            sale.hold_ms,
            sale.pay_ms,
            sale.limit_per_order,
            sale.limit_per_buyer,
            sale.max_lapsed,
            CLOCK_JUMP_MS,
            *items,
        )
        outcome = Outcome(Status(reply[0]))
        if outcome.ok and sale.admission is not None:
            await self.queue.look(sale.id)  # Opens it: the commitment is public from now on.
        return outcome

    async def open(self, sale: str) -> Outcome:
        """Lets a created sale sell from its opens_at on. DONE, ALREADY, PAUSED or CLOSED."""
        return await self._on_sale("open", sale)

    async def pause(self, sale: str, reason: str = "") -> Outcome:
        """Stops new orders; held ones can still be paid. DONE, ALREADY, NOT_OPEN or CLOSED."""
        if len(reason) > REASON_MAX or not reason.isprintable():
            raise InvalidInput(
                "reason", "is too long or has control characters", f"write up to {REASON_MAX}"
            )
        return await self._on_sale("pause", sale, reason)

    async def resume(self, sale: str) -> Outcome:
        """Lets a paused sale sell again. DONE, ALREADY, NOT_OPEN or CLOSED."""
        return await self._on_sale("resume", sale)

    async def close(self, sale: str) -> Outcome:
        """Ends a sale for good; it is settled once no unit is held. DONE or ALREADY."""
        return await self._on_sale("close", sale)

    async def sales(self) -> list[str]:
        """The ids of all sales on this server, sorted."""
        members = await self._calls.attempt(lambda: self._calls.client_of(SALES).smembers(SALES))
        return sorted(member.decode("utf-8", "replace") for member in members)

    async def sale(self, sale: str) -> Sale:
        """A sale's definition. Raises UnknownSale."""
        return (await self._shard(sale)).sale

    async def now_ms(self) -> int:
        """The server's clock, in Unix milliseconds. All times of a sale are on this clock."""
        seconds, micros = await self._calls.attempt(lambda: self._calls.client_of(SALES).time())
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def snapshot(self, sale: str) -> Snapshot:
        """One consistent picture of a sale. Raises UnknownSale, UpgradeNeeded."""
        for _ in range(2):
            shard = await self._shard(sale)
            reply = await self._calls.run("inspect", shard.keys)
            if reply[0] == Status.UPGRADE_NEEDED:
                raise UpgradeNeeded(sale)
            if reply[0] != Status.DONE:
                break
            snapshot = read_snapshot(shard.sale, reply)
            if snapshot is not None:
                return snapshot
            await self._forget(shard)
        raise UnknownSale(sale)

    async def add_stock(self, sale: str, sku: str, units: int, *, key: str) -> StockOutcome:
        """Adds units to a SKU, or takes some away when negative, while the sale runs.

        ``key`` names this change, so that repeating it changes nothing. DONE, ALREADY, CONFLICT,
        BELOW_COMMITTED, TOO_MANY_UNITS, UNKNOWN_SKU, CLOSED or UNKNOWN_SALE.
        """
        check_key(key, "key")
        if type(units) is not int or units == 0 or abs(units) > 10**9:
            raise InvalidInput(
                "units", f"{show(units)} is not a change", "pass a whole number, not 0"
            )
        try:
            shard = await self._shard(sale)
        except UnknownSale:
            return StockOutcome(Status.UNKNOWN_SALE, 0, 0)
        index = shard.sale.sku_index.get(sku)
        if index is None:
            return StockOutcome(Status.UNKNOWN_SKU, 0, 0)
        reply = await self._calls.run(
            "add_stock", shard.keys, shard.sale.definition_id, index, units, key
        )
        return StockOutcome(Status(reply[0]), reply[2], reply[3])

    # -- an order's life ----------------------------------------------------------------------

    async def reserve(
        self,
        sale: str,
        buyer: str,
        key: str,
        items: Mapping[str, int],
        *,
        attrs: str = "",
        token: str = "",
    ) -> Outcome:
        """Holds units for a buyer until the order's deadline.

        ``buyer`` is the mall's opaque id of the buyer, ``key`` the idempotency key of this wish,
        ``items`` maps SKU to units, ``attrs`` (512 bytes at most) travels in the event untouched.
        ``token`` is the buyer's turn in a sale that has a queue (see ``queue``).
        The identical call may be repeated blindly: it answers EXISTS with the same order.

        Returns CREATED or EXISTS with the order, or a refusal in the precedence of reserve.lua.
        Raises InvalidInput, Overloaded, OutcomeUnknown, RedisUnavailable, ServerFull.
        """
        for _ in range(2):
            try:
                shard = self._shards.get(sale) or await self._shard(sale)
            except UnknownSale:
                check_buyer(buyer, "buyer")
                check_key(key, "key")
                return Outcome(Status.UNKNOWN_SALE)
            outcome = await shard.reserve(buyer, key, items, attrs, token)
            if outcome is not None:
                return outcome
            # The sale was made anew under the same id: read its definition again, once.
            await self._forget(shard)
        return Outcome(Status.STALE_DEFINITION)

    async def reserve_many(self, sale: str, wishes: Sequence[Wish]) -> list[Outcome | SeckillError]:
        """``reserve`` for many buyers at once, an answer each in the same order. What reserve would
        raise for a wish is that wish's answer, and harms no other.

        Raises what concerns them all: RedisUnavailable, EngineClosed, InvalidInput (the sale's id).
        """
        todo = list(wishes)
        try:
            shard = await self._shard(sale)
        except UnknownSale:
            return [Outcome(Status.UNKNOWN_SALE)] * len(todo)
        answers = await shard.reserve_many(todo)
        return [
            # The sale was made anew under the same id; the first of these reads it again.
            await self._again(sale, wish) if answer is None else answer
            for wish, answer in zip(todo, answers, strict=True)
        ]

    async def _again(self, sale: str, wish: Wish) -> Outcome | SeckillError:
        try:
            return await self.reserve(
                sale, wish.buyer, wish.key, wish.items, attrs=wish.attrs, token=wish.token
            )
        except SeckillError as error:
            return error

    async def begin_payment(self, sale: str, order: str, *, buyer: str = "") -> Outcome:
        """The buyer is on the way to the cashier: held becomes paying, with a new deadline.

        With ``buyer``, only that buyer's order is found. DONE, ALREADY, EXPIRED, RELEASED,
        CONFIRMED, REFUNDED, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return await self._on_order("begin_payment", sale, order, _buyer(buyer))

    async def confirm(self, sale: str, order: str, payment: str) -> Outcome:
        """Money has arrived. ``payment`` is the payment's own id, so a repeat is recognised.

        DONE, ALREADY, CONFIRMED_LATE, LATE and DUPLICATE_PAYMENT (both: money is due back, see the
        refund_due event), REFUNDED, TOO_MANY_PAYMENTS, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return await self._on_order("confirm", sale, order, check_payment(payment, "payment"))

    async def release(self, sale: str, order: str, *, buyer: str = "") -> Outcome:
        """Gives a held or paying order up; its units go back on sale.

        DONE, ALREADY, EXPIRED, CONFIRMED, REFUNDED, UNKNOWN_ORDER or UNKNOWN_SALE.
        """
        return await self._on_order("release", sale, order, _buyer(buyer))

    async def refund(
        self, sale: str, order: str, refund: str, *, return_units: bool, return_limit: bool
    ) -> Outcome:
        """A confirmed order's money goes back. ``return_units`` puts its units on sale again (else
        the total falls), ``return_limit`` lets the buyer buy as many again.

        DONE, ALREADY, CONFLICT, REFUNDED (by another refund), NOT_CONFIRMED, UNKNOWN_ORDER or
        UNKNOWN_SALE.
        """
        check_payment(refund, "refund")
        for name, choice in (("return_units", return_units), ("return_limit", return_limit)):
            if choice is not True and choice is not False:
                raise InvalidInput(name, f"is {show(choice)}", "pass True or False")
        return await self._on_order(
            "refund", sale, order, refund, int(return_units), int(return_limit)
        )

    async def order(self, sale: str, order: str, *, buyer: str = "") -> Order | None:
        """An order as it is now, or None. With ``buyer``, only that buyer's order is found.

        Raises UnknownSale.
        """
        buyer = _buyer(buyer)
        shard = await self._shard(sale)
        orders.order_id_shard(order)
        record, definition_id = await shard.find(order)
        if not record:
            return None
        found = (await self._shard_of(definition_id, shard)).decode(order, record)
        return None if buyer and found.buyer != buyer else found

    # -- events -------------------------------------------------------------------------------

    async def events(
        self,
        sale: str,
        group: str,
        *,
        consumer: str = "",
        count: int = 100,
        reclaim_ms: int = 60_000,
        follow: bool = True,
        after_trim: bool = False,
    ) -> AsyncIterator[list[Event]]:
        """Batches of events for one of a consumer group, from the sale's first event on.

        A batch is acknowledged when the next is asked for; leaving the loop before, or dying, hands
        it to another consumer of the group after ``reclaim_ms``, so an event may come twice.
        ``consumer`` must be unique in the group, as host and process id are. ``follow=False`` ends
        when nothing is left; ``after_trim`` lets a new group begin after what was trimmed. Raises
        UnknownSale, EventsTrimmed, and RedisUnavailable: then call again, nothing is lost.
        """
        check_key(group, "group")
        if type(count) is not int or not 1 <= count <= 1_000:
            raise InvalidInput("count", f"{show(count)} is not a batch size", "pass 1 to 1000")
        shard = await self._shard(sale)
        # A read that blocks needs a connection of its own.
        with servers.our_errors():
            async with OwnClient(self.url, shard.keys[0], timeout_s=None) as client:
                async for batch in consume(
                    client,
                    shard.sale,
                    shard.origin_ms,
                    group,
                    consumer=consumer,
                    after_trim=after_trim,
                    count=count,
                    reclaim_ms=reclaim_ms,
                    block_ms=1_000,
                    follow=follow,
                    replicas=self._calls.replicas,
                ):
                    yield batch

    async def history(self, sale: str, *, through_seq: int | None = None) -> AsyncIterator[Event]:
        """Every event of a sale from the first, without a group. Raises UnknownSale."""
        shard = await self._shard(sale)
        client = self._calls.client_of(shard.keys[0])
        with servers.our_errors():
            async for event in read_all(
                client, shard.sale, shard.origin_ms, through_seq=through_seq
            ):
                yield event

    # -- inside -------------------------------------------------------------------------------

    async def _shard(self, sale: str) -> Shard:
        if not self._started:
            raise EngineClosed("the engine is not started, or is shutting down")
        shard = self._shards.get(sale)
        if shard is None:
            check_sale_id(sale, "sale")
            shard = await read_shard(sale, self._calls, self._shard_options)
            shard = self._shards.setdefault(sale, shard)
        return shard

    def at_hand(self, sale: str) -> Shard | None:
        """What is known here of a sale, if anything, for whoever can't wait (hot_route.py)."""
        return self._shards.get(sale)

    def lanes(self) -> dict[str, Lane]:
        """The lanes that are open here, by sale, for whoever counts."""
        return {name: shard.lane for name, shard in self._shards.items() if shard.lane}

    async def _shard_of(self, definition_id: bytes | None, shard: Shard) -> Shard:
        """What records of this definition are decoded with: ``shard``, or what is there since the
        sale was made anew under its id. Raises UnknownSale, OutcomeUnknown."""
        if not shard.is_of(definition_id):
            await self._forget(shard)
            shard = await self._shard(shard.sale.id)
            if not shard.is_of(definition_id):
                raise OutcomeUnknown("the sale has just been made anew once more; ask again")
        return shard

    async def _forget(self, shard: Shard) -> None:
        if self._shards.get(shard.sale.id) is shard:
            del self._shards[shard.sale.id]
            await shard.aclose()

    async def _on_sale(self, verb: str, sale: str, *args: Any) -> Outcome:
        check_sale_id(sale, "sale")
        reply = await self._calls.run(verb, shard_keys(sale), *args)
        return Outcome(Status(reply[0]))

    async def _on_order(self, verb: str, sale: str, order: str, *args: Any) -> Outcome:
        orders.order_id_shard(order)
        try:
            shard = await self._shard(sale)
            reply, definition_id = await self._calls.run_on_sale(verb, shard.keys, order, *args)
            if not reply[2]:
                return Outcome(Status(reply[0]))
            shard = await self._shard_of(definition_id, shard)
        except UnknownSale:
            return Outcome(Status.UNKNOWN_SALE)
        return Outcome(Status(reply[0]), shard.decode(order, reply[2]))

    async def _expire(self, sale: str, look_at: int) -> tuple[Status, bool]:
        """One sweep: the script's status, and whether more may be due."""
        reply = await self._calls.run("expire", shard_keys(sale), look_at)
        await self.queue.keep(sale)
        return Status(reply[0]), bool(reply[3])


def _buyer(buyer: str) -> str:
    # Nothing else that is empty: None from a session that has ended must not become the backend.
    return buyer if buyer == "" else check_buyer(buyer, "buyer")
