"""SQL only: aiohttp and asyncpg, one call of reserve() of sql.sql an order. No Redis is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import time
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from aiohttp import web

from benchmarks.references.order_route import Asked, Held, OrderRoute
from benchmarks.references.start import given, serve
from seckill.server.problems import ANSWERS

# All wait for one row, so more connections only add more who wait: 16 were as fast as 24, and
# faster than 2, 4 and 8.
CONNECTIONS = 16
TIMEOUT_MS = 3_000
RESERVE = "SELECT code, due_ms FROM reserve($1, $2, $3, $4, $5, $6, $7, $8)"
STATUSES = {kind.code: status for status, kind in ANSWERS.items()}

start = given()
pool: Any = None


async def reserve(asked: Asked) -> Held:
    """Holds units for a buyer."""
    while True:
        try:
            code, due_ms = await pool.fetchrow(
                RESERVE,
                asked.order,
                asked.sale,
                asked.buyer,
                asked.key,
                asked.sku,
                asked.quantity,
                asked.attrs,
                int(time() * 1000) + TIMEOUT_MS,
            )
        except asyncpg.UniqueViolationError:
            continue  # The same order twice at once: the other one has made it.
        except asyncpg.PostgresError as error:
            if error.sqlstate == "SK002":
                continue  # Somebody took what was left in between. What is left is looked at anew.
            if error.sqlstate != "SK001":
                raise
            return Held(STATUSES[str(error)])
        return Held(STATUSES[code], due_ms or 0)


async def running(app: web.Application) -> AsyncIterator[None]:
    """The connections."""
    global pool
    pool = await asyncpg.create_pool(
        start.database_url, min_size=CONNECTIONS, max_size=CONNECTIONS, command_timeout=30
    )
    await route.access.start()
    yield
    await route.access.aclose()
    await pool.close()


if __name__ == "__main__":
    route = OrderRoute(start, reserve)
    app = web.Application()
    app.cleanup_ctx.append(running)
    route.add_to(app)
    serve(app)
