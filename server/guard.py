"""The one middleware: it bounds the requests under way, counts and times every answer, gives each
request an id, and turns whatever is raised into a problem document.
"""

from __future__ import annotations

import logging
import secrets
from itertools import count
from time import monotonic
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .intake import Intake
from .problems import BUSY, Problem, answer_to, is_bug

__all__ = ["guard"]

_log = logging.getLogger("seckill.server")

REQUEST_ID: Final = "X-Request-Id"
_LINE: Final = "request %(request_id)s %(method)s %(route)s"


def guard(intake: Intake) -> Middleware:
    """The middleware of this intake."""
    run = secrets.token_hex(4)
    numbers = count(1)
    answered = intake.metrics.answered
    log_all = intake.settings.log.requests == "all"

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = monotonic()
        request_id = f"{run}-{next(numbers):x}"
        intake.in_flight += 1
        response: web.StreamResponse
        try:
            if intake.in_flight > intake.max_in_flight and not hasattr(handler, "always"):
                raise Problem(BUSY)
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - what has no kind is logged, no traceback leaves
            response = answer_to(error, request_id)
            if is_bug(error):
                fields = _fields(request, request_id)
                _log.error(_LINE + " failed", fields, exc_info=error, extra=fields)
        finally:
            intake.in_flight -= 1
        response.headers[REQUEST_ID] = request_id
        seconds = monotonic() - started_s
        answered(request.match_info.handler.__name__, getattr(response, "code", "ok"), seconds)
        if log_all:
            fields = _fields(request, request_id)
            fields |= {"status": response.status, "ms": round(seconds * 1000, 1)}
            _log.info(_LINE + ": %(status)d in %(ms)s ms", fields, extra=fields)
        return response

    return guarded


def _fields(request: web.Request, request_id: str) -> dict[str, object]:
    # The route is logged and not the path, because a path names an order.
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "no route"
    return {"request_id": request_id, "method": request.method, "route": route}
