"""Is the process alive, and may it be given requests?"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from seckill.errors import RedisUnavailable

from .exchange import INTAKE, reply
from .operation import Operation
from .wire import HealthDocument

__all__ = ["ROUTES"]

# Whoever asks has a timeout of a few seconds too, and should hear our answer before it ends.
READY_S: Final = 1.0


@Operation(id="alive", zh="进程存活", answer=HealthDocument, asks_engine=False)
async def alive(request: web.Request) -> web.Response:
    """This process answers. It does not ask Redis: a restart would not bring Redis back."""
    return reply(HealthDocument())


@Operation(id="ready", zh="可以接单", answer=HealthDocument)
async def ready(request: web.Request) -> web.Response:
    """Redis answers as well."""
    try:
        async with asyncio.timeout(READY_S):
            await request.app[INTAKE].engine.sales()
    except TimeoutError:
        raise RedisUnavailable("no answer in time") from None
    return reply(HealthDocument())


ROUTES: Final = (
    web.get("/healthz", alive),
    web.get("/readyz", ready),
)
