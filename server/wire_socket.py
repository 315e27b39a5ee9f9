"""What travels on a buyer's socket: every message as a struct, and frames as bytes.

A message is a JSON object in one text frame. ``op`` is what is asked, ``id`` the client's own name
for it, which its answer repeats. What an order says in its body over HTTP it says here in the same
fields; what HTTP has in path and headers has a field of its own.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from .wire import OrderRequest, Phase

__all__ = [
    "MESSAGE",
    "OPS",
    "PROTOCOL",
    "Answer",
    "BeginPayment",
    "Buy",
    "Head",
    "Hello",
    "HelloDocument",
    "Id",
    "Join",
    "Leave",
    "Message",
    "Order",
    "Place",
    "Release",
    "Result",
    "StockDocument",
    "StockLine",
    "Time",
    "Verb",
    "Watch",
    "WatchDocument",
    "frame",
    "head_of",
]

Id = (
    Annotated[int, Meta(ge=0, le=2**53)]
    | Annotated[str, Meta(min_length=1, max_length=64, examples=["7"])]
)
"""Chosen by the client; answers come in any order, so each needs another one while it waits."""

PROTOCOL: Final = "websocket"
"""What a handshake asks for, and what it is answered with."""

_TEXT_FRAME: Final = b"\x81"


class Verb(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    gc=False,
    tag_field="op",
    tag=lambda name: name.lower(),
):
    """What all messages have."""

    id: Id


class Hello(Verb, frozen=True):
    """Who asks, by a user token: as the first message where the handshake had no Authorization
    header, or later to go on when the token ends."""

    token: Annotated[str, Meta(max_length=4096)]


class Join(Verb, frozen=True):
    """POST …/tickets. ``proof`` is the header Seckill-Proof."""

    proof: str = ""


class Place(Verb, frozen=True):
    """GET …/tickets/me. ``ticket`` is the header Seckill-Ticket."""

    ticket: str | None = None


class Leave(Verb, frozen=True):
    """DELETE …/tickets/me."""


class Buy(
    OrderRequest,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    gc=False,
    tag_field="op",
    tag="buy",
):
    """POST …/orders. ``key`` is the header Idempotency-Key, ``proof`` the header Seckill-Proof."""

    id: Id
    key: str | None = None
    proof: str = ""


class Order(Verb, frozen=True):
    """Something about one order."""

    order: str


class BeginPayment(Order, frozen=True, tag="begin-payment"):
    """POST …/orders/{order}/begin-payment."""


class Release(Order, frozen=True):
    """POST …/orders/{order}/release."""


class Result(Order, frozen=True):
    """GET …/orders/{order}."""


class Watch(Verb, frozen=True):
    """Begins or ends the stock feed."""

    on: bool = True


class Time(Verb, frozen=True):
    """GET /v1/time."""


Message = Hello | Join | Place | Leave | Buy | BeginPayment | Release | Result | Watch | Time

MESSAGE: Final = msgspec.json.Decoder(Message)
OPS: Final[dict[type, str]] = {
    struct: str(struct.__struct_config__.tag)
    for struct in (Hello, Join, Place, Leave, Buy, BeginPayment, Release, Result, Watch, Time)
}


class Head(msgspec.Struct, frozen=True):
    """As much as can be told of a message that is not valid."""

    id: Id | None = None
    op: str = ""
    has_key: bool = False


class _Loose(msgspec.Struct):
    """A message of which nothing is known yet."""

    id: msgspec.Raw = msgspec.Raw()
    op: msgspec.Raw = msgspec.Raw()
    key: msgspec.Raw = msgspec.Raw()


_LOOSE: Final = msgspec.json.Decoder(_Loose)
_ID: Final = msgspec.json.Decoder(Id)
_OP: Final = msgspec.json.Decoder(str)


def head_of(text: str) -> Head:
    """What can be told of a message that MESSAGE refuses."""
    try:
        loose = _LOOSE.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Head()
    name, op = None, ""
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        name = _ID.decode(loose.id)
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        op = _OP.decode(loose.op)
    return Head(name, op, bytes(loose.key) not in (b"", b"null"))


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The answer to one message: ``status`` and ``body`` are those of HTTP. ``retry_after_s`` is
    the header Retry-After, ``request_id`` the header X-Request-Id. ``id`` is null if the message
    had none that could be read."""

    id: int | str | None
    status: int
    body: msgspec.Raw
    retry_after_s: int = 0
    request_id: str = ""


class HelloDocument(msgspec.Struct, frozen=True):
    """The socket knows its buyer now."""

    code: str
    buyer: str


class WatchDocument(msgspec.Struct, frozen=True):
    """Whether stock is fed to this socket from now on."""

    code: str
    on: bool


class StockLine(msgspec.Struct, frozen=True, gc=False):
    """Units of one SKU that nobody holds. 0 may become more again, when a hold expires."""

    sku: str
    available: int


class StockDocument(msgspec.Struct, frozen=True, gc=False):
    """A frame of the stock feed: the sale's phase and what is left, as of ``at_ms``."""

    feed: str
    phase: Phase
    items: list[StockLine]
    at_ms: int


def frame(payload: bytes) -> bytes:
    """A whole message from the server, as RFC 6455 has it."""
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (_TEXT_FRAME, size, payload)
    if size < 65_536:
        return b"%b\x7e%b%b" % (_TEXT_FRAME, size.to_bytes(2, "big"), payload)
    return b"%b\x7f%b%b" % (_TEXT_FRAME, size.to_bytes(8, "big"), payload)
