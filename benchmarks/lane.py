"""How many more orders a second does a lane accept than the common pattern?

The common pattern is one EVALSHA an order through redis-py's asyncio client, with a connection for
every caller. It runs in two readings: our own reserve.lua with a batch of one, and a script for one
order with the same checks and writes (lua/reserve_one.lua). The faster of the two counts.

Workload: 256 concurrent callers, each of whom asks again as soon as it is answered; the canonical
orders of workload.py; a fresh sale for every segment of about a second. The pattern gets its ids
and its packed arguments made before the clock starts, the lane goes through Engine.reserve with all
its checks. Segments are interleaved (lane, pattern, pattern, lane …) on one server with one
configuration, once with appendfsync always and once without AOF. The ratio is taken within each
round; its median over the rounds counts, and the range of the rounds is its spread.

    python -m benchmarks lane
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from importlib import resources
from time import perf_counter, time
from typing import Final

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import RATIO, Row
from benchmarks.servers import Fsync, Server, durability_of, running
from benchmarks.workload import CART, KEY, buyer_ids, check_sale, entry, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.redis import Durability
from seckill.sale import Sale
from seckill.scripts import script
from seckill.status import Status

__all__ = ["NAME", "run"]

NAME: Final = "lane"
CALLERS: Final = 256
TARGET: Final = 5.0

# The three ways of the same order: a call takes the next order and says whether it was accepted.
Call = Callable[[int], Awaitable[bool]]


class _Segment(msgspec.Struct, frozen=True):
    rate: float
    accepted: int
    driver_cpu_s: float
    server_cpu_s: float


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        for fsync in ("always", "off"):
            with running(server, fsync) as embedded, plan.runner() as runner:
                yield from runner.run(_compare(plan, server, embedded, fsync))


async def _compare(plan: Plan, server: Server, embedded: EmbeddedServer, fsync: Fsync) -> list[Row]:
    seconds, rounds = (0.05, 1) if plan.quick else (1.0, 7)
    durability = durability_of(fsync)
    label = f"{server.name}, fsync {fsync}"
    ways = {"lane": _lane, "reserve.lua by one": _same_script, "reserve_one.lua": _one_script}
    segments: dict[str, list[_Segment]] = {way: [] for way in ways}
    buyers = buyer_ids(2_000 if plan.quick else 250_000)
    verdict = None
    for turn in range(rounds + 1):
        plan.say(f"{NAME}: {label}, round {turn} of {rounds}")
        # To and fro, so that none always runs right after the same other one.
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            sale = await open_sale(embedded.url, durability, f"lane-{turn}")
            segment = await ways[way](embedded, durability, sale, buyers, seconds)
            if turn > 0:  # the first round only warms everybody up
                segments[way].append(segment)
            if way == "lane" and turn == rounds:
                verdict = await check_sale(NAME, label, embedded.url, durability, sale.id)
            await _flush(embedded)
    assert verdict is not None
    return [*_rows(label, segments), verdict]


def _rows(label: str, segments: dict[str, list[_Segment]]) -> Iterator[Row]:
    rates = {way: [segment.rate for segment in found] for way, found in segments.items()}
    pattern = max((way for way in rates if way != "lane"), key=lambda way: sum(rates[way]))
    for way, found in rates.items():
        if way != "lane":
            counts = way == pattern
            yield Row.of(
                NAME,
                label,
                f"lane against {way}",
                RATIO,
                [ours / theirs for ours, theirs in zip(rates["lane"], found, strict=True)],
                at_least=TARGET if counts else None,
                note="the faster pattern: this one counts" if counts else "",
            )
    for way, found in rates.items():
        yield Row.of(NAME, label, f"accepted, {way}", "orders/s", found)
    for way, parts in segments.items():
        orders = sum(part.accepted for part in parts)
        for who, spent in (
            ("driver", sum(part.driver_cpu_s for part in parts)),
            ("server", sum(part.server_cpu_s for part in parts)),
        ):
            value = spent / orders * 10_000
            yield Row.of(NAME, label, f"CPU of the {who}, {way}", "s/10k orders", [value])


async def _lane(
    embedded: EmbeddedServer, durability: Durability, sale: Sale, buyers: list[str], seconds: float
) -> _Segment:
    async with Engine(embedded.url, durability=durability) as engine:

        async def call(i: int) -> bool:
            outcome = await engine.reserve(sale.id, buyers[i], KEY, CART)
            return outcome.status is Status.CREATED

        return await _segment(call, embedded, len(buyers), seconds)


async def _same_script(
    embedded: EmbeddedServer, durability: Durability, sale: Sale, buyers: list[str], seconds: float
) -> _Segment:
    from redis.asyncio import Redis

    client = Redis.from_url(embedded.url, max_connections=CALLERS)
    sha = await client.script_load(script("reserve").source)
    # Our lane packs 250,000 orders a segment as it goes; these few are packed beforehand.
    commands = [entry(sale, [buyer])[2:] for buyer in buyers[: len(buyers) // 4]]

    async def call(i: int) -> bool:
        reply = await client.evalsha(sha, *commands[i])
        return bool(reply[2] == Status.CREATED)

    try:
        return await _segment(call, embedded, len(commands), seconds)
    finally:
        await client.aclose()


async def _one_script(
    embedded: EmbeddedServer, durability: Durability, sale: Sale, buyers: list[str], seconds: float
) -> _Segment:
    from redis.asyncio import Redis

    client = Redis.from_url(embedded.url, max_connections=CALLERS)
    source = resources.files("benchmarks").joinpath("lua/reserve_one.lua").read_text("utf-8")
    sha = await client.script_load(source)
    sale_key, stock, purses, orders, holds, _, events = shard_keys(sale.id)
    not_after = int(time() * 1000) + 36_000_000

    async def call(i: int) -> bool:
        buyer = buyers[i]
        reply = await client.evalsha(
            sha, 6, sale_key, stock, purses, orders, holds, events,
            buyer[::-1], buyer, 0, 1, not_after, "", "",
        )  # fmt: skip
        return bool(reply[0] == Status.CREATED)

    try:
        return await _segment(call, embedded, len(buyers), seconds)
    finally:
        await client.aclose()


async def _segment(call: Call, embedded: EmbeddedServer, orders: int, seconds: float) -> _Segment:
    numbers = iter(range(orders))
    # Opens the lane, and all connections of a pool.
    await asyncio.gather(*(call(next(numbers)) for _ in range(CALLERS)))
    accepted = 0
    gc.collect()
    driver_cpu, server_cpu = cpu_seconds(os.getpid()), cpu_seconds(embedded.pid)
    began = perf_counter()
    end = began + seconds

    async def caller() -> None:
        nonlocal accepted
        for i in numbers:
            # In two steps: += reads its left side before it awaits.
            created = await call(i)
            accepted += created
            if perf_counter() >= end:
                return

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    took = perf_counter() - began
    return _Segment(
        accepted / took,
        accepted,
        cpu_seconds(os.getpid()) - driver_cpu,
        cpu_seconds(embedded.pid) - server_cpu,
    )


async def _flush(embedded: EmbeddedServer) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(embedded.url)
    await client.execute_command("FLUSHALL", "SYNC")
    await client.aclose()
