"""The last part of benchmarks/queue.py: a million buyers in one line."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import perf_counter, process_time, time
from typing import Final

import hiredis
import msgspec

from benchmarks.plan import Plan
from benchmarks.queue_workload import NAME, calls_of, create_queue, join_all, used_memory
from benchmarks.report import Row
from benchmarks.servers import durability_of
from benchmarks.workload import Wire, buyer_ids, check_sale
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import queue_keys
from seckill.queue import LOOK_S, View
from seckill.status import Status

__all__ = ["fill_line"]

TARGET_BYTES: Final = 150
SALE: Final = "crowd"
FIRST: Final = 256
FILL: Final = 50_000
SETTLE: Final = 500
ASKED: Final = 20_000


class _Crowd(msgspec.Struct):
    """Who waits: how many, and some of them with their tickets."""

    count: int
    known: list[tuple[str, str]]


class _Line:
    """One line of buyers that grows."""

    def __init__(self, plan: Plan, label: str, engine: Engine, wire: Wire) -> None:
        self.plan, self.label, self.engine, self.wire = plan, label, engine, wire
        self.crowd = _Crowd(FIRST, [])
        self.joined_s = 0.0
        self.empty_bytes = used_memory(wire)

    async def grow(self, count: int, *, settle: bool = True) -> None:
        """Lets buyers join until so many wait, and to ``settle`` a few more while a table is
        doubling."""
        while self.crowd.count < count or (settle and _rehashes(self.wire)):
            missing = count - self.crowd.count
            self.plan.say(f"{NAME}: {self.label}, {self.crowd.count:,} of {count:,} have joined")
            buyers = buyer_ids(min(FILL, missing) if missing > 0 else SETTLE)
            began_s = perf_counter()
            tickets = await join_all(self.engine, SALE, buyers)
            self.joined_s += perf_counter() - began_s
            self.crowd.count += len(buyers)
            self.crowd.known += list(zip(buyers, tickets, strict=True))[: ASKED // 20]
        assert self.wire.call("HLEN", queue_keys(SALE)[1]) == self.crowd.count

    def memory_rows(self) -> Iterator[Row]:
        """What Redis has allocated since nobody waited; while no table is doubling."""
        yield self._memory(at_most=TARGET_BYTES)
        count = self.crowd.count
        usage = self.wire.call("MEMORY", "USAGE", queue_keys(SALE)[1], "SAMPLES", 0) / count
        yield Row.of(NAME, self.label, "  of which the hash of tickets", "bytes", [usage])

    def doubling_row(self) -> Row:
        """The same where a table of Redis doubles, and has both the old and the new one. Valkey's
        tables may do so elsewhere; then the note does not say so."""
        return self._memory(note="its table is doubling" if _rehashes(self.wire) else "")

    def _memory(self, *, at_most: float | None = None, note: str = "") -> Row:
        count = self.crowd.count
        grown = (used_memory(self.wire) - self.empty_bytes) / (count - FIRST)
        question = f"memory of a waiting buyer, {count:,} waiting"
        return Row.of(NAME, self.label, question, "bytes", [grown], at_most=at_most, note=note)

    async def draw_rows(self) -> list[Row]:
        """Closes the list and has it put in order, while somebody asks for a place each ms."""
        self.plan.say(f"{NAME}: {self.label}, {self.crowd.count:,} tickets are being drawn")
        # The end that the clock would have brought hours later.
        self.wire.call("HSET", queue_keys(SALE)[0], "draw_ms", int(time() * 1000))
        began_s, cpu_s = perf_counter(), process_time()
        async with self._asking() as pauses:
            status = await self.engine.queue.draw(SALE)
        took_s, cpu_s = perf_counter() - began_s, process_time() - cpu_s
        assert status is Status.DONE, status
        count = self.crowd.count
        assert self.engine.queue.views()[SALE].ranked == count
        return [
            Row.of(
                NAME, self.label, f"draw of {count:,} until its ranks are in effect", "s", [took_s]
            ),
            Row.of(NAME, self.label, "  CPU of the process that draws", "s", [cpu_s]),
            Row.of(
                NAME,
                self.label,
                "  longest pause of its event loop meanwhile",
                "ms",
                [max(pauses) * 1000],
                note=f"of {len(pauses):,} questions for a place",
            ),
        ]

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[list[float]]:
        pauses: list[float] = []

        async def ask() -> None:
            asked_s = perf_counter()
            while True:
                await self._ask_one()
                await asyncio.sleep(0.001)
                pauses.append(perf_counter() - asked_s)
                asked_s += pauses[-1]

        asking = asyncio.create_task(ask())
        try:
            yield pauses
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        assert asking.cancelled(), asking.exception()

    async def _ask_one(self) -> None:
        buyer, ticket = random.choice(self.crowd.known)
        asked = await self.engine.queue.place(SALE, buyer, ticket)
        assert asked.status is Status.DONE, asked

    async def place_rows(self) -> list[Row]:
        """Places by rank."""
        cpu_s = process_time()
        for _ in range(ASKED):
            await self._ask_one()
        micros = (process_time() - cpu_s) / ASKED * 1e6
        question = f"CPU of a place query, {self.crowd.count:,} ranked"
        return [Row.of(NAME, self.label, question, "µs", [micros])]

    async def call_rows(self, seconds: int) -> list[Row]:
        """Opens the sale, so that buyers are called, with a look every 200 ms."""
        self.plan.say(f"{NAME}: {self.label}, buyers are called")
        assert (await self.engine.open(SALE)).ok
        await self.engine._roll.aclose()  # Its calls would be counted.
        looks = round(seconds / LOOK_S)
        micros: dict[str, list[float]] = {"calls": [], "only looks": []}
        moves: list[tuple[float, int]] = []
        head, began_s = 0, perf_counter()
        for turn in range(looks + 1):
            self.wire.call("CONFIG", "RESETSTAT")
            view = await self.engine.queue.look(SALE)
            assert isinstance(view, View), view
            count, usec = calls_of(self.wire)["evalsha"]
            assert count == 1, count
            micros["calls" if view.head > head else "only looks"].append(usec)
            if view.head > head:
                moves.append((perf_counter(), view.head))
                head = view.head
            await asyncio.sleep(max(0.0, began_s + (turn + 1) * LOOK_S - perf_counter()))
        assert head < self.crowd.count, "nobody is left to be called"
        (first_s, first), (last_s, last) = moves[0], moves[-1]
        rate, waiting = (last - first) / (last_s - first_s), f"{self.crowd.count:,} waiting"
        note = f"in {len(moves)} steps"
        return [
            Row.of(NAME, self.label, f"called, {waiting}", "buyers/s", [rate], note=note),
            *(
                Row.of(
                    NAME,
                    self.label,
                    f"Redis time of admit.lua, {waiting}",
                    "µs",
                    found,
                    note=f"one that {what}",
                )
                for what, found in micros.items()
                if found
            ),
        ]


async def fill_line(plan: Plan, label: str, embedded: EmbeddedServer) -> list[Row]:
    """The rows of this part, and the verdict on its sale."""
    # A hash of 2,048 or 131,072 doubles.
    few, doubling, many = (2_000, 2_100, 5_000) if plan.quick else (100_000, 133_000, 1_000_000)
    rate_per_s, seconds = (500, 1) if plan.quick else (10_000, 5)
    durability = durability_of("always")
    rows: list[Row] = []
    with Wire(embedded) as wire:
        async with Engine(embedded.url, durability=durability, sweep_ms=0) as engine:
            await create_queue(engine, SALE, mode="shuffle", rate_per_s=rate_per_s)
            # Connections and what they hold are there before anything is measured.
            await join_all(engine, SALE, buyer_ids(FIRST))
            line = _Line(plan, label, engine, wire)
            await line.grow(few)
            rows += line.memory_rows()
            await line.grow(doubling, settle=False)
            rows.append(line.doubling_row())
            await line.grow(many)
            rows += line.memory_rows()
            joined = line.crowd.count - FIRST
            rate, note = joined / line.joined_s, f"{joined:,} in {line.joined_s:.1f} s"
            rows.append(Row.of(NAME, label, "joins until all waited", "joins/s", [rate], note=note))
            rows += await line.draw_rows()
            rows += await line.place_rows()
            rows += await line.call_rows(seconds)
    return [*rows, await check_sale(NAME, label, embedded.url, durability, SALE)]


def _rehashes(wire: Wire) -> bool:
    """Whether the hash of tickets has two tables just now."""
    try:
        stats: bytes = wire.call("DEBUG", "HTSTATS-KEY", queue_keys(SALE)[1])
    except hiredis.ReplyError:
        return False  # Too small to be a hash table yet.
    return stats.count(b"table size:") > 1
