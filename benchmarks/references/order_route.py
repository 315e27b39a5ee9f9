"""The way of one order in the references that are written in Python: what is asked, checked by the
code that the intake checks it with, and what is answered, through aiohttp as it is used everywhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from benchmarks.references.start import PRICE_FEN, Start, settings_of
from seckill.errors import InvalidInput
from seckill.order import State, order_id
from seckill.sale import check_key
from seckill.server.access import Access
from seckill.server.exchange import BODY_BYTES_MAX, decoded, key_of
from seckill.server.problems import (
    ANSWERS,
    BODY_TOO_LARGE,
    INVALID_INPUT,
    MEDIA_TYPE,
    Problem,
    answer_to,
)
from seckill.server.reply import JSON, PROBLEM
from seckill.server.wire import (
    OrderDocument,
    OrderLine,
    OrderRequest,
    OutcomeDocument,
    ProblemDocument,
    encode,
)
from seckill.status import Status

__all__ = ["Asked", "Held", "OrderRoute"]

_REQUEST: Final = msgspec.json.Decoder(OrderRequest)
_HEADERS: Final = {"Content-Type": JSON, "Cache-Control": "no-store"}
_PROBLEM_HEADERS: Final = {"Content-Type": PROBLEM, "Cache-Control": "no-store"}


class Asked(NamedTuple):
    """An order, as it is asked of the store."""

    sale: str
    order: str
    buyer: str
    key: str
    sku: str
    quantity: int
    attrs: str


class Held(NamedTuple):
    """What the store has to say."""

    status: Status
    deadline_ms: int = 0


class OrderRoute:
    """Takes orders for a store, which is asked with ``reserve``."""

    def __init__(self, start: Start, reserve: Callable[[Asked], Awaitable[Held]]) -> None:
        self.access = Access(settings_of(start).users, ())
        self._reserve = reserve

    def add_to(self, app: web.Application) -> None:
        """Puts the one route there is into the application."""
        app.add_routes([web.post("/v1/sales/{sale}/orders", self._answer)])

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            asked = await self._asked(request)
        except (Problem, InvalidInput) as error:
            return answer_to(error, "")
        status, deadline_ms = await self._reserve(asked)
        if not status.ok:
            body, http = _REFUSALS[status]
            return web.Response(body=body, status=http, headers=_PROBLEM_HEADERS)
        order = OrderDocument(
            asked.order,
            asked.sale,
            asked.buyer,
            State.HELD,
            1,
            [OrderLine(asked.sku, asked.quantity)],
            asked.quantity * PRICE_FEN,
            deadline_ms,
            (),
            None,
        )
        kind = ANSWERS[status]
        body = encode(OutcomeDocument(kind.code, order))
        return web.Response(body=body, status=kind.http, headers=_HEADERS)

    async def _asked(self, request: web.Request) -> Asked:
        header = request.headers.get("Authorization", "")
        caller = self.access.known(header) or await self.access.identify(request)
        buyer, key = caller.buyer, check_key(key_of(request), "key")
        if request.content_type != JSON or "Content-Encoding" in request.headers:
            raise Problem(MEDIA_TYPE, f"send {JSON}", "Content-Type")
        if (request.content_length or 0) > BODY_BYTES_MAX:
            raise Problem(BODY_TOO_LARGE)
        wish = decoded(_REQUEST, await request.read())
        if len(wish.items) > 1:
            raise Problem(INVALID_INPUT, "this reference sells carts of one line", "items")
        line, sale = wish.items[0], request.match_info["sale"]
        order = order_id(sale, buyer, key)
        return Asked(sale, order, buyer, key, line.sku, line.quantity, wish.attrs)


def _refusal(status: Status) -> tuple[bytes, int]:
    kind = ANSWERS[status]
    document = ProblemDocument(
        type=f"urn:seckill:problem:{kind.code}", title=kind.title, status=kind.http, code=kind.code
    )
    return encode(document), kind.http


_REFUSALS: Final = {status: _refusal(status) for status in ANSWERS}
