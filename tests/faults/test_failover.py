"""A master dies under load, behind sentinels and in a cluster: nobody who is patient notices, and
nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.sale import Sale
from seckill.verify import verify
from tests.faults.test_servers import by_cluster, by_sentinels
from tests.faults.topologies import HOST, ClusterGroup, Node, SentinelGroup
from tests.support import make_sale

pytestmark = [pytest.mark.slow, pytest.mark.once, pytest.mark.timeout(600)]

CONFIG: dict[str, str | int] = {"appendonly": "yes", "min-replicas-to-write": 1}
PATIENT_MS = 240_000
CALLERS = 4
MORE = 20


class Group(NamedTuple):
    """Real servers; who has a key, and waiting until somebody else has it."""

    url: str
    durability: str
    owner: Callable[[str], Node]
    until_replaced: Callable[[str, Node], object]


@pytest.fixture(params=["sentinel", "cluster"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    if request.param == "sentinel":
        with SentinelGroup(tmp_path, config=CONFIG) as servers:
            master = servers.nodes[0]
            url = by_sentinels(port for _, port in servers.addresses)
            replaced = lambda key, old: servers.wait_for_new_master(old)  # noqa: E731
            yield Group(url, "replicas:2", lambda key: master, replaced)
    else:
        with ClusterGroup(tmp_path, config=CONFIG) as cluster:
            replaced = cluster.wait_for_new_master
            yield Group(by_cluster(cluster), "replicas:1", cluster.node_of, replaced)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_new_master_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fsync: str
) -> None:
    """It may be configured otherwise than the one that was checked at the start."""
    config: dict[str, str | int] = {"appendonly": "yes", "appendfsync": "always"}
    with SentinelGroup(tmp_path, config=config) as servers:
        first, *others = servers.nodes
        for node in others:
            node.ask("CONFIG", "SET", "appendfsync", fsync)
        url = by_sentinels(port for _, port in servers.addresses)
        async with Engine(url, durability="aof", timeout_ms=PATIENT_MS, sweep_ms=0) as engine:
            await asyncio.to_thread(first.kill)
            new = await asyncio.to_thread(servers.wait_for_new_master, first)
            said = f"{HOST}:{new.port} is a master now"
            if fsync != "always":
                said += ", and should not be: appendfsync is 'everysec'"
            async with asyncio.timeout(PATIENT_MS / 1000):
                while not any(line.startswith(said) for line in caplog.messages):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            # Once, and it is sold on.
            sale = make_sale({"a": 1})
            assert (await engine.create(sale)).ok
            assert sum(line.startswith(said) for line in caplog.messages) == 1


class Load:
    """Callers who buy and pay without a pause, through engines of their own."""

    def __init__(self, engines: list[Engine], sale: Sale) -> None:
        self._sale = sale
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.longest_s = 0.0
        self._ends = False
        self._tasks = [
            asyncio.create_task(self._call(engine, f"{number}-{caller}"))
            for number, engine in enumerate(engines)
            for caller in range(CALLERS)
        ]

    async def _call(self, engine: Engine, who: str) -> None:
        turn = 0
        while not self._ends:
            turn += 1
            began_s = time.monotonic()
            try:
                held = await engine.reserve(self._sale.id, f"{who}-{turn}", "k", {"a": 1})
                assert held.order is not None, held
                self.acknowledged.append(held.order.id)
                if turn % 3 == 0:
                    paid = await engine.confirm(self._sale.id, held.order.id, f"p-{who}-{turn}")
                    assert paid.ok, paid
            except Exception as error:  # noqa: BLE001 - whatever it is, no caller may see it
                self.errors.append(repr(error))
                return
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Until so many more orders are acknowledged, or somebody has met an error."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(PATIENT_MS / 1000):
            while len(self.acknowledged) < wanted and not self.errors:  # noqa: ASYNC110 - they go on
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        self._ends = True
        await asyncio.gather(*self._tasks)


async def test_a_dead_master_is_noticed_by_nobody(group: Group) -> None:
    options = {"durability": group.durability, "timeout_ms": PATIENT_MS}
    async with Engine(group.url, **options) as one, Engine(group.url, **options) as other:
        sale = make_sale({"a": 100_000})
        assert (await one.create(sale)).ok
        assert (await one.open(sale.id)).ok
        load = Load([one, other], sale)
        try:
            await load.more(MORE)
            key = shard_keys(sale.id)[0]
            old = group.owner(key)
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(group.until_replaced, key, old)
            # With all replicas needed, the sale goes on when the dead one is back as one of them.
            await asyncio.to_thread(old.start)
            await load.more(MORE)
        finally:
            await load.end()
        print(f"the longest call took {load.longest_s:.2f} s")
        assert load.errors == []
        found = [await one.order(sale.id, order) for order in load.acknowledged]
        assert None not in found
        snapshot = await other.snapshot(sale.id)
        assert (snapshot.state, snapshot.orders) == ("open", len(load.acknowledged))
        assert (await verify(one, sale.id)).ok
