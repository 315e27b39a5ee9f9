"""The second part of benchmarks/queue.py: what a place query and a token cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import perf_counter, process_time
from typing import Final

from benchmarks.plan import Plan
from benchmarks.queue_workload import NAME, calls_of, create_queue, join_all
from benchmarks.report import Row
from benchmarks.servers import durability_of
from benchmarks.workload import Wire, buyer_ids
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.queue import LOOK_S
from seckill.status import Status
from seckill.tokens import Keys, Token, new_key

__all__ = ["ask_places", "read_tokens"]

TARGET_MICROS: Final = 15.0
PER: Final = 10_000
LOOKS: Final = 3
TURN: Final = 100


async def ask_places(plan: Plan, label: str, embedded: EmbeddedServer) -> list[Row]:
    """Place queries of an engine, and what Redis noticed of them."""
    buyers = buyer_ids(500 if plan.quick else PER)
    rounds, queries = (1, 2_000) if plan.quick else (5, 5 * PER)
    durability = durability_of("always")
    others, looks, micros = [], [], []
    # Nobody but those who ask is to call Redis.
    async with Engine(embedded.url, durability=durability, sweep_ms=0) as engine:
        sale = (await create_queue(engine, "place")).id
        tickets = await join_all(engine, sale, buyers)
        with Wire(embedded) as wire:
            for turn in range(rounds):
                plan.say(f"{NAME}: {label}, places, round {turn + 1} of {rounds}")
                a_look = await _calls_of_a_look(engine, sale, wire)
                wire.call("CONFIG", "RESETSTAT")
                began_s, cpu_s = perf_counter(), process_time()
                await _ask(engine, sale, buyers, tickets, queries)
                micros.append((process_time() - cpu_s) / queries * 1e6)
                took_s = perf_counter() - began_s
                calls = {name: count for name, (count, _) in calls_of(wire).items()}
                looked = calls.get("evalsha", 0)
                # What the looks do not explain, and looks that came too soon.
                other = sum(calls.values()) - looked * a_look
                other += max(0, looked - int(took_s / LOOK_S) - 1)
                others.append(other / queries * PER)
                looks.append(looked / took_s)
    question = f"Redis calls of {PER:,} place queries, looks left out"
    return [
        Row.of(NAME, label, question, "calls", others, at_most=0),
        Row.of(NAME, label, "looks meanwhile", "a second", looks, note="5 at most"),
        Row.of(NAME, label, "CPU of a place query, Engine.queue.place", "µs", micros),
    ]


async def _calls_of_a_look(engine: Engine, sale: str, wire: Wire) -> int:
    """Commands that one look makes, its own script call and those within it. While nobody is
    called it is always the same."""
    wire.call("CONFIG", "RESETSTAT")
    for _ in range(LOOKS):
        await engine.queue.look(sale)
    calls = calls_of(wire)
    assert calls["evalsha"][0] == LOOKS, calls
    assert all(count % LOOKS == 0 for count, _ in calls.values()), calls
    return sum(count for count, _ in calls.values()) // LOOKS


async def _ask(
    engine: Engine, sale: str, buyers: list[str], tickets: list[str], queries: int
) -> None:
    for i in range(queries):
        place = i % len(buyers)
        asked = await engine.queue.place(sale, buyers[place], tickets[place])
        assert asked.status is Status.DONE, asked
        if i % TURN == 0:
            await asyncio.sleep(0)  # So that looks can happen at all.


def read_tokens(plan: Plan, label: str) -> Iterator[Row]:
    """Tokens, good ones and forged ones. No server has a part in it."""
    rounds, reads = (1, 1_000) if plan.quick else (9, 20_000)
    sale, far_ms = "tokens", 4_000_000_000_000
    keys, other_keys = (Keys(sale, (new_key(),)) for _ in range(2))
    buyers = buyer_ids(reads)
    good = [keys.token(buyer, i, 1 + i % 600, far_ms) for i, buyer in enumerate(buyers)]
    # Signed with another key under the id of ours, as whoever guesses would do.
    forged = [token[:2] + other_keys.token(buyers[0], 1, 1, far_ms)[2:] for token in good]
    for name, tokens, kind, at_most in (
        ("a good token", good, Token, TARGET_MICROS),
        ("a forged token", forged, Status, None),
    ):
        micros = []
        for turn in range(rounds):
            plan.say(f"{NAME}: {label}, tokens, round {turn + 1} of {rounds}")
            began_s = process_time()
            found = [
                keys.read(buyer, token, 0.0) for buyer, token in zip(buyers, tokens, strict=True)
            ]
            micros.append((process_time() - began_s) / reads * 1e6)
            assert all(type(one) is kind for one in found), found[:5]
        yield Row.of(
            NAME, label, f"CPU of reading {name}, Keys.read", "µs", micros, at_most=at_most
        )
