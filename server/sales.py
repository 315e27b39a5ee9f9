"""What is on sale, for buyers. These pages are for everybody and for every cache; only the clock is
for nobody's."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from seckill.status import Status

from .exchange import INTAKE, reply
from .operation import Operation
from .pages import page_reply
from .wire import SaleDocument, SalesDocument, TimeDocument

__all__ = ["ROUTES"]

MAX_AGE_S: Final = 1


@Operation(
    id="list_sales",
    zh="场次列表，按编号排序，每页 100 个",
    answer=SalesDocument,
    query={"after": "the ``after`` of the page before"},
    cached=True,
)
async def index(request: web.Request) -> web.Response:
    """Lists the sales by id, 100 a page."""
    page = await request.app[INTAKE].pages.list(request.query.get("after", ""))
    return page_reply(request, page, MAX_AGE_S)


@Operation(
    id="show_sale",
    zh="一个场次及其商品",
    answer=SaleDocument,
    statuses=(Status.UNKNOWN_SALE, Status.UPGRADE_NEEDED),
    cached=True,
)
async def show(request: web.Request) -> web.Response:
    """Shows one sale with its items."""
    page = await request.app[INTAKE].pages.sale(request.match_info["sale"])
    return page_reply(request, page, MAX_AGE_S)


@Operation(id="read_clock", zh="服务器时钟，倒计时以它为准", answer=TimeDocument)
async def time(request: web.Request) -> web.Response:
    """Tells the time on the clock that sales go by, for countdowns. It is never cached."""
    return reply(await request.app[INTAKE].clock.read())


ROUTES: Final = (
    web.get("/v1/sales", index),
    web.get("/v1/sales/{sale}", show),
    web.get("/v1/time", time),
)
