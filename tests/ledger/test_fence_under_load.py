"""Redis comes back behind and sells on before anybody has looked: it is stopped all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.ledger import Ledger, fence
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.status import Status
from tests.support import be_unaware, make_sale


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


async def written(engine: Engine, ledger: Ledger, **fields: Any) -> Sale:
    sale = make_sale({"a": 100}, **fields)
    await engine.create(sale)
    await engine.open(sale.id)
    for number in range(40):
        await engine.reserve(sale.id, f"b{number}", "k", {"a": 1})
    return sale


async def go_back(engine: Engine, sale: Sale, work: Any) -> None:
    """Everything of a sale becomes what it was before ``work``."""
    client = engine._calls.client_of("sk:sales")
    kept = {key: await client.dump(key) for key in shard_keys(sale.id)}
    await work()
    for key, value in kept.items():
        await client.delete(key)
        if value is not None:
            await client.restore(key, 0, value)
    be_unaware(engine, sale.id)


async def test_what_has_gone_back_and_on_again(engine: Engine, ledger: Ledger) -> None:
    sale = await written(engine, ledger)

    async def sell_and_write() -> None:
        for number in range(10):
            await engine.reserve(sale.id, f"lost{number}", "k", {"a": 1})
        await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()

    await go_back(engine, sale, sell_and_write)
    for number in range(30):
        await engine.reserve(sale.id, f"new{number}", "k", {"a": 1})
    seq = (await engine.snapshot(sale.id)).seq
    assert seq > (await ledger.last(sale.id))[0]
    [fenced] = [one for one in await fence.check(engine, ledger) if one.sale == sale.id]
    assert fenced.reason.startswith("forked: event ")
    assert (await engine.reserve(sale.id, "x", "k", {"a": 1})).status is Status.FENCED


async def test_what_was_seen_and_never_written(engine: Engine, ledger: Ledger) -> None:
    """The ledger was behind, and yet it knew how far Redis was."""
    sale = await written(engine, ledger)
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()

    async def sell_and_look() -> None:
        for number in range(10):
            await engine.reserve(sale.id, f"lost{number}", "k", {"a": 1})
        assert await fence.check(engine, ledger) == []

    await go_back(engine, sale, sell_and_look)
    await engine.reserve(sale.id, "new", "k", {"a": 1})
    [fenced] = await fence.check(engine, ledger)
    assert fenced.reason.startswith("behind: ")


async def test_a_sale_that_goes_on_is_not_taken_for_another(engine: Engine, ledger: Ledger) -> None:
    """Whatever the ledger's last event is: of the sale, of an order, in the midst of an entry; and
    when it was trimmed."""
    sale = await written(engine, ledger)
    for step in range(6):
        await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
        assert await fence.check(engine, ledger) == []
        await engine.reserve(sale.id, f"c{step}", "k", {"a": 1})
        if step == 3:
            await engine.pause(sale.id, "x")
            await engine.resume(sale.id)
        assert await fence.check(engine, ledger) == []
    client = engine._calls.client_of("sk:sales")
    await client.xtrim(shard_keys(sale.id)[6], maxlen=0, approximate=False)
    await client.hset(shard_keys(sale.id)[0], "trimmed_seq", (await engine.snapshot(sale.id)).seq)
    assert await fence.check(engine, ledger) == []


async def test_a_sale_that_was_sold_out_early_is_not_sold_again(
    engine: Engine, ledger: Ledger
) -> None:
    sale = await written(engine, ledger)
    await engine.close(sale.id)
    for number in range(40):
        order = (await engine.reserve(sale.id, f"b{number}", "k", {"a": 1})).order
        assert order is not None
        await engine.release(sale.id, order.id)
    assert (await engine.snapshot(sale.id)).state == "settled"
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
    assert await fence.check(engine, ledger) == []
    await engine._calls.client_of("sk:sales").delete(*shard_keys(sale.id))
    assert await fence.check(engine, ledger) == []
    assert (await engine.create(sale)).status is Status.CREATED
    await engine.open(sale.id)
    [fenced] = await fence.check(engine, ledger)
    assert fenced.reason.startswith("made anew: ")


@pytest.mark.parametrize(
    "damage",
    [
        lambda client, keys: client.hdel(keys[0], "seq"),
        lambda client, keys: client.hset(keys[0], "seq", "many"),
        lambda client, keys: client.set(keys[6], "no stream"),
    ],
    ids=["no seq", "no number", "no stream"],
)
async def test_a_damaged_sale_hides_no_other(engine: Engine, ledger: Ledger, damage: Any) -> None:
    damaged, lost = await written(engine, ledger), await written(engine, ledger)
    sales = [damaged.id, lost.id]
    await LedgerRunner(engine, ledger, sales=sales, once=True).run()
    client = engine._calls.client_of("sk:sales")
    await client.delete(shard_keys(damaged.id)[6], *shard_keys(lost.id))
    await damage(client, shard_keys(damaged.id))
    assert lost.id in {one.sale for one in await fence.check(engine, ledger)}
    await client.delete(*shard_keys(damaged.id), *shard_keys(lost.id))
