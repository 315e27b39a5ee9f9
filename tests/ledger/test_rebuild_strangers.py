"""Orders that only Redis knows when its sale is rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.fencing import fence_sale
from seckill.keys import shard_keys
from seckill.ledger import Ledger, fence
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.ledger.strangers import NotAdmitted
from seckill.order import State, order_id
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.ledger.losses import keep, lose
from tests.ledger.stories import read_known, read_raws
from tests.support import dump, make_sale


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """Without leases: a unit that has come back is sold at once."""
    return await make_engine(lease_ms=0)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


@pytest.fixture
async def lost(engine: Engine, ledger: Ledger) -> Sale:
    """A sale with two orders that only the ledger has."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    for buyer in ("ann", "bob"):
        await engine.reserve(sale.id, buyer, "k", {"a": 1})
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    return sale


# -- orders that only Redis knows ------------------------------------------------------------------


async def made_anew(engine: Engine, ledger: Ledger) -> tuple[Sale, dict[str, str]]:
    """A sale whose ledger has four of its six units; then it was lost, made anew, and sold from the
    beginning, with everything that can happen to an order. The ids by what happened."""
    sale = make_sale({"a": 6}, limit_per_buyer=2)
    for _ in range(2):
        await engine.create(sale)
        await engine.open(sale.id)
        if _ == 0:
            for number in range(4):
                await engine.reserve(sale.id, f"old-{number}", "k", {"a": 1})
            await keep(engine, ledger, sale.id)
            await lose(engine, sale.id)
    ids = {}
    for name in ("paid", "held", "refunded", "released", "paying", "twice"):
        made = await engine.reserve(sale.id, name, "k", {"a": 1}, attrs=f"{name}|1")
        assert made.order
        ids[name] = made.order.id
        if name in ("paid", "refunded", "twice"):
            await engine.confirm(sale.id, made.order.id, f"p-{name}")
        if name == "refunded":
            await engine.refund(sale.id, made.order.id, "r1", return_units=True, return_limit=True)
        if name == "released":
            await engine.release(sale.id, made.order.id)
            await engine.confirm(sale.id, made.order.id, "p-late")
    await engine.confirm(sale.id, ids["twice"], "p-more")
    await engine.begin_payment(sale.id, ids["paying"])
    return sale, ids


async def test_orders_that_only_redis_knows_are_told_and_nothing_is_changed(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale, ids = await made_anew(engine, ledger)
    [fenced] = await fence.check(engine, ledger)
    assert fenced.reason.startswith("made anew")
    before = dump(client, sale.id)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.done, done.unknown_count) == (False, 6)
    assert done.unknown == tuple(sorted(ids.values()))
    client.hdel(shard_keys(sale.id)[0], "rebuilt_by")
    assert dump(client, sale.id) == before
    assert not client.keys(f"*{sale.id}*rebuild*")


async def test_a_sale_that_no_ledger_had_when_it_was_fenced(engine: Engine, ledger: Ledger) -> None:
    """A new one knows at least what it sells, and then all its orders are unknown."""
    sale = make_sale({"a": 3})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    orders = []
    for buyer in ("ann", "bob"):
        made = (await engine.reserve(sale.id, buyer, "k", {"a": 1})).order
        assert made is not None
        orders.append(made.id)
    assert (await engine.confirm(sale.id, orders[0], "paid")).ok
    known = await read_known(engine, sale.id)
    told = {"made": known.made, "seen_made": known.made, "seq": 99}
    status, _, _ = await fence_sale(engine._calls, sale, known.origin_ms, **told)
    assert status is Status.FENCED
    await ledger.know(known)
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.last_seq, done.admitted, done.expired) == (True, 0, 2, 0)
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
    report = await verify(engine, sale.id, ledger=ledger)
    assert report.ok, report.violations
    assert (await engine.resume(sale.id)).ok
    found = [await engine.order(sale.id, order) for order in orders]
    assert [order and order.state for order in found] == [State.CONFIRMED, State.HELD]
    assert (await engine.reserve(sale.id, "cat", "k", {"a": 2})).status is not Status.CREATED
    assert (await engine.reserve(sale.id, "cat", "k2", {"a": 1})).status is Status.CREATED


async def test_orders_that_only_redis_knows_are_taken_in_while_stock_lasts(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale, ids = await made_anew(engine, ledger)
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.admitted, done.expired) == (True, 6, 2)
    found = {name: await engine.order(sale.id, order) for name, order in ids.items()}
    states = {name: (order.state, order.payments) for name, order in found.items() if order}
    # Two units are left for those who had paid. What was paid twice is due back, and what had gone
    # back already is not said again.
    assert states == {
        "paid": (State.CONFIRMED, ("p-paid",)),
        "twice": (State.CONFIRMED, ("p-twice", "p-more")),
        "refunded": (State.RELEASED, ()),
        "released": (State.RELEASED, ("p-late",)),
        "held": (State.EXPIRED, ()),
        "paying": (State.EXPIRED, ()),
    }
    raws = await read_raws(engine, sale.id)
    kept = {raw.subject: raw.value.split("|", 5)[5] for raw in raws if raw.value[:5] == "held|"}
    assert kept == {ids[name]: f"{name}|1" for name in ("paid", "twice")}
    due = [raw.value.split("|")[1] for raw in raws if raw.value.startswith("refund_due|")]
    assert sorted(due) == ["p-late", "p-more"]
    assert (await engine.snapshot(sale.id)).stock["a"].available == 0
    await engine.resume(sale.id)
    await keep(engine, ledger, sale.id)
    verdict = await verify(engine, sale.id, ledger=ledger)
    assert (verdict.violations, verdict.orders) == ((), 10)
    # And once more: now the ledger knows them all.
    await lose(engine, sale.id)
    before = {name: await ledger_record(ledger, sale.id, order) for name, order in ids.items()}
    assert (await rebuild(engine, ledger, sale.id)).orders == 10
    again = {name: client.hget(shard_keys(sale.id)[3], order) for name, order in ids.items()}
    assert {name: record.decode() for name, record in again.items()} == before  # type: ignore[union-attr]


async def ledger_record(ledger: Ledger, sale: str, order: str) -> str:
    async for part in ledger.orders(sale, "id", "record"):
        for id_, record in part:
            if id_ == order:
                return str(record)
    raise AssertionError(f"no order {order}")


async def test_money_that_only_redis_knows_is_taken_in(engine: Engine, ledger: Ledger) -> None:
    """Redis came back with old data and went on: an order the ledger knows was paid there."""
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    ids = [order_id(sale.id, buyer, "k") for buyer in ("ann", "bob", "eve")]
    for buyer in ("ann", "bob", "eve"):
        await engine.reserve(sale.id, buyer, "k", {"a": 1})
    await keep(engine, ledger, sale.id)
    known, raws = await read_known(engine, sale.id), await read_raws(engine, sale.id)
    # The ledger has seen bob's order released, and much else.
    released = raws[3]._replace(
        seq=90, value=raws[3].value.replace("held||h1", "released||r2")[:-1]
    )
    await ledger.write([(known, [released])])
    for order, payment in zip(ids[:2], ("p1", "p2"), strict=True):
        assert (await engine.confirm(sale.id, order, payment)).status is Status.DONE
    await engine.refund(sale.id, ids[0], "r1", return_units=False, return_limit=False)
    done = await rebuild(engine, ledger, sale.id)
    assert (done.done, done.unknown) == (False, tuple(sorted(ids[:2])))
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.admitted, done.expired) == (True, 2, 0)
    orders = [await engine.order(sale.id, order) for order in ids]
    assert [(order.state, order.payments) for order in orders if order] == [
        (State.REFUNDED, ("p1",)),
        (State.RELEASED, ("p2",)),
        (State.HELD, ()),
    ]
    assert (await engine.snapshot(sale.id)).stock["a"].total == 2


async def test_orders_under_another_definition_are_not_taken_in(
    engine: Engine, ledger: Ledger, lost: Sale, client: redis.Redis
) -> None:
    other = make_sale({"b": 3}, id=lost.id)
    await engine.create(other)
    await engine.open(other.id)
    await engine._forget(await engine._shard(lost.id))
    assert (await engine.reserve(lost.id, "eve", "k", {"b": 1})).status is Status.CREATED
    with pytest.raises(NotAdmitted, match="under another definition"):
        await rebuild(engine, ledger, lost.id, admit=True)
    assert client.hget(shard_keys(lost.id)[0], "state") == b"fenced"


async def test_a_sale_that_was_removed_is_not_brought_back(engine: Engine, ledger: Ledger) -> None:
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.close(sale.id)
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    async with ledger.engine.begin() as connection:
        await connection.execute(text("UPDATE seckill_sales SET removed_at_ms = 5"))
    assert await fence.check(engine, ledger) == []
    with pytest.raises(InvalidInput, match="was removed"):
        await rebuild(engine, ledger, sale.id)
