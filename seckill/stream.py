"""The event stream of a sale: reading it, and consuming it as one of a group.

An entry's id is ``<sale time ms>-<seq>``. Each of its fields is one event: the field names the
subject (an order id, or ``sale``), the value says what happened. One entry may carry up to 32
orders of one batch; its seq is that of the last, and the others count backwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from seckill.keys import stream_key
from seckill.order import Order, read_order
from seckill.sale import Sale

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
    STOCK_CHANGED = "stock_changed"


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
    "stock": EventKind.STOCK_CHANGED,
}


class Event(msgspec.Struct, frozen=True):
    """One thing that happened, for ever.

    ``seq`` is dense from 1 within the sale; ``order`` is the order as this event left it, None for
    events of the sale. ``detail`` depends on the kind: the payment id of order_confirmed and
    refund_due; ``refund id,units returned,limit given back`` of order_refunded; the definition's
    JSON of sale_created; the reason of sale_paused; ``index:units,…`` left unsold of sale_settled;
    ``key|SKU index|units|new total`` of stock_changed. ``attrs`` is only on order_held.
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
    """Makes a group that begins at the first event, unless it is there already."""
    from redis.exceptions import ResponseError

    # Asked first, because a full server refuses to make a group that it has already.
    if group.encode() not in [known["name"] for known in await client.xinfo_groups(key)]:
        try:
            await client.xgroup_create(key, group, id="0")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


async def consume(
    client: Redis,
    sale: Sale,
    origin_ms: int,
    group: str,
    *,
    consumer: str,
    count: int,
    reclaim_ms: int,
    block_ms: int,
    follow: bool,
) -> AsyncIterator[list[Event]]:
    """Batches of events for this consumer; a batch is acknowledged when the next one is asked for.

    Delivery is at least once: what a consumer took and never acknowledged goes to another one of
    the group after ``reclaim_ms``. ``follow=False`` ends when nothing is left.
    """
    key = stream_key(sale.id)
    await make_group(client, key, group)
    cursor: Any = "0-0"
    while True:
        # Not redis-py's own timeout: that writes under asyncio.wait_for, which before Python 3.12
        # can lose a cancellation, and a consumer that was told to stop would go on.
        async with asyncio.timeout(PATIENCE_S):
            claimed: Any = await client.execute_command(
                "XAUTOCLAIM", key, group, consumer, reclaim_ms, cursor, "COUNT", count
            )
        # Redis looks at a few entries at a time, so what the dead have left may lie behind what the
        # living hold: go on where it stopped, round and round.
        cursor = claimed[0]
        # An entry that was deleted meanwhile comes without fields.
        entries = [entry for entry in claimed[1] if entry and entry[1]]
        if not entries:
            block = ("BLOCK", block_ms) if follow else ()
            words = ("GROUP", group, consumer, "COUNT", count, *block, "STREAMS", key, ">")
            async with asyncio.timeout(block_ms / 1000 + PATIENCE_S):
                reply: Any = await client.execute_command("XREADGROUP", *words)
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
