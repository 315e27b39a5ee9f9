"""The answer to an order that was created: most answers of a rush are this one, and of one sale and
one cart they differ in three places. So the document is made and encoded once, as any other answer
is, and cut there; what comes between the pieces is all that is made for each order."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from seckill.shard import Shard
from seckill.status import Status

from .problems import ANSWERS
from .reply import Plain
from .wire import OutcomeDocument, encode, order_document

__all__ = ["CREATED", "created"]

CREATED: Final = int(Status.CREATED)
"""What the lane says of an order that was created."""

# Carts of one sale whose pieces are kept. Quantities and mixes are the buyers' choice.
CARTS_MAX: Final = 256

# They stand for what is to be filled in, and nothing else in a document looks like them.
_ID: Final = secrets.token_hex(12)
_BUYER: Final = secrets.token_hex(16)
_DEADLINE_MS: Final = 4_000_000_000_000 + secrets.randbelow(10**12)

_KIND: Final = ANSWERS[Status.CREATED]
_KEPT: Final = "created"


class _Pieces(msgspec.Struct, frozen=True, gc=False):
    """A document without its order's id, its buyer and its deadline."""

    first: bytes
    second: bytes
    third: bytes
    last: bytes


def created(
    shard: Shard, order: str, buyer: str, items: Mapping[str, int], deadline_ms: int, path: str
) -> Plain:
    """What orders.told says of this outcome. ``path`` is where orders live, "" if nobody asks."""
    carts: dict[tuple[tuple[str, int], ...], _Pieces] = shard.kept.setdefault(_KEPT, {})
    cart = tuple(items.items())
    pieces = carts.get(cart)
    if pieces is None:
        if len(carts) >= CARTS_MAX:
            carts.clear()
        pieces = carts[cart] = _pieces(shard, items)
    body = b"%b%b%b%b%b%d%b" % (
        *(pieces.first, order.encode(), pieces.second, encode(buyer)),
        *(pieces.third, deadline_ms, pieces.last),
    )
    location = f"{path}/{order}" if path else ""
    return Plain(body, _KIND.http, _KIND.code, location=location)


def _pieces(shard: Shard, items: Mapping[str, int]) -> _Pieces:
    outcome = shard.outcome(_ID, _BUYER, items, (CREATED, _DEADLINE_MS))
    if outcome is None or outcome.order is None:
        raise TypeError("an order that was created has a document")
    body = encode(OutcomeDocument(_KIND.code, order_document(outcome.order)))
    first, _, rest = body.partition(_ID.encode())
    second, _, rest = rest.partition(encode(_BUYER))
    third, _, last = rest.partition(str(_DEADLINE_MS).encode())
    return _Pieces(first, second, third, last)
