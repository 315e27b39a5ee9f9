"""What stands around every handler: it bounds the requests under way, counts and times each answer,
gives the request an id when the log has a line about it, and turns what is raised into a problem.

Not a middleware: aiohttp wraps those around each request anew, which costs as much as the guard.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from itertools import count
from time import monotonic
from typing import Final

from aiohttp import web

from .intake import Intake
from .problems import BUSY, Problem, answer_to, is_bug

__all__ = ["guarded"]

_log = logging.getLogger("seckill.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID: Final = "X-Request-Id"
# Whoever watches over the process is answered however many others ask.
ALWAYS: Final = ("alive", "ready", "metrics")
LINE: Final = "request %(request_id)s %(method)s %(route)s"


def guarded(intake: Intake, routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The same routes with the guard around each handler, and one for all other paths."""
    run = secrets.token_hex(4)
    numbers = count(1)
    answered = intake.metrics.answered
    log_all = intake.settings.log.requests == "all"

    def around(handler: Handler) -> Handler:
        verb = handler.__name__
        always = verb in ALWAYS

        @wraps(handler)
        async def guard(request: web.Request) -> web.StreamResponse:
            started_s = monotonic()
            intake.in_flight += 1
            request_id = ""
            response: web.StreamResponse
            try:
                if intake.in_flight > intake.max_in_flight and not always:
                    raise Problem(BUSY)
                if intake.clients is not None and not always:
                    intake.take_client(request)
                response = await handler(request)
            except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
                bug = is_bug(error)
                if bug or log_all:
                    request_id = f"{run}-{next(numbers):x}"
                response = answer_to(error, request_id)
                if bug:
                    fields = _fields(request, request_id)
                    _log.error(LINE + " failed", fields, exc_info=error, extra=fields)
            finally:
                intake.in_flight -= 1
            seconds = monotonic() - started_s
            answered(verb, getattr(response, "code", "ok"), seconds)
            if log_all:
                request_id = request_id or f"{run}-{next(numbers):x}"
                fields = _fields(request, request_id)
                fields |= {"status": response.status, "ms": round(seconds * 1000, 1)}
                _log.info(LINE + ": %(status)d in %(ms)s ms", fields, extra=fields)
            if request_id and not response.prepared:
                response.headers[REQUEST_ID] = request_id
            return response

        return guard

    return [
        web.RouteDef(route.method, route.path, around(route.handler), route.kwargs)
        for route in (*routes, web.route("*", "/{tail:.*}", elsewhere))
    ]


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """Nothing is at this path, or not with this method."""
    allowed: set[str] = set()
    for resource in request.match_info.apps[-1].router.resources():
        allowed |= (await resource.resolve(request))[1]
    if allowed := allowed - {"*"}:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound


def _fields(request: web.Request, request_id: str) -> dict[str, object]:
    # The route is logged and not the path, because a path names an order.
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "no route"
    return {"request_id": request_id, "method": request.method, "route": route}
