"""Reconcile: a sale that runs raises no alarm."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from seckill.engine import Engine
from seckill.ledger import Ledger
from seckill.ledger.reconcile import reconcile
from seckill.ledger.run import LedgerRunner
from seckill.order import Wish
from seckill.sale import Sale
from seckill.trim import trim
from tests.conftest import MakeEngine
from tests.support import make_sale

# -- a sale that runs -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_running_sale_raises_no_alarm(make_engine: MakeEngine, database_url: str) -> None:
    """Orders come, move on and lapse, stock changes, two runners write, the stream is trimmed."""
    engine = await make_engine()
    sale = make_sale({"a": 10**6, "b": 10**6}, hold_ms=1_000)
    await engine.create(sale)
    await engine.open(sale.id)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(Ledger(database_url))
        runners = [LedgerRunner(engine, ledger, sales=(sale.id,)) for _ in range(2)]
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        load = asyncio.create_task(_load(engine, sale, stop))
        try:
            # The databases differ in how they write, which others test; so most is done on one.
            for number in range(20 if database_url.startswith("sqlite") else 5):
                report = await reconcile(engine, ledger, sale.id, fix=number % 2 == 1)
                assert report.ok, report.drifts
                assert report.decided, report.undecided
                assert not report.mended, report.drifts
                if number % 5 == 4:
                    client = engine._calls.client_of("sk:sales")
                    await trim(client, sale.id, keep_ms=100)
        finally:
            stop.set()
            orders = await load
            for runner in runners:
                runner.stop()
            await asyncio.gather(*tasks)
        assert orders > 20
        report = await reconcile(engine, ledger, sale.id)
        assert (report.ok, report.orders) == (True, orders)
        assert report.stream_from > 1


async def _load(engine: Engine, sale: Sale, stop: asyncio.Event) -> int:
    """Some hundred orders a second, of which most move on at once or later. Counts them."""
    chance = random.Random(5)
    orders: list[str] = []
    waiting: list[str] = []
    while not stop.is_set():
        number = len(orders)
        wishes = [
            Wish(
                f"buyer-{(number + place) % 90}",
                f"k{number + place}",
                {chance.choice("ab"): chance.randint(1, 3)},
                "x|y",
            )
            for place in range(20)
        ]
        outcomes = await engine.reserve_many(sale.id, wishes)
        new = [outcome.order.id for outcome in outcomes if outcome.order]  # type: ignore[union-attr]
        orders += new
        waiting += new
        for _ in range(15):
            order = waiting.pop(chance.randrange(len(waiting)))
            match chance.randrange(4):
                case 0:
                    await engine.begin_payment(sale.id, order)
                    waiting.append(order)
                case 1:
                    await engine.confirm(sale.id, order, f"p-{order}")
                    waiting.append(order)
                case 2:
                    await engine.refund(
                        sale.id, order, f"r-{order}", return_units=bool(number % 2),
                        return_limit=True,
                    )  # fmt: skip
                case _:
                    await engine.release(sale.id, order)
        await engine.add_stock(sale.id, "a", chance.choice((5, -5)), key=f"k{number}")
        await engine._expire(sale.id, 100)
        await asyncio.sleep(0.05)
    return len(orders)
