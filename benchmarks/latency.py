"""What does a lane cost a caller who is alone?

Engine.reserve against the bare `client.evalsha` of the same reserve.lua with a batch of one, whose
arguments are packed before the clock starts. Both through redis-py on one event loop, one server,
one sale; call by call in the order lane, bare, bare, lane, so that neither profits from what the
other left behind. Workload: the canonical orders of workload.py. Without AOF, and with appendfsync
always, where the disk is most of a call. The ratio is that of the medians of each tenth of the
calls.

    python -m benchmarks latency
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from statistics import median, quantiles
from time import perf_counter
from typing import Final

from benchmarks.plan import Plan
from benchmarks.report import RATIO, Row
from benchmarks.servers import Fsync, Server, durability_of, running
from benchmarks.workload import CART, KEY, buyer_ids, check_sale, created, entry, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.scripts import script
from seckill.status import Status

__all__ = ["NAME", "run"]

NAME: Final = "latency"
TARGET: Final = 1.15
PARTS: Final = 10


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        for fsync in ("always", "off"):
            plan.say(f"{NAME}: {server.name}, fsync {fsync}")
            with running(server, fsync) as embedded, plan.runner() as runner:
                yield from runner.run(_compare(plan, server, embedded, fsync))


async def _compare(plan: Plan, server: Server, embedded: EmbeddedServer, fsync: Fsync) -> list[Row]:
    from redis.asyncio import Redis

    calls = 60 if plan.quick else 5_000
    label = f"{server.name}, fsync {fsync}"
    durability = durability_of(fsync)
    sale = await open_sale(embedded.url, durability, "latency")
    buyers = iter(buyer_ids(2 * calls + 2))
    bare_commands = iter([entry(sale, [next(buyers)])[2:] for _ in range(calls + 1)])
    client = Redis.from_url(embedded.url)
    sha = await client.script_load(script("reserve").source)
    took: dict[str, list[float]] = {"Engine.reserve": [], "bare evalsha": []}
    async with Engine(embedded.url, durability=durability) as engine:

        async def reserve() -> float:
            buyer = next(buyers)
            began = perf_counter()
            outcome = await engine.reserve(sale.id, buyer, KEY, CART)
            ended = perf_counter()
            assert outcome.status is Status.CREATED
            return ended - began

        async def bare() -> float:
            command = next(bare_commands)
            began = perf_counter()
            reply = await client.evalsha(sha, *command)
            ended = perf_counter()
            assert created(reply) == 1
            return ended - began

        await reserve(), await bare()
        gc.collect()
        for _ in range(calls // 2):
            took["Engine.reserve"].append(await reserve() * 1e6)
            took["bare evalsha"].append(await bare() * 1e6)
            took["bare evalsha"].append(await bare() * 1e6)
            took["Engine.reserve"].append(await reserve() * 1e6)
    await client.aclose()
    ours, theirs = took.values()
    size = len(ours) // PARTS
    ratios = [
        median(ours[i : i + size]) / median(theirs[i : i + size])
        for i in range(0, size * PARTS, size)
    ]
    question = "Engine.reserve against bare evalsha, one caller"
    rows = [Row.of(NAME, label, question, RATIO, ratios, at_most=TARGET)]
    for way, values in took.items():
        cuts = quantiles(values, n=100)
        note = f"p90 {cuts[89]:.0f}, p99 {cuts[98]:.0f}"
        medians = [median(values[i : i + size]) for i in range(0, size * PARTS, size)]
        rows.append(Row.of(NAME, label, way, "µs", medians, note=note))
    return [*rows, await check_sale(NAME, label, embedded.url, durability, sale.id)]
