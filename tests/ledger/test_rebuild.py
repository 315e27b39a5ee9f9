"""A Redis that has lost a sale, or a part of it, gets it back from the ledger as it was."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import LEDGER_MARK
from seckill.ledger import Ledger, fence
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.ledger.losses import SCRIPT, Step, keep, lost_and_rebuilt, picture
from tests.ledger.stories import STEPS
from tests.support import async_client, make_item, make_sale


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """Without leases: a unit that has come back is sold at once."""
    return await make_engine(lease_ms=0)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


async def test_every_kind_of_order_comes_back_byte_for_byte(
    database_url: str, engine: Engine, client: redis.Redis
) -> None:
    async with Ledger(database_url) as ledger:
        sale, before, done = await lost_and_rebuilt(engine, ledger, client, SCRIPT)
    records = {record[:1] for record in before["orders"].values()}
    assert records == {b"h", b"p", b"c", b"f", b"r", b"x"}
    assert picture(client, sale) == before
    assert done.done
    assert done.orders == len(before["orders"])


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    print_blob=True,
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 7)), max_size=40
    )
)
async def test_any_story_comes_back_and_can_be_proved(
    steps: list[Step], tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('story')}/ledger.db"
    async with (
        Ledger(url) as ledger,
        Engine(server.url, durability="memory", sweep_ms=0, lease_ms=0) as engine,
    ):
        with redis.Redis.from_url(server.url) as client:
            client.delete(LEDGER_MARK)  # Each story has a ledger of its own.
            sale, before, done = await lost_and_rebuilt(engine, ledger, client, steps)
            assert picture(client, sale) == before
        state = (await engine.snapshot(sale)).state
        assert state in (done.state, "settled")
        assert (await engine.resume(sale)).status is (
            Status.DONE if state == "paused" else Status.CLOSED
        )
        await keep(engine, ledger, sale)
        # An engine that has not met the sale before time was moved in it.
        async with Engine(server.url, durability="memory", sweep_ms=0) as fresh:
            verdict = await verify(fresh, sale, ledger=ledger)
        # Time was moved in these sales, and their definitions keep the old window.
        assert {each.rule for each in verdict.violations} <= {"window", "deadline"}


# -- the loss of everything, while it sells --------------------------------------------------------


def crowded_sale(stock: int) -> Sale:
    items = (make_item("a", total=stock, limit_per_buyer=2), make_item("b", total=stock))
    return make_sale(items=items, hold_ms=60_000, limit_per_buyer=3)


class Crowd:
    """Buyers who want an order each, pay for some of them, and never give up."""

    def __init__(self, engine: Engine, sale: str) -> None:
        self.engine = engine
        self.sale = sale
        self.told: dict[str, str] = {}
        """By key, the id of an order that was promised."""
        self.said: Counter[Status] = Counter()
        self.stop = False

    async def buy(self, number: int) -> None:
        for turn in range(1_000):
            key = f"k{number}-{turn}"
            items = {"a": 1} if turn % 2 else {"b": 1}
            outcome = await self.engine.reserve(
                self.sale, f"buyer-{number}-{turn // 3}", key, items
            )
            self.said[outcome.status] += 1
            if outcome.order is not None:
                self.told[key] = outcome.order.id
                if turn % 3 == 0:
                    await self.engine.confirm(self.sale, outcome.order.id, f"pay-{key}")
            if self.stop or outcome.status in (Status.FENCED, Status.SOLD_OUT):
                return

    async def rush(self) -> None:
        await asyncio.gather(*(self.buy(number) for number in range(8)))


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine with a server of its own, for tests that wipe it or put it back."""
    async with Engine.embedded(
        tmp_path / "server", durability="memory", sweep_ms=0, lease_ms=0
    ) as engine:
        yield engine


async def until_fenced(engine: Engine, ledger: Ledger) -> list[fence.Fenced]:
    for _ in range(500):
        if fenced := await fence.check(engine, ledger):
            return fenced
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was fenced")


async def test_a_redis_that_is_wiped_in_mid_sale_goes_on_as_if_it_had_not_been(
    own: Engine, ledger: Ledger
) -> None:
    sale = crowded_sale(3_000)
    assert (await own.create(sale)).ok
    assert (await own.open(sale.id)).ok
    runner = LedgerRunner(own, ledger)
    running = asyncio.create_task(runner.run())
    crowd = Crowd(own, sale.id)
    rush = asyncio.create_task(crowd.rush())
    while (await ledger.counts(sale.id))[1] < 300:
        await fence.check(own, ledger)
        await asyncio.sleep(0.01)
    async with async_client(own.url) as client:
        await client.flushall()
    [fenced] = await until_fenced(own, ledger)
    assert fenced.reason.startswith("lost: ")
    crowd.stop = True
    await rush
    runner.stop()
    await running
    assert await own.sales() == [sale.id]
    snapshot = await own.snapshot(sale.id)
    assert (snapshot.state, snapshot.reason) == ("fenced", fenced.reason)
    assert (await own.create(sale)).status is Status.EXISTS
    assert (await own.reserve(sale.id, "late", "k", {"a": 1})).status is Status.FENCED

    rows = [row async for part in ledger.orders(sale.id, "id", "buyer", "record") for row in part]
    assert len(rows) >= 300
    done = await rebuild(own, ledger, sale.id)
    assert (done.done, done.state, done.orders) == (True, "paused", len(rows))
    assert done.seq >= done.seen_seq + 1_000_000
    assert not (await rebuild(own, ledger, sale.id)).done
    assert (await own.resume(sale.id)).status is Status.DONE

    # Every order of the ledger is there, and its buyer finds it by asking again.
    keys = {order: key for key, order in crowd.told.items()}
    for order, buyer, record in rows:
        found = await own.order(sale.id, order)
        assert found is not None
        sku = next(iter(found.items))
        if order in keys:
            again = await own.reserve(sale.id, buyer, keys[order], {sku: 1})
            assert (again.status, again.order) == (Status.EXISTS, found)
        assert record[0] in "hc"
    limits = Counter(buyer for _, buyer, _ in rows)
    full = next(buyer for buyer, count in limits.items() if count == 3)
    assert (await own.reserve(sale.id, full, "new", {"b": 1})).status is Status.BUYER_LIMIT

    # Sold to the end: those that are held are paid, the others bought.
    held = [order for order, _, record in rows if record[0] == "h"]
    for order in held:
        assert (await own.confirm(sale.id, order, f"late-{order}")).status is Status.DONE
    crowd.stop = False
    await crowd.rush()
    again = LedgerRunner(own, ledger, once=True)
    await again.run()
    snapshot = await own.snapshot(sale.id)
    assert min(stock.available for stock in snapshot.stock.values()) == 0
    verdict = await verify(own, sale.id, ledger=ledger)
    assert verdict.violations == ()
    assert verdict.orders == (await ledger.counts(sale.id))[1] == snapshot.orders


async def test_a_server_that_comes_back_with_old_data_is_fenced(tmp_path: Path) -> None:
    data, old = tmp_path / "server", tmp_path / "old"
    sale = make_sale({"a": 10})
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            await engine.create(sale)
            await engine.open(sale.id)
            first = (await engine.reserve(sale.id, "ann", "k", {"a": 1})).order
            await keep(engine, ledger, sale.id)
        shutil.copytree(data, old, ignore=shutil.ignore_patterns("*.sock"))
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            assert await fence.check(engine, ledger) == []
            second = (await engine.reserve(sale.id, "bob", "k", {"a": 9})).order
            await keep(engine, ledger, sale.id)
        shutil.rmtree(data)
        shutil.move(old, data)
        async with Engine.embedded(data, durability="memory", sweep_ms=0) as engine:
            reason = "behind: this server ends at event 3, events up to 4 are known"
            assert await fence.check(engine, ledger) == [fence.Fenced(sale.id, reason)]
            assert (await engine.reserve(sale.id, "eve", "k", {"a": 1})).status is Status.FENCED
            done = await rebuild(engine, ledger, sale.id)
            assert (done.done, done.reason, done.orders) == (True, reason, 2)
            assert await fence.check(engine, ledger) == []
            await engine.resume(sale.id)
            assert first
            assert second
            assert await engine.order(sale.id, first.id) == first
            assert await engine.order(sale.id, second.id) == second
            assert (await engine.reserve(sale.id, "eve", "k", {"a": 1})).status is Status.SOLD_OUT
            assert (await verify(engine, sale.id, ledger=ledger)).violations == ()
