"""The common pattern: aiohttp, redis-py's asyncio client, one EVALSHA an order (reserve_one.lua),
with the checks and the answer of the intake: the same code verifies user tokens and decodes the
request. It has no rate limit, no metrics, no retries and nothing but this one route.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from importlib import resources
from time import time
from typing import Any

import msgspec
from aiohttp import web
from redis.asyncio import Redis

from benchmarks.references.start import given, serve, settings_of
from benchmarks.workload import SKU
from seckill.keys import shard_keys
from seckill.order import State, order_id
from seckill.sale import check_key
from seckill.server.access import Access
from seckill.server.wire import (
    OrderDocument,
    OrderLine,
    OrderRequest,
    OutcomeDocument,
    ProblemDocument,
    encode,
)
from seckill.status import Status

REQUEST = msgspec.json.Decoder(OrderRequest)
SKUS = {SKU: 0}
PRICE_FEN = 9900
# One for each connection of the load: the fastest of those that benchmarks/lane.py tried.
CONNECTIONS = 128
TIMEOUT_MS = 3_000

start = given()
access = Access(settings_of(start).users, ())
client: Redis = Redis.from_url(start.url, max_connections=CONNECTIONS)
sha = ""


@cache
def keys_of(sale: str) -> list[str]:
    """Keys of its own, see benchmarks/lane.py."""
    sale_key, stock, buyers, orders, holds, _, events = (f"{key}-one" for key in shard_keys(sale))
    return [sale_key, stock, buyers, orders, holds, events]


async def reserve(request: web.Request) -> web.Response:
    """Holds units for a buyer."""
    header = request.headers.get("Authorization", "")
    caller = access.known(header) or await access.identify(request)
    sale, key = request.match_info["sale"], check_key(request.headers["Idempotency-Key"], "key")
    wish = REQUEST.decode(await request.read())
    line = wish.items[0]
    buyer, order = caller.buyer, order_id(sale, caller.buyer, key)
    not_after_ms = int(time() * 1000) + TIMEOUT_MS
    reply: list[Any] = await client.evalsha(
        sha, 6, *keys_of(sale),
        order, buyer, SKUS[line.sku], line.quantity, not_after_ms, "", wish.attrs,
    )  # fmt: skip
    if reply[0] != Status.CREATED:
        status = Status(reply[0])
        problem = ProblemDocument(
            type=f"urn:{status}", title=status.meaning, status=409, code=str(status)
        )
        return _answer(problem, 409)
    document = OrderDocument(
        order,
        sale,
        buyer,
        State.HELD,
        1,
        [OrderLine(line.sku, line.quantity)],
        line.quantity * PRICE_FEN,
        int(reply[1]),
        (),
        None,
    )
    return _answer(OutcomeDocument("created", document), 201)


def _answer(document: msgspec.Struct, http: int) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(body=encode(document), status=http, headers=headers)


async def running(app: web.Application) -> AsyncIterator[None]:
    """The connections and the script."""
    global sha
    source = resources.files("benchmarks").joinpath("lua/reserve_one.lua").read_text("utf-8")
    sha = await client.script_load(source)
    await access.start()
    yield
    await access.aclose()
    await client.aclose()


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(running)
    app.add_routes([web.post("/v1/sales/{sale}/orders", reserve)])
    serve(app)
