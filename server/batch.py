"""Orders of many buyers in one request: for a mall whose backend collects them itself."""

from __future__ import annotations

import logging
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from seckill.errors import InvalidInput, SeckillError
from seckill.order import Outcome, Wish

from . import problems
from .exchange import INTAKE, _invalid, need, read, reply
from .operation import Operation
from .problems import ANSWERS, Problem, is_bug, kind_of
from .wire import (
    BATCH_MAX,
    BatchAnswer,
    BatchDocument,
    BatchOrder,
    BatchRequest,
    order_document,
)

__all__ = ["BATCH_BYTES_MAX", "ROUTES"]

BATCH_BYTES_MAX: Final = 1024 * 1024

_log = logging.getLogger("seckill.server")


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A BatchRequest whose orders are not looked into yet, so that a broken one stands alone."""

    orders: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BATCH_MAX)]


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_ORDER: Final = msgspec.json.Decoder(BatchOrder)


@Operation(
    id="reserve_batch",
    zh="批量下单：一次请求为许多买家下单，逐单应答",
    who="backend",
    body=BatchRequest,
    answer=BatchDocument,
)
async def reserve_many(request: web.Request) -> web.Response:
    """Orders for many buyers at once, with an answer for each: one that is refused or broken harms
    no other. Repeating the request is safe, as it is with single orders."""
    await need(request, "backend")
    envelope = await read(request, _ENVELOPE, bytes_max=BATCH_BYTES_MAX)
    answers: list[BatchAnswer | None] = []
    wishes: list[Wish] = []
    for raw in envelope.orders:
        try:
            wishes.append(_wish(raw))
        except Problem as error:
            kind = error.kind
            answers.append(BatchAnswer(kind.http, kind.code, None, error.detail, error.field))
        else:
            answers.append(None)
    engine, sale = request.app[INTAKE].engine, request.match_info["sale"]
    decided = iter(await engine.reserve_many(sale, wishes))
    return reply(BatchDocument([answer or _answer(next(decided)) for answer in answers]))


def _wish(raw: msgspec.Raw) -> Wish:
    try:
        order = _ORDER.decode(raw)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (ValueError, RecursionError) as error:
        # The envelope was JSON, so what is left are characters that are none.
        raise Problem(problems.MALFORMED_JSON, str(error)) from None
    cart: dict[str, int] = {}
    for line in order.items:
        cart[line.sku] = cart.get(line.sku, 0) + line.quantity
    return Wish(order.buyer, order.key, cart, order.attrs)


def _answer(decided: Outcome | SeckillError) -> BatchAnswer:
    if isinstance(decided, Outcome):
        kind = ANSWERS[decided.status]
        order = decided.order
        return BatchAnswer(kind.http, kind.code, None if order is None else order_document(order))
    if isinstance(decided, InvalidInput):
        detail = f"{decided.problem}; {decided.remedy}"
        return BatchAnswer(400, problems.INVALID_INPUT.code, None, detail, decided.field)
    if is_bug(decided):
        _log.error("an order of a batch failed", exc_info=decided)
    kind = kind_of(decided)
    return BatchAnswer(kind.http, kind.code)


ROUTES: Final = (web.post("/v1/sales/{sale}/orders:batch", reserve_many),)
