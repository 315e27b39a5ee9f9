"""Is the process alive, and may it be given requests?"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec
from aiohttp import web

from seckill.errors import RedisUnavailable
from seckill.snapshot import fenced_sales

from .exchange import INTAKE, reply
from .operation import Operation
from .wire import HealthDocument

__all__ = ["ROUTES"]

# Whoever asks has a timeout of a few seconds too, and should hear our answer before it ends.
READY_S: Final = 1.0


class ReadyDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of the readiness check when it is green. A sale that is fenced answers 503 itself,
    and takes none of the others with it; its name is here for whoever looks."""

    status: Literal["ok"]
    fenced: tuple[str, ...] = ()


@Operation(id="alive", zh="进程存活", answer=HealthDocument, asks_engine=False)
async def alive(request: web.Request) -> web.Response:
    """This process answers. It does not ask Redis: a restart would not bring Redis back."""
    return reply(HealthDocument())


@Operation(id="ready", zh="可以接单", answer=ReadyDocument)
async def ready(request: web.Request) -> web.Response:
    """Redis answers as well. ``fenced`` names the sales of which it has lost a part."""
    try:
        async with asyncio.timeout(READY_S):
            fenced = await fenced_sales(request.app[INTAKE].engine)
    except TimeoutError:
        raise RedisUnavailable("no answer in time") from None
    return reply(ReadyDocument("ok", tuple(fenced)))


ROUTES: Final = (
    web.get("/healthz", alive),
    web.get("/readyz", ready),
)
