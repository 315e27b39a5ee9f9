"""The common pattern: aiohttp, redis-py, one EVALSHA of reserve_one.lua an order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from time import time
from typing import Any

from aiohttp import web
from redis.asyncio import Redis

from benchmarks.references.order_route import Asked, Held, OrderRoute
from benchmarks.references.start import given, reserve_one, serve
from seckill.keys import shard_keys
from seckill.order import attrs_print
from seckill.status import Status

# One for each connection of the load: the fastest of those that benchmarks/lane.py tried.
CONNECTIONS = 128
TIMEOUT_MS = 3_000
# What reserve_one.lua finds nothing for.
UNKNOWN_SKU = 99_999

start = given()
skus = {sku: index for index, sku in enumerate(start.skus)}
client: Redis = Redis.from_url(start.url, max_connections=CONNECTIONS)
sha = ""


@lru_cache(maxsize=1_000)
def keys_of(sale: str) -> list[str]:
    """Keys of its own, see benchmarks/lane.py."""
    sale_key, stock, buyers, orders, holds, _, events = (f"{key}-one" for key in shard_keys(sale))
    return [sale_key, stock, buyers, orders, holds, events]


async def reserve(asked: Asked) -> Held:
    """Holds units for a buyer."""
    reply: list[Any] = await client.evalsha(
        sha, 6, *keys_of(asked.sale),
        asked.order, asked.buyer, skus.get(asked.sku, UNKNOWN_SKU), asked.quantity,
        int(time() * 1000) + TIMEOUT_MS, attrs_print(asked.attrs), asked.attrs,
    )  # fmt: skip
    if reply[0] == Status.CREATED:
        return Held(Status.CREATED, int(reply[1]))
    if reply[0] == Status.EXISTS:
        # "h1", the deadline, and behind a bar what the order is.
        return Held(Status.EXISTS, int(reply[1].partition(b"|")[0][2:]))
    return Held(Status(reply[0]))


async def running(app: web.Application) -> AsyncIterator[None]:
    """The connections and the script."""
    global sha
    sha = await client.script_load(reserve_one())
    await route.access.start()
    yield
    await route.access.aclose()
    await client.aclose()


if __name__ == "__main__":
    route = OrderRoute(start, reserve)
    app = web.Application()
    app.cleanup_ctx.append(running)
    route.add_to(app)
    serve(app)
