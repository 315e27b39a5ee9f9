"""Draws: puts the closed list of a sale's tickets in order, by the rule of seckill.draw.

    admit.lua closes the list ─▶ list.lua: its digest ─▶ [name_value.lua: the public value] ─▶ ranks
    ─▶ draw.lua: in effect, and the seed revealed

Any process may do any step: the list does not change, so everybody computes the same. Where the
sale names a public value, the draw waits until somebody hands it in.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from array import array
from collections.abc import AsyncIterator, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from seckill.draw import (
    DrawRecord,
    first_line,
    holders,
    mix_of,
    rank_steps,
    ticket_line,
)
from seckill.keys import drawing_key
from seckill.status import Status

if TYPE_CHECKING:
    from seckill.queue import Queue

__all__ = ["Drawing", "read_record", "ticket_list"]

_log = logging.getLogger("seckill.queue")

LEASE_MS: Final = 20_000
_SCAN_COUNT: Final = 1_000
_LINES: Final = 256
_RANKS_PART: Final = 1 << 20
_SLICE_S: Final = 0.002

_T = TypeVar("_T")


class _Facts(msgspec.Struct, frozen=True):
    """What the queue's header says of its draw."""

    closed: int | None
    closed_ms: int
    ranked: int | None
    digest: str
    listed: int
    value: str
    seed: str
    commitment: str
    secret: bytes


class Drawing:
    """One draw, as far as this process helps with it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lease = (drawing_key(queue.sale.id), LEASE_MS)

    async def run(self) -> Status:
        """Does what can be done by now: DONE, ALREADY, NOT_OPEN (the list is not closed, or the
        public value is missing) or DRAWING (another process is at it)."""
        facts = await _read_facts(self._queue)
        if facts.ranked is not None:
            return Status.ALREADY
        if facts.closed is None:
            return Status.NOT_OPEN
        needs_value = self._queue.admission.public_value is not None and not facts.value
        if needs_value and facts.digest:
            return Status.NOT_OPEN
        if not await self._take_lease():
            return Status.DRAWING
        try:
            return await self._draw(facts, stop_at_list=needs_value)
        finally:
            client = self._queue.calls.client_of(self._lease[0])
            await self._queue.calls.attempt(lambda: client.delete(self._lease[0]))

    async def _draw(self, facts: _Facts, *, stop_at_list: bool) -> Status:
        weights, digest = await _digest(self._queue, facts)
        tickets = len(weights) - weights.count(0)
        if not facts.digest:
            status = await self._run("list", digest, tickets)
            if not status.ok or stop_at_list:
                return Status.NOT_OPEN if status.ok else status
        mix = mix_of(bytes.fromhex(facts.seed), digest, facts.value or None)
        ranks = await _slowly(rank_steps(mix, weights))
        key = self._queue.keys[11]
        client = self._queue.calls.client_of(key)
        raw = ranks.tobytes()
        for first in range(0, len(raw), _RANKS_PART):
            part = raw[first : first + _RANKS_PART]
            await self._queue.calls.attempt(
                lambda first=first, part=part: client.setrange(key, first, part)  # type: ignore[misc]
            )
        status = await self._run("draw", digest, facts.value, tickets)
        if status is Status.CONFLICT:
            # What somebody else has left there; the next attempt writes all of it.
            _log.warning(
                "the draw of sale %s begins again: its ranks did not fit", self._queue.sale.id
            )
            await self._queue.calls.attempt(lambda: client.unlink(key))
        return status

    async def _run(self, verb: str, *args: Any) -> Status:
        queue = self._queue
        reply = await queue.calls.run(verb, queue.keys, queue.sale.definition_id, *args)
        return Status(reply[0])

    async def _take_lease(self) -> bool:
        # Only so that not every process computes the same. Two that do are both right.
        key, ms = self._lease
        client = self._queue.calls.client_of(key)
        taken = await self._queue.calls.attempt(lambda: client.set(key, "1", nx=True, px=ms))
        return bool(taken)


async def read_record(queue: Queue) -> DrawRecord | None:
    """What can be published of a draw; None before its list has a digest. The seed is told only
    once the draw is done."""
    facts = await _read_facts(queue)
    if not facts.digest:
        return None
    return DrawRecord(
        sale=queue.sale.id,
        definition_id=queue.sale.definition_id,
        definition=queue.sale.definition().decode(),
        commitment=facts.commitment,
        tickets=facts.listed,
        digest=facts.digest,
        closed_ms=facts.closed_ms,
        public_value=facts.value or None,
        seed=None if facts.ranked is None else facts.seed,
    )


async def ticket_list(queue: Queue) -> AsyncIterator[bytes]:
    """The lines of the closed list (tickets.txt), many at once. Nothing before it is closed."""
    facts = await _read_facts(queue)
    if facts.closed is None:
        return
    weights, buyers = await _read_tickets(queue, facts.closed)
    async for lines in _lines(queue, facts, weights, buyers):
        yield lines


async def _digest(queue: Queue, facts: _Facts) -> tuple[array[int], str]:
    """The weight of each number, 0 for one that was given up, and the list's digest."""
    weights, buyers = await _read_tickets(queue, facts.closed or 0)
    digest = hashlib.sha256()
    async for lines in _lines(queue, facts, weights, buyers):
        digest.update(lines)
    return weights, digest.hexdigest()


async def _lines(
    queue: Queue, facts: _Facts, weights: array[int], buyers: list[str]
) -> AsyncIterator[bytes]:
    yield first_line(queue.sale.id, queue.sale.definition_id)
    holder_of = holders(facts.secret)
    for first in range(0, len(weights), _LINES):
        part = range(first, min(first + _LINES, len(weights)))
        yield b"".join(
            ticket_line(number, weights[number], holder_of(buyers[number]))
            for number in part
            if weights[number]
        )
        await asyncio.sleep(0)


async def _read_tickets(queue: Queue, closed: int) -> tuple[array[int], list[str]]:
    """Weight and buyer of each number below ``closed``, also of those who have left since."""
    client = queue.calls.client_of(queue.keys[8])
    weights, buyers = array("B", bytes(closed)), [""] * closed
    # Those who leave while this reads are in one hash or the other, or in both.
    for key in (queue.keys[8], queue.keys[12]):
        cursor = b"0"
        while True:
            cursor, found = await queue.calls.attempt(
                lambda key=key, at=cursor: client.execute_command(  # type: ignore[misc]
                    "HSCAN", key, at, "COUNT", _SCAN_COUNT
                )
            )
            for buyer, text in found.items():
                number, _, weight = text.partition(b":")
                if int(number) < closed:
                    weights[int(number)] = int(weight or 1)
                    buyers[int(number)] = buyer.partition(b"|")[0].decode()
            if int(cursor) == 0:
                break
    return weights, buyers


async def _read_facts(queue: Queue) -> _Facts:
    names = (
        "closed",
        "closed_ms",
        "ranked",
        "digest",
        "listed",
        "public_value",
        "seed",
        "commitment",
        "secret",
    )
    client = queue.calls.client_of(queue.keys[7])
    found = await queue.calls.attempt(lambda: client.hmget(queue.keys[7], *names))
    texts = [None if value is None else value.decode() for value in found]
    closed, closed_ms, ranked, digest, listed, value, seed, commitment, secret = texts
    return _Facts(
        closed=int(closed) if closed else None,
        closed_ms=int(closed_ms or 0),
        ranked=int(ranked) if ranked else None,
        digest=digest or "",
        listed=int(listed or 0),
        value=value or "",
        seed=seed or "",
        commitment=commitment or "",
        secret=bytes.fromhex(secret or ""),
    )


async def _slowly(steps: Generator[None, None, _T]) -> _T:
    """Goes through all steps, and lets everybody else have their turn between them."""
    while True:
        until_s = monotonic() + _SLICE_S
        try:
            while monotonic() < until_s:
                next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result
        await asyncio.sleep(0)
