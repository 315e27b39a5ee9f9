"""An order as others are shown it: in the answers of the HTTP API and in the webhook's deliveries.

It is ours to keep stable, so it is built here from the engine's order, and a change inside of the
engine is not by accident one of the API. Money is a whole number of fen, times are Unix time in
milliseconds on the clock of the sale.

What is made for each order is a tree, so the garbage collector need not look for cycles in it
(``gc=False``): with hundreds of orders in one request that was a tenth of their cost.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from seckill.order import QUANTITY_MAX, Order, State

__all__ = ["OrderDocument", "OrderLine", "order_document"]


class OrderLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Units of one SKU."""

    sku: Annotated[str, Meta(min_length=1, max_length=40, examples=["MUG"])]
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX, examples=[1])]


class OrderDocument(msgspec.Struct, frozen=True, gc=False):
    """An order. ``deadline_ms`` is there while it is held or paying. The first of ``payments`` paid
    for the order, all others are due for refund."""

    id: str
    sale: str
    buyer: str
    state: State
    version: int
    items: list[OrderLine]
    amount_fen: int
    deadline_ms: int | None
    payments: tuple[str, ...]
    refund: str | None


def order_document(order: Order, lines: list[OrderLine] | None = None) -> OrderDocument:
    """An order for the wire. ``lines`` are its items, where they are at hand."""
    return OrderDocument(
        order.id,
        order.sale,
        order.buyer,
        order.state,
        order.version,
        lines or [OrderLine(sku, quantity) for sku, quantity in order.items.items()],
        order.amount_fen,
        order.deadline_ms if order.state in (State.HELD, State.PAYING) else None,
        order.payments,
        order.refund or None,
    )
