"""The micro-batcher in front of one shard: of its orders, or of those who join its queue.

``submit`` appends an order, and with it who is to be told. A lane has two slots, each one
connection with at most one batch in flight; a free slot takes all that waits, so alone you wait for
nobody and under load batches grow by themselves. There is no timer. When both slots are free and
many wait, the first takes half: Redis then decides one half while Python answers the other. Where
replicas must have a batch as well there is a third slot, for Redis would stand still meanwhile.

Every order carries ``not_after`` in the server's time, no later than the moment its caller is told
that the outcome is unknown, so an order that was stuck in a socket is refused when it arrives.
Until then a batch whose connection broke is sent again: the ids are the same, so it is safe.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from seckill.calls import BACKOFF_MAX_S, BACKOFF_MIN_S
from seckill.errors import (
    EngineClosed,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScriptFailed,
    SeckillError,
    ServerFull,
)
from seckill.fencing import LEFT, LOST, Greeting, NewServer
from seckill.redis import ask, is_transient, refusal_of
from seckill.scripts import script
from seckill.settling import WAIT_MS, ask_settled
from seckill.status import Status
from seckill.tally import Histogram

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from seckill.home import Home

__all__ = [
    "JOINS",
    "ORDERS",
    "ORDERS_BY_TOKEN",
    "SIZE_BOUNDS",
    "TRIP_BOUNDS_S",
    "Answer",
    "Lane",
    "Waiter",
    "Work",
]

SLOTS: Final = 2
SLOTS_OF_REPLICAS: Final = 3
HALVE_FROM: Final = 32
SIZE_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TRIP_BOUNDS_S: Final = tuple(
    ms / 1000 for ms in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)
)

_log = logging.getLogger("seckill.lane")
_pack = msgspec.msgpack.encode


Answer = tuple[int | bytes, int]
"""What the script said of one line: reserve.lua a status or the order's record, and the deadline ms
of a new hold; join.lua a number and 0."""


class Waiter(Protocol):
    """Who is told what became of a line: a future, or less than that."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, answer: Answer, /) -> None:
        """What the script said."""

    def set_exception(self, error: SeckillError, /) -> None:
        """What is known when the script said nothing."""


class Work(msgspec.Struct, frozen=True):
    """Which script decides the batches of a lane. ``noun`` is what a line is called when something
    is said of it. Of each line's columns the last ``extras`` are left out when the very last is
    empty in all of a batch. ``too_late`` is the answer to a line that came after its not_after,
    ``new_server`` that of a server which nobody has found yet to have all that was told, ``fenced``
    that of one which was found to lack something, and looks for no line that it may have decided.
    ``has_written`` says of all answers of a batch whether the script has written anything."""

    verb: str
    noun: str
    extras: int
    too_late: int
    new_server: int
    fenced: int
    has_written: Callable[[list[int | bytes]], bool]


def _has_created(answers: list[int | bytes]) -> bool:
    return _CREATED in answers


def _has_joined(answers: list[int | bytes]) -> bool:
    # Twice the number of a ticket that is new.
    return any(answer > 0 and not answer % 2 for answer in answers)  # type: ignore[operator]


_LATE, _NEW, _CREATED = int(Status.TOO_LATE), int(Status.NEW_SERVER), int(Status.CREATED)
_FENCED: Final = int(Status.FENCED)
ORDERS: Final = Work("reserve", "order", 2, _LATE, _NEW, _FENCED, _has_created)
ORDERS_BY_TOKEN: Final = Work("reserve", "order", 0, _LATE, _NEW, _FENCED, _has_created)
JOINS: Final = Work("join", "the ticket of", 0, -_LATE, -_NEW, -_FENCED, _has_joined)

# A line that waits: not_after ms and the other columns of the script call, who is told, and
# when the caller gives up (monotonic seconds). A plain tuple, because it is made for every order.
_Waiting = tuple[Any, ...]
_WAITER: Final = -2
_GIVE_UP_S: Final = -1


class Lane:
    """Batches the orders of one shard. Not thread-safe: it belongs to one event loop.

    ``sizes`` are the orders of each batch that was answered, ``trip_s`` the seconds from its
    sending to its answer: the socket, the wait for Redis, the script and the wait for the disk.
    ``depth_max`` is how many orders may wait.
    """

    def __init__(
        self,
        home: Home,
        work: Work,
        keys: tuple[str, ...],
        definition_id: str,
        *,
        timeout_ms: int,
        depth_max: int,
        batch_max: int,
    ) -> None:
        self._home = home
        self._work = work
        self._keys = (len(keys), *keys)
        self._definition_id = definition_id
        self._timeout_s = timeout_ms / 1000
        self.depth_max = depth_max
        self._batch_max = batch_max
        self._waiting: deque[_Waiting] = deque()
        self._free: list[asyncio.Future[None]] = []
        self._slots: list[asyncio.Task[None]] = []
        self._offset_ms: float | None = None
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self.batches = 0
        self.orders = 0
        self.sizes = Histogram(SIZE_BOUNDS)
        self.trip_s = Histogram(TRIP_BOUNDS_S)

    @property
    def depth(self) -> int:
        """Orders that wait for a slot."""
        return len(self._waiting)

    async def start(self) -> None:
        """Connects the first slot, which also learns the server's time.

        Raises RedisUnavailable when nobody answers until the time is over.
        """
        first = _Slot(self)
        give_up_s = monotonic() + self._timeout_s
        backoff_s = BACKOFF_MIN_S
        while True:
            try:
                async with asyncio.timeout(max(0.0, give_up_s - monotonic())):
                    await first.open()
                break
            except BaseException as error:
                await first.drop()
                self._home.lost()
                if not isinstance(error, Exception):
                    raise
                if not is_transient(error):
                    raise refusal_of(error) from None
                if monotonic() + backoff_s >= give_up_s:
                    raise RedisUnavailable(f"no Redis answers there: {error}") from None
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        count = SLOTS_OF_REPLICAS if self._home.replicas else SLOTS
        slots = [first, *(_Slot(self) for _ in range(count - 1))]
        self._slots = [self._loop.create_task(self._serve(slot)) for slot in slots]

    def ask(self, *columns: str | int) -> asyncio.Future[Answer]:
        """``submit`` with a future, whose cancelling harms nobody else."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.submit(future, *columns)
        return future

    def submit(self, waiter: Waiter, *columns: str | int) -> None:
        """Queues a line, by its columns for the script without the first, not_after.

        Raises Overloaded when the lane is full. The waiter may be told OutcomeUnknown, Overloaded
        or RedisUnavailable (it was never sent), ServerFull or ScriptFailed.
        """
        if self._closing or self._offset_ms is None:
            raise EngineClosed("the engine is shutting down")
        if len(self._waiting) >= self.depth_max:
            raise Overloaded(retry_after_ms=1000)
        give_up_s = monotonic() + self._timeout_s
        self._waiting.append((self._not_after(give_up_s), *columns, waiter, give_up_s))
        if len(self._waiting) == 1 and self._free:
            # Whoever came before has woken a slot already; what that one leaves, it passes on.
            self._free.pop().set_result(None)

    async def aclose(self) -> None:
        """Answers everything that waits, then closes the connections."""
        self._closing = True
        for free in self._free:
            free.set_result(None)
        self._free.clear()
        await asyncio.gather(*self._slots, return_exceptions=True)

    def learn_time(self, server_ms: int) -> None:
        """Keeps how far the server's clock is ahead of ours, erring to the early side: the server
        wrote this before we read it, so its clock now is at least that."""
        self._offset_ms = server_ms - monotonic() * 1000
        self._home.patience.see(self._offset_ms)

    async def _serve(self, slot: _Slot) -> None:
        waiting = self._waiting
        batch: list[_Waiting] = []
        try:
            while True:
                while not waiting:
                    if self._closing:
                        return
                    free: asyncio.Future[None] = self._loop.create_future()
                    self._free.append(free)
                    await free
                batch = self._take()
                try:
                    await self._decide(slot, batch)
                except Exception as error:  # noqa: BLE001 - logged, and every caller is told
                    # A slot that died would leave its callers, and all who come, without an answer.
                    _log.exception("a batch failed")
                    await slot.drop()
                    _fail(batch, ScriptFailed(f"the answer could not be read: {error!r}"))
        finally:
            # Only a slot that was cancelled still has something here.
            _fail(batch, OutcomeUnknown("the engine was stopped before the answer came"))
            if self._closing:
                _fail(waiting, EngineClosed("the engine was stopped; the order was never sent"))
                waiting.clear()
            await slot.drop()

    def _take(self) -> list[_Waiting]:
        waiting = self._waiting
        count = len(waiting)
        if count >= HALVE_FROM and self._free:
            count = (count + 1) // 2
        batch = []
        now_s = monotonic()
        for _ in range(min(count, self._batch_max)):
            order = waiting.popleft()
            waiter, give_up_s = order[_WAITER], order[_GIVE_UP_S]
            if waiter.done():
                continue
            if give_up_s <= now_s:
                # It was never sent, so this much is certain.
                waiter.set_exception(Overloaded(retry_after_ms=1000))
                continue
            batch.append(order)
        if waiting and self._free:
            self._free.pop().set_result(None)
        return batch

    async def _decide(self, slot: _Slot, batch: list[_Waiting], *, sent: bool = False) -> None:
        """Sends a batch until it is answered or every caller's time is over. ``sent`` says that it
        went out before, so that a lost connection is not taken for "never sent"."""
        backoff_s = BACKOFF_MIN_S
        # Whether an exchange ended without an answer, so that it may have been executed.
        unsure = sent
        while batch:
            try:
                left_s = batch[0][_GIVE_UP_S] - monotonic()
                async with asyncio.timeout_at(self._loop.time() + left_s):
                    if (connection := slot.connection) is None:
                        connection = await slot.open()
                        # It may be another server, which has a clock of its own.
                        batch = [self._renewed(order) for order in batch]
                    sent = True
                    sent_s = monotonic()
                    reply = await slot.exchange(connection, batch, left_s)
            except Exception as error:  # noqa: BLE001 - whatever it is, every caller is told
                if not isinstance(error, TimeoutError) and not is_transient(error):
                    refusal = refusal_of(error)
                    if isinstance(refusal, ServerFull) and len(batch) > 1:
                        # One by one: whoever holds an order must find it on a full server, too.
                        for order in batch:
                            await self._decide(slot, [order], sent=True)
                        return
                    await slot.drop()
                    _fail(batch, refusal)
                    return
                # Whatever was in this socket must not be read as the answer to the next batch.
                await slot.drop()
                self._home.lost()
                unsure = sent
                delay_s = backoff_s * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(0.0, min(delay_s, batch[0][_GIVE_UP_S] - monotonic())))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                batch = self._still_waiting(batch, error, sent=sent)
            else:
                self.batches += 1
                self.orders += len(batch)
                self.sizes.add(len(batch))
                self.trip_s.add(monotonic() - sent_s)
                if reply[0]:
                    self.learn_time(reply[0])
                deadline_ms = reply[1]
                again = []
                is_new = False
                for order, answer in zip(batch, reply[2], strict=True):
                    waiter = order[_WAITER]
                    if waiter.done():
                        continue
                    if answer == self._work.new_server:
                        is_new = True
                        again.append(order)
                    elif answer == self._work.too_late and order[_GIVE_UP_S] > monotonic():
                        # Our estimate of the server's clock was wrong; the caller still has time.
                        again.append(order)
                    elif answer == self._work.fenced and unsure:
                        waiter.set_exception(OutcomeUnknown(LOST))
                    else:
                        waiter.set_result((answer, deadline_ms))
                if not again:
                    return
                pause_s = BACKOFF_MIN_S
                if is_new:
                    self._home.met_new_server()
                    # What was answered like this was certainly not executed there.
                    sent = unsure
                    # It may be a master that is none any more and broke no connection, and of which
                    # only who writes is told.
                    await slot.drop()
                    self._home.lost()
                    pause_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_MAX_S)
                left_s = again[0][_GIVE_UP_S] - monotonic()
                await asyncio.sleep(max(0.0, min(pause_s, left_s)))
                batch = self._still_waiting(again, NewServer(), sent=sent)
                batch = [self._renewed(order) for order in batch]

    def _not_after(self, give_up_s: float) -> int:
        # The last whole millisecond of the server that ends before the caller gives up.
        return int(give_up_s * 1000 + (self._offset_ms or 0.0)) - 1

    def _renewed(self, order: _Waiting) -> _Waiting:
        return (self._not_after(order[_GIVE_UP_S]), *order[1:])

    def _still_waiting(
        self, batch: list[_Waiting], error: Exception, *, sent: bool
    ) -> list[_Waiting]:
        """Tells those whose time is over what is known of their line, and returns the others."""
        now_s = monotonic()
        rest = []
        for order in batch:
            waiter = order[_WAITER]
            if waiter.done():
                continue
            if order[_GIVE_UP_S] <= now_s:
                what = f"{self._work.noun} {order[1]}"
                self._home.patience.give_up(order[0])
                waiter.set_exception(
                    OutcomeUnknown(f"no answer for {what}; ask again with the same key")
                    if sent
                    else RedisUnavailable(_unsent(error))
                )
            else:
                rest.append(order)
        return rest


def _unsent(error: Exception) -> str:
    return str(error) if isinstance(error, NewServer) else f"no Redis answers there: {error}"


def _fail(batch: Iterable[_Waiting], error: SeckillError) -> None:
    for order in batch:
        if not order[_WAITER].done():
            order[_WAITER].set_exception(error)


class _Slot:
    """One connection of a lane, opened when it is needed."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._script = script(lane._work.verb)
        self._greeting = Greeting()
        self._writes = False
        self.connection: AbstractConnection | None = None

    def _has_written(self, replies: list[Any]) -> bool:
        # Of a call that failed nobody is told anything.
        [reply] = replies
        return isinstance(reply, Exception) or self._lane._work.has_written(reply[2])

    async def open(self) -> AbstractConnection:
        # Kept before it is connected, so that drop() closes a half-open one.
        connection = self.connection = await self._lane._home.connection(self._greeting)
        await connection.connect()
        time, loaded = await ask(connection, (("TIME",), ("SCRIPT", "LOAD", self._script.source)))
        for reply in (time, loaded):
            if isinstance(reply, Exception):
                raise reply
        self._lane.learn_time(int(time[0]) * 1000 + int(time[1]) // 1000)
        return connection

    async def exchange(
        self, connection: AbstractConnection, batch: list[_Waiting], left_s: float
    ) -> list[Any]:
        """What the script said of a batch, whose first caller waits for ``left_s`` longer."""
        from redis.exceptions import ConnectionError as BrokenConnection
        from redis.exceptions import NoScriptError

        lane, home = self._lane, self._lane._home
        columns = list(zip(*batch, strict=True))[:_WAITER]
        extras = lane._work.extras
        if extras and not any(columns[-1]):
            columns = columns[:-extras]
        run_id, trusted = self._greeting.run_id, home.told.server
        words, server = self._greeting.words(home.told), home.told.called(run_id)
        call = (*lane._keys, words, lane._definition_id, _pack(columns))
        # After a batch that has written the next one is expected to.
        settled = partial(
            ask_settled,
            connection,
            replicas=home.replicas,
            sale_key=home.sale_key,
            wait_ms=min(WAIT_MS, int(left_s * 1000)),
            has_written=self._has_written if self._writes else None,
        )
        sha, source = self._script.sha, self._script.source
        [reply] = await settled((("EVALSHA", sha, *call),))
        if isinstance(reply, NoScriptError):
            # With its source, because a script loaded now could be flushed again before its call.
            [reply] = await settled((("EVAL", source, *call),))
        if isinstance(reply, Exception):
            raise reply
        if home.told.has_left(trusted, run_id):
            raise BrokenConnection(LEFT)
        if home.replicas:
            self._writes = lane._work.has_written(reply[2])
        if reply[3]:
            home.told.note(reply[3], server)
        return reply  # type: ignore[no-any-return]

    async def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
