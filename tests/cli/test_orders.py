"""``seckill order``, ``inspect`` and ``verify``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import redis

from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.order import order_id
from seckill.sale import Sale
from tests.cli.conftest import Seckill

MakeSale = Callable[..., Awaitable[Sale]]


async def held(engine: Engine, sale: Sale, buyer: str = "u1") -> str:
    outcome = await engine.reserve(sale.id, buyer, "k1", {"a": 2})
    assert outcome.order is not None
    return outcome.order.id


async def test_life_of_an_order(seckill: Seckill, engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    order = await held(engine, sale)
    shown = seckill("order", "show", sale.id, order)
    assert shown.code == 0
    assert "held, version 1" in shown.out
    assert "2 × 商品 a (a)" in shown.out
    assert "¥198.00" in shown.out
    assert "pay by" in shown.out
    assert seckill("order", "begin-payment", sale.id, order, "--json").data["status"] == "done"
    paid = seckill("order", "confirm", sale.id, order, "--payment", "p1", "--json").data
    assert paid["order"]["state"] == "confirmed"
    twice = seckill("order", "confirm", sale.id, order, "--payment", "p2", "--json")
    assert (twice.code, twice.data["status"]) == (1, "duplicate_payment")
    assert "p2  due for refund" in seckill("order", "show", sale.id, order).out
    refused = seckill("order", "release", sale.id, order)
    assert (refused.code, refused.out) == (1, "")
    assert "the order is paid (confirmed)" in refused.err
    assert seckill("order", "refund", sale.id, order, "--refund", "r1").code == 2
    back = seckill(
        *("order", "refund", sale.id, order, "--refund", "r1", "--json"),
        *("--return-units", "--keep-limit"),
    )
    assert back.data["order"]["state"] == "refunded"
    assert seckill("order", "show", sale.id, order, "--json").data["refund"] == "r1"
    stock = (await engine.snapshot(sale.id)).stock["a"]
    assert (stock.available, stock.total) == (10, 10)


async def test_release(seckill: Seckill, engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    order = await held(engine, sale)
    done = seckill("order", "release", sale.id, order)
    assert done.code == 0
    assert (await engine.snapshot(sale.id)).stock["a"].available == 10


async def test_unknown_order(seckill: Seckill, open_sale: MakeSale) -> None:
    sale = await open_sale()
    order = order_id(sale.id, "nobody", "k")
    for args in (("show",), ("release",), ("confirm", "--payment", "p")):
        done = seckill("order", args[0], sale.id, order, *args[1:])
        assert done.code == 1
        assert "no such order" in done.err
    assert seckill("order", "show", sale.id, "[red]short").code == 2


async def test_inspect(seckill: Seckill, engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    await held(engine, sale)
    assert "nobody reads this sale's events" in seckill("inspect", sale.id).out
    async for _ in engine.events(sale.id, "mall", follow=False):
        break
    await held(engine, sale, "u2")
    shown = seckill("inspect", sale.id)
    assert shown.code == 0
    assert "mall" in shown.out
    data = seckill("inspect", sale.id, "--json").data
    assert data["snapshot"]["orders"] == 2
    assert set(data["memory_bytes"]) == set(shard_keys(sale.id))
    assert data["memory_bytes"][shard_keys(sale.id)[3]] > 0
    assert [group["group"] for group in data["groups"]] == ["mall"]
    assert data["groups"][0]["pending"] == 3
    assert data["groups"][0]["lag"] == 1


async def test_verify(seckill: Seckill, engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale()
    await held(engine, sale)
    done = seckill("verify", sale.id)
    assert done.code == 0
    assert "no violation in 3 events, 1 order\n" in done.out
    assert seckill("verify", sale.id, "--json").data["ok"] is True


@pytest.mark.parametrize("field", ["available", "total"])
async def test_verify_names_the_damage(
    seckill: Seckill, engine: Engine, open_sale: MakeSale, client: redis.Redis, field: str
) -> None:
    sale = await open_sale()
    await held(engine, sale)
    client.hincrby(shard_keys(sale.id)[1], f"0:{field}", 1)
    client.hincrby(shard_keys(sale.id)[1], f"1:{field}", 1)
    first = seckill("verify", sale.id)
    assert (first.code, first.out) == (1, "")
    assert first.err.count("violation: ") == 1
    assert "violation: drift: SKU a" in first.err
    assert "more with --all" in first.err
    every = seckill("verify", sale.id, "--all")
    assert every.code == 1
    assert every.err.count("violation: ") > 1
    data = seckill("verify", sale.id, "--json")
    assert data.code == 1
    assert data.data["ok"] is False
    assert data.data["violations"][0]["rule"] == "drift"
