"""Every answer that is not plainly yes, and the one place where it is looked up.

    Status  ──ANSWERS──▶ Kind (HTTP status, stable code, title) ──▶ RFC 9457 problem document
    SeckillError ─RAISED─┘                                      └─▶ or, when ok, an OutcomeDocument

A code never changes once it is released; a client decides by it and by nothing else. 409 means that
the sale or the order stands as it does, 422 that no sale could ever grant this, 503 (always with
Retry-After) that the identical request is to be repeated.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from seckill.errors import (
    EmbeddedError,
    EngineClosed,
    InvalidInput,
    MissingExtra,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScriptFailed,
    SeckillError,
    ServerFull,
    UnknownSale,
    UnsuitableServer,
    UpgradeNeeded,
)
from seckill.order import Order
from seckill.status import Status

from .reply import PROBLEM, Plain, Reply
from .wire import OrderDocument, ProblemDocument, encode, order_document

__all__ = [
    "ANSWERS",
    "BODY_BROKEN",
    "BODY_SLOW",
    "BODY_TOO_LARGE",
    "BUSY",
    "BUYER_REQUIRED",
    "FORBIDDEN",
    "GATE_REFUSED",
    "GATE_UNAVAILABLE",
    "INVALID_INPUT",
    "KEYS_UNAVAILABLE",
    "KEY_REQUIRED",
    "MALFORMED_JSON",
    "MEDIA_TYPE",
    "PROOF_REQUIRED",
    "RAISED",
    "RATE_LIMITED",
    "TOKEN_EXPIRED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "Kind",
    "Problem",
    "Reply",
    "answer_to",
    "is_bug",
    "kind_of",
    "refusal",
]

RETRY_AFTER_S: Final = 1


class Kind(msgspec.Struct, frozen=True):
    """One kind of answer."""

    http: int
    code: str
    title: str


ANSWERS: Final[dict[Status, Kind]] = {
    status: Kind(http, code, status.meaning)
    for status, http, code in (
        (Status.CREATED, 201, "created"),
        (Status.EXISTS, 200, "exists"),
        (Status.DONE, 200, "done"),
        (Status.ALREADY, 200, "already"),
        (Status.CONFIRMED_LATE, 200, "confirmed_late"),
        (Status.CONFLICT, 409, "conflict"),
        (Status.FENCED, 503, "fenced"),
        (Status.UPGRADE_NEEDED, 503, "upgrade_needed"),
        (Status.STALE_DEFINITION, 503, "stale_definition"),
        (Status.UNKNOWN_SALE, 404, "unknown_sale"),
        (Status.UNKNOWN_SKU, 422, "unknown_sku"),
        (Status.PAUSED, 409, "paused"),
        (Status.NOT_OPEN, 409, "not_open"),
        (Status.ENDED, 409, "ended"),
        (Status.NOT_ALLOWED, 403, "not_allowed"),
        (Status.TOO_LATE, 503, "too_late"),
        (Status.ORDER_LIMIT, 422, "order_limit"),
        (Status.SKU_LIMIT, 409, "sku_limit"),
        (Status.BUYER_LIMIT, 409, "buyer_limit"),
        (Status.SOLD_OUT, 409, "sold_out"),
        (Status.INSUFFICIENT, 409, "insufficient"),
        (Status.UNKNOWN_ORDER, 404, "unknown_order"),
        (Status.EXPIRED, 409, "expired"),
        (Status.RELEASED, 409, "released"),
        (Status.CONFIRMED, 409, "confirmed"),
        (Status.REFUNDED, 409, "refunded"),
        (Status.NOT_CONFIRMED, 409, "not_confirmed"),
        (Status.LATE, 409, "late"),
        (Status.DUPLICATE_PAYMENT, 409, "duplicate_payment"),
        (Status.TOO_MANY_PAYMENTS, 409, "too_many_payments"),
        (Status.CLOSED, 409, "closed"),
        (Status.BELOW_COMMITTED, 409, "below_committed"),
        (Status.TOO_MANY_UNITS, 422, "too_many_units"),
        (Status.CLOCK_JUMP, 503, "clock_jump"),
        (Status.NO_QUEUE, 409, "no_queue"),
        (Status.JOINS_CLOSED, 409, "joins_closed"),
        (Status.UNKNOWN_TICKET, 404, "unknown_ticket"),
        # Every draw has this moment, so it is no failure that somebody should be called for.
        (Status.DRAWING, 409, "drawing"),
        # "token" alone is what a user token's codes begin with.
        (Status.TOKEN_NEEDED, 403, "queue_token_needed"),
        (Status.TOKEN_INVALID, 403, "queue_token_invalid"),
        (Status.TOKEN_EXPIRED, 403, "queue_token_expired"),
        (Status.TOKEN_OTHER_BUYER, 403, "queue_token_other_buyer"),
        (Status.TOKEN_OTHER_SALE, 403, "queue_token_other_sale"),
        (Status.TOKEN_RETIRED, 403, "queue_token_retired"),
        # The engine keeps it to itself.
        (Status.NEW_SERVER, 503, "new_server"),
    )
}

# What is wrong before the engine is asked.
MALFORMED_JSON: Final = Kind(400, "malformed_json", "the body is not JSON")
INVALID_INPUT: Final = Kind(400, "invalid_input", "a part of the request is not valid")
BODY_BROKEN: Final = Kind(400, "body_broken", "the body did not arrive whole")
UNAUTHENTICATED: Final = Kind(401, "unauthenticated", "this needs a user token or an API key")
TOKEN_EXPIRED: Final = Kind(401, "token_expired", "the user token has expired; get a new one")
FORBIDDEN: Final = Kind(403, "forbidden", "this key may not do this")
PROOF_REQUIRED: Final = Kind(403, "proof_required", "this sale asks for a proof of work first")
GATE_REFUSED: Final = Kind(403, "gate_refused", "the mall refuses this request")
RATE_LIMITED: Final = Kind(429, "rate_limited", "too many requests; nothing was done")
BUSY: Final = Kind(503, "busy", "too many requests are under way here; nothing was done")
KEY_REQUIRED: Final = Kind(
    400, "idempotency_key_required", "an order needs the header Idempotency-Key"
)
BUYER_REQUIRED: Final = Kind(
    400, "buyer_required", "this needs a user token, or the header Seckill-Buyer with a key"
)
BODY_SLOW: Final = Kind(408, "body_slow", "the body did not arrive in time")
NOT_FOUND: Final = Kind(404, "not_found", "there is nothing at this path")
METHOD_NOT_ALLOWED: Final = Kind(405, "method_not_allowed", "this path has no such method")
BODY_TOO_LARGE: Final = Kind(413, "body_too_large", "the body is too large")
MEDIA_TYPE: Final = Kind(415, "unsupported_media_type", "the body must be plain application/json")
# What the engine raises.
INTERNAL: Final = Kind(500, "internal", "something failed here; the log knows more")
OVERLOADED: Final = Kind(503, "overloaded", "too many orders are waiting; nothing was done")
OUTCOME_UNKNOWN: Final = Kind(
    503, "outcome_unknown", "no answer in time; repeat the identical request to learn the outcome"
)
UNAVAILABLE: Final = Kind(503, "unavailable", "the sale's server cannot be reached")
GATE_UNAVAILABLE: Final = Kind(
    503, "gate_unavailable", "the mall's gate gives no answer; nothing was done"
)
KEYS_UNAVAILABLE: Final = Kind(
    503, "keys_unavailable", "the mall's keys cannot be fetched; nothing was done"
)
LEDGER_UNAVAILABLE: Final = Kind(
    503, "ledger_unavailable", "the ledger cannot be asked about this sale; nothing was done"
)
SHUTTING_DOWN: Final = Kind(503, "shutting_down", "this intake is not running; nothing was done")
STORAGE_FULL: Final = Kind(503, "storage_full", "the sale's server is full; nothing was done")

RAISED: Final[dict[type[SeckillError], Kind]] = {
    InvalidInput: INVALID_INPUT,
    UnknownSale: ANSWERS[Status.UNKNOWN_SALE],
    UpgradeNeeded: ANSWERS[Status.UPGRADE_NEEDED],
    Overloaded: OVERLOADED,
    OutcomeUnknown: OUTCOME_UNKNOWN,
    RedisUnavailable: UNAVAILABLE,
    EngineClosed: SHUTTING_DOWN,
    ServerFull: STORAGE_FULL,
    # A bug or a damaged key.
    ScriptFailed: INTERNAL,
    # These belong to the start, before there are requests.
    EmbeddedError: INTERNAL,
    MissingExtra: INTERNAL,
    UnsuitableServer: INTERNAL,
    SeckillError: INTERNAL,
}

# What aiohttp raises by itself. Anything else it may think of is our bug.
_HTTP: Final = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED, 413: BODY_TOO_LARGE}
# The engine's names of arguments that a request carries in headers.
_HEADERS: Final = {"buyer": "Seckill-Buyer", "key": "Idempotency-Key"}


class Problem(Exception):
    """Raised by a handler to end the request with this answer."""

    def __init__(
        self,
        kind: Kind,
        detail: str | None = None,
        field: str | None = None,
        *,
        retry_after_s: int = RETRY_AFTER_S,
    ) -> None:
        super().__init__(kind.code)
        self.kind = kind
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s


def refusal(status: Status, order: Order | None = None) -> Reply:
    """The problem for a status that is not ok, with the order that stands in the way."""
    kind = ANSWERS[status]
    # Under load most answers are one of a few refusals without an order: those are encoded once.
    return _send(kind, _body(kind, order=order_document(order)) if order else _REFUSALS[status])


def answer_to(error: Exception, request_id: str) -> Reply:
    """The problem for whatever was raised. Nobody outside is told about a bug."""
    if isinstance(error, Problem):
        known = _PRESSED.get(error.kind.code) if error.detail is None is error.field else None
        body = known or _body(error.kind, detail=error.detail, field=error.field)
        return _send(error.kind, body, error.retry_after_s)
    if isinstance(error, InvalidInput):
        field = _HEADERS.get(error.field, error.field)
        detail = f"{error.problem}; {error.remedy}"
        return _send(INVALID_INPUT, _body(INVALID_INPUT, detail=detail, field=field))
    if isinstance(error, Overloaded):
        return _send(OVERLOADED, _PRESSED[OVERLOADED.code], -(-error.retry_after_ms // 1000))
    kind = kind_of(error)
    response = _send(kind, _body(kind, request_id=request_id if kind is INTERNAL else None))
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = error.headers["Allow"]
    return response


def is_bug(error: Exception) -> bool:
    """Whether this was never meant to be raised."""
    return not isinstance(error, Problem) and kind_of(error) is INTERNAL


def kind_of(error: Exception) -> Kind:
    """The kind of an exception that is not a Problem."""
    if isinstance(error, web.HTTPException):
        return _HTTP.get(error.status, INTERNAL)
    return next((RAISED[cls] for cls in type(error).__mro__ if cls in RAISED), INTERNAL)


def _body(
    kind: Kind,
    *,
    detail: str | None = None,
    field: str | None = None,
    order: OrderDocument | None = None,
    request_id: str | None = None,
) -> bytes:
    return encode(
        ProblemDocument(
            type=f"urn:seckill:problem:{kind.code}",
            title=kind.title,
            status=kind.http,
            code=kind.code,
            detail=detail,
            field=field,
            order=order,
            request_id=request_id,
        )
    )


def _send(kind: Kind, body: bytes, retry_after_s: int = RETRY_AFTER_S) -> Reply:
    retry_after_s = retry_after_s if kind.http in (429, 503) else 0
    response = Plain(body, kind.http, kind.code, media=PROBLEM, retry_after_s=retry_after_s)
    if kind.http == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


_REFUSALS: Final = {status: _body(kind) for status, kind in ANSWERS.items()}
# What is said the oftener, the less time there is to say it.
_PRESSED: Final = {kind.code: _body(kind) for kind in (BUSY, OVERLOADED, RATE_LIMITED)}
