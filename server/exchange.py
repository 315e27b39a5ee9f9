"""What handlers share: the keys of the application, and how a request is read and answered.

Who is asking? Until requests carry proof, the mall's backend says it with the header
``Seckill-Buyer``: with it a request is that buyer's and sees only that buyer's orders, without it
the request is the backend's own. So only the backend may reach this intake, see run.py.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.sale import check_buyer

from .clock import Clock
from .problems import (
    BODY_BROKEN,
    BODY_TOO_LARGE,
    BUYER_REQUIRED,
    INVALID_INPUT,
    KEY_REQUIRED,
    MALFORMED_JSON,
    MEDIA_TYPE,
    Problem,
)
from .wire import encode

__all__ = ["BODY_BYTES_MAX", "CLOCK", "ENGINE", "buyer_of", "key_of", "read", "reply", "sent_by"]

ENGINE: Final = web.AppKey("engine", Engine)
CLOCK: Final = web.AppKey("clock", Clock)

BODY_BYTES_MAX: Final = 64 * 1024

_BUYER: Final = "Seckill-Buyer"
_KEY: Final = "Idempotency-Key"
_JSON: Final = "application/json"
# How msgspec ends a message about a part of the body, and how it names what should (not) be there.
_AT: Final = " - at `$"
_NAMED: Final = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL)
_FIELD_MAX: Final = 100

_T = TypeVar("_T")


def sent_by(request: web.Request) -> str:
    """The buyer who asks, or "" for the mall's backend. Raises InvalidInput."""
    buyer = _header(request, _BUYER)
    # An empty header is a mistake of a backend that meant a buyer, and must not make it one.
    return "" if buyer is None else check_buyer(buyer, "buyer")


def buyer_of(request: web.Request) -> str:
    """The buyer who asks. Raises Problem when it is nobody."""
    buyer = sent_by(request)
    if not buyer:
        raise Problem(BUYER_REQUIRED, field=_BUYER)
    return buyer


def key_of(request: web.Request) -> str:
    """The idempotency key. The engine checks it. Raises Problem when there is none."""
    key = _header(request, _KEY)
    if key is None:
        raise Problem(
            KEY_REQUIRED, "send a new key for each wish, and the same key with each retry", _KEY
        )
    return key


async def read(request: web.Request, decoder: msgspec.json.Decoder[_T]) -> _T:
    """The body as the decoder's type. Raises Problem for what isn't that, naming the field."""
    headers = request.headers
    # Besides telling JSON from forms, this keeps web pages out: a browser sends this type to
    # another origin only after a preflight, which nobody answers here.
    if headers.get("Content-Type") != _JSON and request.content_type != _JSON:
        raise Problem(MEDIA_TYPE, f"send {_JSON}", "Content-Type")
    if "Content-Encoding" in headers:
        raise Problem(MEDIA_TYPE, "send it uncompressed", "Content-Encoding")
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise Problem(BODY_TOO_LARGE, f"send at most {BODY_BYTES_MAX} bytes")
    try:
        body = await request.read()
    except (web.RequestPayloadError, ConnectionError):
        raise Problem(BODY_BROKEN) from None
    # Mounted in another application, its limit was in force while reading, and not ours.
    if len(body) > BODY_BYTES_MAX:
        raise Problem(BODY_TOO_LARGE, f"send at most {BODY_BYTES_MAX} bytes")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError:
        raise Problem(MALFORMED_JSON, "it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Problem(MALFORMED_JSON, str(error)) from None


def reply(
    document: msgspec.Struct, http: int = 200, *, location: str | None = None
) -> web.Response:
    """A plain answer. None may be kept by a cache unless it says so itself."""
    headers = {"Content-Type": _JSON, "Cache-Control": "no-store"}
    if location is not None:
        headers["Location"] = location
    return web.Response(body=encode(document), status=http, headers=headers)


def _header(request: web.Request, name: str) -> str | None:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        # Whoever stands before us may look at the first and we at the last.
        raise InvalidInput(name, "is there more than once", "send this header once")
    return values[0] if values else None


def _invalid(message: str) -> Problem:
    what, _, path = message.partition(_AT)
    path = path.strip(".`")
    if named := _NAMED.fullmatch(what):
        path = f"{path}.{named[1]}" if path else named[1]
    return Problem(INVALID_INPUT, what[: 2 * _FIELD_MAX], path[:_FIELD_MAX] or "body")
