"""Queues where something goes wrong beside them, or is about to end."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from seckill.embedded import EmbeddedServer
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


async def test_a_lull_says_nothing_of_the_pace(engine: Engine, open_sale: MakeSale) -> None:
    """The sale has been open for a minute, and nobody came: they wait by the rate, not by that."""
    sale = await open_sale({"a": 1_000}, admission=admission(rate_per_s=20))
    await engine.queue.look(sale.id)
    places = await asyncio.gather(*(joined(engine, sale, f"b{i}") for i in range(200)))
    last = max(places, key=lambda place: place.number)
    found = await engine.queue.place(sale.id, f"b{places.index(last)}", last.ticket)
    assert found.place is not None
    assert found.place.eta_ms is not None
    # Ten seconds, or less if this machine took some to get here.
    assert 0 < found.place.eta_ms <= 10_500
    await engine.pause(sale.id)
    await engine.queue.look(sale.id)
    # And for as long as it is paused nobody can tell.
    waits = await joined(engine, sale, f"b{places.index(last)}")
    assert (waits.phase, waits.eta_ms) == ("waiting", None)


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
    make_engine: MakeEngine, open_sale: MakeSale, server: EmbeddedServer
) -> None:
    engine = await make_engine()
    sale = await open_sale({"a": 1}, admission=admission())
    shard = await engine._shard(sale.id)
    # A pause would answer by itself some time, and lets nobody end it before.
    os.kill(server.pid, signal.SIGSTOP)
    try:
        asking = asyncio.create_task(engine.queue.place(sale.id, "ann", "a ticket"))
        await asyncio.sleep(0.1)
        await engine._forget(shard)
        with pytest.raises(EngineClosed):
            await asking
    finally:
        os.kill(server.pid, signal.SIGCONT)


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
