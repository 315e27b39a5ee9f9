"""No acknowledged order is lost when the server crashes and its disk with it.

SECKILL_FAULT_SEED repeats a run's choice of moments (not its scheduling).
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from seckill.engine import Engine
from seckill.redis import Durability
from seckill.verify import verify
from tests.faults.checker import Verdict, check, observe
from tests.faults.harness import FragileServer, LoadProcess, crash_cycle
from tests.faults.sales import open_sale

KILLS = 20
# One kill in this many meets a rewrite of the AOF.
REWRITE_EVERY = 5
KILLS_TO_SEE_A_LOSS = 5


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("SECKILL_FAULT_SEED") or random.randrange(1_000_000))
    print(f"SECKILL_FAULT_SEED={seed}")
    return seed


def make_sale(url: str, durability: Durability) -> str:
    async def make() -> str:
        async with Engine(url, durability=durability, sweep_ms=0) as engine:
            return await open_sale(engine, scarce=500)

    return asyncio.run(make())


def events_verdict(url: str, sale: str) -> list[object]:
    """What the engine's own verify finds wrong."""

    async def ask() -> list[object]:
        async with Engine(url, durability="memory", sweep_ms=0) as engine:
            return list((await verify(engine, sale)).violations)

    return asyncio.run(ask())


@pytest.mark.slow
def test_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with FragileServer(tmp_path, appendfsync="always") as server:
        sale = make_sale(server.url, "aof")
        with LoadProcess(server.url, sale, tmp_path, seed=seed, durability="aof") as load:
            lost_bytes = 0
            for kill in range(1, KILLS + 1):
                rewrite = kill % REWRITE_EVERY == 0
                cycle = crash_cycle(server, load, sale, rng, rewrite=rewrite)
                print(f"kill {kill}: {cycle.orders} orders, {cycle.lost_bytes} bytes cut")
                assert cycle.report.verdict is Verdict.VALID, cycle.report.problems[:10]
                lost_bytes += cycle.lost_bytes
            history = load.finish()
        report = check(history, observe(server.url, sale))
        print(f"{history.accepted} accepted, {history.unknown} unknown, {lost_bytes} bytes cut")
        assert report.verdict is Verdict.VALID, report.problems[:10]
        assert events_verdict(server.url, sale) == []
        # Had no call been left open and no byte been cut, the faults would have tested nothing.
        assert history.unknown > 0
        assert lost_bytes > 0


def test_the_harness_sees_losses_where_there_are_some(tmp_path: Path, seed: int) -> None:
    """The same crashes, but with a sync every second: acknowledged orders must be found lost."""
    rng = random.Random(seed)
    with FragileServer(tmp_path, appendfsync="everysec") as server:
        sale = make_sale(server.url, "memory")
        with LoadProcess(server.url, sale, tmp_path, seed=seed, durability="memory") as load:
            for kill in range(1, KILLS_TO_SEE_A_LOSS + 1):
                cycle = crash_cycle(server, load, sale, rng, rewrite=False)
                lost = cycle.report.found("lost")
                print(f"kill {kill}: {cycle.lost_bytes} bytes cut, {lost} lost")
                if lost:
                    assert cycle.report.verdict is Verdict.INVALID
                    return
    pytest.fail("the harness has seen no loss, so its finding none elsewhere proves nothing")
