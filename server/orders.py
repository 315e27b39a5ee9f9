"""The life of an order: decode, ask the engine, encode."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import msgspec
from aiohttp import web

from seckill.engine import Engine
from seckill.order import Order, Outcome, Wish
from seckill.status import Status

from .exchange import (
    INTAKE,
    buyer_in,
    caller_of,
    key_of,
    need_mall,
    read,
    reply,
    sent_by,
)
from .gate import pass_gate
from .operation import Operation
from .problems import (
    ANSWERS,
    GATE_REFUSED,
    GATE_UNAVAILABLE,
    OVERLOADED,
    PROOF_REQUIRED,
    STORAGE_FULL,
    Problem,
    Reply,
    refusal,
)
from .wire import (
    OrderDocument,
    OrderRequest,
    OutcomeDocument,
    PaymentRequest,
    RefundRequest,
    order_document,
)

__all__ = ["ORDER", "ROUTES", "answer_of", "decide", "found", "told", "wish_of"]

ORDER: Final = msgspec.json.Decoder(OrderRequest)
_PAYMENT: Final = msgspec.json.Decoder(PaymentRequest)
_REFUND: Final = msgspec.json.Decoder(RefundRequest)

# What the engine may answer.
_YES: Final = (Status.DONE, Status.ALREADY)
_NO: Final = (
    *(Status.UNKNOWN_ORDER, Status.UNKNOWN_SALE),
    *(Status.UPGRADE_NEEDED, Status.FENCED),
)
_RESERVE: Final = (
    *(Status.CREATED, Status.EXISTS, Status.CONFLICT, Status.UNKNOWN_SALE),
    *(Status.UPGRADE_NEEDED, Status.FENCED),
    *(Status.STALE_DEFINITION, Status.UNKNOWN_SKU, Status.PAUSED, Status.NOT_OPEN, Status.ENDED),
    *(Status.NOT_ALLOWED, Status.TOO_LATE, Status.ORDER_LIMIT, Status.SKU_LIMIT),
    *(Status.BUYER_LIMIT, Status.SOLD_OUT, Status.INSUFFICIENT),
    *(Status.TOKEN_NEEDED, Status.TOKEN_EXPIRED, Status.UNKNOWN_TICKET),
    # These are refused before Redis is asked.
    *(Status.TOKEN_INVALID, Status.TOKEN_RETIRED),
    *(Status.TOKEN_OTHER_BUYER, Status.TOKEN_OTHER_SALE),
)


@Operation(
    id="reserve",
    zh="下单：为买家保留商品，到期未付自动释放",
    who="user",
    keyed=True,
    body=OrderRequest,
    answer=OutcomeDocument,
    statuses=_RESERVE,
    kinds=(OVERLOADED, STORAGE_FULL, PROOF_REQUIRED, GATE_REFUSED, GATE_UNAVAILABLE),
)
async def reserve(request: web.Request) -> web.Response:
    """Holds units for a buyer until the order's deadline. The identical request may be repeated
    blindly: it finds the same order."""
    intake = request.app[INTAKE]
    caller = await caller_of(request)
    buyer, key = buyer_in(request, caller), key_of(request)
    sale, body = request.match_info["sale"], await read(request, ORDER)
    await pass_gate(intake, request, caller, sale, key)
    # The path that was asked has the prefix of whoever mounts us.
    return await decide(intake.engine, sale, wish_of(buyer, key, body), request.rel_url.raw_path)


def wish_of(buyer: str, key: str, body: OrderRequest) -> Wish:
    """What the engine is asked. Lines of one SKU are added up."""
    cart: dict[str, int] = {}
    for line in body.items:
        cart[line.sku] = cart.get(line.sku, 0) + line.quantity
    return Wish(buyer, key, cart, body.attrs, body.token or "")


async def decide(engine: Engine, sale: str, wish: Wish, path: str) -> Reply:
    """Asks the engine and waits for its answer. ``path`` is where orders of this sale live."""
    outcome = await engine.reserve(
        sale, wish.buyer, wish.key, wish.items, attrs=wish.attrs, token=wish.token
    )
    known: Container[str] = ()
    if outcome.status is Status.UNKNOWN_SKU:
        known = (await engine.sale(sale)).sku_index
    return told(outcome, wish, known, path)


def told(outcome: Outcome, wish: Wish, known: Container[str], path: str) -> Reply:
    """What a buyer is told. ``known`` are the sale's SKUs. Raises Problem for one it has not."""
    if outcome.status is Status.UNKNOWN_SKU:
        strangers = ", ".join(sku for sku in wish.items if sku not in known)
        raise Problem(ANSWERS[outcome.status], f"the sale has no {strangers}", "items")
    return answer_of(outcome, path)


@Operation(
    id="show_order",
    zh="查询订单",
    who="user",
    answer=OrderDocument,
    statuses=(Status.UNKNOWN_SALE, Status.UNKNOWN_ORDER),
)
async def show(request: web.Request) -> web.Response:
    """Shows an order as it is now. A buyer sees only his own."""
    buyer, at = await sent_by(request), request.match_info
    return found(await request.app[INTAKE].engine.order(at["sale"], at["order"], buyer=buyer))


def found(order: Order | None) -> Reply:
    """What is told of an order, None for one that is not there."""
    return refusal(Status.UNKNOWN_ORDER) if order is None else reply(order_document(order))


@Operation(
    id="begin_payment",
    zh="买家去支付：订单获得新的付款期限",
    who="user",
    answer=OutcomeDocument,
    statuses=(*_YES, Status.EXPIRED, Status.RELEASED, Status.CONFIRMED, Status.REFUNDED, *_NO),
)
async def begin_payment(request: web.Request) -> web.Response:
    """Says that the buyer goes to the cashier, which gives the order a new deadline."""
    buyer, at, engine = await sent_by(request), request.match_info, request.app[INTAKE].engine
    return answer_of(await engine.begin_payment(at["sale"], at["order"], buyer=buyer))


@Operation(
    id="release",
    zh="放弃订单，商品重新开售",
    who="user",
    answer=OutcomeDocument,
    statuses=(*_YES, Status.EXPIRED, Status.CONFIRMED, Status.REFUNDED, *_NO),
)
async def release(request: web.Request) -> web.Response:
    """Gives an unpaid order up; its units go back on sale."""
    buyer, at, engine = await sent_by(request), request.match_info, request.app[INTAKE].engine
    return answer_of(await engine.release(at["sale"], at["order"], buyer=buyer))


@Operation(
    id="confirm",
    zh="确认付款（仅商城后端）",
    who="backend",
    body=PaymentRequest,
    answer=OutcomeDocument,
    statuses=(
        *(*_YES, Status.CONFIRMED_LATE, Status.LATE, Status.DUPLICATE_PAYMENT),
        *(Status.REFUNDED, Status.TOO_MANY_PAYMENTS, *_NO),
    ),
)
async def confirm(request: web.Request) -> web.Response:
    """Says that the money has arrived. A payment that finds nothing to pay for is due back, and the
    answer says so."""
    await need_mall(request)
    at, engine = request.match_info, request.app[INTAKE].engine
    payment = (await read(request, _PAYMENT)).payment
    return answer_of(await engine.confirm(at["sale"], at["order"], payment))


@Operation(
    id="refund",
    zh="退款（仅商城后端）",
    who="backend",
    body=RefundRequest,
    answer=OutcomeDocument,
    statuses=(*_YES, Status.CONFLICT, Status.REFUNDED, Status.NOT_CONFIRMED, *_NO),
)
async def refund(request: web.Request) -> web.Response:
    """Gives a paid order's money back, and its units back to the sale if wanted."""
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
    return answer_of(outcome)


def answer_of(outcome: Outcome, path: str = "") -> Reply:
    """What is told of an outcome. ``path`` is where orders live, if one may have been made."""
    order = outcome.order
    if order is None or not outcome.ok:
        return refusal(outcome.status, order)
    kind = ANSWERS[outcome.status]
    location = f"{path}/{order.id}" if path and outcome.status is Status.CREATED else ""
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
