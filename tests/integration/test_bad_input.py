"""The wrong argument: a typed error that names it, or a status, and nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.keys import SALES
from seckill.order import order_id
from seckill.status import Status
from tests.conftest import MakeSale
from tests.support import dump, make_sale

BAD_IDS: list[Any] = ["", " ", "a b", "a|b", "a,b", "x" * 65, "é", "a\n", "\x00", 7, None, b"ann"]
BAD_SALES: list[Any] = ["", "a b", "x" * 41, "{x}", "a:b", "a/b", "é", 7, None]
BAD_ORDERS: list[Any] = ["", "x", "0" * 23, "0" * 25, "0" * 23 + "-", "é" * 24, "0" * 10_000]
BAD_QUANTITIES: list[Any] = [0, -1, -(10**18), 10_001, 10**30, True, False, 1.0, "1", None]
GOOD_ORDER = order_id("sale", "ann", "k")


@pytest.fixture
async def untouched(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> AsyncIterator[tuple[Engine, str]]:
    """An engine and a sale that looks the same after the test as before it."""
    sale = await open_sale({"a": 5})
    await engine.reserve(sale.id, "first", "k", {"a": 1})
    before, keys = dump(client, sale.id), client.dbsize()
    yield engine, sale.id
    assert dump(client, sale.id) == before
    assert client.dbsize() == keys


Untouched = tuple[Engine, str]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
async def test_bad_ids(untouched: Untouched, bad: Any) -> None:
    engine, sale = untouched
    calls = {
        "buyer": [lambda: engine.reserve(sale, bad, "k", {"a": 1})],
        "key": [
            lambda: engine.reserve(sale, "ann", bad, {"a": 1}),
            lambda: engine.add_stock(sale, "a", 1, key=bad),
        ],
        "payment": [lambda: engine.confirm(sale, GOOD_ORDER, bad)],
        "refund": [
            lambda: engine.refund(sale, GOOD_ORDER, bad, return_units=True, return_limit=True)
        ],
    }
    if bad:  # an empty buyer means the backend
        calls["buyer"] += [
            lambda: engine.begin_payment(sale, GOOD_ORDER, buyer=bad),
            lambda: engine.release(sale, GOOD_ORDER, buyer=bad),
        ]
    for field, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(InvalidInput) as caught:
                await attempt()
            assert caught.value.field == field
            assert caught.value.remedy


@pytest.mark.parametrize("bad", BAD_QUANTITIES, ids=repr)
async def test_bad_quantities(untouched: Untouched, bad: Any) -> None:
    engine, sale = untouched
    for items in ({"a": bad}, {"zz": bad}, {"a": 1, "b": bad}):
        with pytest.raises(InvalidInput, match=r"^items\['(a|b|zz)'\]: .*whole number from 1"):
            await engine.reserve(sale, "ann", "k", items)


@pytest.mark.parametrize("bad", [0, True, False, 1.5, "3", None, 10**9 + 1, -(10**9) - 1, 10**30])
async def test_bad_changes_of_stock(untouched: Untouched, bad: Any) -> None:
    engine, sale = untouched
    with pytest.raises(InvalidInput, match=r"^units: "):
        await engine.add_stock(sale, "a", bad, key="k")


async def test_quantities_that_are_huge_but_legal(untouched: Untouched) -> None:
    engine, sale = untouched
    outcome = await engine.reserve(sale, "ann", "k", {"a": 10_000})
    assert outcome.status is Status.INSUFFICIENT
    assert (await engine.add_stock(sale, "a", 10**9, key="k")).status is Status.TOO_MANY_UNITS
    assert (await engine.add_stock(sale, "a", -(10**9), key="k")).status is Status.BELOW_COMMITTED


@pytest.mark.parametrize("items", [{"zz": 1}, {"a": 1, "zz": 1}, {"": 1}, {"0": 1}, {"a,b": 1}])
async def test_an_unknown_sku(untouched: Untouched, items: dict[str, int]) -> None:
    engine, sale = untouched
    assert (await engine.reserve(sale, "ann", "k", items)).status is Status.UNKNOWN_SKU


async def test_an_empty_cart(untouched: Untouched) -> None:
    engine, sale = untouched
    with pytest.raises(InvalidInput, match=r"^items: the cart is empty"):
        await engine.reserve(sale, "ann", "k", {})


@pytest.mark.parametrize("attrs", ["x" * 513, "字" * 171, "\ud800", 7, b"x"], ids=repr)
async def test_bad_attrs(untouched: Untouched, attrs: Any) -> None:
    engine, sale = untouched
    with pytest.raises(InvalidInput, match=r"^attrs: "):
        await engine.reserve(sale, "ann", "k", {"a": 1}, attrs=attrs)


@pytest.mark.parametrize("bad", BAD_ORDERS, ids=lambda bad: repr(bad)[:30])
async def test_bad_order_ids(untouched: Untouched, bad: str) -> None:
    engine, sale = untouched
    for call in (
        engine.order(sale, bad),
        engine.begin_payment(sale, bad),
        engine.confirm(sale, bad, "p1"),
        engine.release(sale, bad),
        engine.refund(sale, bad, "r1", return_units=True, return_limit=True),
    ):
        with pytest.raises(InvalidInput, match=r"^order: "):
            await call


@pytest.mark.parametrize("bad", BAD_SALES, ids=repr)
async def test_bad_sale_ids(untouched: Untouched, bad: Any) -> None:
    engine, _ = untouched
    for call in (
        engine.open(bad),
        engine.pause(bad),
        engine.resume(bad),
        engine.close(bad),
        engine.sale(bad),
        engine.snapshot(bad),
        engine.reserve(bad, "ann", "k", {"a": 1}),
        engine.confirm(bad, GOOD_ORDER, "p1"),
        engine.add_stock(bad, "a", 1, key="k"),
        engine.order(bad, GOOD_ORDER),
    ):
        with pytest.raises(InvalidInput, match=r"^sale: "):
            await call


@pytest.mark.parametrize("reason", ["x" * 201, "a\nb", "\x1b[31m"])
async def test_bad_reasons(untouched: Untouched, reason: str) -> None:
    engine, sale = untouched
    with pytest.raises(InvalidInput, match=r"^reason: "):
        await engine.pause(sale, reason)


async def test_nothing_of_a_bad_call_is_listed(untouched: Untouched, client: redis.Redis) -> None:
    engine, _ = untouched
    before = client.smembers(SALES)
    with pytest.raises(InvalidInput):
        await engine.create(make_sale(id="a b"))
    assert client.smembers(SALES) == before
