"""What aiohttp costs when nothing is done: the intake's route, its request decoded and an answer of
the same size encoded, by the same msgspec structs. Nobody is asked who sends it, nothing counted.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from benchmarks.references.start import serve
from seckill.order import State
from seckill.server.wire import (
    OrderDocument,
    OrderLine,
    OrderRequest,
    OutcomeDocument,
    ProblemDocument,
    encode,
)

REQUEST = msgspec.json.Decoder(OrderRequest)
HEADERS = {"Content-Type": "application/json"}
SOLD_OUT = ProblemDocument(
    type="urn:seckill:problem:sold_out", title="nothing is left", status=409, code="sold_out"
)


async def accept(request: web.Request) -> web.Response:
    """As if a unit was held."""
    wish = REQUEST.decode(await request.read())
    order = OrderDocument(
        id="0036a7664fb55f165be0f2b4",
        sale=request.match_info["sale"],
        buyer="b00000000000000000000001",
        state=State.HELD,
        version=1,
        items=[OrderLine(line.sku, line.quantity) for line in wish.items],
        amount_fen=9900,
        deadline_ms=1_795_868_280_000,
        payments=(),
        refund=None,
    )
    return web.Response(body=encode(OutcomeDocument("created", order)), status=201, headers=HEADERS)


async def refuse(request: web.Request) -> web.Response:
    """As if nothing was left."""
    REQUEST.decode(await request.read())
    return web.Response(body=encode(SOLD_OUT), status=409, headers=HEADERS)


if __name__ == "__main__":
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/sales/{sale}/orders", accept),
            web.post("/sold-out/v1/sales/{sale}/orders", refuse),
        ]
    )
    serve(app)
