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
from typing import Final, NamedTuple

from aiohttp import web

from .intake import Intake
from .log import RequestLines
from .problems import BUSY, Problem, Reply, answer_to, is_bug

__all__ = ["Guard", "Watched"]

_log = logging.getLogger("seckill.server")

Handler = Callable[..., Awaitable[web.StreamResponse]]

REQUEST_ID: Final = "X-Request-Id"
# Whoever watches over the process is answered however many others ask.
ALWAYS: Final = ("alive", "ready", "metrics")
# What a path says besides the names of its parts.
_PATTERN: Final = re.compile(r":[^{}]*(?=})")
FAILED: Final = "request %(request_id)s failed: %(route)s"


class Watched(NamedTuple):
    """One handler, as it is counted and as logs call it."""

    verb: str
    route: str


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
        """The same handler, guarded. ``path`` is what logs call it, with names in braces."""
        intake, enter, answered = self._intake, self.enter, self.answered
        watched = Watched(handler.__name__, _PATTERN.sub("", path))
        always = watched.verb in ALWAYS

        @wraps(handler)
        async def guard(request: web.Request) -> web.StreamResponse:
            started_s = monotonic()
            intake.in_flight += 1
            request_id = ""
            response: web.StreamResponse
            try:
                if not always:
                    enter()
                    if intake.clients is not None:
                        intake.take_client(request)
                response = await handler(request)
            except Exception as error:  # noqa: BLE001 - logged, and no traceback leaves
                response, request_id = self.failed(watched, error)
            finally:
                intake.in_flight -= 1
            answered(watched, request.method, response, monotonic() - started_s, request_id)
            return response

        return guard

    def enter(self) -> None:
        """A request that is counted in ``in_flight`` already. Raises Problem if it is too many."""
        if self._intake.in_flight > self._intake.max_in_flight:
            raise Problem(BUSY)

    def failed(self, watched: Watched, error: Exception) -> tuple[Reply, str]:
        """The answer to what a handler raised, and the request's id if that is a bug."""
        if not is_bug(error):
            return answer_to(error, ""), ""
        request_id = self._new_id()
        fields = {"request_id": request_id, "route": watched.route}
        _log.error(FAILED, fields, exc_info=error, extra=fields)
        return answer_to(error, request_id), request_id

    def answered(
        self,
        watched: Watched,
        method: str,
        response: web.StreamResponse,
        seconds: float,
        request_id: str,
    ) -> None:
        """Counts an answer, and writes its line if it gets one. Call it before it is sent.
        ``request_id`` is that of a bug, which has had its line."""
        code, lines = getattr(response, "code", "ok"), self._lines
        self._intake.metrics.answered(watched.verb, code, seconds)
        if response.status >= lines.from_status and not request_id:
            request_id = self._new_id()
            if not lines.write(method, watched.route, request_id, response.status, code, seconds):
                request_id = ""
        if request_id and not response.prepared:
            response.headers[REQUEST_ID] = request_id

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
