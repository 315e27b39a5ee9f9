"""Orders: their ids, carts and records as they stand in Redis, and the structs a caller gets.

    held ──▶ paying ──▶ confirmed ──▶ refunded
     │  └──────┴──▶ released | expired ──(late payment, a unit left)──▶ confirmed
     └──▶ confirmed

The text forms of cart and record are described in ``lua/lib/units.lua`` and ``lua/lib/record.lua``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec

from seckill.errors import InvalidInput
from seckill.sale import Sale, show
from seckill.status import Status

__all__ = [
    "LINES_MAX",
    "NO_ATTRS",
    "QUANTITY_MAX",
    "STATES",
    "Order",
    "Outcome",
    "State",
    "StockOutcome",
    "Wish",
    "attrs_print",
    "cart_text",
    "order_id",
    "order_id_shard",
    "read_cart",
    "read_order",
]

QUANTITY_MAX: Final = 10_000
LINES_MAX: Final = 50
"""SKUs of one cart. A batch or a sweep of larger carts would hold the server up for too long."""
NO_ATTRS: Final = "------"
_ORDER_ID: Final = re.compile(r"[0-9a-f]{24}").fullmatch
_DIGEST_BYTES: Final = 11
_UNKNOWN_INDEX: Final = 99_999


class State(StrEnum):
    """Where an order is in its life."""

    HELD = "held"
    PAYING = "paying"
    CONFIRMED = "confirmed"
    REFUNDED = "refunded"
    RELEASED = "released"
    EXPIRED = "expired"


STATES: Final = {
    "h": State.HELD,
    "p": State.PAYING,
    "c": State.CONFIRMED,
    "f": State.REFUNDED,
    "r": State.RELEASED,
    "x": State.EXPIRED,
}


class Order(msgspec.Struct, frozen=True, gc=False):
    """One order as of one version.

    ``items`` maps SKU to units. ``deadline_ms`` is Unix time on the server's clock; it means
    something while the order is held or paying. ``payments`` begins with the one that paid for a
    confirmed or refunded order; all others are due for refund. ``refund`` is the refund's id.
    """

    id: str
    sale: str
    buyer: str
    state: State
    version: int
    items: dict[str, int]
    amount_fen: int
    deadline_ms: int
    payments: tuple[str, ...] = ()
    refund: str = ""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The answer to a call: a status, and the order where there is one."""

    status: Status
    order: Order | None = None

    @property
    def ok(self) -> bool:
        """Whether what was asked for now holds."""
        return self.status.ok


class Wish(msgspec.Struct, frozen=True, gc=False):
    """One order of many, for Engine.reserve_many: the arguments of Engine.reserve."""

    buyer: str
    key: str
    items: Mapping[str, int]
    attrs: str = ""
    token: str = ""


class StockOutcome(msgspec.Struct, frozen=True):
    """The answer to add_stock, with the SKU's units as they are now."""

    status: Status
    available: int
    total: int

    @property
    def ok(self) -> bool:
        """Whether what was asked for now holds."""
        return self.status.ok


def order_id(sale: str, buyer: str, key: str, shard: int = 0) -> str:
    """The id of the order this buyer makes under this idempotency key: always the same.

    24 hexadecimal digits: two for the shard, 22 of a digest (88 bits, and within one sale two
    orders of different payload would meet as a CONFLICT, never as one order). Lower case only, so
    that a database which ignores case can hold it.
    """
    digest = blake2b(f"{sale}\0{buyer}\0{key}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{shard:02x}{digest}" if shard else "00" + digest


def order_id_shard(value: object) -> int:
    """The shard an order id names. Raises InvalidInput for what can't be an order id."""
    if not isinstance(value, str) or not _ORDER_ID(value):
        raise InvalidInput(
            "order", f"{show(value)} is not an order id", "pass the id that reserve returned"
        )
    return int(value[:2], 16)


def attrs_print(attrs: str) -> str:
    """Six characters that stand for ``attrs`` when a retry is compared with its original."""
    if not attrs:
        return NO_ATTRS
    return blake2b(attrs.encode(), digest_size=3).hexdigest()


def cart_text(sale: Sale, items: Mapping[str, int]) -> str:
    """The cart's text. A SKU that is not of this sale gets an index that no sale has, so that the
    script, which knows the precedence of refusals, refuses it.

    Raises InvalidInput for an empty cart and for quantities outside 1 … 10,000.
    """
    if type(items) is not dict and not isinstance(items, Mapping):
        raise InvalidInput("items", "is not a mapping", "pass units by SKU, as in {'MUG': 1}")
    if not items:
        raise InvalidInput("items", "the cart is empty", "name at least one SKU")
    if len(items) > LINES_MAX:
        raise InvalidInput(
            "items", f"has {len(items)} SKUs", f"put at most {LINES_MAX} into one order"
        )
    index_of = sale.sku_index
    # Most carts have one line, for which a list would cost more than all the rest.
    text, lines = "", []
    for sku, quantity in items.items():
        if type(quantity) is not int or not 0 < quantity <= QUANTITY_MAX:
            raise InvalidInput(
                f"items[{sku!r}]",
                f"{show(quantity)} is not a quantity",
                f"pass a whole number from 1 to {QUANTITY_MAX}",
            )
        index = index_of.get(sku, _UNKNOWN_INDEX)
        text = str(index) if quantity == 1 else f"{index}:{quantity}"
        if len(items) > 1:
            lines.append((index, text))
    return ",".join(text for _, text in sorted(lines)) if lines else text


def read_cart(text: str) -> dict[int, int]:
    """SKU index to units, of a cart's text."""
    lines = {}
    for part in text.split(","):
        if part:
            index, _, quantity = part.partition(":")
            lines[int(index)] = int(quantity or 1)
    return lines


def read_order(sale: Sale, origin_ms: int, order: str, record: str) -> Order:
    """The order a record describes. ``origin_ms``: what the record's deadline counts from."""
    parts = record.split("|")
    head, cart, buyer = parts[0], parts[1], parts[2]
    payments = parts[3] if len(parts) > 3 else ""
    refund = parts[4] if len(parts) > 4 else ""
    items, amount_fen = {}, 0
    for index, quantity in read_cart(cart).items():
        item = sale.items[index]
        items[item.sku] = quantity
        amount_fen += item.price_fen * quantity
    return Order(
        id=order,
        sale=sale.id,
        buyer=buyer,
        state=STATES[head[0]],
        version=int(head[1], 36),
        items=items,
        amount_fen=amount_fen,
        deadline_ms=origin_ms + int(head[8:]),
        payments=tuple(payments.split(",")) if payments else (),
        refund=refund.partition(",")[0],
    )
