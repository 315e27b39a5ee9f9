"""How many more orders a second does a lane accept than the common pattern?

The common pattern is one EVALSHA an order through redis-py's asyncio client, with a connection for
every caller. It runs in two readings: our own reserve.lua with a batch of one, and a script for one
order with the same checks and writes (lua/reserve_one.lua). The faster of the two counts.

Workload: 256 concurrent callers, each of whom asks again as soon as it is answered; the canonical
orders of workload.py; in each round a fresh sale for each way. A pool of 256 is the fastest of
those tried (10, 32, 100 with a blocking pool are slower). The pattern gets its ids and the packed
arguments made before the clock starts; the lane goes through Engine.reserve with all its checks.
A round is five slices of a fifth of a second for each way, interleaved on one server with one
configuration: once with appendfsync always, once without AOF. The ratio is taken within each round;
the median of the rounds counts, and their range is its spread.

    python -m benchmarks lane
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from statistics import median
from time import perf_counter, time
from typing import Final

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.report import RATIO, Row, summed
from benchmarks.servers import Fsync, Server, durability_of, running
from benchmarks.workload import CART, KEY, buyer_ids, check_sale, created, entry, open_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.redis import Durability
from seckill.sale import Sale
from seckill.scripts import script
from seckill.status import Status

__all__ = ["NAME", "run"]

NAME: Final = "lane"
TARGET: Final = 5.0
SLICES: Final = 5

# A way to order: makes the order of a number and says whether it was accepted.
Call = Callable[[int], Awaitable[bool]]


class _Test(msgspec.Struct, frozen=True):
    """What all ways have in common."""

    embedded: EmbeddedServer
    durability: Durability
    buyers: Sequence[str]
    callers: int
    slice_s: float


class _Part(msgspec.Struct):
    """What one way has done in one round."""

    accepted: int = 0
    took_s: float = 0.0
    driver_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.accepted / self.took_s


def run(plan: Plan) -> Iterator[Row]:
    for server in plan.servers:
        for fsync in ("always", "off"):
            with running(server, fsync) as embedded, plan.runner() as runner:
                yield from runner.run(_compare(plan, server, embedded, fsync))


async def _compare(plan: Plan, server: Server, embedded: EmbeddedServer, fsync: Fsync) -> list[Row]:
    label = f"{server.name}, fsync {fsync}"
    rounds, buyers = plan.rounds, 20_000 if plan.quick else 300_000
    callers, slice_s = (16, 0.02) if plan.quick else (256, 0.2)
    test = _Test(embedded, durability_of(fsync), buyer_ids(buyers), callers, slice_s)
    parts: dict[str, list[_Part]] = {way: [] for way in _WAYS}
    checked: list[Row] = []
    for turn in range(rounds + 1):
        plan.say(f"{NAME}: {label}, round {turn} of {rounds}")
        for way, part in (await _round(test, turn)).items():
            if turn > 0:  # the first round only warms everybody up
                parts[way].append(part)
        plan.say(f"{NAME}: {label}, verify {turn} of {rounds}")
        # Ours is the first of each round. Then it makes room for the next.
        sale = f"lane-{turn}-0"
        checked.append(await check_sale(NAME, label, embedded.url, test.durability, sale))
        await _flush(embedded)
    return [*_rows(label, parts), summed(checked)]


async def _round(test: _Test, turn: int) -> dict[str, _Part]:
    async with AsyncExitStack() as stack:
        calls: dict[str, tuple[Call, Iterator[int]]] = {}
        for number, (way, opening) in enumerate(_WAYS.items()):
            name = f"lane-{turn}-{number}"
            sale = await open_sale(test.embedded.url, test.durability, name)
            call, orders = await stack.enter_async_context(opening(test, sale))
            numbers = iter(range(orders))
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


async def _slice(test: _Test, call: Call, numbers: Iterator[int], part: _Part) -> None:
    accepted = 0
    gc.collect()
    driver_cpu_s, server_cpu_s = cpu_seconds(os.getpid()), cpu_seconds(test.embedded.pid)
    began = perf_counter()
    end = began + test.slice_s

    async def caller() -> None:
        nonlocal accepted
        for i in numbers:
            # In two steps: += reads its left side before it awaits.
            created = await call(i)
            accepted += created
            if perf_counter() >= end:
                return

    await asyncio.gather(*(caller() for _ in range(test.callers)))
    part.took_s += perf_counter() - began
    part.accepted += accepted
    part.driver_cpu_s += cpu_seconds(os.getpid()) - driver_cpu_s
    part.server_cpu_s += cpu_seconds(test.embedded.pid) - server_cpu_s


@asynccontextmanager
async def _lane(test: _Test, sale: Sale) -> AsyncIterator[tuple[Call, int]]:
    async with Engine(test.embedded.url, durability=test.durability) as engine:

        async def call(i: int) -> bool:
            outcome = await engine.reserve(sale.id, test.buyers[i], KEY, CART)
            return outcome.status is Status.CREATED

        yield call, len(test.buyers)


@asynccontextmanager
async def _same_script(test: _Test, sale: Sale) -> AsyncIterator[tuple[Call, int]]:
    from redis.asyncio import Redis

    client = Redis.from_url(test.embedded.url, max_connections=test.callers)
    sha = await client.script_load(script("reserve").source)
    # Fewer than the lane gets: the pattern is slower, and these are packed beforehand.
    commands = [entry(sale, [buyer])[2:] for buyer in test.buyers[: len(test.buyers) // 4]]

    async def call(i: int) -> bool:
        reply = await client.evalsha(sha, *commands[i])
        return created(reply) == 1

    yield call, len(commands)
    await client.aclose()


@asynccontextmanager
async def _one_script(test: _Test, sale: Sale) -> AsyncIterator[tuple[Call, int]]:
    from redis.asyncio import Redis

    client = Redis.from_url(test.embedded.url, max_connections=test.callers)
    source = resources.files("benchmarks").joinpath("lua/reserve_one.lua").read_text("utf-8")
    sha = await client.script_load(source)
    # Keys of its own: a reaper would take these orders, whose records have another form, for ours.
    for key in shard_keys(sale.id)[:2]:
        await client.copy(key, f"{key}-one")
    keys = (f"{key}-one" for key in shard_keys(sale.id))
    sale_key, stock, purses, orders, holds, _, events = keys
    not_after = int(time() * 1000) + 36_000_000

    async def call(i: int) -> bool:
        buyer = test.buyers[i]
        reply = await client.evalsha(
            sha, 6, sale_key, stock, purses, orders, holds, events,
            buyer[::-1], buyer, 0, 1, not_after, "", "",
        )  # fmt: skip
        return bool(reply[0] == Status.CREATED)

    yield call, len(test.buyers)
    await client.aclose()


_WAYS: Final = {
    "lane": _lane,
    "reserve.lua by one": _same_script,
    "reserve_one.lua": _one_script,
}


def _rows(label: str, parts: dict[str, list[_Part]]) -> Iterator[Row]:
    rates = {way: [part.rate for part in found] for way, found in parts.items()}
    ratios = {
        way: [ours / theirs for ours, theirs in zip(rates["lane"], found, strict=True)]
        for way, found in rates.items()
        if way != "lane"
    }
    counts = min(ratios, key=lambda way: median(ratios[way]))
    for way, found in ratios.items():
        yield Row.of(
            NAME,
            label,
            f"lane against {way}",
            RATIO,
            found,
            at_least=TARGET if way == counts else None,
            note="the faster of the two: it counts" if way == counts else "",
        )
    for way, found in rates.items():
        yield Row.of(NAME, label, f"accepted, {way}", "orders/s", found)
    for way, done in parts.items():
        orders = sum(part.accepted for part in done) / 10_000
        for who, spent_s in (
            ("driver", sum(part.driver_cpu_s for part in done)),
            ("server", sum(part.server_cpu_s for part in done)),
        ):
            question = f"CPU of the {who}, {way}"
            yield Row.of(NAME, label, question, "s/10k orders", [spent_s / orders])


async def _flush(embedded: EmbeddedServer) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(embedded.url)
    await client.execute_command("FLUSHALL", "SYNC")
    await client.aclose()
