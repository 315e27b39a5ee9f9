"""What travels in bodies: every request and every answer as a struct, and how answers are encoded.

Requests refuse what they do not know. Documents are ours to keep stable: they are built from the
engine's structs here, so that a change inside the engine is not by accident one of the API. Money
is a whole number of fen, every time is Unix time in milliseconds on the clock of the sale.

What is made for each order is a tree, so the garbage collector need not look for cycles in it
(``gc=False``): with hundreds of orders in one request that was a tenth of their cost.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from seckill.admission import Admission, Mode
from seckill.checks import to_ms
from seckill.document import OrderDocument, OrderLine, order_document
from seckill.sale import ATTRS_BYTES_MAX, ITEMS_MAX, Item, Sale
from seckill.snapshot import Snapshot

__all__ = [
    "BATCH_MAX",
    "AdmissionDocument",
    "BatchAnswer",
    "BatchDocument",
    "BatchOrder",
    "BatchRequest",
    "HealthDocument",
    "ItemDocument",
    "OrderDocument",
    "OrderLine",
    "OrderRequest",
    "OutcomeDocument",
    "PaymentRequest",
    "Phase",
    "ProblemDocument",
    "RefundRequest",
    "SaleDocument",
    "SaleEntry",
    "SalesDocument",
    "TimeDocument",
    "encode",
    "order_document",
    "phase_of",
    "sale_document",
    "sale_entry",
]

BATCH_MAX: Final = 1_000
# Ours are shorter. What is longer is no token, and is not to be carried any further.
TOKEN_CHARS_MAX: Final = 200
encode: Final = msgspec.json.Encoder().encode


class OrderRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A wish to buy. Lines of the same SKU are added up. ``attrs`` is opaque and travels in the
    event untouched, 512 bytes of UTF-8 at most. ``token`` is the buyer's turn, where the sale has a
    queue; null, as a place has it that is not called, is none."""

    items: Annotated[list[OrderLine], Meta(min_length=1, max_length=ITEMS_MAX)]
    attrs: Annotated[str, Meta(max_length=ATTRS_BYTES_MAX)] = ""
    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX)] | None = ""


class PaymentRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Money has arrived: ``payment`` is the payment's own id."""

    payment: Annotated[str, Meta(min_length=1, max_length=64, examples=["4200001234202611280001"])]


class RefundRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The money goes back: ``refund`` is the refund's own id. ``return_units`` puts the units on
    sale again, else they leave the sale; ``return_limit`` lets the buyer buy as many again."""

    refund: Annotated[str, Meta(min_length=1, max_length=64, examples=["refund-1"])]
    return_units: bool
    return_limit: bool


class BatchOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One buyer's wish in a batch: what a single order says in its path, headers and body."""

    buyer: Annotated[str, Meta(min_length=1, max_length=64, examples=["buyer-7"])]
    key: Annotated[str, Meta(min_length=1, max_length=64, examples=["cart-81"])]
    items: Annotated[list[OrderLine], Meta(min_length=1, max_length=ITEMS_MAX)]
    attrs: Annotated[str, Meta(max_length=ATTRS_BYTES_MAX)] = ""
    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX)] | None = ""


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Orders of many buyers, decided at about the same time and not always in this order."""

    orders: Annotated[list[BatchOrder], Meta(min_length=1, max_length=BATCH_MAX)]


class OutcomeDocument(msgspec.Struct, frozen=True, gc=False):
    """What was asked for holds now. ``code`` says since when: see the table in problems.py."""

    code: str
    order: OrderDocument


class BatchAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The answer to one order of a batch: ``status`` and ``code`` are those that the order alone
    would have got, the rest is as in an outcome or a problem."""

    status: int
    code: str
    order: OrderDocument | None = None
    detail: str | None = None
    field: str | None = None


class BatchDocument(msgspec.Struct, frozen=True):
    """One answer for each order, in the same order."""

    answers: list[BatchAnswer]


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457. ``code`` is stable, so decide by it; ``field`` names what was wrong in the request;
    ``order`` is the order that stands in the way; ``request_id`` finds the line in our log."""

    type: str
    title: str
    status: int
    code: str
    detail: str | None = None
    field: str | None = None
    order: OrderDocument | None = None
    request_id: str | None = None


class ItemDocument(msgspec.Struct, frozen=True):
    """One SKU as a buyer sees it. The numbers of units stay with the merchant: a definition's total
    is no longer true once stock was added, and what is left changes while it is being read: a
    feed has it (socket_feed.py)."""

    sku: str
    title: str
    price_fen: int
    list_price_fen: int | None
    list_price_basis: str | None
    limit_per_buyer: int
    sold_out: bool


Phase = Literal["created", "not_started", "selling", "ended", "paused", "closed", "settled"]


class AdmissionDocument(msgspec.Struct, frozen=True):
    """How buyers get to the till. Tickets can be taken from ``joins_ms`` on, null: at once. At
    ``draw_ms`` the tickets of a shuffle or a draw are put in order, null for a queue; nobody can
    join a draw after it. A called buyer has ``token_life_ms`` to buy. ``weights`` are the lots of
    a ticket by member tier, 1 for all others; ``public_value`` names what the order depends on
    besides the seed."""

    mode: Mode
    joins_ms: int | None
    draw_ms: int | None
    token_life_ms: int
    weights: dict[str, int]
    public_value: str | None


class SaleEntry(msgspec.Struct, frozen=True):
    """A sale in the list."""

    id: str
    title: str
    phase: Phase
    opens_ms: int
    ends_ms: int


class SaleDocument(msgspec.Struct, frozen=True):
    """A sale as a buyer sees it. Limits of 0 are none; ``admission`` is null where whoever comes is
    served; ``sold_out`` may become false again, when a hold expires. Nothing here changes by
    itself, so that a cache can keep it: the time is in the header Seckill-Time-Ms."""

    id: str
    title: str
    phase: Phase
    opens_ms: int
    ends_ms: int
    hold_ms: int
    pay_ms: int
    limit_per_order: int
    limit_per_buyer: int
    admission: AdmissionDocument | None
    items: list[ItemDocument]


class SalesDocument(msgspec.Struct, frozen=True):
    """A page of sales by id. ``after`` asks for the next page; null on the last."""

    sales: list[SaleEntry]
    after: str | None


class TimeDocument(msgspec.Struct, frozen=True):
    """The clock that sales go by."""

    now_ms: int


class HealthDocument(msgspec.Struct, frozen=True):
    """The answer of both health checks when they are green."""

    status: Literal["ok"] = "ok"


def sale_entry(sale: Sale, now: Snapshot) -> SaleEntry:
    """A sale's line in the list. The window is the snapshot's: that one is enforced."""
    return SaleEntry(sale.id, sale.title, phase_of(now), now.opens_ms, now.ends_ms)


def sale_document(sale: Sale, now: Snapshot) -> SaleDocument:
    """A sale for the wire."""
    return SaleDocument(
        sale.id,
        sale.title,
        phase_of(now),
        now.opens_ms,
        now.ends_ms,
        sale.hold_ms,
        sale.pay_ms,
        sale.limit_per_order,
        sale.limit_per_buyer,
        None if sale.admission is None else _admission_document(sale, sale.admission),
        [_item_document(item, now) for item in sale.items],
    )


def _admission_document(sale: Sale, admission: Admission) -> AdmissionDocument:
    return AdmissionDocument(
        admission.mode,
        None if admission.joins_at is None else to_ms(admission.joins_at),
        sale.draw_ms if admission.is_drawn else None,
        admission.token_life_ms,
        dict(admission.weights),
        admission.public_value,
    )


def _item_document(item: Item, now: Snapshot) -> ItemDocument:
    return ItemDocument(
        item.sku,
        item.title,
        item.price_fen,
        item.list_price_fen,
        item.list_price_basis,
        item.limit_per_buyer,
        now.stock[item.sku].available == 0,
    )


def phase_of(now: Snapshot) -> Phase:
    return now.phase.replace(" ", "_")  # type: ignore[return-value]
