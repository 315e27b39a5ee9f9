"""What does a buyer in a sale's queue cost, from joining to the token, and does a million fit?

Workload: the canonical sale of workload.py with an admission, random 24-character buyer ids, on an
embedded server with appendfsync always; nobody is called yet unless it says so.

joins   256 concurrent callers of Engine.queue.join, each of whom joins a new buyer as soon as the
        last one has a place, against the common pattern: one EVALSHA a join through redis-py's
        asyncio client with a pool of 256, by a lean script with the same checks and writes
        (lua/join_one.lua), which signs no ticket. Five rounds of five slices of a fifth of a second
        each, interleaved, to and fro; a fresh sale for each way in each round. The ratio is taken
        within a round, the median of the rounds counts
places  50,000 questions of 10,000 buyers to Engine.queue.place, five times; every command that
        Redis ran meanwhile is counted (INFO commandstats), and what a look costs, which is one
        admit.lua every 200 ms at most, is taken off. Then over HTTP, GET /v1/sales/…/tickets/me:
        one worker of our intake with its default settings against a no-op aiohttp handler that
        encodes the same answer (queue_noop.py); wrk with one thread and 128 connections, or our own
        client where wrk is missing; 20,000 buyers in turn with a user token and a ticket each,
        slices of 3 s, interleaved
tokens  CPU time of Keys.read
crowd   one sale in shuffle mode with 100,000, then 1,000,000 buyers who join by Engine.queue.join.
        Memory is used_memory by buyer, more than when nobody waited, when no table is doubling, and
        at 133,000, where a Redis that doubles its tables at 131,072 has both of them; then the list
        is closed and drawn; then the sale opens, and 10,000 buyers a second are called. It takes
        150 MB in Redis and most of the time of this benchmark

    python -m benchmarks queue
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks.plan import Plan
from benchmarks.queue_crowd import fill_line
from benchmarks.queue_http import ask_over_http
from benchmarks.queue_join import compare_joins
from benchmarks.queue_place import ask_places, read_tokens
from benchmarks.queue_workload import NAME
from benchmarks.report import Row
from benchmarks.servers import running

__all__ = ["NAME", "run"]

FSYNC: Final = "always"


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        label = f"{server.name}, fsync {FSYNC}"
        for part in (compare_joins, ask_places):
            with running(server, FSYNC) as embedded, plan.runner() as runner:
                yield from runner.run(part(plan, label, embedded))
        with running(server, FSYNC) as embedded:
            yield from ask_over_http(plan, label, embedded)
        yield from read_tokens(plan, label)
        with running(server, FSYNC) as embedded, plan.runner() as runner:
            yield from runner.run(fill_line(plan, label, embedded))
