"""What a rebuild must not turn round: a payment's outcome, an order's version, what was counted and
what was put aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from seckill.dead import Letter
from seckill.engine import Engine
from seckill.keys import SALES, group_keys, refusals_key, shard_keys
from seckill.ledger import Ledger, fence
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.ledger.strangers import NotAdmitted
from seckill.order import State
from seckill.sale import Sale
from seckill.status import Status
from seckill.stream import EventKind
from seckill.verify import verify
from tests.conftest import MakeEngine
from tests.ledger.losses import SCRIPT, keep, lose, picture
from tests.ledger.stories import story_sale, tell
from tests.support import async_client, make_sale, shift


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    """Without leases: a unit that has come back is sold at once."""
    return await make_engine(lease_ms=0)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


@pytest.fixture
async def sale(engine: Engine) -> Sale:
    sale = make_sale({"a": 1})
    await engine.create(sale)
    await engine.open(sale.id)
    return sale


async def reserve(engine: Engine, sale: str, buyer: str, units: int = 1) -> str:
    made = await engine.reserve(sale, buyer, "k", {"a": units})
    assert made.status is Status.CREATED
    assert made.order
    return made.order.id


def fork(client: redis.Redis, sale: str) -> None:
    """The ledger has it under another ``made``."""
    client.hset(shard_keys(sale)[0], "made", "forked")


async def proved(engine: Engine, ledger: Ledger, sale: str) -> None:
    await keep(engine, ledger, sale)
    assert (await verify(engine, sale, ledger=ledger)).violations == ()


# -- a payment has one outcome ---------------------------------------------------------------------


@pytest.mark.parametrize("ledger_knows", [False, True])
@pytest.mark.parametrize("how", ["expired", "released"])
async def test_money_that_came_too_late_stays_due_back(
    engine: Engine,
    ledger: Ledger,
    sale: Sale,
    client: redis.Redis,
    ledger_knows: bool,
    how: str,
) -> None:
    if not ledger_knows:
        await keep(engine, ledger, sale.id)
    ann = await reserve(engine, sale.id, "ann")
    if ledger_knows:
        await keep(engine, ledger, sale.id)
    if how == "expired":
        async with async_client(engine.url) as connection:
            await shift(connection, sale.id, sale.hold_ms + 1_000)
        await engine._expire(sale.id, 100)
    else:
        await engine.release(sale.id, ann)
    bob = await reserve(engine, sale.id, "bob")
    assert (await engine.confirm(sale.id, ann, "late")).status is Status.LATE
    await engine.release(sale.id, bob)
    before = await engine.order(sale.id, ann)
    fork(client, sale.id)
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert done.done
    order = await engine.order(sale.id, ann)
    assert before
    assert order
    assert order.state in (State.EXPIRED, State.RELEASED)
    assert order.payments == ("late",)
    assert order.version > before.version
    assert (await engine.confirm(sale.id, ann, "late")).status is Status.LATE
    told = [event async for event in engine.history(sale.id) if event.detail == "late"]
    assert [event.kind for event in told] == [EventKind.REFUND_DUE]
    await keep(engine, ledger, sale.id)
    verdict = await verify(engine, sale.id, ledger=ledger)
    # Time was moved in this sale.
    assert {each.rule for each in verdict.violations} <= {"deadline"}


async def test_money_that_came_twice_does_not_buy_what_the_first_can_not(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    await keep(engine, ledger, sale.id)
    ann = await reserve(engine, sale.id, "ann")
    for payment in ("p1", "p2", "p3"):
        await engine.confirm(sale.id, ann, payment)
    fork(client, sale.id)
    assert (await rebuild(engine, ledger, sale.id, admit=True)).done
    kinds = [(e.kind, e.detail) async for e in engine.history(sale.id) if e.order]
    assert kinds == [
        (EventKind.HELD, ""),
        (EventKind.CONFIRMED, "p1"),
        (EventKind.REFUND_DUE, "p2"),
        (EventKind.REFUND_DUE, "p3"),
    ]
    await proved(engine, ledger, sale.id)


async def test_money_that_went_back_is_not_due_once_more(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    """Here the ledger's order was given up; in Redis it was bought, and refunded."""
    ann = await reserve(engine, sale.id, "ann")
    old = client.dump(shard_keys(sale.id)[3])
    await engine.release(sale.id, ann)
    await keep(engine, ledger, sale.id)
    paid = client.hget(shard_keys(sale.id)[3], ann)
    assert old
    assert isinstance(paid, bytes)
    record = b"f4" + paid[2:] + b"|p1|r1,1,1"
    client.hset(shard_keys(sale.id)[3], ann, record)
    fork(client, sale.id)
    assert (await rebuild(engine, ledger, sale.id, admit=True)).done
    order = await engine.order(sale.id, ann)
    assert order
    assert (order.state, order.payments) == (State.RELEASED, ())
    await proved(engine, ledger, sale.id)


# -- versions --------------------------------------------------------------------------------------


async def test_an_order_goes_on_above_the_version_that_redis_had(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await engine.open(sale.id)
    known = await reserve(engine, sale.id, "known")
    await keep(engine, ledger, sale.id)
    new, gone = [await reserve(engine, sale.id, name) for name in ("new", "gone")]
    for order in (known, new):
        await engine.begin_payment(sale.id, order)
        await engine.confirm(sale.id, order, f"p-{order}")
    await engine.release(sale.id, gone)
    before = {order: await engine.order(sale.id, order) for order in (known, new, gone)}
    fork(client, sale.id)
    done = await rebuild(engine, ledger, sale.id, admit=True)
    assert (done.done, done.admitted, done.expired) == (True, 3, 0)
    told = [event.order async for event in engine.history(sale.id) if event.order]
    assert len(told) == 4
    for order in told:
        was = before[order.id]
        assert was
        assert order.version > was.version
    assert {order.state for order in told[-3:]} >= {State.CONFIRMED}
    await proved(engine, ledger, sale.id)


async def test_versions_leave_room_however_often_a_sale_is_rebuilt(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    """A version is one digit of base 36."""
    await keep(engine, ledger, sale.id)
    ann = await reserve(engine, sale.id, "ann")
    for number in range(16):
        await engine.confirm(sale.id, ann, f"p{number}")
    for _ in range(3):
        # The ledger never gets to know it.
        fork(client, sale.id)
        assert (await rebuild(engine, ledger, sale.id, admit=True)).admitted == 1
    order = await engine.order(sale.id, ann)
    assert order
    assert (order.state, len(order.payments)) == (State.CONFIRMED, 16)
    refund = await engine.refund(sale.id, ann, "r", return_units=True, return_limit=True)
    assert refund.status is Status.DONE
    await proved(engine, ledger, sale.id)


# -- what stands beside the sale -------------------------------------------------------------------


async def test_the_ledgers_dead_letters_end_with_the_old_stream(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    ann = await reserve(engine, sale.id, "ann")
    await keep(engine, ledger, sale.id)
    keys = group_keys(sale.id, "ledger")
    letter = Letter(99, 5, ann, "held||h1------5|0|ann", False, "no", 1, 5)
    client.hset(keys.dead, letter.field, msgspec.json.encode(letter))
    client.sadd(keys.again, ann)
    others = group_keys(sale.id, "mall")
    client.hset(others.dead, "7:x", b"kept")
    fork(client, sale.id)
    assert (await rebuild(engine, ledger, sale.id, admit=True)).done
    assert not client.exists(keys.dead, keys.again)
    assert client.exists(others.dead)
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
    assert (await verify(engine, sale.id, ledger=ledger)).violations == ()


async def test_refusals_come_back(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    await keep(engine, ledger, sale.id)
    await ledger.refused(sale.id, '{"sold_out": 4, "buyer_limit": 1}')
    client.delete(refusals_key(sale.id))
    await lose(engine, sale.id)
    assert (await rebuild(engine, ledger, sale.id)).done
    expected = {b"sold_out": b"4", b"buyer_limit": b"1"}
    assert client.hgetall(refusals_key(sale.id)) == expected
    # Those that are there are newer.
    client.hset(refusals_key(sale.id), "sold_out", 9)
    await lose(engine, sale.id)
    assert (await rebuild(engine, ledger, sale.id)).done
    assert client.hgetall(refusals_key(sale.id)) == expected | {b"sold_out": b"9"}


async def test_the_list_of_sales_is_mended_even_if_nothing_else_is(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    await keep(engine, ledger, sale.id)
    client.srem(SALES, sale.id)
    assert not (await rebuild(engine, ledger, sale.id)).done
    assert client.sismember(SALES, sale.id)


async def test_a_sale_is_in_the_list_before_it_goes_on(
    engine: Engine,
    ledger: Ledger,
    sale: Sale,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rebuild that is cut off right after its last step has left nothing to do."""
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    await fence.check(engine, ledger)
    client.srem(SALES, sale.id)
    run = engine._calls.run

    async def cut_off(verb: str, *args: Any) -> Any:
        reply = await run(verb, *args)
        if verb == "rebuild":
            raise ConnectionAbortedError
        return reply

    monkeypatch.setattr(engine._calls, "run", cut_off)
    with pytest.raises(ConnectionAbortedError):
        await rebuild(engine, ledger, sale.id)
    assert client.hget(shard_keys(sale.id)[0], "state") == b"paused"
    assert client.sismember(SALES, sale.id)


async def test_another_definition_is_refused_before_anything_is_done(
    engine: Engine, ledger: Ledger, sale: Sale, client: redis.Redis
) -> None:
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    other = make_sale({"b": 3}, id=sale.id)
    await engine.create(other)
    await engine.open(other.id)
    await engine._forget(await engine._shard(sale.id))
    assert (await engine.reserve(sale.id, "eve", "k", {"b": 1})).status is Status.CREATED
    made = (await ledger.sale(sale.id))["made"]
    orders = shard_keys(sale.id)[3]
    for admit in (False, True):
        with pytest.raises(NotAdmitted, match="another definition") as refused:
            await rebuild(engine, ledger, sale.id, admit=admit)
        assert f"redis-cli UNLINK '{orders}'" in str(refused.value)
    assert (await ledger.sale(sale.id))["made"] == made
    assert not client.keys(f"*{sale.id}*rebuild*")
    # What it says to do is enough.
    client.unlink(orders)
    assert (await rebuild(engine, ledger, sale.id)).done
    await engine._forget(await engine._shard(sale.id))
    await proved(engine, ledger, sale.id)


async def test_nothing_is_left_beside_a_sale_whose_rebuild_failed(
    engine: Engine,
    ledger: Ledger,
    sale: Sale,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await reserve(engine, sale.id, "ann")
    await keep(engine, ledger, sale.id)
    await lose(engine, sale.id)
    run = engine._calls.run

    async def cut_off(verb: str, *args: Any) -> Any:
        if verb == "rebuild_found":
            assert client.keys(f"*{sale.id}*rebuild*")
            raise ConnectionAbortedError
        return await run(verb, *args)

    monkeypatch.setattr(engine._calls, "run", cut_off)
    with pytest.raises(ConnectionAbortedError):
        await rebuild(engine, ledger, sale.id)
    assert not client.keys(f"*{sale.id}*rebuild*")


async def test_force_gives_the_same_sale_again(
    engine: Engine, ledger: Ledger, client: redis.Redis
) -> None:
    sale = story_sale()
    await tell(engine, sale, SCRIPT)
    await keep(engine, ledger, sale.id)
    before = picture(client, sale.id)
    seq = (await engine.snapshot(sale.id)).seq
    assert not (await rebuild(engine, ledger, sale.id)).done
    done = await rebuild(engine, ledger, sale.id, force=True)
    assert (done.done, done.unknown_count, done.seen_seq) == (True, 0, seq)
    after = picture(client, sale.id)
    for name in ("orders", "stock", "buyers"):
        assert after[name] == before[name]
    # Keys that were edited are put right.
    _, stock, buyers, *_ = shard_keys(sale.id)
    client.hincrby(stock, "0:available", 5)
    client.delete(buyers)
    assert (await rebuild(engine, ledger, sale.id, force=True)).done
    assert picture(client, sale.id) == after
