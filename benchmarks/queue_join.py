"""The first part of benchmarks/queue.py: joins against one EVALSHA a join."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from time import time
from typing import Final

from benchmarks.lane import SLICES, Call, _flush, _Part, _slice, _Test
from benchmarks.plan import Plan
from benchmarks.queue_workload import NAME, create_queue
from benchmarks.report import RATIO, Row
from benchmarks.servers import durability_of
from benchmarks.workload import buyer_ids, check_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import queue_keys, shard_keys
from seckill.status import Status

__all__ = ["compare_joins"]

TARGET: Final = 5.0
OURS, PATTERN = "Engine.queue.join", "join_one.lua"


async def compare_joins(plan: Plan, label: str, embedded: EmbeddedServer) -> list[Row]:
    """The rows of this part, and the verdict on its last sale."""
    rounds, buyers = plan.rounds, 20_000 if plan.quick else 300_000
    callers, slice_s = (16, 0.02) if plan.quick else (256, 0.2)
    test = _Test(embedded, durability_of("always"), buyer_ids(buyers), callers, slice_s)
    parts: dict[str, list[_Part]] = {way: [] for way in _WAYS}
    for turn in range(rounds + 1):
        plan.say(f"{NAME}: {label}, joins, round {turn} of {rounds}")
        for way, part in (await _round(test, turn)).items():
            if turn > 0:  # the first round only warms everybody up
                parts[way].append(part)
        if turn < rounds:
            await _flush(embedded)
    last = f"join-{rounds}-0"
    return [
        *_rows(label, parts),
        await check_sale(NAME, label, embedded.url, test.durability, last),
    ]


async def _round(test: _Test, turn: int) -> dict[str, _Part]:
    async with AsyncExitStack() as stack:
        calls: dict[str, tuple[Call, Iterator[int]]] = {}
        for number, (way, opening) in enumerate(_WAYS.items()):
            name = f"join-{turn}-{number}"
            call = await stack.enter_async_context(opening(test, name))
            numbers = iter(range(len(test.buyers)))
            # Opens the lane, and all connections of a pool.
            await asyncio.gather(*(call(next(numbers)) for _ in range(test.callers)))
            calls[way] = call, numbers
        parts = {way: _Part() for way in calls}
        for i in range(SLICES):
            # To and fro, so that none always runs right after the same other one.
            for way in list(calls)[:: 1 if (turn + i) % 2 else -1]:
                await _slice(test, *calls[way], parts[way])
        for way, (_, numbers) in calls.items():
            assert next(numbers, None) is not None, f"{way} ran out of buyers: give it more"
    return parts


@asynccontextmanager
async def _ours(test: _Test, name: str) -> AsyncIterator[Call]:
    async with Engine(test.embedded.url, durability=test.durability) as engine:
        sale = await create_queue(engine, name)

        async def call(i: int) -> bool:
            joined = await engine.queue.join(sale.id, test.buyers[i])
            return joined.status is Status.CREATED

        yield call


@asynccontextmanager
async def _pattern(test: _Test, name: str) -> AsyncIterator[Call]:
    from redis.asyncio import Redis

    async with Engine(test.embedded.url, durability=test.durability, sweep_ms=0) as engine:
        sale = await create_queue(engine, name)
    client = Redis.from_url(test.embedded.url, max_connections=test.callers)
    source = resources.files("benchmarks").joinpath("lua/join_one.lua").read_text("utf-8")
    sha = await client.script_load(source)
    keys = (shard_keys(sale.id)[0], *queue_keys(sale.id)[:2])
    not_after = int(time() * 1000) + 36_000_000

    async def call(i: int) -> bool:
        reply = await client.evalsha(sha, 3, *keys, test.buyers[i], 1, not_after)
        return bool(reply[0] == Status.CREATED)

    yield call
    await client.aclose()


_WAYS: Final = {OURS: _ours, PATTERN: _pattern}


def _rows(label: str, parts: dict[str, list[_Part]]) -> Iterator[Row]:
    rates = {way: [part.rate for part in found] for way, found in parts.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[PATTERN], strict=True)]
    question = f"joins against one EVALSHA a join, {PATTERN}"
    yield Row.of(NAME, label, question, RATIO, ratios, at_least=TARGET)
    for way, found in rates.items():
        yield Row.of(NAME, label, f"joins, {way}", "joins/s", found)
    for way, done in parts.items():
        for who in ("driver", "server"):
            spent = [getattr(part, f"{who}_cpu_s") / part.accepted * 10_000 for part in done]
            yield Row.of(NAME, label, f"CPU of the {who}, {way}", "s/10k joins", spent)
