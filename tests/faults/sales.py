"""Small sales for tests that break things, and a few short words for what they do with them."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Iterable
from itertools import count

from seckill.engine import Engine
from seckill.order import Outcome, order_id
from seckill.sale import Item, Sale
from seckill.status import Status
from tests.faults.checker import observe, state_problems

__all__ = [
    "SKUS",
    "Answers",
    "answers_of",
    "busy_sale",
    "buy",
    "buy_all",
    "held",
    "id_of",
    "open_sale",
    "small_sale",
    "statuses",
]

Answers = list[Outcome | BaseException]

SKUS = ("plain", "scarce")
_numbers = count(1)


def small_sale(*, plain: int = 1_000_000, scarce: int = 1) -> Sale:
    """A sale that is on, under an id of its own; nobody is limited."""
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    return Sale(
        id=f"faults-{next(_numbers)}",
        title="故障测试",
        opens_at=now - hour,
        ends_at=now + hour,
        items=tuple(
            Item(sku=sku, title=sku, price_fen=100, total=total, limit_per_buyer=0)
            for sku, total in zip(SKUS, (plain, scarce), strict=True)
        ),
    )


def busy_sale(sale: str) -> Sale:
    """A sale in which everything happens: several SKUs, some soon sold out, limits of every kind,
    and holds that lapse within a second."""
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    stock = {"plenty": (1_000_000, 4), "some": (300, 2), "few": (30, 0), "one": (1, 1)}
    return Sale(
        id=sale,
        title="故障测试",
        opens_at=now - hour,
        ends_at=now + hour,
        items=tuple(
            Item(sku=sku, title=sku, price_fen=100, total=total, limit_per_buyer=limit)
            for sku, (total, limit) in stock.items()
        ),
        hold_ms=800,
        pay_ms=1_000,
        limit_per_order=5,
        limit_per_buyer=6,
        max_lapsed=2,
    )


async def open_sale(engine: Engine, *, plain: int = 1_000_000, scarce: int = 1) -> str:
    """Creates and opens a small sale and returns its id."""
    sale = small_sale(plain=plain, scarce=scarce)
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale.id


async def buy(engine: Engine, sale: str, buyer: object, sku: str = "plain") -> Outcome:
    """One unit for one buyer, always under the same key."""
    return await engine.reserve(sale, f"b{buyer}", "k", {sku: 1})


async def answers_of(calls: Iterable[Awaitable[Outcome]]) -> Answers:
    """The outcome of each call, or what it raised; in bounded time, because a lane that has died
    answers nobody."""
    async with asyncio.timeout(30):
        return await asyncio.gather(*calls, return_exceptions=True)


async def buy_all(
    engine: Engine, sale: str, buyers: Iterable[object], sku: str = "plain"
) -> Answers:
    """One unit for each of many buyers at once."""
    return await answers_of(buy(engine, sale, buyer, sku) for buyer in buyers)


def id_of(sale: str, buyer: object) -> str:
    """The id of the order that ``buy`` makes."""
    return order_id(sale, f"b{buyer}", "k")


def held(url: str, sale: str) -> set[str]:
    """The orders that exist, after a look at the whole sale."""
    seen = observe(url, sale)
    assert state_problems(seen) == []
    return set(seen.orders)


def statuses(outcomes: Answers) -> list[Status | type[BaseException]]:
    """The status of each outcome, or the exception's class."""
    return [out.status if isinstance(out, Outcome) else type(out) for out in outcomes]
