"""Whatever comes, in whatever order and however often: the ledger says what Redis says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import (
    LedgerForked,
    LedgerUnavailable,
    UnknownSale,
)
from seckill.ledger import Ledger
from seckill.ledger.rows import Known, Raw
from tests.ledger.stories import STEPS, differences, read_known, read_raws, story_sale, tell
from tests.support import make_sale

ORDER = "00" + 22 * "a"
HELD = Raw(1, 5, ORDER, "held||h1------900000|0|buyer-1|room=1")
Delivery = tuple[int, list[Raw]]

# One of everything that can happen to an order, for the scripted story.
SCRIPT = [
    *[("many", number, number) for number in range(4)],
    *[("reserve", number, number) for number in range(12)],
    *[("begin_payment", number, 0) for number in range(3, 40, 3)],
    *[("confirm", number, 0) for number in range(2, 40, 2)],
    *[("confirm", 2, 0), ("confirm", 4, 0), ("confirm_again", 4, 0), ("confirm_again", 4, 0)],
    *[("refund", 2 * number, number) for number in range(1, 9)],
    *[("add_stock", 0, number % 3) for number in range(9)],
    *[("refund", 20, 0), ("pause", 0, 1), ("release", 7, 0)],
    *[("add_stock", 1, 2), ("expire", 0, 0), ("confirm", 9, 0), ("confirm", 13, 0)],
    *[("resume", 0, 0), ("reserve", 1, 3), ("pause", 0, 0), ("confirm", 13, 0), ("resume", 0, 0)],
    *[("close", 0, 0), ("confirm", 11, 0), ("expire", 0, 0)],
]


@asynccontextmanager
async def two_ledgers(url: str) -> Any:
    async with Ledger(url) as one, Ledger(url) as other:
        yield one, other


def deliveries(rng: random.Random, raws: list[Raw]) -> list[Delivery]:
    """These events in any order and any split, some of them more than once, to either ledger."""
    again = rng.sample(raws, rng.randrange(len(raws) + 1))
    all_of_them = [*raws, *again]
    if rng.random() < 0.7:
        rng.shuffle(all_of_them)
    parts: list[Delivery] = []
    # One for the whole story, or one large batch would put most of it in order.
    size_max = rng.choice((3, 20, 200))
    while all_of_them:
        size = rng.randint(1, size_max)
        parts.append((rng.randrange(2), all_of_them[:size]))
        del all_of_them[:size]
    return parts


async def write(ledger: Ledger, batch: list[tuple[Known, list[Raw]]]) -> None:
    """As a runner does: what may do later is tried again."""
    for _ in range(50):
        try:
            return await ledger.write(batch)
        except LedgerUnavailable:
            await asyncio.sleep(0.01)
    raise AssertionError("the database undoes it every time")


async def write_all(
    ledgers: tuple[Ledger, Ledger], known: Known, parts: list[Delivery], *, at_once: bool
) -> None:
    for ledger in ledgers:
        await ledger.know(known)
    if not at_once:
        for which, raws in parts:
            await write(ledgers[which], [(known, raws)])
        return

    async def write_mine(which: int) -> None:
        for whose, raws in parts:
            if whose == which:
                await write(ledgers[which], [(known, raws)])

    await asyncio.gather(write_mine(0), write_mine(1))


# -- a story ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
async def test_a_story_in_any_order(
    server: EmbeddedServer, database_url: str, at_once: bool
) -> None:
    async with AsyncExitStack() as stack:
        make = {"durability": "memory", "sweep_ms": 0}
        seller = await stack.enter_async_context(Engine(server.url, **make))
        sale = story_sale()
        await tell(seller, sale, SCRIPT)
        engine = await stack.enter_async_context(Engine(server.url, **make))
        known, raws = await read_known(engine, sale.id), await read_raws(engine, sale.id)
        kinds = {raw.value.partition("|")[0] for raw in raws}
        assert kinds == {
            *("held", "paying", "confirmed", "released", "expired", "refunded", "refund_due"),
            *("created", "opened", "paused", "resumed", "closed", "settled", "stock"),
        }
        ledgers = await stack.enter_async_context(two_ledgers(database_url))
        for seed in range(3):
            parts = deliveries(random.Random(seed), raws)
            await write_all(ledgers, known, parts, at_once=at_once)
            assert await differences(ledgers[0], engine, sale.id) == [], seed
            async with ledgers[0].engine.begin() as connection:
                for table in ("sales", "items", "orders", "events"):
                    await connection.execute(text(f"DELETE FROM seckill_{table}"))  # noqa: S608


class World:
    """What all of Hypothesis' examples share, on one event loop."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.url = server.url
        self.ledgers = tuple(Ledger(f"sqlite:///{folder}/ledger.db") for _ in range(2))
        for ledger in self.ledgers:
            self.loop.run_until_complete(ledger.start())

    def close(self) -> None:
        for ledger in self.ledgers:
            self.loop.run_until_complete(ledger.aclose())
        self.loop.close()


@pytest.fixture(scope="module")
def world(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(server, tmp_path_factory.mktemp("ledger"))
    yield world
    world.close()


steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 59), st.integers(0, 11)),
    min_size=5,
    max_size=60,
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(stories=st.tuples(steps, steps), rng=st.randoms(use_true_random=False))
def test_any_stories_in_any_order(world: World, stories: Any, rng: random.Random) -> None:
    world.loop.run_until_complete(check_stories(world, stories, rng))


async def check_stories(world: World, stories: Any, rng: random.Random) -> None:
    """Two sales, whose events come together in one batch at times."""
    sales = [story_sale() for _ in stories]
    async with Engine(world.url, durability="memory", sweep_ms=0) as engine:
        for sale, story in zip(sales, stories, strict=True):
            await tell(engine, sale, story)
    async with Engine(world.url, durability="memory", sweep_ms=0) as engine:
        parts: list[tuple[int, Known, list[Raw]]] = []
        for sale in sales:
            known = await read_known(engine, sale.id)
            await world.ledgers[0].know(known)
            raws = await read_raws(engine, sale.id)
            parts += [(which, known, part) for which, part in deliveries(rng, raws)]
        rng.shuffle(parts)
        while parts:
            which, known, part = parts.pop()
            batch = [(known, part)]
            if parts and parts[-1][1] is not known and rng.random() < 0.5:
                batch.append(parts.pop()[1:])
            await world.ledgers[which].write(batch)
        for sale in sales:
            assert await differences(world.ledgers[0], engine, sale.id) == []


# -- two stories of one sale ------------------------------------------------------------------


async def test_another_sale_under_the_same_id(database_url: str) -> None:
    sale = make_sale()
    async with two_ledgers(database_url) as (ledger, other):
        await ledger.know(Known(sale, 1, "run:1"))
        for one in (ledger, other):
            await one.know(Known(sale, 1, "run:1"))
            with pytest.raises(LedgerForked, match="another sale was made") as caught:
                await one.know(Known(sale, 1, "run:2"))
        assert (caught.value.sale, caught.value.seq) == (sale.id, 1)
        assert await ledger.known(sale.id) == Known(sale, 1, "run:1")


@pytest.mark.parametrize(
    "change", [{"at_ms": 6}, {"value": HELD.value + "1"}, {"subject": "00" + 22 * "b"}], ids=str
)
async def test_another_event_of_the_same_number(database_url: str, change: Any) -> None:
    """Nothing of the batch is written, not even of the sales that agree."""
    forked, fine = Known(make_sale(), 1, "run:1"), Known(make_sale(), 1, "run:1")
    async with two_ledgers(database_url) as (ledger, other):
        for known in (forked, fine):
            await ledger.know(known)
        await ledger.write([(forked, [HELD])])
        later = Raw(2, 6, ORDER, "released||r2------900000|0|buyer-1")
        with pytest.raises(LedgerForked, match="another content") as caught:
            await other.write([(forked, [HELD._replace(**change), later]), (fine, [HELD])])
        assert (caught.value.sale, caught.value.seq) == (forked.sale.id, 1)
        assert "buyer-1" not in str(caught.value)
        assert await ledger.counts(forked.sale.id) == (1, 1)
        assert await ledger.counts(fine.sale.id) == (0, 0)
        await other.write([(forked, [HELD, later]), (fine, [HELD])])
        assert await ledger.counts(forked.sale.id) == (2, 1)


async def test_how_far_redis_was_seen(database_url: str) -> None:
    """Only ever further, whoever says it last."""
    sale = make_sale()
    async with Ledger(database_url) as ledger:
        with pytest.raises(UnknownSale):
            await ledger.sale(sale.id)
        await ledger.know(Known(sale, 1, "run:1"))
        await ledger.seen(sale.id, 7)
        await ledger.refused(sale.id, '{"sold_out":1}')
        await ledger.seen(sale.id, 5)
        row = await ledger.sale(sale.id)
        assert (row["seen_seq"], row["refusals"]) == (7, '{"sold_out":1}')
        assert await ledger.last(sale.id) == (0, 0)
        await ledger.write([(Known(sale, 1, "run:1"), [HELD])])
        assert await ledger.last(sale.id) == (1, 5)
