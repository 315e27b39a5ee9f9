"""A connection that was cut, as all are that lead to a master which is none any more: whoever used
it asks again elsewhere, on either event loop. uvloop has an exception of its own for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.pools import cut
from seckill.status import Status
from tests.support import make_sale

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def sell_on_cut_connections(url: str) -> None:
    async with Engine(url, durability="memory", timeout_ms=60_000, sweep_ms=0) as engine:
        sale = make_sale({"a": 10})
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok

        async def buy(buyer: str) -> Status:
            return (await engine.reserve(sale.id, buyer, "k", {"a": 1})).status

        assert await buy("first") is Status.CREATED
        # At once, and after the loop has had a look at what is cut.
        for turns in (0, 3):
            for pool in {engine._calls.servers.pool(sale.id)}:
                for connection in list(pool._made):
                    cut(connection)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert await buy(f"after-{turns}") is Status.CREATED
            order = (await engine.reserve(sale.id, "first", "k", {"a": 1})).order
            assert order is not None
            assert (await engine.order(sale.id, order.id)) == order
        assert (await engine.snapshot(sale.id)).orders == 3


@pytest.mark.parametrize("loop", LOOPS)
def test_whoever_used_it_asks_again(server: EmbeddedServer, loop: str) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] = LOOPS[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(sell_on_cut_connections(server.url))
