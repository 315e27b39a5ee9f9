"""Orders of many buyers in one request: for a mall whose backend collects them itself."""

from __future__ import annotations

import logging
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from seckill.errors import InvalidInput, SeckillError
from seckill.order import Outcome, Wish
from seckill.status import Status

from . import problems
from .exchange import INTAKE, invalid, need, read, reply
from .operation import Operation
from .problems import ANSWERS, is_bug, kind_of
from .wire import (
    BATCH_MAX,
    BatchAnswer,
    BatchDocument,
    BatchOrder,
    BatchRequest,
    OrderLine,
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
    orders = [_order(raw) for raw in envelope.orders]
    wishes = [_wish(order) for order in orders if isinstance(order, BatchOrder)]
    engine, sale = request.app[INTAKE].engine, request.match_info["sale"]
    decided = iter(await engine.reserve_many(sale, wishes))
    answers = [
        _answer(next(decided), order.items) if isinstance(order, BatchOrder) else order
        for order in orders
    ]
    request.app[INTAKE].metrics.ordered([answer.code for answer in answers])
    return reply(BatchDocument(answers))


def _order(raw: msgspec.Raw) -> BatchOrder | BatchAnswer:
    """The order, or the answer to one that can't be read."""
    try:
        return _ORDER.decode(raw)
    except msgspec.ValidationError as error:
        found = invalid(str(error))
        return BatchAnswer(found.kind.http, found.kind.code, None, found.detail, found.field)
    except (ValueError, RecursionError) as error:
        # The envelope was JSON, so what is left are characters that are none.
        kind = problems.MALFORMED_JSON
        return BatchAnswer(kind.http, kind.code, None, str(error))


def _wish(order: BatchOrder) -> Wish:
    first, *others = order.items
    cart = {first.sku: first.quantity}
    for line in others:
        cart[line.sku] = cart.get(line.sku, 0) + line.quantity
    return Wish(order.buyer, order.key, cart, order.attrs, order.token or "")


def _answer(decided: Outcome | SeckillError, lines: list[OrderLine]) -> BatchAnswer:
    if isinstance(decided, Outcome):
        kind, order = ANSWERS[decided.status], decided.order
        if order is None:
            return BatchAnswer(kind.http, kind.code)
        # What was sent is sent back, unless lines of one SKU were added up.
        same = decided.status is Status.CREATED and len(lines) == len(order.items)
        document = order_document(order, lines if same else None)
        return BatchAnswer(kind.http, kind.code, document)
    if isinstance(decided, InvalidInput):
        detail = f"{decided.problem}; {decided.remedy}"
        return BatchAnswer(400, problems.INVALID_INPUT.code, None, detail, decided.field)
    if is_bug(decided):
        _log.error("an order of a batch failed", exc_info=decided)
    kind = kind_of(decided)
    return BatchAnswer(kind.http, kind.code)


ROUTES: Final = (web.post("/v1/sales/{sale}/orders:batch", reserve_many),)
