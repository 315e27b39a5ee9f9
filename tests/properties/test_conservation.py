"""Conservation over the whole history of a sale that many engines sell at once.

Here nobody knows the order in which calls arrive, so no twin can follow; what must hold is what the
events and the end say together.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from seckill.engine import Engine
from seckill.order import Outcome, State
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.properties.story import check_story
from tests.properties.strategies import MOOT
from tests.support import make_item, make_sale, travel

BUYERS = 40
SKUS = ("a", "b", "c")


async def live(engine: Engine, sale: Sale, buyer: str, rng: random.Random, seen: Counter) -> None:
    """One buyer, who does whatever comes to mind, and each thing sometimes twice at once."""
    orders: list[str] = []
    for step in range(12):
        times = rng.choice([1, 1, 1, 2])
        outcomes: list[Outcome]
        if not orders or rng.random() < 0.4:
            items = {sku: rng.randint(1, 2) for sku in rng.sample(SKUS, rng.choice([1, 1, 2]))}
            key = f"k{rng.choice([step, step, 0])}"
            outcomes = await asyncio.gather(
                *(engine.reserve(sale.id, buyer, key, items) for _ in range(times))
            )
            orders += [outcome.order.id for outcome in outcomes[:1] if outcome.order]
        else:
            order, number = rng.choice(orders), rng.randint(1, 3)
            match rng.choice(["begin", "confirm", "confirm", "release", "refund"]):
                case "begin":
                    calls = [engine.begin_payment(sale.id, order) for _ in range(times)]
                case "confirm":
                    calls = [engine.confirm(sale.id, order, f"p{number}") for _ in range(times)]
                case "release":
                    calls = [engine.release(sale.id, order) for _ in range(times)]
                case _:
                    units, limit = rng.random() < 0.5, rng.random() < 0.5
                    calls = [
                        engine.refund(sale.id, order, "r", return_units=units, return_limit=limit)
                        for _ in range(times)
                    ]
            outcomes = await asyncio.gather(*calls)
        seen.update(outcome.status.name for outcome in outcomes)


async def merchant(engine: Engine, sale: Sale, rng: random.Random) -> None:
    """Sweeps, changes stock, pauses for a moment."""
    for step in range(30):
        await asyncio.sleep(0.002)
        match rng.choice(["sweep", "sweep", "travel", "stock", "pause"]):
            case "sweep":
                await engine._expire(sale.id, 10)
            case "travel":
                await travel(engine, sale.id, sale.hold_ms // 3)
            case "stock":
                await engine.add_stock(
                    sale.id, rng.choice(SKUS), rng.choice([-2, 3]), key=f"{step}"
                )
            case _:
                await engine.pause(sale.id, "a moment")
                await engine.resume(sale.id)


async def onlooker(engine: Engine, sale: Sale) -> None:
    """Verifies while everybody is at it: the end is then that of one moment."""
    for _ in range(5):
        verdict = await verify(engine, sale.id)
        assert [v for v in verdict.violations if v.rule not in MOOT] == []
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_made(make_engine: MakeEngine, seed: int) -> None:
    rng = random.Random(seed)
    engines = [await make_engine(batch_max=rng.choice([1, 4, 256])) for _ in range(3)]
    sale = make_sale(
        items=tuple(
            make_item(sku, total=rng.randint(20, 60), limit_per_buyer=rng.choice([0, 3]))
            for sku in SKUS
        ),
        limit_per_order=rng.choice([0, 3]),
        limit_per_buyer=rng.choice([0, 5]),
        max_lapsed=rng.choice([0, 2]),
    )
    await engines[0].create(sale)
    await engines[0].open(sale.id)
    seen: Counter[str] = Counter()
    await asyncio.gather(
        onlooker(engines[0], sale),
        merchant(rng.choice(engines), sale, rng),
        *(
            live(rng.choice(engines), sale, f"b{i}", random.Random(seed * 1_000 + i), seen)
            for i in range(BUYERS)
        ),
    )
    for stage in ("open", "closed", "settled"):
        if stage != "open":
            await engines[1].close(sale.id)
        if stage == "settled":
            await travel(engines[1], sale.id, sale.hold_ms + sale.pay_ms)
            while (await engines[2]._expire(sale.id, 50))[1]:
                pass
        await check(engines[0], sale)
    assert (await engines[0].snapshot(sale.id)).state == "settled"
    for status in (Status.CREATED, Status.EXISTS, Status.DONE, Status.ALREADY):
        assert seen[status.name], f"this seed has never seen {status.name}"


async def check(engine: Engine, sale: Sale) -> None:
    verdict = await verify(engine, sale.id)
    assert [v for v in verdict.violations if v.rule not in MOOT] == []
    told = [event async for event in engine.history(sale.id)]
    assert list(check_story(sale, told)) == []
    snapshot = await engine.snapshot(sale.id)
    assert len(told) == snapshot.seq
    orders = {event.order.id: event.order for event in told if event.order}
    assert len(orders) == snapshot.orders
    for sku, stock in snapshot.stock.items():
        assert stock.available + stock.held + stock.confirmed == stock.total
        units: Counter[State] = Counter()
        for order in orders.values():
            units[order.state] += order.items.get(sku, 0)
        assert units[State.HELD] + units[State.PAYING] == stock.held
        assert units[State.CONFIRMED] == stock.confirmed
