"""The life of an order: decode, ask the engine, encode."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from seckill.order import Outcome
from seckill.status import Status

from .exchange import INTAKE, buyer_in, caller_of, key_of, need_mall, read, reply, sent_by
from .gate import PROOF_HEADER, Entry, ask
from .problems import ANSWERS, Reply, refusal
from .wire import OrderRequest, OutcomeDocument, PaymentRequest, RefundRequest, order_document

__all__ = ["ROUTES"]

_ORDER: Final = msgspec.json.Decoder(OrderRequest)
_PAYMENT: Final = msgspec.json.Decoder(PaymentRequest)
_REFUND: Final = msgspec.json.Decoder(RefundRequest)


async def reserve(request: web.Request) -> web.Response:
    """Holds units for a buyer."""
    caller = await caller_of(request)
    buyer, key = buyer_in(request, caller), key_of(request)
    wish = await read(request, _ORDER)
    intake, sale = request.app[INTAKE], request.match_info["sale"]
    if intake.gate is not None and caller.buyer:
        proof = request.headers.get(PROOF_HEADER, "")
        address = intake.addresses.of(request)
        await ask(intake.gate, Entry(sale, buyer, key, caller.tier, address, proof))
    cart: dict[str, int] = {}
    for line in wish.items:
        cart[line.sku] = cart.get(line.sku, 0) + line.quantity
    outcome = await intake.engine.reserve(sale, buyer, key, cart, attrs=wish.attrs)
    return _answer(outcome, request)


async def show(request: web.Request) -> web.Response:
    """An order as it is now."""
    buyer, at = await sent_by(request), request.match_info
    order = await request.app[INTAKE].engine.order(at["sale"], at["order"], buyer=buyer)
    return refusal(Status.UNKNOWN_ORDER) if order is None else reply(order_document(order))


async def begin_payment(request: web.Request) -> web.Response:
    """The buyer goes to the cashier."""
    buyer, at, engine = await sent_by(request), request.match_info, request.app[INTAKE].engine
    return _answer(await engine.begin_payment(at["sale"], at["order"], buyer=buyer))


async def release(request: web.Request) -> web.Response:
    """Gives an order up."""
    buyer, at, engine = await sent_by(request), request.match_info, request.app[INTAKE].engine
    return _answer(await engine.release(at["sale"], at["order"], buyer=buyer))


async def confirm(request: web.Request) -> web.Response:
    """Money has arrived."""
    await need_mall(request)
    at, engine = request.match_info, request.app[INTAKE].engine
    payment = (await read(request, _PAYMENT)).payment
    return _answer(await engine.confirm(at["sale"], at["order"], payment))


async def refund(request: web.Request) -> web.Response:
    """Money goes back."""
    await need_mall(request)
    at, engine = request.match_info, request.app[INTAKE].engine
    wish = await read(request, _REFUND)
    outcome = await engine.refund(
        at["sale"],
        at["order"],
        wish.refund,
        return_units=wish.return_units,
        return_limit=wish.return_limit,
    )
    return _answer(outcome)


def _answer(outcome: Outcome, created_by: web.Request | None = None) -> Reply:
    order = outcome.order
    if order is None or not outcome.ok:
        return refusal(outcome.status, order)
    kind = ANSWERS[outcome.status]
    location = ""
    if created_by is not None and outcome.status is Status.CREATED:
        # From the path that was asked, which has the prefix of whoever mounts us.
        location = f"{created_by.rel_url.raw_path}/{order.id}"
    document = OutcomeDocument(kind.code, order_document(order))
    return reply(document, kind.http, kind.code, location=location)


ROUTES: Final = (
    web.post("/v1/sales/{sale}/orders", reserve),
    web.get("/v1/sales/{sale}/orders/{order}", show),
    web.post("/v1/sales/{sale}/orders/{order}/begin-payment", begin_payment),
    web.post("/v1/sales/{sale}/orders/{order}/release", release),
    web.post("/v1/sales/{sale}/orders/{order}/confirm", confirm),
    web.post("/v1/sales/{sale}/orders/{order}/refund", refund),
)
