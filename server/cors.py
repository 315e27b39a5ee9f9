"""Web pages of other origins may call the buyers' endpoints, if the mall names those origins.

Off by default, and a mini-program does not need it. Only for requests that carry a user token in a
header: cookies are never sent along (no Access-Control-Allow-Credentials), and what only the mall
may do stays closed to every page, as does naming a buyer with ``Seckill-Buyer``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from seckill.errors import InvalidInput

__all__ = ["PATHS", "checked_origin", "cors"]

PATHS: Final = frozenset(
    {
        "time",
        "sales",
        "sales/{sale}",
        "sales/{sale}/challenge",
        "sales/{sale}/draw",
        "sales/{sale}/orders",
        "sales/{sale}/orders/{order}",
        "sales/{sale}/orders/{order}/begin-payment",
        "sales/{sale}/orders/{order}/release",
        "sales/{sale}/tickets",
        "sales/{sale}/tickets/me",
    }
)
"""What buyers may call, below ``/v1/``."""

REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, Seckill-Proof, Seckill-Ticket"
)
RESPONSE_HEADERS: Final = "ETag, Location, Retry-After, X-Request-Id"
PREFLIGHT_S: Final = 3600

_ORIGIN: Final = re.compile(
    r"https?://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
).fullmatch
_USUAL_PORTS: Final = re.compile(r"https://.*:443|http://.*:80").fullmatch


def cors(origins: Sequence[str]) -> Middleware:
    """The middleware that lets pages of these origins in. It goes before all others, because a
    page may read a refusal only if that has the headers too. Raises InvalidInput."""
    allowed = frozenset(map(checked_origin, origins))

    @web.middleware
    async def crossed(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN, "")
        if request.method == hdrs.METH_OPTIONS and origin in allowed:
            wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "")
            # What would this path be, were it asked with that method?
            asked = request.clone(method=wanted)
            if _is_for_buyers(await request.app.router.resolve(asked)):
                return web.Response(status=204, headers=_preflight(origin, wanted))
        response = await handler(request)
        if not response.prepared and _is_for_buyers(request.match_info):
            _let_through(response, origin if origin in allowed else None)
        return response

    return crossed


def checked_origin(text: str) -> str:
    """For settings: raises InvalidInput unless a browser would write an origin like this."""
    if _ORIGIN(text) and not _USUAL_PORTS(text):
        return text
    raise InvalidInput(
        "server.cors_origins",
        f"{text!r} is no origin",
        "write https://shop.example in lower case: no path, no final /, no usual port, no *",
    )


def _is_for_buyers(match: web.UrlMappingMatchInfo) -> bool:
    resource = match.route.resource
    # What is before it belongs to whoever mounts us.
    return resource is not None and resource.canonical.rpartition("/v1/")[2] in PATHS


def _preflight(origin: str, method: str) -> dict[str, str]:
    return {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: method,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        hdrs.VARY: "Origin",
    }


def _let_through(response: web.StreamResponse, origin: str | None) -> None:
    """``origin`` is None for a page that is not let in. A shared cache must tell such answers from
    the others, so all of them vary."""
    headers = response.headers
    vary = headers.get(hdrs.VARY)
    headers[hdrs.VARY] = f"{vary}, Origin" if vary else "Origin"
    if origin is not None:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = RESPONSE_HEADERS
