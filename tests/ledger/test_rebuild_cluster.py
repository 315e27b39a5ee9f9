"""A sale of a cluster comes back although the list of sales is on another master."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

from seckill.engine import Engine
from seckill.keys import SALES, shard_keys
from seckill.ledger import Ledger, fence
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.status import Status
from tests.faults.topologies import ClusterGroup
from tests.support import make_sale

pytestmark = pytest.mark.slow


async def test_a_sale_of_another_master_than_the_list(tmp_path: Path) -> None:
    with ClusterGroup(tmp_path / "cluster", node_timeout_ms=600_000) as cluster:
        await asyncio.to_thread(cluster.wait_until_whole)
        listed = cluster.node_of(SALES)
        names = (f"evening-{number}" for number in count())
        name = next(n for n in names if cluster.node_of(shard_keys(n)[0]) is not listed)
        hosts = ",".join(f"{host}:{port}" for host, port in cluster.addresses)
        url = f"redis+cluster://{hosts}"
        async with (
            Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
            Engine(url, durability="memory", timeout_ms=60_000, sweep_ms=0) as engine,
        ):
            sale = make_sale({"a": 5}, id=name)
            assert (await engine.create(sale)).ok
            assert (await engine.open(name)).ok
            made = (await engine.reserve(name, "b", "k", {"a": 1})).order
            assert made is not None
            runner = LedgerRunner(engine, ledger)
            running = asyncio.create_task(runner.run())
            while (await ledger.counts(name))[1] < 1:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            runner.stop()
            await running
            await asyncio.to_thread(cluster.node_of(shard_keys(name)[0]).ask, "FLUSHALL")
            assert [each.sale for each in await fence.check(engine, ledger)] == [name]
            assert (await rebuild(engine, ledger, name)).done
            assert await engine.sales() == [name]
            assert (await engine.resume(name)).ok
            assert await engine.order(name, made.id) == made
            again = await engine.reserve(name, "b", "k", {"a": 1})
            assert again.status is Status.EXISTS
