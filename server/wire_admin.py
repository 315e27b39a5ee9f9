"""What travels in the bodies of the merchant's verbs: new sales, stock, and a sale in numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from seckill.admission import OVERBOOK_MAX, WEIGHT_MAX, Mode
from seckill.engine import REASON_MAX
from seckill.order import StockOutcome
from seckill.sale import ITEMS_MAX, LIMIT_MAX, PRICE_FEN_MAX, TIMEOUT_MS_MAX, TOTAL_MAX, Item, Sale
from seckill.snapshot import Snapshot, Stock

from .wire import Phase, phase_of

__all__ = [
    "TIMEOUT_MS_MIN",
    "AdmissionRequest",
    "ItemRequest",
    "PauseRequest",
    "ReportDocument",
    "ReportItem",
    "SaleOutcomeDocument",
    "SaleRequest",
    "StockDocument",
    "StockRequest",
    "report_document",
    "stock_document",
]

# As in sale files: a shorter hold is seconds written where milliseconds are meant.
TIMEOUT_MS_MIN: Final = 1_000
# The bounds of seckill.admission, which a test holds these to.
RATE_MAX: Final = 1_000_000
LIFE_MS_MIN: Final = 1_000
LIFE_MS_MAX: Final = 86_400_000
VALUE_MAX: Final = 200
_TITLE_MAX: Final = 200
_BASIS_MAX: Final = 100


class ItemRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One SKU of a new sale. A list price comes with what it is, or not at all
    (明码标价和禁止价格欺诈规定). A limit of 0 is none."""

    sku: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_.-]{1,40}$", examples=["MUG"])]
    title: Annotated[str, Meta(min_length=1, max_length=_TITLE_MAX, examples=["青瓷马克杯"])]
    price_fen: Annotated[int, Meta(ge=0, le=PRICE_FEN_MAX, examples=[4_900])]
    total: Annotated[int, Meta(ge=0, le=TOTAL_MAX, examples=[100])]
    list_price_fen: Annotated[int, Meta(ge=0, le=PRICE_FEN_MAX)] | None = None
    list_price_basis: Annotated[str, Meta(min_length=1, max_length=_BASIS_MAX)] | None = None
    limit_per_buyer: Annotated[int, Meta(ge=0, le=LIMIT_MAX)] = 1


class AdmissionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How buyers get to the till: the keys of a sale file. ``rate_per_s`` tickets are called in a
    second at most, each with a token of ``token_life_ms``, and ``overbook_max`` for each unit left
    while it is not known how many of them come. ``joins_at``: at once. ``draw_at`` (shuffle, draw):
    when the sale opens. ``weights`` (draw): lots by member tier. ``public_value`` (shuffle, draw)
    names what the order depends on besides the seed."""

    mode: Mode
    rate_per_s: Annotated[int, Meta(ge=1, le=RATE_MAX)] = 1_000
    token_life_ms: Annotated[int, Meta(ge=LIFE_MS_MIN, le=LIFE_MS_MAX)] = 120_000
    overbook_max: Annotated[int, Meta(ge=1, le=OVERBOOK_MAX)] = 20
    joins_at: Annotated[datetime, Meta(tz=True)] | None = None
    draw_at: Annotated[datetime, Meta(tz=True)] | None = None
    weights: dict[str, Annotated[int, Meta(ge=1, le=WEIGHT_MAX)]] = {}
    public_value: Annotated[str, Meta(min_length=1, max_length=VALUE_MAX)] | None = None


class SaleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new sale: the keys of a sale file. Its id is the path's. Times have an offset, as in
    2026-11-28T20:00:00+08:00; limits of 0 are none; without ``admission`` whoever comes is
    served."""

    title: Annotated[str, Meta(min_length=1, max_length=_TITLE_MAX, examples=["今晚八点"])]
    opens_at: Annotated[datetime, Meta(tz=True, examples=["2026-11-28T20:00:00+08:00"])]
    ends_at: Annotated[datetime, Meta(tz=True, examples=["2026-11-28T22:00:00+08:00"])]
    items: Annotated[list[ItemRequest], Meta(min_length=1, max_length=ITEMS_MAX)]
    hold_ms: Annotated[int, Meta(ge=TIMEOUT_MS_MIN, le=TIMEOUT_MS_MAX)] = 900_000
    pay_ms: Annotated[int, Meta(ge=TIMEOUT_MS_MIN, le=TIMEOUT_MS_MAX)] = 900_000
    limit_per_order: Annotated[int, Meta(ge=0, le=LIMIT_MAX)] = 0
    limit_per_buyer: Annotated[int, Meta(ge=0, le=LIMIT_MAX)] = 0
    max_lapsed: Annotated[int, Meta(ge=0, le=LIMIT_MAX)] = 3
    admission: AdmissionRequest | None = None


class PauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``reason`` is for the merchant; buyers are not shown it."""

    reason: Annotated[str, Meta(max_length=REASON_MAX, examples=["checking the stock"])] = ""


class StockRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units to add to a SKU, or to take away when negative; not 0."""

    sku: Annotated[str, Meta(min_length=1, max_length=40, examples=["MUG"])]
    units: Annotated[int, Meta(ge=-TOTAL_MAX, le=TOTAL_MAX, examples=[50])]


class SaleOutcomeDocument(msgspec.Struct, frozen=True):
    """What was asked of the sale holds now."""

    code: str
    sale: str


class StockDocument(msgspec.Struct, frozen=True):
    """What was asked for holds now; the SKU's units as they are after it."""

    code: str
    sale: str
    sku: str
    available: int
    total: int


class ReportItem(msgspec.Struct, frozen=True):
    """One SKU in numbers: ``available + held + confirmed == total``, always."""

    sku: str
    title: str
    price_fen: int
    available: int
    held: int
    confirmed: int
    total: int
    confirmed_fen: int


class ReportDocument(msgspec.Struct, frozen=True):
    """A sale in numbers, one consistent picture as of ``at_ms``. ``reason`` says why it is paused.
    ``orders`` counts every order ever accepted, ``buyers`` who made them. ``confirmed_fen`` is the
    price of what is paid and not refunded. ``seq`` is the number of the last event."""

    id: str
    title: str
    phase: Phase
    reason: str
    at_ms: int
    opens_ms: int
    ends_ms: int
    seq: int
    orders: int
    buyers: int
    available: int
    held: int
    confirmed: int
    total: int
    confirmed_fen: int
    items: list[ReportItem]


def stock_document(code: str, sale: str, sku: str, now: StockOutcome) -> StockDocument:
    """The answer to a change of stock for the wire."""
    return StockDocument(code, sale, sku, now.available, now.total)


def report_document(sale: Sale, now: Snapshot) -> ReportDocument:
    """A sale's numbers for the wire."""
    items = [_report_item(item, now.stock[item.sku]) for item in sale.items]
    return ReportDocument(
        sale.id,
        sale.title,
        phase_of(now),
        now.reason,
        now.at_ms,
        now.opens_ms,
        now.ends_ms,
        now.seq,
        now.orders,
        now.buyers,
        sum(item.available for item in items),
        sum(item.held for item in items),
        sum(item.confirmed for item in items),
        sum(item.total for item in items),
        sum(item.confirmed_fen for item in items),
        items,
    )


def _report_item(item: Item, stock: Stock) -> ReportItem:
    return ReportItem(
        item.sku,
        item.title,
        item.price_fen,
        stock.available,
        stock.held,
        stock.confirmed,
        stock.total,
        item.price_fen * stock.confirmed,
    )
