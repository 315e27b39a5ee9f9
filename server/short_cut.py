"""An order finds its handler without aiohttp's router, which costs 8 % of its instructions.

Only where the intake is served by itself (connection.Runner), with its own user tokens and without
web origins: a mall that mounts it may have middlewares, and those are aiohttp's to call. The same
handler answers on both ways, and what is not plainly an order goes the long one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from .guard import Guard
from .intake import INTAKE, Intake
from .orders import reserve_in

__all__ = ["short_cut", "with_short_cut"]

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Quick = Callable[[web.Request, str], Awaitable[web.StreamResponse]]

# As far as a sale's id can be one; an escaped one is the router's to understand.
_ORDERS: Final = re.compile(r"/v1/sales/([0-9A-Za-z_-]{1,40})/orders").fullmatch


def short_cut(intake: Intake, guard: Guard) -> Quick:
    """The guarded handler for requests that ``with_short_cut`` has recognised."""

    async def reserve(request: web.Request, sale: str) -> web.StreamResponse:
        return await reserve_in(intake, request, sale)

    return guard.around(reserve, "/v1/sales/{sale}/orders")


def with_short_cut(app: web.Application, handle: Handler) -> Handler:
    """What answers requests: orders by the short cut, if there is one, all others by ``handle``,
    which is aiohttp's."""
    intake = app.get(INTAKE)
    quick = None if intake is None else intake.short_cut
    if quick is None:
        return handle

    async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
        if (
            isinstance(request, web.Request)
            and request.method == "POST"
            and (found := _ORDERS(request.rel_url.raw_path))
            # aiohttp sends "100 Continue" where it is asked for.
            and "Expect" not in request.headers
        ):
            return await quick(request, found[1])
        return await handle(request)

    return dispatch
