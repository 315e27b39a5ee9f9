"""A turn is as long as it was promised, whatever comes between."""

from __future__ import annotations

import pytest
import redis

from seckill.engine import Engine
from seckill.keys import queue_keys
from seckill.status import Status
from tests.conftest import MakeEngine, MakeSale
from tests.queued import admission, called, close_list, joined, place

LIFE_MS = 60_000


@pytest.mark.parametrize("mode", ["queue", "draw"])
async def test_a_token_is_good_after_a_long_pause(
    make_engine: MakeEngine, open_sale: MakeSale, client: redis.Redis, mode: str
) -> None:
    one, two = await make_engine(), await make_engine()
    sale = await open_sale({"a": 9}, admission=admission(mode, token_life_ms=LIFE_MS))
    await one.queue.look(sale.id)
    _an_hour_ago_it_paused(client, sale.id)
    await joined(one, sale, "ann")
    if mode == "draw":
        await close_list(one, sale)
        assert await one.queue.draw(sale.id) is Status.DONE
    turn = await called(one, sale, "ann")
    await one.pause(sale.id)
    for engine in (one, two):
        await engine.queue.look(sale.id)
    _an_hour_passes(client, sale.id)
    waits = [await place(engine, sale, "ann") for engine in (one, two)]
    # The same token, though it is shown to end later than before.
    assert {(found.phase, found.token) for found in waits} == {("called", turn.token)}
    # On the server's clock, whatever the queue's says.
    for found in (turn, *waits):
        assert LIFE_MS - 30_000 < found.expires_ms - found.at_ms <= LIFE_MS
    paused = await two.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert paused.status is Status.PAUSED
    await one.resume(sale.id)
    bought = await two.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert bought.status is Status.CREATED


async def test_a_minute_of_a_sale_that_sells_is_a_minute(
    engine: Engine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 9}, admission=admission(token_life_ms=LIFE_MS))
    await joined(engine, sale, "ann")
    turn = await called(engine, sale, "ann")
    for _ in range(LIFE_MS // 10_000):
        # Ten seconds at a time, for more than that without a look is an outage.
        client.hincrby(queue_keys(sale.id)[0], "seen_ms", -10_000)
        await engine.queue.look(sale.id)
    refused = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert refused.status is Status.TOKEN_EXPIRED
    assert (await place(engine, sale, "ann")).token != turn.token  # She has joined again.


def _an_hour_ago_it_paused(client: redis.Redis, sale: str) -> None:
    """So its clock is an hour behind the server's."""
    for field in ("clock_ms", "paced_ms"):
        client.hincrby(queue_keys(sale)[0], field, -3_600_000)


def _an_hour_passes(client: redis.Redis, sale: str) -> None:
    client.hincrby(queue_keys(sale)[0], "seen_ms", -3_600_000)
