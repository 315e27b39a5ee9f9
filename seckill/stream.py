"""The event stream of a sale: reading it, and consuming it as one of a group.

An entry's id is ``<sale time ms>-<seq>``. Each of its fields is one event: the field names the
subject (an order id, or ``sale``), the value says what happened. One entry may carry up to 32
orders of one batch; its seq is that of the last, and the others count backwards.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from seckill.errors import EventsTrimmed
from seckill.keys import shard_keys, stream_key
from seckill.order import Order, read_order
from seckill.sale import Sale
from seckill.settling import read_settled

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = [
    "ORDER_KINDS",
    "SALE_KINDS",
    "SALE_SUBJECT",
    "Event",
    "EventKind",
    "consume",
    "decode_entry",
    "decode_event",
    "first_seq",
    "join_group",
    "make_group",
    "read_all",
]

SALE_SUBJECT = "sale"
"""What an event of the sale has in place of an order id."""
READ_COUNT = 500
PATIENCE_S = 5.0


class EventKind(StrEnum):
    """What happened."""

    HELD = "order_held"
    PAYING = "order_paying"
    CONFIRMED = "order_confirmed"
    RELEASED = "order_released"
    EXPIRED = "order_expired"
    REFUNDED = "order_refunded"
    REFUND_DUE = "refund_due"
    SALE_CREATED = "sale_created"
    SALE_OPENED = "sale_opened"
    SALE_PAUSED = "sale_paused"
    SALE_RESUMED = "sale_resumed"
    SALE_CLOSED = "sale_closed"
    SALE_SETTLED = "sale_settled"
    SALE_REBUILT = "sale_rebuilt"
    STOCK_CHANGED = "stock_changed"
    QUEUE_OPENED = "queue_opened"
    QUEUE_CLOSED = "queue_closed"
    QUEUE_LISTED = "queue_listed"
    QUEUE_VALUED = "queue_valued"
    QUEUE_DRAWN = "queue_drawn"


ORDER_KINDS = {
    "held": EventKind.HELD,
    "paying": EventKind.PAYING,
    "confirmed": EventKind.CONFIRMED,
    "released": EventKind.RELEASED,
    "expired": EventKind.EXPIRED,
    "refunded": EventKind.REFUNDED,
    "refund_due": EventKind.REFUND_DUE,
}
SALE_KINDS = {
    "created": EventKind.SALE_CREATED,
    "opened": EventKind.SALE_OPENED,
    "paused": EventKind.SALE_PAUSED,
    "resumed": EventKind.SALE_RESUMED,
    "closed": EventKind.SALE_CLOSED,
    "settled": EventKind.SALE_SETTLED,
    "rebuilt": EventKind.SALE_REBUILT,
    "stock": EventKind.STOCK_CHANGED,
    "queue_opened": EventKind.QUEUE_OPENED,
    "queue_closed": EventKind.QUEUE_CLOSED,
    "queue_listed": EventKind.QUEUE_LISTED,
    "queue_valued": EventKind.QUEUE_VALUED,
    "queue_drawn": EventKind.QUEUE_DRAWN,
}


class Event(msgspec.Struct, frozen=True):
    """One thing that happened, for ever.

    ``seq`` is dense from 1 within the sale, but for sale_rebuilt, which leaves a gap, and never
    goes back. Take an event of an order only if its seq is higher than the last one taken of that
    order: its version may be told twice when the sale was rebuilt. ``order`` is the order as this
    event left it, None for events of the sale. ``detail`` depends on the kind:
    the payment id of order_confirmed and refund_due; ``refund id,units returned,limit given back``
    of order_refunded; the definition's JSON of sale_created; the reason of sale_paused;
    ``index:units,…`` left unsold of sale_settled; ``key|SKU index|units|new total`` of
    stock_changed; ``the ledger's last seq|its time ms|orders| highest seq ever seen|state|ms
    before which no hold lapses`` of sale_rebuilt; the commitment of queue_opened; the tickets given
    out of queue_closed; ``tickets|digest`` of queue_listed; the public value of queue_valued;
    ``tickets|digest|seed|public value`` of queue_drawn. ``attrs`` is only on order_held.
    """

    sale: str
    seq: int
    at_ms: int
    kind: EventKind
    order: Order | None = None
    detail: str = ""
    attrs: str = ""


def decode_entry(
    sale: Sale, origin_ms: int, entry_id: bytes, fields: Iterable[bytes]
) -> list[Event]:
    """The events of one stream entry, in order. ``fields`` alternates subject and value."""
    at, _, last = entry_id.decode().partition("-")
    parts = [part.decode() for part in fields]
    first = int(last) - len(parts) // 2 + 1
    return [
        decode_event(sale, origin_ms, int(at), seq, subject, value)
        for seq, (subject, value) in enumerate(zip(parts[::2], parts[1::2], strict=True), first)
    ]


def decode_event(
    sale: Sale, origin_ms: int, at_ms: int, seq: int, subject: str, value: str
) -> Event:
    """One event, from its field of an entry. Raises LookupError or ValueError for a damaged one."""
    word, _, rest = value.partition("|")
    if subject == SALE_SUBJECT:
        return Event(sale.id, seq, at_ms, SALE_KINDS[word], None, rest)
    detail, _, record = rest.partition("|")
    attrs = ""
    if word == "held":
        # A new order's record has three parts; what follows is the caller's, bars and all.
        head, cart, buyer, attrs = record.split("|", 3)
        record = f"{head}|{cart}|{buyer}"
    order = read_order(sale, origin_ms, subject, record)
    return Event(sale.id, seq, at_ms, ORDER_KINDS[word], order, detail, attrs)


async def read_all(
    client: Redis, sale: Sale, origin_ms: int, *, through_seq: int | None = None
) -> AsyncIterator[Event]:
    """Every event of the sale from the start, up to and including ``through_seq``."""
    start = "-"
    while True:
        entries: Any = await client.execute_command(
            "XRANGE", stream_key(sale.id), start, "+", "COUNT", READ_COUNT
        )
        for entry_id, fields in entries:
            for event in decode_entry(sale, origin_ms, entry_id, fields):
                if through_seq is not None and event.seq > through_seq:
                    return
                yield event
            start = "(" + entry_id.decode()
        if len(entries) < READ_COUNT:
            return


async def make_group(client: Redis, key: str, group: str) -> None:
    """Makes a group that begins at the first event, or the first that is left (see ``join_group``),
    unless it is there already."""
    from redis.exceptions import ResponseError

    # Asked first, because a full server refuses to make a group that it has already.
    if group.encode() not in [known["name"] for known in await client.xinfo_groups(key)]:
        try:
            await client.xgroup_create(key, group, id="0")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


async def first_seq(client: Redis, sale: str) -> int:
    """The first event that is still in the stream; the next one to come when none is."""
    oldest: Any = await client.execute_command("XRANGE", stream_key(sale), "-", "+", "COUNT", 1)
    if not oldest:
        return int(await client.hget(shard_keys(sale)[0], "seq") or 0) + 1
    entry_id, fields = oldest[0]
    return int(entry_id.partition(b"-")[2]) - len(fields) // 2 + 1


async def _was_rebuilt(client: Redis, sale: str) -> bool:
    """Whether the stream begins with the sale's rebuilding: nothing before it was ever in there, so
    a group that begins with it can't do better."""
    oldest: Any = await client.execute_command("XRANGE", stream_key(sale), "-", "+", "COUNT", 1)
    return bool(oldest) and oldest[0][1][1].startswith(b"rebuilt|")


async def join_group(client: Redis, sale: str, group: str, *, after_trim: bool = False) -> None:
    """Makes a group unless it is there. It begins at the sale's first event: raises EventsTrimmed
    when that is no longer there, unless ``after_trim`` lets it begin at the first that is.
    """
    key = stream_key(sale)
    groups: Any = await client.xinfo_groups(key)
    place = {one["name"]: one["last-delivered-id"] for one in groups}.get(group.encode())
    # A group that has read something holds back every trim, so nothing of its events can be gone.
    if place not in (None, b"0-0"):
        return
    after_trim = after_trim or await _was_rebuilt(client, sale)
    first = 1 if after_trim else await first_seq(client, sale)
    if first == 1:
        await make_group(client, key, group)
        # Asked once more, because it may have been trimmed just before the group was made.
        first = 1 if after_trim else await first_seq(client, sale)
        if first > 1:
            await client.xgroup_destroy(key, group)
    if first > 1:
        raise EventsTrimmed(sale, first)


async def consume(
    client: Redis,
    sale: Sale,
    origin_ms: int,
    group: str,
    *,
    consumer: str,
    after_trim: bool,
    count: int,
    reclaim_ms: int,
    block_ms: int,
    follow: bool,
    replicas: int,
) -> AsyncIterator[list[Event]]:
    """Batches of events for this consumer; a batch is acknowledged when the next one is asked for.

    Delivery is at least once: what a consumer took and never acknowledged goes to another one of
    the group after ``reclaim_ms``. ``follow=False`` ends when nothing is left. Without a name, a
    ``consumer`` goes by host and process id. ``replicas`` is how many must have what is handed on.
    """
    key, header = stream_key(sale.id), shard_keys(sale.id)[0]
    consumer = consumer or f"{socket.gethostname()}-{os.getpid()}"
    await join_group(client, sale.id, group, after_trim=after_trim)
    cursor: Any = "0-0"
    while True:
        # Not redis-py's own timeout: that writes under asyncio.wait_for, which before Python 3.12
        # can lose a cancellation, and a consumer that was told to stop would go on.
        async with asyncio.timeout(PATIENCE_S):
            words = ("XAUTOCLAIM", key, group, consumer, reclaim_ms, cursor, "COUNT", count)
            claimed: Any = await read_settled(client, replicas, header, *words)
        # Redis looks at a few entries at a time, so what the dead have left may lie behind what the
        # living hold: go on where it stopped, round and round.
        cursor = claimed[0]
        # An entry that was deleted meanwhile comes without fields.
        entries = [entry for entry in claimed[1] if entry and entry[1]]
        if not entries:
            block = ("BLOCK", block_ms) if follow else ()
            of = ("GROUP", group, consumer, "COUNT", count, *block, "STREAMS", key, ">")
            async with asyncio.timeout(block_ms / 1000 + PATIENCE_S):
                reply: Any = await read_settled(client, replicas, header, "XREADGROUP", *of)
            entries = reply[0][1] if reply else []
        if not entries:
            if follow or cursor != b"0-0":
                continue
            return
        yield [
            event
            for entry_id, fields in entries
            for event in decode_entry(sale, origin_ms, entry_id, fields)
        ]
        async with asyncio.timeout(PATIENCE_S):
            await client.xack(key, group, *[entry_id for entry_id, _ in entries])
