"""``durability="replicas:N"``: nobody is told of what a failover could lose. With a real replica,
which is stopped in its tracks when it must not have something."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from seckill.admission import Admission
from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, RedisUnavailable, UnsuitableServer
from seckill.keys import LEDGER_MARK, shard_keys
from seckill.ledger import Ledger, fence
from seckill.order import Outcome
from seckill.sale import Sale
from seckill.status import Status
from tests.faults.topologies import HOST, Node, wait_until
from tests.ledger.stories import read_known
from tests.support import make_sale

CONFIG: dict[str, str | int] = {"appendonly": "yes", "min-replicas-to-write": 1}
# No test waits for a replica to be missed by its master.
CONFIG["min-replicas-max-lag"] = 600
SHORT_MS = 500
LONG_MS = 120_000
# In which a sale must be trusted that nothing is missing of.
FAILOVER_MS = 30_000


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    folder = tmp_path_factory.mktemp("replicas")
    with Node(folder / "master", CONFIG) as master:
        follows = {"replicaof": f"{HOST} {master.port}"}
        with Node(folder / "replica", follows) as replica:
            wait_until(lambda: replica.follows(master.port), "the replica's first sync")
            online = {"state": "online"}.items()
            wait_until(lambda: online <= master.info("replication")["slave0"].items(), "the same")
            yield master, replica


@asynccontextmanager
async def engine_on(node: Node, **options: Any) -> AsyncIterator[Engine]:
    options = {"durability": "replicas:1", "timeout_ms": LONG_MS, "sweep_ms": 0} | options
    async with Engine(f"redis://{HOST}:{node.port}", **options) as engine:
        yield engine


@asynccontextmanager
async def paused(node: Node) -> AsyncIterator[None]:
    await asyncio.to_thread(node.pause)
    try:
        yield
    finally:
        await asyncio.to_thread(node.unpause)


async def open_sale(engine: Engine, units: int = 10, **fields: Any) -> Sale:
    sale = make_sale({"a": units}, **fields)
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


async def buy(engine: Engine, sale: Sale, buyer: str) -> Outcome:
    return await engine.reserve(sale.id, buyer, "k", {"a": 1})


async def test_an_order_is_told_when_the_replica_has_it(nodes: tuple[Node, Node]) -> None:
    master, replica = nodes
    async with engine_on(master) as patient, engine_on(master, timeout_ms=SHORT_MS) as hasty:
        assert patient.facts is not None
        assert patient.facts.replicas == 1
        sale = await open_sale(patient)
        made = await buy(patient, sale, "first")
        assert made.status is Status.CREATED
        await buy(hasty, sale, "warm")  # So that its lane is open.
        async with paused(replica):
            with pytest.raises(OutcomeUnknown):
                await buy(hasty, sale, "hasty")
            assert made.order is not None
            with pytest.raises(OutcomeUnknown):
                await hasty.confirm(sale.id, made.order.id, "paid")
            waiting = asyncio.create_task(buy(patient, sale, "patient"))
            # It is decided, and its caller is not told.
            orders = f"sk:{{{sale.id}:0}}:orders"
            wait = asyncio.to_thread(wait_until, lambda: master.ask("HLEN", orders) == 4, "all")
            await wait
            assert not waiting.done()
        # Sent again or not, it is the one order of its key.
        assert (await waiting).ok
        assert (await buy(patient, sale, "hasty")).status is Status.EXISTS
        assert (await patient.confirm(sale.id, made.order.id, "paid")).ok
        assert (await patient.snapshot(sale.id)).orders == 4


async def test_what_is_found_again_on_a_fresh_connection_waits_as_well(
    nodes: tuple[Node, Node],
) -> None:
    """WAIT answers at once where its own connection has written nothing."""
    master, replica = nodes
    async with engine_on(master) as engine:
        sale = await open_sale(engine)
        made = await buy(engine, sale, "b")
        assert made.order is not None
        async with paused(replica):
            # Something that the replica has not, so that everything after it has to wait.
            await asyncio.to_thread(master.ask, "SET", "unseen", "1")
            async with engine_on(master, timeout_ms=SHORT_MS) as fresh:
                with pytest.raises(OutcomeUnknown):
                    await buy(fresh, sale, "b")
                with pytest.raises(OutcomeUnknown):
                    await fresh.order(sale.id, made.order.id)
        async with engine_on(master) as fresh:
            assert (await buy(fresh, sale, "b")).status is Status.EXISTS


async def test_what_is_found_again_where_the_batch_before_has_written_waits_as_well(
    nodes: tuple[Node, Node],
) -> None:
    """Behind such a batch no note is sent along."""
    master, replica = nodes
    for what in ("order", "ticket"):
        async with engine_on(master, timeout_ms=SHORT_MS) as engine:
            admission = Admission(mode="queue") if what == "ticket" else None
            sale = await open_sale(engine, admission=admission)

            async def ask(buyer: str, what: str = what, sale: Sale = sale) -> Any:
                if what == "order":
                    return (await buy(engine, sale, buyer)).status.name
                return (await engine.queue.join(sale.id, buyer)).status.name

            assert await ask("b") == "CREATED"
            async with paused(replica):
                await asyncio.to_thread(master.ask, "SET", "unseen", "1")
                with pytest.raises(OutcomeUnknown):
                    await ask("b")
            assert await ask("b") == "EXISTS"


async def test_a_note_is_written_only_where_a_batch_has_not(nodes: tuple[Node, Node]) -> None:
    master, _ = nodes

    def scripts() -> int:
        return int(master.info("commandstats")["cmdstat_evalsha"]["calls"])

    async with engine_on(master) as engine:
        sale = await open_sale(engine, 100)
        await engine._roll.aclose()
        await buy(engine, sale, "warm")
        before = scripts()
        for number in range(10):
            assert (await buy(engine, sale, f"b{number}")).ok
        assert scripts() - before == 10
        for number in range(10):
            assert (await buy(engine, sale, f"b{number}")).ok
        assert scripts() - before == 10 + 20


async def test_scripts_that_were_forgotten(nodes: tuple[Node, Node]) -> None:
    master, _ = nodes
    async with engine_on(master) as engine:
        sale = await open_sale(engine)
        for buyer in ("1", "2"):
            await asyncio.to_thread(master.ask, "SCRIPT", "FLUSH")
            made = await buy(engine, sale, buyer)
            assert made.order is not None
            await asyncio.to_thread(master.ask, "SCRIPT", "FLUSH")
            assert (await engine.release(sale.id, made.order.id)).ok


async def test_a_consumer_gets_no_event_that_a_failover_could_lose(
    nodes: tuple[Node, Node],
) -> None:
    master, replica = nodes
    async with engine_on(master) as engine:
        sale = await open_sale(engine)
        batches = engine.events(sale.id, "mall", follow=True)
        assert [event.kind for event in await anext(batches)] == ["sale_created", "sale_opened"]

        def waits() -> int:
            return int(master.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"])

        async with paused(replica):
            with pytest.raises(OutcomeUnknown):
                async with engine_on(master, timeout_ms=SHORT_MS) as hasty:
                    await buy(hasty, sale, "b")
            before = waits()
            reading = asyncio.ensure_future(anext(batches))
            # It has read, waited once in vain, and waits again.
            await asyncio.to_thread(wait_until, lambda: waits() >= before + 2, "two waits")
            assert not reading.done()
        assert [event.kind for event in await reading] == ["order_held"]
        await batches.aclose()


async def test_servers_that_can_promise_nothing(nodes: tuple[Node, Node]) -> None:
    master, replica = nodes
    url = f"redis://{HOST}:{master.port}"
    with pytest.raises(RedisUnavailable, match="waits for 2 replicas, and 1 follow"):
        await Engine(url, durability="replicas:2").start()
    with pytest.raises(UnsuitableServer, match="is a slave"):
        await Engine(f"redis://{HOST}:{replica.port}", durability="replicas:1").start()
    for name, wrong, right, why in (
        ("min-replicas-to-write", "0", "1", "goes on as a master when nobody follows it"),
        ("appendonly", "no", "yes", "keeps no append-only file"),
    ):
        await asyncio.to_thread(master.ask, "CONFIG", "SET", name, wrong)
        try:
            with pytest.raises(UnsuitableServer, match=why) as caught:
                await Engine(url, durability="replicas:1").start()
            assert "--durability" in str(caught.value)
            assert "replicas:N" not in str(caught.value)
        finally:
            await asyncio.to_thread(master.ask, "CONFIG", "SET", name, right)


async def test_the_ledger_sees_no_event_that_a_failover_could_lose(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """Else it would fence the sale after a failover that has lost nothing anybody was told of."""
    master, replica = nodes
    async with (
        engine_on(master) as engine,
        engine_on(master, timeout_ms=SHORT_MS) as hasty,
        Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
    ):
        await asyncio.to_thread(master.ask, "DEL", LEDGER_MARK)
        sales = [await open_sale(engine) for _ in range(3)]
        for sale in sales:
            await ledger.know(await read_known(engine, sale.id))
        # Two are those of its making and opening.
        assert await fence.check(hasty, ledger) == []
        assert await seen(ledger, sales) == [2, 2, 2]
        async with paused(replica):
            for sale in sales:
                with pytest.raises(OutcomeUnknown):
                    await buy(hasty, sale, "b")
            assert await fence.check(hasty, ledger) == []
            assert await seen(ledger, sales) == [2, 2, 2]
        while await seen(ledger, sales) != [3, 3, 3]:
            assert await fence.check(engine, ledger) == []


async def test_the_ledger_speaks_first_for_a_sale_whose_engines_have_all_died(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """Nobody else was told anything, so the sale waits for the ledger; and so may the ledger not
    wait for the sale to be trusted, to see how far the replicas are."""
    master, _ = nodes
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        async with engine_on(master) as engine:
            await asyncio.to_thread(master.ask, "DEL", LEDGER_MARK)
            sale = await open_sale(engine)
            await ledger.know(await read_known(engine, sale.id))
            assert await fence.check(engine, ledger) == []
            assert (await buy(engine, sale, "before")).ok
        assert await seen(ledger, [sale]) == [2]
        # As a failover leaves it: the one who was trusted was another server.
        await asyncio.to_thread(master.ask, "HSET", shard_keys(sale.id)[0], "server", "f" * 40)
        async with (
            engine_on(master, timeout_ms=FAILOVER_MS) as engine,
            engine_on(master, timeout_ms=SHORT_MS) as keeper,
        ):
            buying = asyncio.create_task(buy(engine, sale, "after"))
            while not buying.done():
                with contextlib.suppress(OutcomeUnknown, RedisUnavailable):
                    assert await fence.check(keeper, ledger) == []
                await asyncio.sleep(0.05)
            assert (await buying).status is Status.CREATED
            while await seen(ledger, [sale]) != [4]:
                with contextlib.suppress(OutcomeUnknown, RedisUnavailable):
                    assert await fence.check(keeper, ledger) == []


async def seen(ledger: Ledger, sales: list[Sale]) -> list[int]:
    return [(await ledger.sale(sale.id))["seen_seq"] for sale in sales]
