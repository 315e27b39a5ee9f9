"""A server that comes back with less than anybody was told of sells nothing (fencing.py,
roll_call.py). Real servers, killed and started again on what an earlier copy of their disk has."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, UnknownSale
from seckill.keys import crew_key, shard_keys
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
from seckill.ledger.remove import remove
from seckill.ledger.run import LedgerRunner
from seckill.order import Outcome
from seckill.sale import Sale
from seckill.status import Status
from seckill.verify import verify
from tests.faults.link import Link
from tests.faults.topologies import HOST, Node, wait_until
from tests.support import make_sale

UNITS = 12
LOST = r"lost: this server has nothing of it, events up to [34] are known"
LONG_MS = 120_000


class Disk:
    """A node, and what its disk held at some moment."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.url = f"redis://{HOST}:{node.port}"
        self._data = node.folder / "data"
        self._copy = node.folder.with_name(f"{node.folder.name}-copy")

    async def restart(self) -> None:
        await asyncio.to_thread(self.node.kill)
        await asyncio.to_thread(self.node.start)

    async def keep(self) -> None:
        """With the server down, so that the copy is one of a moment."""
        await asyncio.to_thread(self.node.kill)
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._data, self._copy)
        await asyncio.to_thread(self.node.start)

    async def go_back(self) -> None:
        """To what was kept."""
        await asyncio.to_thread(self.node.kill)
        shutil.rmtree(self._data)
        shutil.copytree(self._copy, self._data)
        await asyncio.to_thread(self.node.start)

    async def wipe(self) -> None:
        await asyncio.to_thread(self.node.kill)
        shutil.rmtree(self._data)
        self._data.mkdir()
        await asyncio.to_thread(self.node.start)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    config: dict[str, str | int] = {"appendonly": "yes", "appendfsync": "always"}
    with Node(tmp_path / "server", config) as node:
        yield Disk(node)


@asynccontextmanager
async def engine_on(disk: Disk, **options: Any) -> AsyncIterator[Engine]:
    async with Engine(disk.url, **({"timeout_ms": LONG_MS, "sweep_ms": 0} | options)) as engine:
        yield engine


async def open_sale(engine: Engine) -> Sale:
    sale = make_sale({"a": UNITS})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


async def buy(engine: Engine, sale: Sale, buyer: str) -> Outcome:
    """As a caller does that is told "unknown", because its first attempt went to a server that died
    meanwhile: again, with the same key."""
    async with asyncio.timeout(LONG_MS / 1000):
        while True:
            with suppress(OutcomeUnknown):
                return await engine.reserve(sale.id, buyer, "k", {"a": 1})


async def test_a_restart_that_lost_nothing_is_seen_by_nobody(disk: Disk) -> None:
    async with engine_on(disk) as one, engine_on(disk) as other:
        sale = await open_sale(one)
        for turn in range(3):
            for who, engine in (("one", one), ("other", other)):
                assert (await buy(engine, sale, f"{who}-{turn}")).status is Status.CREATED
            await disk.restart()
        assert (await buy(one, sale, "one-0")).status is Status.EXISTS
        assert (await one.snapshot(sale.id)).orders == 6
        assert (await verify(one, sale.id)).ok


async def test_who_was_told_less_does_not_sell_what_others_were_told_of(disk: Disk) -> None:
    async with engine_on(disk) as knows, engine_on(disk) as knows_less:
        sale = await open_sale(knows)
        for buyer in ("1", "2"):
            assert (await buy(knows_less, sale, buyer)).ok
        await disk.keep()
        made = [await buy(knows, sale, buyer) for buyer in ("3", "4", "5")]
        crew = crew_key(sale.id)
        await asyncio.to_thread(
            wait_until, lambda: len(disk.node.ask("HKEYS", crew)) == 3, "both in the crew"
        )
        await disk.keep()  # So that the crew that comes back is the one that lived.
        assert (await buy(knows, sale, "6")).ok
        await disk.go_back()
        refused = await asyncio.gather(*(buy(knows_less, sale, f"late-{n}") for n in range(20)))
        assert {outcome.status for outcome in refused} == {Status.FENCED}
        assert (await buy(knows, sale, "6")).status is Status.FENCED
        snapshot = await knows.snapshot(sale.id)
        assert (snapshot.state, snapshot.orders) == ("fenced", 5)
        assert "are known" in snapshot.reason
        # What is there is there; of what is not there nobody says that it never was.
        assert made[0].order is not None
        assert await knows.order(sale.id, made[0].order.id) is not None
        with pytest.raises(OutcomeUnknown, match="stopped"):
            await knows.order(sale.id, "00" + "f" * 22)


async def test_a_wiped_server_sells_nothing(disk: Disk) -> None:
    async with engine_on(disk) as engine, engine_on(disk) as other:
        sale = await open_sale(engine)
        assert (await buy(engine, sale, "1")).ok
        assert (await buy(other, sale, "2")).ok
        await disk.wipe()
        for who in (engine, other):
            assert (await buy(who, sale, "3")).status is Status.FENCED
        # Nor is it made anew by who creates it once more.
        assert (await engine.create(sale)).status is Status.EXISTS
        header = shard_keys(sale.id)[0]
        assert disk.node.ask("HGET", header, "state") == "fenced"
        # Said by whichever engine asked first: there is no ledger that could have known.
        reason = disk.node.ask("HGET", header, "reason")
        assert re.fullmatch(LOST, reason), reason


async def test_a_sale_that_was_made_anew_is_not_taken_for_a_loss(disk: Disk) -> None:
    async with engine_on(disk) as engine, engine_on(disk) as other:
        sale = await open_sale(engine)
        for buyer in ("1", "2", "3"):
            assert (await buy(engine, sale, buyer)).ok
        disk.node.ask("DEL", *shard_keys(sale.id), crew_key(sale.id))
        assert (await other.create(sale)).status is Status.CREATED
        assert (await other.open(sale.id)).ok
        assert (await buy(engine, sale, "1")).status is Status.CREATED
        await disk.restart()
        assert (await buy(engine, sale, "2")).status is Status.CREATED
        assert (await other.snapshot(sale.id)).orders == 2


@pytest.mark.parametrize("way", ["buys", "asks", "looks", "creates"])
async def test_who_was_cut_off_is_believed_when_it_comes_back(
    disk: Disk, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than a roll call waits, on a server that went back and has sold past it meanwhile."""
    with Link(disk.node.port) as link:
        cut_url = f"redis://{HOST}:{link.port}"
        async with Engine(cut_url, timeout_ms=LONG_MS, sweep_ms=0) as cut:
            async with engine_on(disk) as other:
                sale = await open_sale(other)
                first = await buy(other, sale, "1")
                assert first.order is not None
                await disk.keep()
                told = [await buy(cut, sale, buyer) for buyer in ("2", "3", "4")]
                assert all(outcome.ok for outcome in told)
                # Nothing of it asks by itself: it was told the last thing a while ago.
                cut._roll._ticker.cancel()  # type: ignore[union-attr]
                link.partition()
            await disk.go_back()
            async with engine_on(disk) as fresh:
                for n in range(6):
                    assert (await buy(fresh, sale, f"late-{n}")).status is Status.CREATED
                # There was one to wait for, and the log says that it is over.
                assert any("is trusted now, after" in said for said in caplog.messages)
                link.heal()
                if way == "looks":
                    await cut.snapshot(sale.id)
                if way == "creates":
                    assert (await cut.create(sale)).status is Status.EXISTS
                if way == "asks":
                    # For one that is there: it is not sold on all the same.
                    assert (await cut.order(sale.id, first.order.id)) == first.order
                    assert (await fresh.snapshot(sale.id)).state == "fenced"
                assert (await buy(cut, sale, "5")).status is Status.FENCED
                assert (await buy(fresh, sale, "6")).status is Status.FENCED
                snapshot = await fresh.snapshot(sale.id)
                assert snapshot.reason.startswith("behind: of what a server before this one did, ")


async def test_who_was_told_by_a_server_that_nobody_remembers_is_asked_once(disk: Disk) -> None:
    async with engine_on(disk, timeout_ms=10_000) as idle, engine_on(disk) as other:
        sale = await open_sale(other)
        assert (await buy(idle, sale, "1")).ok
        await disk.restart()
        assert (await buy(other, sale, "2")).ok
        disk.node.ask("HSET", shard_keys(sale.id)[0], "servers", "another:99")
        order = (await buy(idle, sale, "1")).order
        assert order is not None
        assert await idle.order(sale.id, order.id) == order


@pytest.mark.parametrize("sold_since", [0, 5])
async def test_a_wiped_server_on_which_somebody_made_the_sale_anew(
    disk: Disk, sold_since: int
) -> None:
    """As the README begins, by a process that starts: it wins against who knew the old one."""
    async with engine_on(disk) as knows:
        sale = await open_sale(knows)
        assert (await buy(knows, sale, "1")).ok
        # It asks when it wants something, and not before others have sold.
        knows._roll._ticker.cancel()  # type: ignore[union-attr]
        await disk.wipe()
        async with engine_on(disk) as starts:
            assert (await starts.create(sale)).status is Status.CREATED
            assert (await starts.open(sale.id)).ok
            for n in range(sold_since):
                assert (await buy(starts, sale, f"late-{n}")).ok
            assert (await buy(knows, sale, "2")).status is Status.FENCED
            assert (await buy(starts, sale, "3")).status is Status.FENCED
            assert (await starts.snapshot(sale.id)).reason.startswith("made anew: ")


async def test_who_knew_the_sale_does_not_make_it_anew_on_a_wiped_server(disk: Disk) -> None:
    async with engine_on(disk) as engine:
        sale = await open_sale(engine)
        assert (await buy(engine, sale, "1")).ok
        await disk.wipe()
        assert (await engine.create(sale)).status is Status.EXISTS
        assert (await buy(engine, sale, "2")).status is Status.FENCED


async def test_nor_does_who_has_only_made_it(disk: Disk) -> None:
    """It has told somebody that the sale is open, and knows what it was."""
    async with engine_on(disk) as engine:
        sale = await open_sale(engine)
        await disk.wipe()
        assert (await engine.create(sale)).status is Status.EXISTS
        assert (await buy(engine, sale, "2")).status is Status.FENCED


async def test_a_sale_that_was_removed_is_not_taken_for_a_loss(disk: Disk, tmp_path: Path) -> None:
    """Nor by an engine that hears of it only from the next server, nor made anew."""
    async with engine_on(disk) as engine, Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        async with engine_on(disk) as other:
            sale = await open_sale(engine)
            assert (await buy(engine, sale, "1")).ok
            assert (await engine.close(sale.id)).ok
            order = (await buy(engine, sale, "1")).order
            assert order is not None
            assert (await engine.release(sale.id, order.id)).ok
            assert (await other.order(sale.id, order.id)) is not None
            await LedgerRunner(other, ledger, once=True).run()
            assert (await remove(other, ledger, sale.id)).keys
        await disk.restart()
        with pytest.raises(UnknownSale):
            await engine.snapshot(sale.id)
        assert (await buy(engine, sale, "2")).status is Status.UNKNOWN_SALE
        assert disk.node.ask("EXISTS", *shard_keys(sale.id)) == 0
        async with engine_on(disk) as other:
            assert (await other.create(sale)).status is Status.CREATED
            assert (await other.open(sale.id)).ok
            assert (await buy(engine, sale, "3")).status is Status.CREATED


async def test_a_rebuild_brings_it_back(disk: Disk, tmp_path: Path) -> None:
    async with engine_on(disk) as engine, Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        sale = await open_sale(engine)
        assert (await buy(engine, sale, "0")).ok
        await disk.keep()
        sold = {f"{n}": await buy(engine, sale, f"{n}") for n in range(1, 8)}
        await LedgerRunner(engine, ledger, once=True).run()
        await disk.go_back()
        assert (await buy(engine, sale, "late")).status is Status.FENCED
        await rebuild(engine, ledger, sale.id)
        assert (await engine.resume(sale.id)).ok
        for buyer, outcome in sold.items():
            again = await buy(engine, sale, buyer)
            assert (again.status, again.order) == (Status.EXISTS, outcome.order)
        last = await asyncio.gather(*(buy(engine, sale, f"late-{n}") for n in range(UNITS)))
        assert sum(outcome.ok for outcome in last) == UNITS - 8
        assert (await verify(engine, sale.id, ledger=ledger)).ok


async def test_who_has_only_read_is_content_with_a_rebuild(disk: Disk, tmp_path: Path) -> None:
    """It takes no orders, so nobody tells it of another sale's making but what it reads."""
    async with engine_on(disk) as engine, Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        sale = await open_sale(engine)
        order = (await buy(engine, sale, "1")).order
        assert order is not None
        await disk.keep()
        assert (await buy(engine, sale, "2")).ok
        async with engine_on(disk) as reader:
            assert await reader.order(sale.id, order.id) == order
            reader._roll._ticker.cancel()  # type: ignore[union-attr]
            await LedgerRunner(engine, ledger, once=True).run()
            await disk.go_back()
            assert (await buy(engine, sale, "late")).status is Status.FENCED
            await rebuild(engine, ledger, sale.id)
            assert (await engine.resume(sale.id)).ok
            assert (await reader.order(sale.id, order.id)) is not None
            assert (await buy(engine, sale, "3")).status is Status.CREATED
            assert (await reader.snapshot(sale.id)).state == "open"
