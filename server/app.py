"""The intake as an aiohttp application, to be served by run.py or mounted in a mall's own:

    mall.add_subapp("/seckill", create_app(engine, identify=who_is_it))

Whoever mounts it may say who sends a request in a way of his own, see caller.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from seckill.engine import Engine

from . import (
    admin,
    batch,
    challenge,
    docs_page,
    draws,
    health,
    openapi,
    orders,
    sales,
    scrape,
    sockets,
    tickets,
)
from .access import Access
from .batch import BATCH_BYTES_MAX
from .caller import Caller, Identify
from .cors import cors
from .gate import Gate, built_in
from .guard import Guard
from .hot_route import hot_route
from .intake import INTAKE, Intake
from .ledger import writing
from .metrics import Metrics
from .settings import Settings
from .sockets import SOCKETS, Sockets

__all__ = ["ROUTES", "create_app"]

# Paths are tried in this order, so the busiest stand first.
ROUTES: Final = (
    *orders.ROUTES,
    *tickets.ROUTES,
    *sockets.ROUTES,
    *batch.ROUTES,
    *sales.ROUTES,
    *draws.ROUTES,
    *challenge.ROUTES,
    *health.ROUTES,
    *scrape.ROUTES,
    *admin.ROUTES,
    *openapi.ROUTES,
    *docs_page.ROUTES,
)


def create_app(
    engine: Engine,
    settings: Settings | None = None,
    *,
    identify: Identify | None = None,
    gate: Gate | None = None,
) -> web.Application:
    """An application around this engine. An engine that was not started yet is started with the
    application and closed with it; one that was started belongs to whoever did.

    ``identify`` replaces the user tokens and API keys of the settings, ``gate`` their proof of
    work.
    """
    settings = settings or Settings()
    access = Access(settings.users, settings.keys)
    metrics = Metrics(engine)
    intake = Intake(
        engine,
        settings,
        known=access.known if identify is None else _nobody,
        recognized=access.recognized if identify is None else _nobody,
        identify=identify or access.identify,
        gate=built_in(settings.gate) if gate is None else gate,
        metrics=metrics,
    )

    guard = Guard(intake)
    buyers = Sockets(intake, guard, rechecks=identify is None)

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if not engine.started:
                await stack.enter_async_context(engine)
            stack.push_async_callback(access.aclose)
            await access.start()
            stack.push_async_callback(metrics.aclose)
            await metrics.start(lambda: intake.in_flight, engine.now_ms)
            await stack.enter_async_context(writing(engine, settings.ledger))
            stack.push_async_callback(buyers.aclose)
            yield

    async def ending(app: web.Application) -> None:
        await buyers.drain(settings.server.drain_s)

    origins = settings.server.cors_origins
    app = web.Application(
        middlewares=[cors(origins)] if origins else (), client_max_size=BATCH_BYTES_MAX
    )
    app[INTAKE], app[SOCKETS] = intake, buyers
    app.cleanup_ctx.append(running)
    app.on_shutdown.append(ending)
    app.add_routes(guard.routes(ROUTES))
    if identify is None:
        intake.hot_route = hot_route(intake, guard)
    return app


def _nobody(authorization: str) -> Caller | None:
    return None
