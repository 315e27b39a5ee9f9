"""The intake as an aiohttp application, to be served by run.py or mounted in a mall's own:

    mall.add_subapp("/seckill", create_app(engine))

Whoever mounts it must see to it that ``Seckill-Buyer`` is set by the mall and never by a client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from seckill.engine import Engine

from . import health, orders, sales
from .clock import Clock
from .exchange import BODY_BYTES_MAX, CLOCK, ENGINE
from .problems import errors_answered

__all__ = ["create_app"]


def create_app(engine: Engine) -> web.Application:
    """An application around this engine. An engine that was not started yet is started with the
    application and closed with it; one that was started belongs to whoever did."""
    app = web.Application(middlewares=[errors_answered], client_max_size=BODY_BYTES_MAX)
    app[ENGINE] = engine
    app[CLOCK] = Clock(engine)
    app.cleanup_ctx.append(_running)
    app.add_routes([*health.ROUTES, *sales.ROUTES, *orders.ROUTES])
    return app


async def _running(app: web.Application) -> AsyncIterator[None]:
    engine = app[ENGINE]
    if engine.started:
        yield
        return
    async with engine:
        yield
