"""The intake as an aiohttp application, to be served by run.py or mounted in a mall's own:

    mall.add_subapp("/seckill", create_app(engine, identify=who_is_it))

Whoever mounts it may say who sends a request in a way of his own, see caller.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from seckill.engine import Engine

from . import health, orders, sales
from .access import Access
from .caller import Caller, Identify
from .exchange import BODY_BYTES_MAX
from .gate import Gate
from .guard import guarded
from .intake import INTAKE, Intake
from .metrics import Metrics
from .settings import Settings

__all__ = ["create_app"]


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
    intake = Intake(
        engine,
        settings,
        known=access.known if identify is None else _nobody,
        identify=identify or access.identify,
        gate=gate,
        metrics=Metrics(engine),
    )

    async def running(app: web.Application) -> AsyncIterator[None]:
        await access.start()
        try:
            if engine.started:
                yield
            else:
                async with engine:
                    yield
        finally:
            await access.aclose()

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[INTAKE] = intake
    app.cleanup_ctx.append(running)
    # Paths are tried in this order, so the busiest stand first.
    app.add_routes(guarded(intake, [*orders.ROUTES, *sales.ROUTES, *health.ROUTES]))
    return app


def _nobody(authorization: str) -> Caller | None:
    return None
