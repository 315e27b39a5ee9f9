"""What handlers share: who asks, and how a request is read and answered.

``Authorization: Bearer …`` carries the proof: a user token makes the request that buyer's, who sees
only that buyer's orders; an API key makes it the mall's own. A key of scope backend may name the
buyer it acts for with the header ``Seckill-Buyer``; without that header it acts as the mall.
"""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import Final, TypeVar

import msgspec
from aiohttp import StreamReader, web

from seckill.errors import InvalidInput
from seckill.sale import check_buyer
from seckill.status import Status

from .caller import Caller
from .intake import INTAKE, Intake, too_often
from .problems import (
    ANSWERS,
    BODY_BROKEN,
    BODY_SLOW,
    BODY_TOO_LARGE,
    BUYER_REQUIRED,
    FORBIDDEN,
    INVALID_INPUT,
    KEY_REQUIRED,
    MALFORMED_JSON,
    MEDIA_TYPE,
    Problem,
)
from .reply import JSON, Plain, Reply
from .settings import Scope
from .wire import encode

__all__ = [
    "BODY_BYTES_MAX",
    "INTAKE",
    "buyer_in",
    "buyer_of",
    "caller_of",
    "counted",
    "decoded",
    "invalid",
    "key_of",
    "need",
    "need_mall",
    "read",
    "reply",
    "sent_by",
    "ticket_of",
]

BODY_BYTES_MAX: Final = 64 * 1024

_BUYER: Final = "Seckill-Buyer"
_KEY: Final = "Idempotency-Key"
_TICKET: Final = "Seckill-Ticket"
# How msgspec ends a message about a part of the body, and how it names what should (not) be there.
_AT: Final = " - at `$"
_NAMED: Final = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL)
_FIELD_MAX: Final = 100

_T = TypeVar("_T")


async def caller_of(request: web.Request) -> Caller:
    """Who asks. Raises Problem when nobody can be made out, or a buyer asks too often."""
    intake = request.app[INTAKE]
    return counted(intake, await intake.identify(request))


def counted(intake: Intake, caller: Caller) -> Caller:
    """The same caller. Raises Problem for a buyer who asks too often."""
    if caller.buyer and intake.buyers is not None:
        wait_s = intake.buyers.take(caller.buyer, monotonic())
        if wait_s:
            raise too_often(wait_s)
    return caller


async def need(request: web.Request, scope: Scope) -> Caller:
    """The program that asks. Raises Problem unless its key has this scope."""
    caller = await caller_of(request)
    if scope not in caller.scopes:
        raise Problem(FORBIDDEN, f"it takes an API key of scope {scope}")
    return caller


async def need_mall(request: web.Request) -> None:
    """Sees to it that the mall itself asks, and for nobody. A mall may pass its buyers' requests on
    with their names, so with one this is a buyer who tries what only the mall may do. Raises
    Problem."""
    if _named(request, await need(request, "backend")):
        raise Problem(FORBIDDEN, "no buyer may do this; send it without this header", _BUYER)


async def sent_by(request: web.Request) -> str:
    """The buyer who asks, or "" for the mall's backend. Raises Problem, InvalidInput."""
    caller = await caller_of(request)
    return caller.buyer or _named(request, caller)


async def buyer_of(request: web.Request) -> str:
    """The buyer who asks or whom the backend names. Raises Problem when it is nobody."""
    return buyer_in(request, await caller_of(request))


def buyer_in(request: web.Request, caller: Caller) -> str:
    """The same, of a caller that is known already."""
    buyer = caller.buyer or _named(request, caller)
    if not buyer:
        raise Problem(BUYER_REQUIRED, field=_BUYER)
    return buyer


def _named(request: web.Request, caller: Caller) -> str:
    if "backend" not in caller.scopes:
        raise Problem(FORBIDDEN, "it takes a user token, or an API key of scope backend")
    buyer = _header(request, _BUYER)
    # An empty header is a mistake of a backend that meant a buyer, and must not make it one.
    return "" if buyer is None else check_buyer(buyer, "buyer")


def key_of(request: web.Request) -> str:
    """The idempotency key. The engine checks it. Raises Problem when there is none."""
    key = _header(request, _KEY)
    if key is None:
        raise Problem(
            KEY_REQUIRED, "send a new key for each wish, and the same key with each retry", _KEY
        )
    return key


def ticket_of(request: web.Request) -> str:
    """The ticket that is asked for. Raises Problem when there is none: finding it by its buyer
    would cost Redis a call."""
    ticket = _header(request, _TICKET)
    if ticket is None:
        raise Problem(
            ANSWERS[Status.UNKNOWN_TICKET],
            "send the ticket in this header; POST …/tickets finds the one there is",
            _TICKET,
        )
    return ticket


async def read(
    request: web.Request, decoder: msgspec.json.Decoder[_T], *, bytes_max: int = BODY_BYTES_MAX
) -> _T:
    """The body as the decoder's type. Raises Problem for what isn't that, naming the field."""
    headers = request.headers
    # Besides telling JSON from forms, this keeps web pages out: a browser sends this type to
    # another origin only after a preflight, which nobody answers here.
    if headers.get("Content-Type") != JSON and request.content_type != JSON:
        raise Problem(MEDIA_TYPE, f"send {JSON}", "Content-Type")
    if "Content-Encoding" in headers:
        raise Problem(MEDIA_TYPE, "send it uncompressed", "Content-Encoding")
    content = request.content
    try:
        if content.is_eof():
            body = await _body(content, bytes_max)
        elif (request.content_length or 0) > bytes_max:
            raise _too_large(bytes_max)
        else:
            async with asyncio.timeout(request.app[INTAKE].read_timeout_s):
                body = await _body(content, bytes_max)
    except TimeoutError:
        raise Problem(BODY_SLOW) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(BODY_BROKEN) from None
    return decoded(decoder, body)


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes | bytearray) -> _T:
    """A body that is here already. Raises Problem, as ``read`` does."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except UnicodeDecodeError:
        raise Problem(MALFORMED_JSON, "it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Problem(MALFORMED_JSON, str(error)) from None


async def _body(content: StreamReader, bytes_max: int) -> bytes | bytearray:
    # Not request.read(), which goes by one limit for all of the application it is mounted in.
    body: bytes | bytearray = await content.readany()
    if not content.at_eof():
        body = bytearray(body)
        while not content.at_eof() and len(body) <= bytes_max:
            body += await content.readany()
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


def _too_large(bytes_max: int) -> Problem:
    return Problem(BODY_TOO_LARGE, f"send at most {bytes_max} bytes")


def reply(
    document: msgspec.Struct, http: int = 200, code: str = "ok", *, location: str = ""
) -> Reply:
    """A plain answer."""
    return Plain(encode(document), http, code, location=location)


def _header(request: web.Request, name: str) -> str | None:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        # Whoever stands before us may look at the first and we at the last.
        raise InvalidInput(name, "is there more than once", "send this header once")
    return values[0] if values else None


def invalid(message: str) -> Problem:
    """The problem for what msgspec said of a body, with the field it names."""
    what, _, path = message.partition(_AT)
    path = path.strip(".`")
    if named := _NAMED.fullmatch(what):
        path = f"{path}.{named[1]}" if path else named[1]
    return Problem(INVALID_INPUT, what[: 2 * _FIELD_MAX], path[:_FIELD_MAX] or "body")
