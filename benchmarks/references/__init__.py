"""The servers that `python -m benchmarks http` compares, each a process of its own: our intake as
it is served in production, a handler that does nothing, and references, each written as a good
engineer of its stack would write it.

    intake_server.py    our intake, one worker
    noop_server.py      aiohttp, JSON in, JSON out, nothing else
    evalsha_server.py   aiohttp, redis-py, one EVALSHA an order
    fastify/            Fastify, ioredis, one EVALSHA an order; one process
    go/                 Go's net/http, a pipelined connection of its own, one EVALSHA an order;
                        standard library only; GOMAXPROCS=1, for all are compared per core
    sql_server.py       aiohttp, asyncpg, one call of a function of sql.sql an order

The references that ask Redis call benchmarks/lua/reserve_one.lua. All but the no-op make the checks
of the intake and give its answers: the user token (HS256; a verified one is remembered), the
idempotency key, the body, and all that the sale has to say; tests/references/ holds them to it.
What the intake does besides, they do not: rate limits, metrics, bounds on what is under way, carts
of several SKUs, sold out from memory.

Each takes one argument, a Start (see start.py) as JSON, prints where it listens, and ends on
SIGTERM. launch.py builds and starts them.
"""
