"""A sale that was made anew under its id, seen by an engine that knows the one before and sweeps
nothing: orders are decoded by the definition that is there now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import redis

from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.keys import SALES, shard_keys
from seckill.order import Order, Outcome, State, Wish
from seckill.sale import Sale
from seckill.status import Status
from tests.conftest import MakeEngine
from tests.support import make_item, make_sale

CART = {"mug": 2, "tea": 1}


def before() -> Sale:
    """One SKU, so that a later cart names a place that it has not."""
    return make_sale({"old": 5}, hold_ms=60_000)


def after(sale: Sale) -> Sale:
    """Other SKUs under the same id, at other prices."""
    items = (make_item("mug", price_fen=500), make_item("tea", price_fen=70))
    return make_sale(id=sale.id, items=items, hold_ms=90_000)


@pytest.fixture
async def anew(make_engine: MakeEngine, client: redis.Redis) -> tuple[Engine, Sale, Order]:
    """An engine that has sold of the sale before, the sale that is there now, an order of it."""
    old = before()
    engine, other = await make_engine(), await make_engine()
    assert (await engine.create(old)).ok
    assert (await engine.open(old.id)).ok
    assert (await engine.reserve(old.id, "ann", "k", {"old": 1})).ok
    client.delete(*shard_keys(old.id))
    client.srem(SALES, old.id)
    now = after(old)
    assert (await other.create(now)).ok
    assert (await other.open(now.id)).ok
    made = await other.reserve(now.id, "bob", "k", CART)
    assert made.order is not None
    return engine, now, made.order


def is_right(order: Order | None, state: State) -> bool:
    assert order is not None
    told = (order.buyer, order.items, order.amount_fen, order.state)
    return told == ("bob", CART, 2 * 500 + 70, state)


async def test_find(anew: tuple[Engine, Sale, Order]) -> None:
    engine, sale, order = anew
    found = await engine.order(sale.id, order.id)
    assert found == order
    assert await engine.order(sale.id, order.id, buyer="ann") is None
    assert (await engine.sale(sale.id)).items == sale.items


Verb = Callable[[Engine, str, str], Awaitable[Outcome]]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        (lambda engine, sale, order: engine.begin_payment(sale, order), State.PAYING),
        (lambda engine, sale, order: engine.confirm(sale, order, "p"), State.CONFIRMED),
        (lambda engine, sale, order: engine.release(sale, order, buyer="bob"), State.RELEASED),
    ],
    ids=["begin_payment", "confirm", "release"],
)
async def test_a_verb(anew: tuple[Engine, Sale, Order], verb: Verb, state: State) -> None:
    """It is done once, and says so."""
    engine, sale, order = anew
    done = await verb(engine, sale.id, order.id)
    assert done.status is Status.DONE
    assert is_right(done.order, state)
    again = await verb(engine, sale.id, order.id)
    assert again.status is Status.ALREADY
    assert again.order == done.order


async def test_a_refund(anew: tuple[Engine, Sale, Order], make_engine: MakeEngine) -> None:
    engine, sale, order = anew
    assert (await (await make_engine()).confirm(sale.id, order.id, "p")).ok
    choices = {"return_units": True, "return_limit": True}
    done = await engine.refund(sale.id, order.id, "r", **choices)
    assert done.status is Status.DONE
    assert is_right(done.order, State.REFUNDED)


async def test_the_engine_goes_on(anew: tuple[Engine, Sale, Order]) -> None:
    """Its lane belongs to the sale before; the new one has another."""
    engine, sale, order = anew
    assert is_right((await engine.confirm(sale.id, order.id, "p")).order, State.CONFIRMED)
    sold = await engine.reserve(sale.id, "cy", "k", {"tea": 1})
    assert sold.status is Status.CREATED
    assert sold.order is not None
    assert sold.order.amount_fen == 70


async def test_an_order_that_the_engine_can_not_know(
    anew: tuple[Engine, Sale, Order], make_engine: MakeEngine
) -> None:
    """By the definition before, another wish would have this cart, and this one another."""
    engine, sale, _ = anew
    made = await (await make_engine()).reserve(sale.id, "ann", "k2", {"mug": 1})
    assert made.status is Status.CREATED
    wishes = [Wish("ann", "k2", {"old": 1}), Wish("ann", "k2", {"mug": 1})]
    again = await engine.reserve_many(sale.id, wishes)
    assert again == [Outcome(Status.CONFLICT), Outcome(Status.EXISTS, made.order)]


async def test_what_is_gone(anew: tuple[Engine, Sale, Order], client: redis.Redis) -> None:
    """The header is lost, the orders are not: nobody can say what they mean."""
    engine, sale, order = anew
    client.delete(shard_keys(sale.id)[0])
    with pytest.raises(UnknownSale):
        await engine.order(sale.id, order.id)
    assert (await engine.confirm(sale.id, order.id, "p")).status is Status.UNKNOWN_SALE


async def test_a_script_that_redis_does_not_have(
    anew: tuple[Engine, Sale, Order], client: redis.Redis
) -> None:
    engine, sale, order = anew
    client.script_flush()
    done = await engine.begin_payment(sale.id, order.id)
    assert done.status is Status.DONE
    assert is_right(done.order, State.PAYING)


async def test_one_round_trip(anew: tuple[Engine, Sale, Order], client: redis.Redis) -> None:
    """The definition's id comes with the answer."""
    engine, sale, order = anew
    await engine._roll.aclose()  # Its calls would be counted.
    # So that Redis has the script, and the engine the definition.
    assert (await engine.confirm(sale.id, order.id, "p")).ok
    earlier = client.info("commandstats")
    assert (await engine.confirm(sale.id, order.id, "p")).ok
    later = client.info("commandstats")

    def calls(name: str) -> int:
        counts = [each.get(f"cmdstat_{name}", {"calls": 0})["calls"] for each in (later, earlier)]
        return int(counts[0] - counts[1])

    assert (calls("evalsha"), calls("eval")) == (1, 0)
    # The script has one of each of its own, for the sale and for the order.
    assert (calls("hmget"), calls("hget")) == (2, 1)
