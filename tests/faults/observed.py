"""What a server holds of a sale at one moment, read raw: of the engine only the keys' names are
used.

Read it while no caller reaches the server: after its restart and before anybody is let in, or when
the load has ended. The clients' logs are read before, the ledger and the consumers' logs after.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import redis

from seckill.keys import shard_keys

__all__ = [
    "Observed",
    "SeenEvent",
    "SeenItem",
    "SeenOrder",
    "SeenSale",
    "SeenStock",
    "observe",
    "read_event",
    "read_purse",
    "read_record",
    "read_units",
]

# Everything a group was given and has not acknowledged; a load of these tests makes far fewer.
PENDING_MAX = 1_000_000


class SeenStock(msgspec.Struct):
    """The units of one SKU."""

    available: int
    held: int
    confirmed: int
    total: int
    moving: int = 0


class SeenOrder(msgspec.Struct):
    """An order's record: ``state`` is its letter, ``units`` are by SKU index, ``deadline_ms``
    counts from the sale's origin."""

    state: str
    version: int
    print6: str
    deadline_ms: int
    units: dict[str, int]
    buyer: str
    payments: tuple[str, ...] = ()
    refund: str = ""


class SeenEvent(msgspec.Struct):
    """One event: of an order, or of the "sale". ``text`` is its value as it stands in the stream,
    ``record`` the order as it left it."""

    seq: int
    at_ms: int
    subject: str
    kind: str
    detail: str
    text: str
    record: SeenOrder | None = None


class SeenItem(msgspec.Struct):
    """One SKU of the definition. A limit of 0 is none."""

    sku: str
    total: int
    limit: int = 0


class SeenSale(msgspec.Struct):
    """What the sale's definition promises."""

    items: list[SeenItem]
    hold_ms: int
    pay_ms: int
    limit_per_order: int = 0
    limit_per_buyer: int = 0
    max_lapsed: int = 0


class Observed(msgspec.Struct):
    """One sale. ``buyers`` are units by SKU index, and lapses. ``trimmed_seq`` is the last event
    that was taken out of the stream on purpose. ``acked`` are the events that each group has dealt
    with."""

    seq: int
    sale: SeenSale
    stock: dict[str, SeenStock]
    orders: dict[str, SeenOrder]
    buyers: dict[str, tuple[dict[str, int], int]]
    events: list[SeenEvent]
    origin_ms: int = 0
    trimmed_seq: int = 0
    acked: dict[str, set[int]] = msgspec.field(default_factory=dict)


def observe(url: str, sale: str) -> Observed:
    """Reads a sale. Its keys in one transaction, so that nothing happens in between."""
    sale_key, stock_key, buyers_key, orders_key, _, _, events_key = shard_keys(sale)
    with redis.Redis.from_url(url) as client:
        with client.pipeline(transaction=True) as pipe:
            pipe.hmget(sale_key, "seq", "definition", "origin_ms", "trimmed_seq")
            pipe.hgetall(stock_key)
            pipe.hgetall(buyers_key)
            pipe.hgetall(orders_key)
            # By a script, because redis-py would make a dict of the fields and so swallow a double.
            pipe.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, events_key)
            header, stock, buyers, orders, entries = pipe.execute()
        acked = _read_acked(client, events_key, entries)
    if header[0] is None:
        # A crash may take the whole sale with it; then everything that was acknowledged is lost.
        return Observed(0, SeenSale([], 0, 0), {}, {}, {}, [])
    rows: dict[str, dict[str, int]] = {}
    for field, value in stock.items():
        index, _, name = field.decode().partition(":")
        if name in SeenStock.__struct_fields__:
            rows.setdefault(index, {})[name] = int(value)
    return Observed(
        seq=int(header[0]),
        sale=_read_sale(header[1]),
        stock={index: SeenStock(**row) for index, row in rows.items()},
        orders={order.decode(): read_record(record.decode()) for order, record in orders.items()},
        buyers={buyer.decode(): read_purse(purse.decode()) for buyer, purse in buyers.items()},
        events=[event for entry in entries for event in _read_entry(*entry)],
        origin_ms=int(header[2]),
        trimmed_seq=int(header[3] or 0),
        acked=acked,
    )


def _read_sale(definition: bytes) -> SeenSale:
    fields: dict[str, Any] = json.loads(definition)
    return SeenSale(
        [SeenItem(item["sku"], item["total"], item["limit_per_buyer"]) for item in fields["items"]],
        fields["hold_ms"],
        fields["pay_ms"],
        fields["limit_per_order"],
        fields["limit_per_buyer"],
        fields["max_lapsed"],
    )


def _numbers(entry_id: bytes, fields: list[bytes]) -> range:
    last = int(entry_id.decode().partition("-")[2])
    return range(last - len(fields) // 2 + 1, last + 1)


def _read_entry(entry_id: bytes, fields: list[bytes]) -> list[SeenEvent]:
    at_ms = int(entry_id.decode().partition("-")[0])
    parts = [part.decode() for part in fields]
    return [
        read_event(seq, at_ms, subject, text)
        for seq, subject, text in zip(
            _numbers(entry_id, fields), parts[::2], parts[1::2], strict=True
        )
    ]


def _read_acked(
    client: redis.Redis, events_key: str, entries: list[tuple[bytes, list[bytes]]]
) -> dict[str, set[int]]:
    """The events of each group's entries that were given out and are not waited for any more."""
    acked: dict[str, set[int]] = {}
    if not client.exists(events_key):
        return acked
    for group in _eval(client, "return redis.call('XINFO', 'GROUPS', KEYS[1])", events_key):
        facts = dict(zip(group[::2], group[1::2], strict=True))
        pending = _eval(
            client,
            "return redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])",
            events_key,
            facts[b"name"],
            PENDING_MAX,
        )
        waiting = {entry[0] for entry in pending}
        last = _place(facts[b"last-delivered-id"])
        acked[facts[b"name"].decode()] = {
            seq
            for entry_id, fields in entries
            if _place(entry_id) <= last and entry_id not in waiting
            for seq in _numbers(entry_id, fields)
        }
    return acked


def _eval(client: redis.Redis, source: str, key: str, *args: Any) -> list[Any]:
    """A reply as the server gives it, where redis-py would make something of its own of it."""
    reply: Any = client.eval(source, 1, key, *args)
    return list(reply)


def _place(entry_id: bytes) -> tuple[int, int]:
    at_ms, _, seq = entry_id.decode().partition("-")
    return int(at_ms), int(seq)


def read_event(seq: int, at_ms: int, subject: str, text: str) -> SeenEvent:
    """An event from its text. Raises ValueError or LookupError for a damaged one."""
    kind, _, rest = text.partition("|")
    if subject == "sale":
        return SeenEvent(seq, at_ms, subject, kind, rest, text)
    detail, _, record = rest.partition("|")
    if kind == "held":
        # What follows the buyer is the caller's, bars and all.
        record = "|".join(record.split("|", 3)[:3])
    return SeenEvent(seq, at_ms, subject, kind, detail, text, read_record(record))


def read_record(text: str) -> SeenOrder:
    """An order's record. Raises ValueError or LookupError for a damaged one."""
    head, cart, buyer, payments, refund, *_ = (*text.split("|"), "", "")
    return SeenOrder(
        state=head[0],
        version=int(head[1], 36),
        print6=head[2:8],
        deadline_ms=int(head[8:]),
        units=read_units(cart),
        buyer=buyer,
        payments=tuple(payments.split(",")) if payments else (),
        refund=refund,
    )


def read_units(text: str) -> dict[str, int]:
    """Units by SKU index, of a text like "0,3:2"."""
    units = {}
    for line in filter(None, text.split(",")):
        index, _, quantity = line.partition(":")
        units[index] = int(quantity or 1)
    return units


def read_purse(text: str) -> tuple[dict[str, int], int]:
    """What a buyer has, by SKU index, and how many orders have lapsed."""
    body, _, lapsed = text.partition("!")
    return read_units(body), int(lapsed or 0)
