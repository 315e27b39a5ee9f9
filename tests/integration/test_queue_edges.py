"""Queues where something goes wrong beside them, or is about to end."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import redis

from seckill.engine import Engine
from seckill.errors import EngineClosed, InvalidInput
from seckill.status import Status
from tests.conftest import MakeEngine, MakeSale
from tests.queued import CROWD, admission, close_list, joined, place, until
from tests.support import make_item, make_sale


async def test_a_draw_calls_no_more_than_it_can_serve(engine: Engine, open_sale: MakeSale) -> None:
    """Each winner may take two of ten units, so there are five."""
    items = (make_item("a", total=10, limit_per_buyer=2),)
    sale = await open_sale(items=items, admission=admission("draw"), limit_per_buyer=0)
    for buyer in CROWD:
        await joined(engine, sale, buyer)
    await close_list(engine, sale)
    assert await engine.queue.draw(sale.id) is Status.DONE
    found = [await place(engine, sale, buyer) for buyer in CROWD]
    winners = [one for one in zip(CROWD, found, strict=True) if one[1].phase == "called"]
    assert len(winners) == 5
    for buyer, won in winners:
        got = await engine.reserve(sale.id, buyer, "k", {"a": 2}, token=won.token)
        assert got.status is Status.CREATED


def test_a_draw_needs_a_bound_of_what_a_winner_takes() -> None:
    items = (make_item("a", limit_per_buyer=0),)
    with pytest.raises(InvalidInput, match=r"limit_per_buyer: .* how many winners"):
        make_sale(items=items, admission=admission("draw"), limit_per_buyer=0)
    sale = make_sale(items=items, admission=admission("draw"), limit_per_buyer=3)
    assert sale.units_a_buyer == 3


async def test_a_sale_that_is_not_open_yet_is_drawn(make_engine: MakeEngine) -> None:
    engine = await make_engine(sweep_ms=20)
    sale = make_sale({"a": 1}, admission=admission("draw"))
    await engine.create(sale)
    for buyer in CROWD:
        await joined(engine, sale, buyer)
    await close_list(engine, sale)

    async def is_drawn() -> bool:
        return (await joined(engine, sale, CROWD[0])).phase in ("waiting", "unlikely")

    await until(is_drawn)


async def test_whoever_waits_for_a_look_is_told_when_it_ends(
    make_engine: MakeEngine, open_sale: MakeSale, client: redis.Redis
) -> None:
    engine = await make_engine()
    sale = await open_sale({"a": 1}, admission=admission())
    shard = await engine._shard(sale.id)
    client.execute_command("CLIENT", "PAUSE", 3_000, "ALL")
    try:
        asking = asyncio.create_task(engine.queue.place(sale.id, "ann", "a ticket"))
        await asyncio.sleep(0.1)
        await engine._forget(shard)
        with pytest.raises(EngineClosed):
            await asking
    finally:
        client.execute_command("CLIENT", "UNPAUSE")


async def test_a_clock_that_was_set_back_blinds_nobody(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 1}, admission=admission())
    await joined(engine, sale, "ann")
    queue = (await engine._shard(sale.id)).queue
    assert queue is not None
    ahead = msgspec.structs.replace(queue.view, raw_ms=queue.view.raw_ms + 60_000)
    queue.view = ahead
    await engine.queue.look(sale.id)
    assert queue.view.raw_ms < ahead.raw_ms
    # An older look that comes late is another matter.
    queue._learn(ahead, [], queue._learned_s - 1)
    assert queue.view.raw_ms < ahead.raw_ms


async def test_a_new_key_never_has_the_id_of_one_that_is_there(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 1}, admission=admission())
    before = await joined(engine, sale, "ann")
    queue = (await engine._shard(sale.id)).queue
    assert queue is not None
    ids = {queue.tokens.another() for _ in range(2_000)}
    assert len(ids) == 2_000
    assert (await engine.queue.place(sale.id, "ann", before.ticket)).ok
