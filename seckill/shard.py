"""What a process knows of one sale: its definition, which never changes, its lane, and what may be
answered from memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from seckill import order as orders
from seckill.calls import Calls
from seckill.errors import EngineClosed, OutcomeUnknown, SeckillError, UnknownSale, UpgradeNeeded
from seckill.fencing import LOST
from seckill.keys import shard_keys
from seckill.lane import JOINS, ORDERS, ORDERS_BY_TOKEN, Answer, Lane, Waiter, Work
from seckill.lease import Lease
from seckill.order import Order, Outcome, Wish, read_order
from seckill.queue import Queue
from seckill.refusals import Refusals
from seckill.sale import Sale, check_attrs, check_buyer, check_key
from seckill.status import Status

__all__ = ["Shard", "ShardOptions", "read_shard", "read_states"]

SCAN_COUNT: Final = 1_000

_CREATED: Final = int(Status.CREATED)
_STALE: Final = int(Status.STALE_DEFINITION)
_LEASABLE: Final = (int(Status.SOLD_OUT), int(Status.NOT_OPEN))
# Under a storm most answers are one of these, and they are all alike.
_REFUSALS: Final = {int(status): Outcome(status) for status in Status if not status.ok}


class ShardOptions(msgspec.Struct, frozen=True):
    """The engine's options that its shards need."""

    timeout_ms: int
    depth_max: int
    batch_max: int
    lease_ms: int


class Shard:
    """One sale, as far as this process knows it."""

    def __init__(
        self, sale: Sale, origin_ms: int, calls: Calls, options: ShardOptions, *, made: str = ""
    ) -> None:
        self.sale = sale
        self.origin_ms = origin_ms
        self.made = made
        """What tells it from another sale under the same id."""
        self.keys = shard_keys(sale.id)
        self.lane: Lane | None = None
        self.joins: Lane | None = None
        self.queue = None if sale.admission is None else Queue(sale, calls)
        self.refusals = Refusals(sale.id, calls)
        self.kept: dict[str, Any] = {}
        """What whoever serves this sale wants to keep for as long as it is as it is, by name."""
        self._calls = calls
        self._options = options
        self._opening: dict[str, asyncio.Task[Lane]] = {}
        self._closed = False
        lease_ms = options.lease_ms
        self.lease = Lease(sale, self._ask_lease, self._read_buyers, lease_ms) if lease_ms else None

    def decode(self, order: str, record: bytes) -> Order:
        """The order that a record describes."""
        return read_order(self.sale, self.origin_ms, order, record.decode())

    async def find(self, order: str) -> tuple[bytes, bytes | None]:
        """An order's record, and the id of the definition to decode it by. Where the record is
        empty there is no such order, and no call whose caller has given up will make it. Raises
        OutcomeUnknown, RedisUnavailable, UpgradeNeeded."""
        record, definition_id = await self._calls.read_on_sale(
            self.keys, "HGET", self.keys[3], order
        )
        if record is None:
            passed_ms = self._calls.home(self.keys[0]).patience.passed_ms
            status, record, definition_id = await self._calls.run(
                "find", self.keys, order, passed_ms
            )
            if status == Status.FENCED:
                raise OutcomeUnknown(LOST)
            if status == Status.UPGRADE_NEEDED:
                raise UpgradeNeeded(self.sale.id)
        return record, definition_id

    def is_of(self, definition_id: bytes | None) -> bool:
        """Whether records of a sale of this definition may be decoded here: they name SKUs by their
        place in it, so by another one they say something else, or nothing."""
        return definition_id == self.sale.definition_id.encode()

    async def reserve(
        self, buyer: str, key: str, items: Mapping[str, int], attrs: str, token: str
    ) -> Outcome | None:
        """Engine.reserve for this sale. None: its definition is not the server's any more."""
        lane = self.lane or await self.open_lane()
        if not self.at_hand and (status := await self.ready()) is not Status.DONE:
            return None if status is Status.STALE_DEFINITION else _REFUSALS[status]
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        order, said = self.submit(lane, waiting, buyer, key, items, attrs, token)
        return said or self.outcome(order, buyer, items, await waiting)

    @property
    def at_hand(self) -> bool:
        """Whether ``submit`` may be called: enough is known of the sale's queue, if it has one."""
        return self.queue is None or self.queue.fresh

    async def ready(self) -> Status:
        """Waits for ``at_hand``: DONE, or what everybody is refused with. Raises OutcomeUnknown,
        RedisUnavailable, ServerFull."""
        return Status.DONE if self.queue is None else await self.queue.ready()

    async def reserve_many(self, wishes: list[Wish]) -> list[Outcome | SeckillError | None]:
        """The same for many, an answer each; what reserve would raise is an answer here."""
        lane = self.lane or await self.open_lane()
        if (status := await self.ready()) is not Status.DONE:
            refusal = None if status is Status.STALE_DEFINITION else _REFUSALS[status]
            return [refusal] * len(wishes)
        answers: list[Outcome | SeckillError | None] = []
        sent: list[tuple[int, str]] = []
        futures: list[asyncio.Future[Answer]] = []
        loop = asyncio.get_running_loop()
        for wish in wishes:
            waiting: asyncio.Future[Answer] = loop.create_future()
            try:
                order, said = self.submit(
                    lane, waiting, wish.buyer, wish.key, wish.items, wish.attrs, wish.token
                )
            except SeckillError as error:
                answers.append(error)
                continue
            if said is None:
                sent.append((len(answers), order))
                futures.append(waiting)
            answers.append(said)
        for (place, order), future in zip(sent, futures, strict=True):
            wish = wishes[place]
            try:
                answers[place] = self.outcome(order, wish.buyer, wish.items, await future)
            except SeckillError as error:
                answers[place] = error
            except asyncio.CancelledError:
                _abandon(futures)
                raise
        return answers

    def submit(
        self,
        lane: Lane,
        waiter: Waiter,
        buyer: str,
        key: str,
        items: Mapping[str, int],
        attrs: str,
        token: str,
    ) -> tuple[str, Outcome | None]:
        """The order's id, and its answer. None: ``waiter`` is told what ``outcome`` reads. Only
        while ``at_hand``. Raises what reserve raises."""
        buyer = check_buyer(buyer, "buyer")
        key = check_key(key, "key")
        if attrs:
            attrs = check_attrs(attrs, "attrs")
        cart = orders.cart_text(self.sale, items)
        turn: tuple[int, ...] = ()
        if self.queue is not None:
            found = self.queue.judge(buyer, token)
            if isinstance(found, Status):
                self.refusals.counts[found] += 1
                return "", _REFUSALS[found]
            turn = (found.step, found.expires_ms, found.number)
        if self.lease is not None:
            refusal = self.lease.refusal(buyer, cart)
            if refusal is not None:
                self.refusals.counts[refusal] += 1
                return "", _REFUSALS[refusal]
        order = orders.order_id(self.sale.id, buyer, key)
        lane.submit(waiter, order, buyer, cart, orders.attrs_print(attrs), attrs, *turn)
        return order, None

    def outcome(
        self, order: str, buyer: str, items: Mapping[str, int], reply: Answer
    ) -> Outcome | None:
        """What the lane's answer to a submitted order means. None: as with reserve."""
        answer, deadline_ms = reply
        if answer == _CREATED:
            return Outcome(Status.CREATED, _new_order(self.sale, order, buyer, items, deadline_ms))
        if isinstance(answer, bytes):
            return Outcome(Status.EXISTS, self.decode(order, answer))
        if answer == _STALE:
            return None
        self.refusals.counts[answer] += 1
        if answer in _LEASABLE and self.lease is not None:
            self.lease.noticed()
        return _REFUSALS[answer]

    async def _ask_lease(self) -> list[Any]:
        options = (self.sale.definition_id, self._options.lease_ms)
        reply: list[Any] = await self._calls.run("lease", self.keys, *options)
        return reply

    async def _read_buyers(self) -> set[str]:
        key = self.keys[2]
        client, cursor = self._calls.client_of(key), b"0"
        found: set[str] = set()
        server = self._calls.servers.pool(key)
        while True:
            if self._calls.servers.pool(key) is not server:
                # Another server's cursors mean nothing here.
                server, cursor = self._calls.servers.pool(key), b"0"
            # A part at a time: Redis has other things to do in such a second.
            cursor, fields = await self._calls.attempt(
                lambda at=cursor: client.execute_command(  # type: ignore[misc]
                    "HSCAN", self.keys[2], at, "COUNT", SCAN_COUNT
                )
            )
            found.update(buyer.decode() for buyer in fields)
            if int(cursor) == 0:
                return found

    async def open_lane(self) -> Lane:
        """The lane, opened when it is first asked for. Raises RedisUnavailable, EngineClosed."""
        return self.lane or await self._lane_of(ORDERS if self.queue is None else ORDERS_BY_TOKEN)

    async def open_joins(self) -> Lane:
        """The same for those who join the queue."""
        return self.joins or await self._lane_of(JOINS)

    async def _lane_of(self, work: Work) -> Lane:
        # One attempt for all who wait: on a server that is stuck, a queue of attempts would let the
        # last caller wait for the time-outs of all the others.
        task = self._opening.get(work.verb)
        if task is None:
            task = self._opening[work.verb] = asyncio.create_task(self._open(work))
        return await asyncio.shield(task)

    async def _open(self, work: Work) -> Lane:
        try:
            lane = Lane(
                self._calls.home(self.keys[0]),
                work,
                self.keys if self.queue is None else self.queue.keys,
                self.sale.definition_id,
                timeout_ms=self._options.timeout_ms,
                depth_max=self._options.depth_max,
                batch_max=self._options.batch_max,
            )
            await lane.start()
            if self._closed:
                await lane.aclose()
                raise EngineClosed("the engine is shutting down")
            home = self._calls.home(self.keys[0])
            home.told.made = home.told.made or self.made
            if work is JOINS:
                self.joins = lane
            else:
                self.lane = lane
                self.refusals.start()
                # Whoever takes orders is of the crew from the first one on.
                self._calls.met_new_server(self.keys[0], afresh=False)
            return lane
        finally:
            del self._opening[work.verb]

    async def aclose(self) -> None:
        """Answers what waits in the lane, also in one that is only being opened, and closes it."""
        self._closed = True
        if self.lease is not None:
            await self.lease.aclose()
        if self.queue is not None:
            await self.queue.aclose()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for lane in (self.lane, self.joins):
            if lane is not None:
                await lane.aclose()
        await self.refusals.aclose()


async def read_shard(sale: str, calls: Calls, options: ShardOptions) -> Shard:
    """A sale as it is now. Raises UnknownSale."""
    key = shard_keys(sale)[0]
    definition, origin_ms, made, server = await calls.attempt(
        lambda: calls.client_of(key).hmget(key, "definition", "origin_ms", "made", "server")
    )
    if definition is None:
        raise UnknownSale(sale)
    # Whether it is trusted under this name, the first call of a script will find.
    calls.home(key).told.server = (server or b"").decode()
    sold = Sale.from_definition(definition)
    return Shard(sold, int(origin_ms), calls, options, made=(made or b"").decode())


async def read_states(calls: Calls, names: list[str]) -> list[Any]:
    """Of each sale its state and its definition's id, or what Redis says instead, an exception."""

    asked = [("HMGET", shard_keys(name)[0], "state", "definition_id") for name in names]
    return await calls.read_many(asked)


def _abandon(futures: list[asyncio.Future[Answer]]) -> None:
    """Nobody waits for these any more, whatever becomes of them."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()  # Looked at, so that nothing complains that nobody did.


def _new_order(
    sale: Sale, order: str, buyer: str, items: Mapping[str, int], deadline_ms: int
) -> Order:
    amount_fen = 0
    for sku, quantity in items.items():
        amount_fen += sale.items[sale.sku_index[sku]].price_fen * quantity
    return Order(order, sale.id, buyer, orders.State.HELD, 1, dict(items), amount_fen, deadline_ms)
