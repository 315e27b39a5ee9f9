"""Events that the stream has lost, from the ledger to the mall's endpoint: after a rebuild, or
where somebody trimmed what the relay had not read.

They go out as the relay sends them, with the same ids, which are the receiver's idempotency keys,
and in order for each order. What was delivered before comes again, and the receiver drops it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.consumer import Answer, Pace
from seckill.consumer.pace import Turns
from seckill.engine import Engine
from seckill.errors import InvalidInput, SeckillError
from seckill.keys import group_keys, shard_keys, stream_key
from seckill.ledger.rows import Known, Raw, decode
from seckill.relay.endpoint import Endpoint, Post
from seckill.relay.relay import GROUP
from seckill.webhook import event_body, event_id

if TYPE_CHECKING:
    from seckill.ledger import Ledger

__all__ = ["CannotHandOver", "HandedOver", "Handover"]

OPTION: Final = "--from-ledger"
_DAMAGED: Final = Answer(False, "it is damaged, or of a newer version", gone=True)

_log = logging.getLogger("seckill.relay")


class CannotHandOver(SeckillError):
    """Nothing was sent; the message says why, and what to do."""


class HandedOver(msgspec.Struct):
    """What was done of the events ``first`` to ``last``. ``failed`` counts attempts; ``left`` are
    events that were given up, at most one an order, because its later ones wait for it. ``again``
    is from where to go on when it was stopped; 0: it was not."""

    first: int
    last: int
    delivered: int = 0
    failed: int = 0
    left: list[int] = msgspec.field(default_factory=list)
    again: int = 0


class Handover:
    """One sale's events from this seq up to the first one that its stream has. Called once.

    Engine and ledger must be started; they belong to the caller.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        endpoint: Endpoint,
        sale: str,
        seq: int,
        *,
        pace: Pace | None = None,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._endpoint = endpoint
        self._sale = sale
        self._first = seq
        self._pace = pace or Pace()
        self._post = Post(endpoint)
        self._turns = Turns(endpoint.in_flight, self._pace, f"{GROUP}, from the ledger")
        self._stopping = asyncio.Event()
        self._stuck: set[str] = set()

    def stop(self) -> None:
        """Begins the end: attempts under way are finished, no other one begins."""
        self._stopping.set()

    async def run(self) -> HandedOver:
        """Delivers; ends when every event was delivered or given up.

        Raises CannotHandOver, InvalidInput (nothing to send from there), UnknownSale (the ledger
        has no such sale), MissingExtra, RedisUnavailable, LedgerUnavailable and LedgerRefused.
        """
        known = await self._ledger.known(self._sale)
        done = HandedOver(self._first, await self._last())
        if done.last < self._first:
            problem = f"{self._first} is not before the stream, which begins at {done.last + 1}"
            raise InvalidInput(OPTION, problem, "leave it out: seckill relay delivers those")
        after, through, done.last = self._first - 1, done.last, self._first - 1
        async with self._post:
            async for part in self._ledger.events(self._sale, after_seq=after, through_seq=through):
                done.last = part[-1].seq
                await self._deliver(known, part, done)
                if self._stopping.is_set():
                    # Some events of this part may be delivered a second time then.
                    done.again = min([*done.left, part[0].seq])
                    break
        done.left.sort()
        return done

    async def _last(self) -> int:
        """The last event that the stream has no more."""
        keys = shard_keys(self._sale)
        client = self._engine._calls.client_of(keys[0])
        lease = group_keys(self._sale, GROUP).lease

        async def ask() -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.execute_command("HMGET", keys[0], "state", "seq")
                pipe.execute_command("XRANGE", stream_key(self._sale), "-", "+", "COUNT", 1)
                pipe.execute_command("EXISTS", lease)
                return await pipe.execute()

        (state, seq), entries, leased = await self._engine._calls.attempt(ask)
        if leased:
            # A receiver that has had a later event of an order takes no earlier one.
            problem = f"a relay delivers the events of sale {self._sale!r} now"
            raise CannotHandOver(f"{problem}; stop it, and start it again after this")
        if state == b"fenced":
            problem = f"sale {self._sale!r} is fenced"
            raise CannotHandOver(f"{problem}; bring it back first: seckill rebuild {self._sale}")
        if entries:
            entry_id, fields = entries[0]
            return int(entry_id.partition(b"-")[2]) - len(fields) // 2
        return int(seq) if seq else (await self._ledger.last(self._sale))[0]

    async def _deliver(self, known: Known, raws: Sequence[Raw], done: HandedOver) -> None:
        """Some thousand events, those of an order one after the other."""
        lines: dict[str, list[Raw]] = {}
        for raw in raws:
            if raw.subject not in self._stuck:
                lines.setdefault(raw.subject, []).append(raw)
        async with asyncio.TaskGroup() as tasks:
            for line in lines.values():
                tasks.create_task(self._carry(known, line, done))

    async def _carry(self, known: Known, line: list[Raw], done: HandedOver) -> None:
        for raw in line:
            if not await self._send(known, raw, done):
                self._stuck.add(raw.subject)
                if not self._stopping.is_set():
                    done.left.append(raw.seq)
                return
            done.delivered += 1

    async def _send(self, known: Known, raw: Raw, done: HandedOver) -> bool:
        """Tries until an event is delivered, given up, or the end has begun."""
        failures, give_up_at = 0, 0.0
        while not self._stopping.is_set():
            answer = await self._attempt(known, raw, new=not failures)
            if answer is None or answer.delivered:
                return answer is not None
            failures += 1
            done.failed += 1
            give_up_at = give_up_at or time.monotonic() + self._endpoint.give_up_s
            level = logging.INFO if failures == 1 else logging.DEBUG
            _log.log(level, "event %d failed, attempt %d: %s", raw.seq, failures, answer.cause)
            left_s = give_up_at - time.monotonic()
            if answer.gone or left_s <= 0:
                _log.error("event %d is given up: %s", raw.seq, answer.cause)
                return False
            await self._sleep(min(left_s, self._pace.wait_s(failures, answer.retry_after_s)))
        return False

    async def _attempt(self, known: Known, raw: Raw, *, new: bool) -> Answer | None:
        """The answer; None when nothing may be sent any more."""
        try:
            event = decode(known, raw)
            body = event_body(known.sale, event)
        except (LookupError, ValueError):
            return _DAMAGED
        await self._turns.take(self._sale, new=new)
        if self._stopping.is_set():
            self._turns.skip(new=new)
            return None
        try:
            answer = await self._post.send(event_id(event), body)
        except BaseException:
            self._turns.skip(new=new)
            raise
        self._turns.give(raw.subject, answer.cause, new=new, answered=answer.answered)
        return answer

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
