"""The queues of an engine's sales: what a mall calls for them, as ``engine.queue``.

joined = await engine.queue.join("tonight", "buyer-7")
place = joined.place                                        # a ticket, and where it stands
asked = await engine.queue.place("tonight", "buyer-7", place.ticket)
await engine.reserve("tonight", "buyer-7", "key-1", {"MUG": 1}, token=asked.place.token)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from seckill.checks import check_text
from seckill.draw import DrawRecord
from seckill.drawing import Drawing, read_record, ticket_list
from seckill.errors import InvalidInput, UnknownSale
from seckill.order import Outcome
from seckill.queue import Place, Queue, View
from seckill.sale import check_buyer, show
from seckill.status import Status

if TYPE_CHECKING:
    from seckill.engine import Engine
    from seckill.lane import Lane
    from seckill.shard import Shard

__all__ = ["Placed", "Queues"]

VALUE_MAX = 1_000
LEAVING = 8
"""Calls of leave that are under way at once."""
ROTATE_S = 3.0
"""How long a new key is only accepted before it signs: until every process knows it."""
ROTATE_TRIES: Final = 5
"""So often somebody else may have replaced the keys between a look and the script."""

_log = logging.getLogger("seckill.queue")

_ANOTHER: Final = (Status.STALE_DEFINITION, Status.NO_QUEUE)
"""What a queue's scripts answer where the sale was made anew, or the queue was lost, since the last
look: look again."""


class Placed(msgspec.Struct, frozen=True, gc=False):
    """The answer to join and place: a status, and the place where there is one."""

    status: Status
    place: Place | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a place."""
        return self.status.ok


class Queues:
    """The part of an engine that knows its sales' queues."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._drawings: dict[str, asyncio.Task[Status]] = {}
        self._leaving = asyncio.Semaphore(LEAVING)

    async def join(self, sale: str, buyer: str, *, tier: str = "") -> Placed:
        """Gives a buyer a ticket, or finds the one there is. ``tier`` is the member tier, which may
        weigh in a draw.

        CREATED or EXISTS with the place; NO_QUEUE, NOT_OPEN, ENDED, JOINS_CLOSED, FENCED,
        UPGRADE_NEEDED or UNKNOWN_SALE. Raises InvalidInput, Overloaded, OutcomeUnknown,
        RedisUnavailable, ServerFull.
        """
        buyer = check_buyer(buyer, "buyer")
        for _ in range(2):
            found = self._at_hand(sale) or await self._ready(sale)
            if isinstance(found, Status):
                return Placed(found)
            shard, queue = found
            lane = shard.joins or await shard.open_joins()
            answer, _ = await lane.ask(buyer, queue.admission.weight(tier))
            if not isinstance(answer, int):
                raise TypeError(f"join.lua answered {answer!r}")
            if answer >= 0:
                number, known = divmod(answer, 2)
                status = Status.EXISTS if known else Status.CREATED
                return Placed(status, queue.place(buyer, number))
            if -answer not in _ANOTHER:
                return Placed(Status(-answer))
            await self._engine._forget(shard)
        return Placed(Status.STALE_DEFINITION)

    async def place(self, sale: str, buyer: str, ticket: str) -> Placed:
        """Where a ticket stands, with the token once it is called. Answered from memory: it costs
        Redis nothing, and is at most 0.2 s old while people ask.

        DONE with the place; UNKNOWN_TICKET (not this buyer's, not this sale's, or given up),
        NO_QUEUE, FENCED, UPGRADE_NEEDED or UNKNOWN_SALE. Raises as ``join``.
        """
        buyer = check_buyer(buyer, "buyer")
        if type(ticket) is not str:
            raise InvalidInput("ticket", f"is {show(ticket)}, not text", "pass what join returned")
        found = self._at_hand(sale) or await self._ready(sale)
        if isinstance(found, Status):
            return Placed(found)
        place = found[1].place_of(buyer, ticket)
        return Placed(Status.UNKNOWN_TICKET) if place is None else Placed(Status.DONE, place)

    async def leave(self, sale: str, buyer: str) -> Outcome:
        """Gives a buyer's ticket up, and its token with it: who waits behind moves on.

        DONE, UNKNOWN_TICKET, DRAWING (ask again in a moment), NO_QUEUE, FENCED, UPGRADE_NEEDED or
        UNKNOWN_SALE.
        """
        buyer = check_buyer(buyer, "buyer")
        # One call each: a crowd that leaves must not take every connection from the looks.
        async with self._leaving:
            return await self._run(sale, "leave", buyer)

    async def look(self, sale: str) -> View | Status:
        """A queue in numbers, as of now; a status where there is none. It calls who is next."""
        found = await self._ready(sale, Queue.look)
        return found if isinstance(found, Status) else found[1].view

    async def draw(self, sale: str) -> Status:
        """Puts a closed list of tickets in order, if that can be done by now. Every engine does it
        by itself; this is for whoever wants to wait for it.

        DONE, ALREADY, NOT_OPEN (not closed yet, or the public value is missing), DRAWING (another
        process does it), NO_QUEUE, UNKNOWN_SALE …
        """
        found = await self._ready(sale, Queue.look)  # Which closes the list, if it is time.
        if isinstance(found, Status):
            return found
        _, queue = found
        if not queue.admission.is_drawn:
            return Status.NO_QUEUE
        status = await Drawing(queue).run()
        await queue.look()
        return status

    async def name_value(self, sale: str, value: str) -> Outcome:
        """Hands in the public value that a draw's definition names; it can't be changed.

        DONE, ALREADY, CONFLICT (there is another), NOT_OPEN (the list has no digest yet), NO_QUEUE
        (the definition names none), UNKNOWN_SALE …
        """
        check_text("value", value, VALUE_MAX)
        found = await self._queue(sale)
        if isinstance(found, Status):
            return Outcome(found)
        if found[1].admission.public_value is None:
            return Outcome(Status.NO_QUEUE)
        return await self._run(sale, "name_value", value)

    async def commitment(self, sale: str) -> str | Status:
        """What is published of a draw's seed before anybody can join: 64 hex digits. A status where
        there is none: NO_QUEUE (nothing is drawn), UNKNOWN_SALE …"""
        found = await self._ready(sale)
        if isinstance(found, Status):
            return found
        _, queue = found
        if not queue.admission.is_drawn:
            return Status.NO_QUEUE
        text = await queue.calls.attempt(
            lambda: queue.calls.client_of(queue.keys[7]).hget(queue.keys[7], "commitment")
        )
        return Status.UNKNOWN_SALE if text is None else text.decode()

    async def record(self, sale: str) -> DrawRecord | None:
        """What can be published of a draw by now (draw.json); None before its list has a digest.
        Raises UnknownSale for a sale that has none."""
        return await read_record(await self._drawn(sale))

    async def tickets(self, sale: str) -> AsyncIterator[bytes]:
        """The lines of a draw's closed list (tickets.txt), many at once; nothing before it is
        closed. Raises UnknownSale for a sale that has none."""
        async for lines in ticket_list(await self._drawn(sale)):
            yield lines

    async def rotate(self, sale: str) -> Outcome:
        """Replaces the key that signs a sale's tickets and tokens. Those of the last two keys go on
        working. Whoever asks while a rotation is under way takes part in that one. DONE, NO_QUEUE,
        UNKNOWN_SALE …"""
        found = await self._coming(sale)
        if isinstance(found, Status):
            return Outcome(found)
        # First everybody learns to accept it, and then it signs.
        await asyncio.sleep(ROTATE_S)
        done = await self._run(sale, "rotate", "", found)
        if done.status not in (Status.DONE, Status.ALREADY):
            return done
        ready = await self._ready(sale, Queue.look)
        return Outcome(ready if isinstance(ready, Status) else Status.DONE)

    def views(self) -> dict[str, View]:
        """The queues that were looked at here, by sale, for whoever counts."""
        shards = self._engine._shards
        return {
            name: shard.queue.view
            for name, shard in shards.items()
            if shard.queue is not None and shard.queue.view.raw_ms
        }

    def lanes(self) -> dict[str, Lane]:
        """The lanes of those who join that are open here, by sale, for whoever counts."""
        shards = self._engine._shards
        return {name: shard.joins for name, shard in shards.items() if shard.joins}

    # -- inside -------------------------------------------------------------------------------

    async def _coming(self, sale: str) -> str | Status:
        """The key that a rotation brings: a new one, or the one that is on its way already. A
        status where there can be none."""
        for _ in range(ROTATE_TRIES):
            found = await self._ready(sale)
            if isinstance(found, Status):
                return found
            shard, queue = found
            known, new = ",".join(queue.tokens.texts), queue.tokens.another()
            reply = await queue.calls.run(
                "rotate", queue.keys, queue.sale.definition_id, known, new
            )
            if reply[1]:
                return str(reply[1].decode())
            if reply[0] == Status.CONFLICT:
                # Somebody has rotated since the last look.
                await queue.look()
            elif reply[0] in _ANOTHER:
                await self._engine._forget(shard)
            else:
                return Status(reply[0])
        return Status(reply[0])

    async def keep(self, sale: str) -> None:
        """Looks after one sale's queue, if it has one: calls who is next, and draws."""
        try:
            shard = await self._engine._shard(sale)
        except (UnknownSale, InvalidInput):
            return
        if shard.queue is None or not await shard.queue.keep():
            return
        view, running = shard.queue.view, self._drawings.get(sale)
        if view.closed is not None and view.ranked is None and (running is None or running.done()):
            task = self._drawings[sale] = asyncio.create_task(Drawing(shard.queue).run())
            task.add_done_callback(_told)

    async def aclose(self) -> None:
        """Ends what is under way; another process does it, or does it again."""
        for task in self._drawings.values():
            task.cancel()
        await asyncio.gather(*self._drawings.values(), return_exceptions=True)
        self._drawings.clear()

    async def _queue(self, sale: str) -> tuple[Shard, Queue] | Status:
        try:
            shard = self._engine._shards.get(sale) or await self._engine._shard(sale)
        except UnknownSale:
            return Status.UNKNOWN_SALE
        return Status.NO_QUEUE if shard.queue is None else (shard, shard.queue)

    def _at_hand(self, sale: str) -> tuple[Shard, Queue] | None:
        """What ``_ready`` nearly always finds, without the cost of its coroutines."""
        shard = self._engine._shards.get(sale)
        if shard is None or shard.queue is None or not shard.queue.fresh:
            return None
        return shard, shard.queue

    async def _ready(
        self, sale: str, ask: Callable[[Queue], Awaitable[Status]] = Queue.ready
    ) -> tuple[Shard, Queue] | Status:
        for _ in range(2):
            found = await self._queue(sale)
            if isinstance(found, Status):
                return found
            shard, queue = found
            status = await ask(queue)
            if status is Status.DONE:
                return found
            if status not in (Status.STALE_DEFINITION, Status.UNKNOWN_SALE):
                return status
            # The sale was made anew under the same id, or removed.
            await self._engine._forget(shard)
        return status

    async def _drawn(self, sale: str) -> Queue:
        found = await self._queue(sale)
        if isinstance(found, Status) or not found[1].admission.is_drawn:
            raise UnknownSale(sale)
        return found[1]

    async def _run(self, sale: str, verb: str, *args: str) -> Outcome:
        for _ in range(2):
            found = await self._ready(sale)
            if isinstance(found, Status):
                return Outcome(found)
            shard, queue = found
            reply = await queue.calls.run(verb, queue.keys, queue.sale.definition_id, *args)
            if reply[0] not in _ANOTHER:
                return Outcome(Status(reply[0]))
            await self._engine._forget(shard)
        return Outcome(Status.STALE_DEFINITION)


def _told(task: asyncio.Task[Status]) -> None:
    """A draw that nobody waits for must not fail unseen. The next sweep begins it again."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.warning("a draw goes on later: %s", error)
