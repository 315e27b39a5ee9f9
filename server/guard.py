"""What stands around every handler: it bounds the requests under way, counts and times each answer,
gives the request an id when the log has a line about it, and turns what is raised into a problem.

Not a middleware: aiohttp wraps those around each request anew, which costs as much as the guard.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from itertools import count
from time import monotonic
from typing import Final

from aiohttp import web

from .intake import Intake
from .log import RequestLines
from .problems import BUSY, Problem, answer_to, is_bug

__all__ = ["Guard"]

_log = logging.getLogger("seckill.server")

Handler = Callable[..., Awaitable[web.StreamResponse]]

REQUEST_ID: Final = "X-Request-Id"
# Whoever watches over the process is answered however many others ask.
ALWAYS: Final = ("alive", "ready", "metrics")
# What a path says besides the names of its parts.
_PATTERN: Final = re.compile(r":[^{}]*(?=})")
FAILED: Final = "request %(request_id)s failed: %(route)s"


class Guard:
    """What stands around every handler of one intake."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._lines = RequestLines(intake.settings.log.requests)
        self._run = secrets.token_hex(4)
        self._numbers = count(1)

    def routes(self, routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
        """The same routes with the guard around each handler, and one for all other paths."""
        return [
            web.RouteDef(
                route.method, route.path, self.around(route.handler, route.path), route.kwargs
            )
            for route in (*routes, web.route("*", "/{tail:.*}", elsewhere))
        ]

    def around(self, handler: Handler, path: str) -> Handler:
        """The same handler, guarded. ``path`` is what logs call it, with names in braces. What is
        passed besides the request is passed on."""
        intake, lines, answered = self._intake, self._lines, self._intake.metrics.answered
        verb, route = handler.__name__, _PATTERN.sub("", path)
        always = verb in ALWAYS

        @wraps(handler)
        async def guard(request: web.Request, *where: str) -> web.StreamResponse:
            started_s = monotonic()
            intake.in_flight += 1
            request_id, bug = "", False
            response: web.StreamResponse
            try:
                if intake.in_flight > intake.max_in_flight and not always:
                    raise Problem(BUSY)
                if intake.clients is not None and not always:
                    intake.take_client(request)
                response = await handler(request, *where)
            except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
                bug = is_bug(error)
                if bug:
                    request_id = self._new_id()
                    fields = {"request_id": request_id, "route": route}
                    _log.error(FAILED, fields, exc_info=error, extra=fields)
                response = answer_to(error, request_id)
            finally:
                intake.in_flight -= 1
            seconds, code = monotonic() - started_s, getattr(response, "code", "ok")
            answered(verb, code, seconds)
            if response.status >= lines.from_status and not bug:
                request_id = self._new_id()
                lines.write(request.method, route, request_id, response.status, code, seconds)
            if request_id and not response.prepared:
                response.headers[REQUEST_ID] = request_id
            return response

        return guard

    def _new_id(self) -> str:
        return f"{self._run}-{next(self._numbers):x}"


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """Nothing is at this path, or not with this method."""
    allowed: set[str] = set()
    for resource in request.match_info.apps[-1].router.resources():
        allowed |= (await resource.resolve(request))[1]
    if allowed := allowed - {"*"}:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound
