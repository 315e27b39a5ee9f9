"""GET /metrics, for Prometheus."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from .exchange import INTAKE, need
from .metrics import CONTENT_TYPE
from .operation import Operation

__all__ = ["ROUTES"]


@Operation(
    id="read_metrics",
    zh="监控指标，Prometheus 文本格式",
    who="metrics",
    answer=CONTENT_TYPE,
    asks_engine=False,
)
async def metrics(request: web.Request) -> web.Response:
    """Gives the numbers of every worker to Prometheus. They tell how a sale goes, so this takes a
    key of scope metrics."""
    await need(request, "metrics")
    body = await request.app[INTAKE].metrics.render()
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=body, headers=headers)


ROUTES: Final = (web.get("/metrics", metrics),)
