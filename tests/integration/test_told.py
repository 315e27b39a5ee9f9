"""What counts as told, and by whom (fencing.py, roll_call.py, settling.py). An engine vouches for a
server only with what a trusted one told it, and what it has read the next one must have, too. A
sale that was removed is missed by nobody, and a master that is none any more is left. With replicas
nobody is told of what only the master has, whatever else is in the same batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, RedisUnavailable
from seckill.fencing import run_id_of
from seckill.keys import crew_key, shard_keys
from seckill.ledger import Ledger, fence
from seckill.ledger.remove import remove
from seckill.ledger.run import LedgerRunner
from seckill.order import State
from seckill.pools import cut
from seckill.roll_call import WAIT_MS
from seckill.sale import Sale
from seckill.status import Status
from tests.faults.topologies import HOST, Link, Node, wait_until
from tests.integration import test_fencing, test_replicas
from tests.integration.test_fencing import LONG_MS, Disk, buy, engine_on, open_sale
from tests.integration.test_replicas import paused
from tests.support import make_sale, new_sale_id

CONFIG: dict[str, str | int] = {"appendonly": "yes", "appendfsync": "always"}

disk = test_fencing.disk
nodes = test_replicas.nodes


async def write(engine: Engine, ledger: Ledger, sale: Sale) -> None:
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a look", "creating it", "an order of a fenced sale"])
async def test_who_only_looked_at_a_server_does_not_vouch_for_it(
    disk: Disk, tmp_path: Path, how: str
) -> None:
    """Nobody who lived answers, so the ledger is waited for, however long it takes."""
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        async with engine_on(disk) as engine:
            sale = await open_sale(engine)
            first = (await buy(engine, sale, "1")).order
            assert first is not None
            await write(engine, ledger, sale)
            await disk.keep()
            # It claims, so that nobody has to wait for it here.
            assert await fence.check(engine, ledger) == []
            for buyer in ("2", "3"):
                assert (await buy(engine, sale, buyer)).ok
            await write(engine, ledger, sale)
        await disk.go_back()
        async with engine_on(disk) as fresh, asyncio.TaskGroup() as tasks:
            if how == "a look":
                assert (await fresh.snapshot(sale.id)).orders == 1
            elif how == "creating it":
                assert (await fresh.create(sale)).status is Status.EXISTS
            else:
                assert await fence.check(fresh, ledger)
                assert await fresh.order(sale.id, first.id) == first
                await disk.go_back()  # Nobody has found out yet what this one lacks.
            buying = tasks.create_task(buy(fresh, sale, "late"))

            def waited_in_vain() -> bool:
                # When it trusts a server, the roll call does away with this in the same step.
                waited_ms = disk.node.ask("HGET", crew_key(sale.id), "claims_waited_ms")
                return buying.done() or int(waited_ms or 0) >= WAIT_MS

            await asyncio.to_thread(wait_until, waited_in_vain, "the wait for those who lived")
            assert not buying.done(), "it was trusted without the ledger"
            assert [found.sale for found in await fence.check(fresh, ledger)] == [sale.id]
            assert (await buying).status is Status.FENCED
            assert (await fresh.snapshot(sale.id)).orders == 1


async def test_who_was_shown_an_order_does_not_trust_a_server_that_lacks_it(disk: Disk) -> None:
    """Also an engine that never took one itself: what it read it has told to somebody."""
    async with engine_on(disk) as reader:
        async with engine_on(disk) as maker:
            sale = await open_sale(maker)
            assert (await buy(maker, sale, "0")).ok
            await disk.keep()
            made = (await buy(maker, sale, "1")).order
            assert made is not None
            assert await reader.order(sale.id, made.id) == made
        # Who made it is gone, so nobody else remembers.
        await disk.go_back()
        with pytest.raises(OutcomeUnknown, match="stopped until what Redis has lost is back"):
            await reader.order(sale.id, made.id)
        assert (await buy(reader, sale, "2")).status is Status.FENCED
        snapshot = await reader.snapshot(sale.id)
        assert (snapshot.state, snapshot.orders) == ("fenced", 1)
        assert snapshot.reason == "behind: this server ends at event 3, events up to 4 are known"


@pytest.mark.parametrize(
    "restarted", [None, "buys", "reads", "confirms"], ids=lambda verb: verb or "no restart"
)
async def test_a_sale_that_was_removed_is_not_taken_for_a_loss(
    disk: Disk, tmp_path: Path, restarted: str | None
) -> None:
    """Where the server that told of it last is the one that has it no more, whichever way it told,
    and even if it had nothing new to tell since it was restarted."""
    async with engine_on(disk) as engine, engine_on(disk) as keeper:
        sale = make_sale({"a": 1})
        assert (await keeper.create(sale)).ok
        assert (await keeper.open(sale.id)).ok
        order = (await buy(engine, sale, "1")).order
        assert order is not None
        assert (await engine.confirm(sale.id, order.id, "paid")).ok
        assert (await engine.close(sale.id)).ok
        if restarted is not None:
            await asyncio.to_thread(disk.node.stop)
            await asyncio.to_thread(disk.node.start)
            if restarted == "buys":
                assert (await buy(engine, sale, "late")).status is Status.ENDED
            elif restarted == "reads":
                assert await engine.order(sale.id, order.id) is not None
            else:
                again = await engine.confirm(sale.id, order.id, "paid")
                assert again.status is Status.ALREADY
        async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await write(keeper, ledger, sale)
            assert (await remove(keeper, ledger, sale.id)).keys
        assert (await buy(engine, sale, "late")).status is Status.UNKNOWN_SALE
        assert disk.node.ask("EXISTS", shard_keys(sale.id)[0]) == 0
        assert await engine.sales() == []
        # Its id is free again, also for who knew what was there.
        assert (await engine.create(sale)).status is Status.CREATED
        assert (await engine.open(sale.id)).ok
        assert (await buy(engine, sale, "1")).status is Status.CREATED


class Vip(NamedTuple):
    """One address, the master that it leads to, and the replica that is to take its place."""

    address: Link
    master: Node
    replica: Node

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.address.port}"

    def fail_over(self) -> None:
        """As planned: nothing is lost, and no connection to the old master breaks."""
        # It is refused until the master has heard from its replica.
        wait_until(lambda: self.master.ask("FAILOVER"), "FAILOVER")
        wait_until(lambda: self.master.follows(self.replica.port), "the old master as a replica")
        self.address.target_port = self.replica.port

    def until_old_knows(self, header: str) -> None:
        """Until the old master has it from the new one that this is trusted with the sale."""
        new = self.replica.info("server")["run_id"]

        def has_it() -> bool:
            return run_id_of(str(self.master.ask("HGET", header, "server"))) == new

        wait_until(has_it, "the news of it")


@pytest.fixture
def vip(tmp_path: Path) -> Iterator[Vip]:
    with (
        Node(tmp_path / "a", CONFIG) as master,
        Node(tmp_path / "b", CONFIG | {"replicaof": f"{HOST} {master.port}"}) as replica,
        Link(master.port) as address,
    ):
        wait_until(lambda: replica.follows(master.port), "the replica's first sync")
        yield Vip(address, master, replica)


async def test_who_is_connected_to_a_demoted_master_goes_over_to_the_new_one(vip: Vip) -> None:
    """Behind one address, with every kind of call. It does nothing and breaks no connection, so by
    itself nothing tells that it is not the one to ask."""
    options: dict[str, Any] = {"timeout_ms": LONG_MS, "sweep_ms": 0}
    async with Engine(vip.url, **options) as idle, Engine(vip.url, **options) as busy:
        sale = await open_sale(busy)
        made = (await buy(idle, sale, "idle-0")).order
        assert made is not None
        assert await idle.order(sale.id, made.id) == made
        await asyncio.to_thread(vip.fail_over)
        # This one writes, is told that it can't there, and brings the new master into the sale.
        assert (await buy(busy, sale, "busy-1")).status is Status.CREATED
        await asyncio.to_thread(vip.until_old_knows, shard_keys(sale.id)[0])
        assert (await buy(idle, sale, "idle-1")).status is Status.CREATED
        assert (await idle.confirm(sale.id, made.id, "paid")).status is Status.DONE
        found = await idle.order(sale.id, made.id)
        assert found is not None
        assert found.state is State.CONFIRMED
        assert vip.replica.ask("HLEN", shard_keys(sale.id)[3]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("misses", [False, True])
async def test_a_failover_and_one_back_without_a_restart(tmp_path: Path, *, misses: bool) -> None:
    """The same process is the master for a second time. What it told in its first, and lost in
    between, does not pass for what it has told since; and who misses nothing notices nothing."""
    a, b = Node(tmp_path / "a", CONFIG), Node(tmp_path / "b", CONFIG)
    options: dict[str, Any] = {"timeout_ms": LONG_MS, "sweep_ms": 0}
    with a, b, Link(a.port) as replication, Link(a.port) as address, Link(a.port) as own:
        b.ask("REPLICAOF", HOST, replication.port)
        wait_until(lambda: b.follows(replication.port), "the replica")
        async with (
            Engine(f"redis://{HOST}:{own.port}", **options) as cut_off,
            Engine(f"redis://{HOST}:{address.port}", **options) as other,
        ):
            sale = await open_sale(other)
            key = shard_keys(sale.id)[0]
            assert (await buy(other, sale, "other-0")).ok
            assert (await buy(cut_off, sale, "cut-0")).ok

            async def on_both() -> None:
                seq = a.ask("HGET", key, "seq")
                there = wait_until, lambda: b.ask("HGET", key, "seq") == seq, "it on the replica"
                await asyncio.to_thread(*there)

            await on_both()
            if misses:
                replication.partition()
            told = [(await buy(cut_off, sale, f"cut-{number}")).order for number in (1, 2, 3)]
            if not misses:
                await on_both()
            own.partition()

            def lead(new: Node, old: Node) -> None:
                new.ask("REPLICAOF", "NO", "ONE")
                old.ask("REPLICAOF", HOST, new.port)
                wait_until(lambda: old.follows(new.port), "the old master as a replica")
                address.target_port = new.port
                address.cut()

            await asyncio.to_thread(lead, b, a)
            assert (await buy(other, sale, "other-1")).ok
            await asyncio.to_thread(lead, a, b)
            for number in range(2, 5):
                assert (await buy(other, sale, f"other-{number}")).ok
            own.heal()
            late = await buy(cut_off, sale, "cut-4")
            assert late.status is (Status.FENCED if misses else Status.CREATED)
            if not misses:
                for order in told:
                    assert order is not None
                    assert await cut_off.order(sale.id, order.id) is not None


@pytest.mark.parametrize("missing_is", ["first", "last"])
async def test_a_sale_that_is_not_there_hurries_nobody_in_its_batch(
    nodes: tuple[Node, Node], missing_is: str
) -> None:
    """With it no note can be left behind which to wait for the replica; so one is left elsewhere,
    and what the batch has read is told when the replica has it."""
    master, replica = nodes

    def waits() -> int:
        return int(master.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"])

    async with test_replicas.engine_on(master) as reader, asyncio.TaskGroup() as tasks:
        sale = await test_replicas.open_sale(reader)
        assert (await reader.snapshot(sale.id)).orders == 0  # So that it knows the sale.
        # Nothing but what is asked for here waits for the replica.
        await reader._roll.aclose()
        async with paused(replica):
            async with test_replicas.engine_on(master, durability="memory") as careless:
                made = (await buy(careless, sale, "b")).order
                assert made is not None
            before = waits()
            missing = new_sale_id()
            if missing_is == "first":
                opening = tasks.create_task(reader.open(missing))
                reading = tasks.create_task(reader.order(sale.id, made.id))
            else:
                reading = tasks.create_task(reader.order(sale.id, made.id))
                opening = tasks.create_task(reader.open(missing))
            await asyncio.sleep(0)
            # So they leave together.
            assert len(reader._calls.pipe(shard_keys(sale.id)[0])._waiting) == 2

            def waits_again() -> bool:
                # Where no note was left the wait is over at once, and there is no second one. (On
                # Redis 7.0 it is not, if anything at all was asked before it on that connection.)
                return reading.done() or waits() >= before + 2

            await asyncio.to_thread(wait_until, waits_again, "two waits")
            assert not reading.done(), "it was told what no replica has"
        assert await reading == made
        assert (await opening).status is Status.UNKNOWN_SALE


@pytest.mark.parametrize("how", ["closed", "never got through"])
async def test_an_engine_that_is_started_again_answers_to_its_name(
    tmp_path: Path, how: str
) -> None:
    """Or nobody would hear what it was told, and it would never learn who is trusted."""
    with Node(tmp_path / "a", CONFIG) as node, Link(node.port) as address:
        engine = Engine(f"redis://{HOST}:{address.port}", timeout_ms=LONG_MS, sweep_ms=0)
        if how == "closed":
            await engine.start()
            await engine.aclose()
        else:
            address.target_port = 1
            engine._calls._timeout_s = 0.1
            with pytest.raises(RedisUnavailable):
                await engine.start()
            address.target_port, engine._calls._timeout_s = node.port, LONG_MS / 1000
        async with engine:
            sale = await open_sale(engine)
            assert (await buy(engine, sale, "1")).ok
            crew = crew_key(sale.id), engine._roll._name
            answered = wait_until, lambda: node.ask("HEXISTS", *crew) == 1, "its name in the crew"
            await asyncio.to_thread(*answered)


@pytest.mark.parametrize("led_by", ["an answer under way", "the pipe", "the lane"])
async def test_a_connection_to_a_master_of_before_leads_nobody(tmp_path: Path, led_by: str) -> None:
    """One address, behind which another server is the master now; the old one goes on as if it
    were, and some connections to it have survived. What it says counts for nothing."""
    a, b = Node(tmp_path / "a", CONFIG), Node(tmp_path / "b", CONFIG)
    with a, b, Link(a.port) as address:
        b.ask("REPLICAOF", HOST, address.port)
        wait_until(lambda: b.follows(address.port), "the replica")
        url = f"redis://{HOST}:{address.port}"
        async with Engine(url, timeout_ms=LONG_MS, sweep_ms=0) as engine:
            sale = await open_sale(engine)
            key = shard_keys(sale.id)[0]
            orders = [(await buy(engine, sale, f"{number}")).order for number in range(2)]
            assert orders[0] is not None
            assert orders[1] is not None
            assert (await engine.confirm(sale.id, orders[0].id, "paid")).ok
            seq = a.ask("HGET", key, "seq")
            there = wait_until, lambda: b.ask("HGET", key, "seq") == seq, "it on the replica"
            await asyncio.to_thread(*there)
            pool, pipe = engine._calls.servers.pool(key), engine._calls.pipe(key)
            kept = {slot._connection for slot in pipe._idle}
            under_way = None
            if led_by == "an answer under way":
                a.pause()
                idle = list(pipe._idle)
                confirming = engine.confirm(sale.id, orders[1].id, "paid-1")
                under_way = asyncio.create_task(confirming)
                for _ in range(9):
                    await asyncio.sleep(0)
                [busy] = [slot for slot in idle if slot not in pipe._idle]
                kept = {busy._connection}
            elif led_by == "the lane":
                kept = set(pool._made) - kept
            b.ask("REPLICAOF", "NO", "ONE")
            address.target_port = b.port
            for connection in list(pool._made):
                if connection not in kept:
                    cut(connection)
            if led_by == "the lane":
                # Until somebody has found the new one, nobody can know that there is one.
                assert await engine.order(sale.id, orders[1].id) is not None
            for number in range(2, 5):
                assert (await buy(engine, sale, f"{number}")).status is Status.CREATED
            assert b.ask("HLEN", shard_keys(sale.id)[3]) == 5
            if under_way is not None:
                await asyncio.to_thread(a.unpause)
                assert (await under_way).ok
                found = await engine.order(sale.id, orders[1].id)
                assert found is not None
                assert found.state is State.CONFIRMED
            assert b.ask("HGET", key, "state") == "open"
