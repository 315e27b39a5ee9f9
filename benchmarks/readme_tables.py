"""What the README shows of a report: a label for each row, found by its question."""

from __future__ import annotations

from typing import Final, NamedTuple

from benchmarks.http_rig import EVALSHA, FASTIFY, GO, INTAKE, NOOP, SQL

__all__ = ["INTRODUCTION", "OF_HTTP", "SYSTEMS", "TABLES", "Table"]

INTRODUCTION: Final = """\
Medians, with the range of the rounds. What is compared was measured in the same run, in turns.
Load, servers and Redis share the machine, so ratios say more than rates. `verify` has replayed
{verified} orders of these sales and found no violation."""

OF_HTTP: Final = """\
Orders over HTTP: one worker with user tokens, limits and metrics on, 128 connections, a new
idempotency key in each request. The others make the same checks and give the same answers; each is
one process on one core."""

SYSTEMS: Final = {
    INTAKE: "**seckill**",
    NOOP: "an aiohttp handler that sells nothing",
    EVALSHA: "aiohttp, one EVALSHA an order through redis-py",
    FASTIFY: "Fastify + ioredis",
    GO: "Go net/http, pipelined RESP",
    SQL: "aiohttp, `UPDATE … WHERE stock >= n`",
}


class Table(NamedTuple):
    """``lines``: what the README calls a row, and what its question looks like."""

    benchmark: str
    caption: str
    lines: tuple[tuple[str, str], ...]


TABLES: Final = (
    Table(
        "http",
        "More of the same run: what the intake does besides.",
        (
            ("orders/s accepted in batches of 200, 8 connections", r"in batches of 200: intake"),
            (
                "every user token seen for the first time, against the handler that sells nothing",
                r"new user tokens, the intake against: no-op",
            ),
            ("Redis time of an order", r"Redis time of an order, in stock: intake"),
            ("orders in one call of a script", r"orders a script call, in stock: intake"),
        ),
    ),
    Table(
        "workers",
        "`seckill serve` with two workers on the two cores that Redis and the load are on, too.",
        (
            (
                "CPU of an order, each with as many connections as one worker, against one",
                r"CPU of the intake an order, two workers, against one",
            ),
            (
                "both with as many as one worker",
                r"CPU of the intake an order, two workers, 64 connections each, against one",
            ),
            ("orders/s, one worker", r"in stock: one worker"),
            ("orders/s, two", r"in stock: two workers"),
        ),
    ),
    Table(
        "lane",
        "From Python, 256 callers of `Engine.reserve`. The common pattern is one EVALSHA an order\n"
        "through redis-py with a pool, and the same checks in a lean script of its own.",
        (
            ("orders/s accepted", r"accepted, lane"),
            ("against the common pattern", r"lane against .*"),
        ),
    ),
    Table(
        "latency",
        "A caller who is alone.",
        (("against the bare call of the same script", r"Engine\.reserve against bare evalsha.*"),),
    ),
    Table(
        "socket",
        "The buyer's WebSocket, 128 of them, against the handler that sells nothing over HTTP.",
        (
            ("one verb under way on each", r"orders on sockets against .* \(socket\)"),
            ("four", r"orders on sockets against .* \(socket, 4\)"),
            ("orders/s, one verb under way on each", r"socket"),
            ("four, orders/s", r"socket, 4"),
        ),
    ),
    Table(
        "queue",
        "The queue. The common pattern is one EVALSHA a join, with the same checks.",
        (
            ("joins, 256 callers, against the common pattern", r"joins against one EVALSHA.*"),
            ("joins/s, every ticket on disk", r"joins, Engine\.queue\.join"),
            (
                "calls to Redis for 10,000 questions for a place",
                r"Redis calls of 10,000 place queries.*",
            ),
            (
                "a place over HTTP, against a handler that knows nothing",
                r"places over HTTP against a no-op handler",
            ),
            (
                "memory of one of 1,000,000 waiting, 24-character ids",
                r"memory of a waiting buyer, 1,000,000 waiting",
            ),
            (
                "a draw over 1,000,000, until its ranks are in effect",
                r"draw of 1,000,000 until its ranks are in effect",
            ),
        ),
    ),
    Table(
        "lua",
        "Redis alone, in batches of 256 made beforehand: what is in front of it can do no more.",
        (
            ("orders/s accepted", r"in stock, accepted: batches of 256"),
            ("a second, refused when all is sold", r"sold out, rejected: batches of 256"),
            ("retries a second, each answered with its order", r"retried, known: batches of 256"),
        ),
    ),
    Table(
        "cost",
        "One order in Redis.",
        (
            ("time, batches of 64", r"Redis time of an order, batches of 64"),
            ("batches of 128", r"Redis time of an order, batches of 128"),
            ("batches of 256", r"Redis time of an order, batches of 256"),
            ("memory while held, 100,000 held", r"memory of a held order, 100,000 held"),
            (
                "just after the tables doubled, 133,000 held",
                r"memory of a held order, 133,000 held",
            ),
        ),
    ),
    Table(
        "scale",
        "With 1,000,000 orders in a sale.",
        (
            ("more than at 1,000, an order", r"Redis time of an order at 1,000,000, more .*"),
            (
                "longest batch of 256 while a table doubles",
                r"worst single batch of 256 during rehash",
            ),
        ),
    ),
    Table(
        "drain",
        "The ledger: 200,000 orders into PostgreSQL, two consumers, every event on disk.",
        (
            ("orders/s", r"drained into PostgreSQL(, .*)?"),
            (
                "against plain batched inserts of the same rows",
                r"drained into PostgreSQL( against plain batched inserts)?",
            ),
        ),
    ),
    Table(
        "rebuild",
        "A sale of 200,000 orders that Redis has lost, from the ledger.",
        (
            ("orders/s from PostgreSQL", r"rebuilt from PostgreSQL(, .*)?"),
            ("orders/s from SQLite", r"rebuilt from SQLite(, .*)?"),
        ),
    ),
    Table(
        "open-loop",
        "Buyers who come at their own pace, whether they are answered or not; latency counts from\n"
        "the moment at which they come. The first two ratios are medians of pairs of seconds, one\n"
        "right after the other, with the 95 % interval of the median.",
        (
            (
                "p99 in stock at half of the capacity, against the handler that sells nothing",
                r"p99 of an in-stock order at half of capacity, against a no-op handler",
            ),
            ("without what the load itself was late", r"the same without the load's own lateness"),
            ("p99, seckill", r"p99 at 0\.5 of capacity, intake"),
            ("p99, the handler that sells nothing", r"p99 at 0\.5 of capacity, no-op"),
            (
                "what the load itself was late, p99, asking seckill",
                r"the load's own lateness at half of capacity, p99, intake",
            ),
            (
                "asking the handler",
                r"the load's own lateness at half of capacity, p99, no-op",
            ),
            (
                "three times the peak, Redis the limit: goodput against the peak",
                r"goodput at 3 × the peak, Redis the limit, against the peak",
            ),
            (
                "three times the peak, the intake the limit: goodput against what refusals leave",
                r"goodput at 3 × the peak, intake the limit, against what refusals leave.*",
            ),
        ),
    ),
)
