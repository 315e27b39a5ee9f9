"""The queue of a sale that is being rebuilt. The ledger has no tickets: what Redis has of them goes
on, or everybody joins again.

It goes on only where Redis had lost nothing (somebody wanted the rebuild, say after editing keys),
and the ledger's events say of its draw what its own header says. A queue that came back as it was a
while ago would give numbers a second time that buyers have tickets of, and a draw whose seed was
revealed could be drawn again by it with another list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from seckill.engine import Engine
from seckill.keys import drawing_key, queue_keys
from seckill.stream import EventKind

__all__ = ["keep_queue"]

Details = Callable[[EventKind], Awaitable[list[tuple[int, str]]]]


async def keep_queue(engine: Engine, sale: str, details: Details, *, nothing_lost: bool) -> bool:
    """Takes the queue's keys away unless they may go on; whether they do.

    ``details`` gives seq and detail of the ledger's events of a kind. Repeating it is harmless.
    """
    calls, keys = engine._calls, queue_keys(sale)
    names = ("commitment", "closed", "listed", "digest", "public_value", "ranked")
    header = await calls.attempt(lambda: calls.client_of(keys[0]).hmget(keys[0], *names))
    if nothing_lost and await _told([text and text.decode() for text in header], details):
        return True
    await calls.attempt(lambda: calls.client_of(keys[0]).unlink(*keys, drawing_key(sale)))
    return False


async def _told(header: list[str | None], details: Details) -> bool:
    """Whether the ledger's events say the same of a queue as its header."""
    commitment, closed, listed, digest, value, ranked = header
    opened = await details(EventKind.QUEUE_OPENED)
    if not opened:
        return commitment is None
    since = opened[-1][0]
    told: dict[EventKind, str | None] = {EventKind.QUEUE_OPENED: commitment}
    told[EventKind.QUEUE_CLOSED] = closed
    told[EventKind.QUEUE_LISTED] = f"{listed}|{digest}" if digest else None
    told[EventKind.QUEUE_VALUED] = value or None
    for kind, text in told.items():
        found = [detail for seq, detail in await details(kind) if seq >= since]
        if (found[-1] if found else None) != text:
            return False
    drawn = [seq for seq, _ in await details(EventKind.QUEUE_DRAWN) if seq >= since]
    return bool(drawn) == (ranked is not None)
