"""What a delivery of `seckill relay` looks like: its body, its headers and its signature.

The body is ours to keep stable, so it is built here from the engine's structs, and a change inside
the engine is not by accident one of the webhook. Money is a whole number of fen, times are Unix
milliseconds on the sale's clock; an order is the same document as in the HTTP API.

    Seckill-Signature: t=<Unix seconds>,v1=<hex>[,v1=<hex> …]

``v1`` is the HMAC-SHA-256 of ``<t>.<body>``, once for each secret: while a secret is being replaced
a receiver may know the old or the new one. docs/webhook.md tells receivers what to do.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from seckill.document import OrderDocument, order_document
from seckill.sale import Sale
from seckill.stream import Event, EventKind

__all__ = ["EVENT_HEADER", "SIGNATURE_HEADER", "event_body", "event_id", "sign"]

EVENT_HEADER: Final = "Seckill-Event-Id"
SIGNATURE_HEADER: Final = "Seckill-Signature"


class EventDocument(msgspec.Struct, frozen=True):
    """The body. ``id`` is the idempotency key, ``data`` what its ``kind`` has to say, ``order`` is
    null for an event of the sale. An event of an order is to be taken only if its ``seq`` is higher
    than the last one taken of that order; ``seq`` never goes back, also after a rebuild."""

    id: str
    sale: str
    seq: int
    at_ms: int
    kind: EventKind
    data: dict[str, Any]
    order: OrderDocument | None


def event_id(event: Event) -> str:
    """The same at each attempt, and no other event's: the receiver's idempotency key."""
    return f"{event.sale}:{event.seq}"


def event_body(sale: Sale, event: Event) -> bytes:
    """The JSON that is sent. Raises LookupError or ValueError for a damaged event."""
    order = None if event.order is None else order_document(event.order)
    return msgspec.json.encode(
        EventDocument(
            event_id(event),
            event.sale,
            event.seq,
            event.at_ms,
            event.kind,
            _data(sale, event),
            order,
        )
    )


def sign(body: bytes, secrets: Sequence[bytes], now_s: int) -> str:
    """The signature header's value for this moment, by every secret."""
    text = b"%d.%s" % (now_s, body)
    marks = (hmac.new(secret, text, hashlib.sha256).hexdigest() for secret in secrets)
    return ",".join((f"t={now_s}", *(f"v1={mark}" for mark in marks)))


def _data(sale: Sale, event: Event) -> dict[str, Any]:
    detail = event.detail
    match event.kind:
        case EventKind.HELD:
            return {"attrs": event.attrs}
        case EventKind.CONFIRMED | EventKind.REFUND_DUE:
            return {"payment": detail}
        case EventKind.REFUNDED:
            refund, units, limit = detail.rsplit(",", 2)
            returned = {"units_returned": units == "1", "limit_returned": limit == "1"}
            return {"refund": refund} | returned
        case EventKind.SALE_CREATED:
            return {"definition": msgspec.Raw(detail.encode())}
        case EventKind.SALE_PAUSED:
            return {"reason": detail}
        case EventKind.SALE_SETTLED:
            lines = (line.partition(":") for line in detail.split(",") if line)
            return {"unsold": {sale.items[int(index)].sku: int(n) for index, _, n in lines}}
        case EventKind.SALE_REBUILT:
            *numbers, state, spared_ms = detail.split("|")
            names = ("ledger_seq", "ledger_at_ms", "orders", "seen_seq")
            data: dict[str, Any] = dict(zip(names, map(int, numbers), strict=True))
            return data | {"state": state, "spared_ms": int(spared_ms)}
        case EventKind.STOCK_CHANGED:
            key, index, units, total = detail.rsplit("|", 3)
            sku = sale.items[int(index)].sku
            return {"key": key, "sku": sku, "units": int(units), "total": int(total)}
        case EventKind.QUEUE_OPENED:
            return {"commitment": detail}
        case EventKind.QUEUE_CLOSED:
            return {"given_out": int(detail)}
        case EventKind.QUEUE_LISTED:
            tickets, digest = detail.split("|")
            return {"tickets": int(tickets), "digest": digest}
        case EventKind.QUEUE_VALUED:
            return {"public_value": detail}
        case EventKind.QUEUE_DRAWN:
            tickets, digest, seed, value = detail.split("|", 3)
            drawn = {"tickets": int(tickets), "digest": digest, "seed": seed}
            return drawn | {"public_value": value or None}
    return {}
