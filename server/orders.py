"""The life of an order: decode, ask the engine, encode."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from seckill.order import Outcome
from seckill.status import Status

from .exchange import ENGINE, buyer_of, key_of, read, reply, sent_by
from .problems import ANSWERS, BACKEND_ONLY, Problem, refusal
from .wire import OrderRequest, OutcomeDocument, PaymentRequest, order_document

__all__ = ["ROUTES"]

_ORDER: Final = msgspec.json.Decoder(OrderRequest)
_PAYMENT: Final = msgspec.json.Decoder(PaymentRequest)


async def reserve(request: web.Request) -> web.Response:
    """Holds units for a buyer."""
    buyer, key = buyer_of(request), key_of(request)
    wish = await read(request, _ORDER)
    cart: dict[str, int] = {}
    for line in wish.items:
        cart[line.sku] = cart.get(line.sku, 0) + line.quantity
    engine = request.app[ENGINE]
    outcome = await engine.reserve(request.match_info["sale"], buyer, key, cart, attrs=wish.attrs)
    return _answer(outcome, request)


async def show(request: web.Request) -> web.Response:
    """An order as it is now."""
    at = request.match_info
    order = await request.app[ENGINE].order(at["sale"], at["order"], buyer=sent_by(request))
    return refusal(Status.UNKNOWN_ORDER) if order is None else reply(order_document(order))


async def begin_payment(request: web.Request) -> web.Response:
    """The buyer goes to the cashier."""
    at, engine = request.match_info, request.app[ENGINE]
    return _answer(await engine.begin_payment(at["sale"], at["order"], buyer=sent_by(request)))


async def release(request: web.Request) -> web.Response:
    """Gives an order up."""
    at, engine = request.match_info, request.app[ENGINE]
    return _answer(await engine.release(at["sale"], at["order"], buyer=sent_by(request)))


async def confirm(request: web.Request) -> web.Response:
    """Money has arrived."""
    if sent_by(request):
        raise Problem(BACKEND_ONLY)
    at, engine = request.match_info, request.app[ENGINE]
    payment = (await read(request, _PAYMENT)).payment
    return _answer(await engine.confirm(at["sale"], at["order"], payment))


def _answer(outcome: Outcome, created_by: web.Request | None = None) -> web.Response:
    order = outcome.order
    if order is None or not outcome.ok:
        return refusal(outcome.status, order)
    kind = ANSWERS[outcome.status]
    location = None
    if created_by is not None and outcome.status is Status.CREATED:
        # From the path that was asked, which has the prefix of whoever mounts us.
        location = f"{created_by.rel_url.raw_path}/{order.id}"
    return reply(OutcomeDocument(kind.code, order_document(order)), kind.http, location=location)


ROUTES: Final = (
    web.post("/v1/sales/{sale}/orders", reserve),
    web.get("/v1/sales/{sale}/orders/{order}", show),
    web.post("/v1/sales/{sale}/orders/{order}/begin-payment", begin_payment),
    web.post("/v1/sales/{sale}/orders/{order}/release", release),
    web.post("/v1/sales/{sale}/orders/{order}/confirm", confirm),
)
