"""What aiohttp costs when nothing is done: the intake's route for places, and an answer of the same
size encoded from the same struct. Nobody is asked who sends it, nothing counted. As the servers of
references/, for benchmarks/queue_http.py.
"""

from __future__ import annotations

from aiohttp import web

from benchmarks.references.start import serve
from seckill.server.tickets import PLACE_ROUTE
from seckill.server.wire import encode
from seckill.server.wire_queue import PlaceDocument

HEADERS = {"Content-Type": "application/json"}


async def place(request: web.Request) -> web.Response:
    """As if somebody stood there."""
    document = PlaceDocument(
        ticket=request.headers["Seckill-Ticket"],
        number=12_345,
        phase="waiting",
        ahead=12_345,
        eta_ms=12_346_000,
        poll_after_ms=30_000,
        token=None,
        expires_ms=None,
        salt=None,
        at_ms=1_795_868_280_000,
    )
    return web.Response(body=encode(document), headers=HEADERS)


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get(PLACE_ROUTE, place)])
    serve(app)
