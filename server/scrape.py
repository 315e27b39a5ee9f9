"""GET /metrics, for Prometheus."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from .exchange import INTAKE, need
from .metrics import CONTENT_TYPE

__all__ = ["ROUTES"]


async def metrics(request: web.Request) -> web.Response:
    """The numbers of every worker. They tell how a sale goes: this takes a key of scope metrics."""
    await need(request, "metrics")
    body = await request.app[INTAKE].metrics.render()
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=body, headers=headers)


ROUTES: Final = (web.get("/metrics", metrics),)
