"""From an event as it stands in the stream to the rows of the ledger, and back.

The stream is the truth: a row of ``seckill_events`` holds the event's text, so that everything else
can be made from it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from seckill.order import STATES, Order, read_cart, read_order
from seckill.sale import Sale
from seckill.stream import ORDER_KINDS, SALE_KINDS, SALE_SUBJECT, Event, EventKind, decode_event

__all__ = [
    "Known",
    "Raw",
    "decode",
    "event_row",
    "newest_orders",
    "order_of",
    "order_row",
    "raw_event",
    "raw_of",
    "sale_state",
]

_WORDS: Final = {str(kind): word for word, kind in (ORDER_KINDS | SALE_KINDS).items()}
_SALE_STATES: Final = {
    EventKind.SALE_CREATED: "created",
    EventKind.SALE_OPENED: "open",
    EventKind.SALE_PAUSED: "paused",
    EventKind.SALE_RESUMED: "open",
    EventKind.SALE_CLOSED: "closed",
    EventKind.SALE_SETTLED: "settled",
}
# As plain text; what a StrEnum takes to become one is a good part of a row.
_ORDER_TEXTS: Final = {word: str(kind) for word, kind in ORDER_KINDS.items()}
_SALE_TEXTS: Final = {word: str(kind) for word, kind in SALE_KINDS.items()}
_STATE_TEXTS: Final = {letter: str(state) for letter, state in STATES.items()}
_PAID: Final = ("confirmed", "refunded")
_encode = msgspec.json.encode


class Known(msgspec.Struct, frozen=True):
    """What the ledger has to know of a sale before its events. ``made`` tells it from one that was
    lost and made anew under the same id."""

    sale: Sale
    origin_ms: int
    made: str


class Raw(NamedTuple):
    """An event as it stands in the stream."""

    seq: int
    at_ms: int
    subject: str
    value: str


def raw_of(entry_id: bytes, fields: Iterable[bytes]) -> list[Raw]:
    """The events of one stream entry. A value that is not even text is kept as far as it is."""
    at, _, last = entry_id.decode().partition("-")
    parts = [part.decode(errors="replace") for part in fields]
    first = int(last) - len(parts) // 2 + 1
    return [
        Raw(seq, int(at), subject, value)
        for seq, (subject, value) in enumerate(zip(parts[::2], parts[1::2], strict=True), first)
    ]


def event_row(sale: str, raw: Raw) -> dict[str, Any]:
    """A row of seckill_events. Raises LookupError for a kind of a newer version."""
    word, _, body = raw.value.partition("|")
    kind = (_SALE_TEXTS if raw.subject == SALE_SUBJECT else _ORDER_TEXTS)[word]
    return {
        "sale": sale,
        "seq": raw.seq,
        "at_ms": raw.at_ms,
        "kind": kind,
        "subject": raw.subject,
        "body": body,
    }


def raw_event(seq: int, at_ms: int, kind: str, subject: str, body: str) -> Raw:
    """The event that a row of seckill_events was made of."""
    return Raw(seq, at_ms, subject, f"{_WORDS[kind]}|{body}")


def decode(known: Known, raw: Raw) -> Event:
    """The event. Raises LookupError or ValueError for a damaged one."""
    return decode_event(known.sale, known.origin_ms, raw.at_ms, raw.seq, raw.subject, raw.value)


def order_row(known: Known, raw: Raw, carts: dict[str, tuple[str, int, int]]) -> dict[str, Any]:
    """A row of seckill_orders, as this event left the order. ``carts`` remembers what carts mean.

    Raises LookupError or ValueError for a damaged event.
    """
    word, _, record = raw.value.split("|", 2)
    held, attrs = word == "held", ""
    if held:
        head, cart, buyer, attrs = record.split("|", 3)
        record = f"{head}|{cart}|{buyer}"
        payments = refund = ""
    else:
        head, cart, buyer, payments, refund, *_ = (*record.split("|"), "", "")
    meaning = carts.get(cart)
    if meaning is None:
        meaning = carts[cart] = _cart(known.sale, cart)
    state = _STATE_TEXTS[head[0]]
    return {
        "sale": known.sale.id,
        "id": raw.subject,
        "buyer": buyer,
        "state": state,
        "version": int(head[1], 36),
        "items": meaning[0],
        "units": meaning[1],
        "amount_fen": meaning[2],
        "deadline_ms": known.origin_ms + int(head[8:]),
        "payment": payments.partition(",")[0] if state in _PAID else "",
        "refund": refund.partition(",")[0],
        "held_ms": raw.at_ms if held else 0,
        "changed_ms": raw.at_ms,
        "attrs": attrs,
        "record": record,
    }


def newest_orders(known: Known, raws: Iterable[Raw]) -> list[dict[str, Any]]:
    """One row an order, as of its highest version among these events, in the order of their ids:
    two consumers that write the same orders then never wait for each other in a circle."""
    rows: dict[str, dict[str, Any]] = {}
    carts: dict[str, tuple[str, int, int]] = {}
    for raw in raws:
        if raw.subject == SALE_SUBJECT:
            continue
        row = order_row(known, raw, carts)
        before = rows.get(raw.subject)
        if before is not None:
            newer, older = (row, before) if row["version"] > before["version"] else (before, row)
            newer["held_ms"] = newer["held_ms"] or older["held_ms"]
            newer["attrs"] = newer["attrs"] or older["attrs"]
            row = newer
        rows[raw.subject] = row
    return [rows[order] for order in sorted(rows)]


def order_of(known: Known, order: str, record: str) -> Order:
    """The order that a record describes."""
    return read_order(known.sale, known.origin_ms, order, record)


def sale_state(event: Event) -> tuple[str, str] | None:
    """The state and the reason that an event of the sale left it in; None for other events."""
    if event.kind is EventKind.SALE_REBUILT:
        state = event.detail.split("|")[4]
        return state, "rebuilt" if state == "paused" else ""
    state = _SALE_STATES.get(event.kind, "")
    if not state:
        return None
    return state, event.detail if event.kind is EventKind.SALE_PAUSED else ""


def _cart(sale: Sale, text: str) -> tuple[str, int, int]:
    """What a cart's text means: units by SKU as JSON, units, fen."""
    units = {sale.items[index].sku: count for index, count in read_cart(text).items()}
    fen = sum(sale.items[index].price_fen * n for index, n in read_cart(text).items())
    return _encode(units).decode(), sum(units.values()), fen
