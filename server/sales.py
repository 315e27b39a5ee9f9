"""What is on sale, for buyers."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import Final

from aiohttp import web

from seckill.engine import Engine
from seckill.errors import UnknownSale

from .exchange import INTAKE, reply
from .wire import SaleEntry, SalesDocument, sale_document, sale_entry

__all__ = ["ROUTES"]

PAGE_SALES: Final = 100


async def index(request: web.Request) -> web.Response:
    """A page of sales by id."""
    engine = request.app[INTAKE].engine
    names = await engine.sales()
    start = bisect_right(names, request.query.get("after", ""))
    page = names[start : start + PAGE_SALES]
    entries = await asyncio.gather(*(_entry(engine, name) for name in page))
    after = page[-1] if len(names) > start + PAGE_SALES else None
    return reply(SalesDocument([entry for entry in entries if entry], after))


async def _entry(engine: Engine, sale: str) -> SaleEntry | None:
    try:
        return sale_entry(await engine.sale(sale), await engine.snapshot(sale))
    except UnknownSale:
        # The list may name a sale whose creation was cut short.
        return None


async def show(request: web.Request) -> web.Response:
    """One sale with its items."""
    engine, sale = request.app[INTAKE].engine, request.match_info["sale"]
    return reply(sale_document(await engine.sale(sale), await engine.snapshot(sale)))


async def time(request: web.Request) -> web.Response:
    """The clock that sales go by."""
    return reply(await request.app[INTAKE].clock.read())


ROUTES: Final = (
    web.get("/v1/sales", index),
    web.get("/v1/sales/{sale}", show),
    web.get("/v1/time", time),
)
