"""What has happened before a part of docs/handoff.md or docs/recovery.md begins.

Each scene starts from an empty Redis and an empty ledger, and plays on one sale, that of examples/.
Who reads the guides is in test_guides.py.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from seckill.engine import Engine
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.fence import check
from seckill.ledger.run import LedgerRunner
from seckill.order import Order
from seckill.salefile import load_sale
from seckill.trim import trim
from tests.support import async_client, be_unaware

__all__ = ["SALE", "SCENES", "Stage"]

SALE: Final = "evening-2026-11-28"
RICE: Final = "rice-wuchang-5kg"


class Stage:
    """Where scenes play: on the server at ``url``, with the ledger at ``ledger_url``."""

    def __init__(self, url: str, ledger_url: str) -> None:
        self.url = url
        self.ledger_url = ledger_url
        self.engine = Engine(url, durability="memory", sweep_ms=0)

    @property
    def socket(self) -> str:
        """Where redis-cli, which knows no unix:// URL, finds the server."""
        return self.url.removeprefix("unix://")

    async def begin(self) -> None:
        """Another engine, which remembers no sale that was there before."""
        await self.engine.aclose()
        self.engine = Engine(self.url, durability="memory", sweep_ms=0)
        await self.engine.start()

    async def buy(self, buyer: str, quantity: int = 1) -> Order:
        got = await self.engine.reserve(SALE, buyer, "cart-1", {RICE: quantity})
        assert got.order is not None
        return got.order

    async def pay(self, buyer: str) -> None:
        order = await self.buy(buyer)
        assert (await self.engine.confirm(SALE, order.id, f"wx-{buyer}")).ok

    async def write(self) -> None:
        """Brings the ledger up to date."""
        async with Ledger(self.ledger_url) as ledger:
            runner = LedgerRunner(self.engine, ledger, once=True, reclaim_ms=1)
            await runner.run()

    async def look(self) -> None:
        """What the ledger's keepers do every two seconds."""
        async with Ledger(self.ledger_url) as ledger:
            await check(self.engine, ledger)


Scene = Callable[[Stage], Awaitable[None]]


async def selling(stage: Stage) -> None:
    """Ann has paid, bob has not; the ledger knows it."""
    async with async_client(stage.url) as client:
        await client.config_set("maxmemory", 0)
        await client.flushall()
    await stage.begin()
    for file in Path.cwd().glob("ledger.db*"):
        file.unlink()
    sale = load_sale(Path("examples", "evening-sale.toml"))
    assert (await stage.engine.create(sale)).ok
    assert (await stage.engine.open(SALE)).ok
    await stage.pay("ann")
    await stage.buy("bob", 2)
    await stage.write()


async def lost(stage: Stage) -> None:
    """Redis was wiped, and nobody has noticed yet."""
    await selling(stage)
    async with async_client(stage.url) as client:
        await client.flushall()


async def wiped(stage: Stage) -> None:
    await lost(stage)
    await stage.look()


async def _dump(stage: Stage) -> dict[bytes, bytes]:
    async with async_client(stage.url) as client:
        return {key: await client.dump(key) for key in await client.keys("*")}


async def _restore(stage: Stage, keys: dict[bytes, bytes]) -> None:
    async with async_client(stage.url) as client:
        await client.flushall()
        for key, value in keys.items():
            await client.restore(key, 0, value)


async def restored(stage: Stage) -> None:
    """From a backup, and it went on selling for a moment."""
    await selling(stage)
    old = await _dump(stage)
    await stage.pay("dan")
    await stage.buy("eve")
    await stage.write()
    await _restore(stage, old)
    be_unaware(stage.engine, SALE)
    await stage.buy("cy")
    await stage.look()


async def forked(stage: Stage) -> None:
    """The same, but nobody kept the ledger meanwhile, so Redis got past it."""
    await selling(stage)
    old = await _dump(stage)
    await stage.buy("dan")
    await stage.write()
    await _restore(stage, old)
    be_unaware(stage.engine, SALE)
    await stage.pay("cy")


async def edited(stage: Stage) -> None:
    """Somebody has made room for one more with a Redis client."""
    await selling(stage)
    async with async_client(stage.url) as client:
        await client.hincrby(shard_keys(SALE)[1], "3:available", 1)


async def behind(stage: Stage) -> None:
    await selling(stage)
    await stage.pay("cy")


async def poison(stage: Stage) -> None:
    """A rule that the mall has given the table refuses one event."""
    await selling(stage)
    with sqlite3.connect("ledger.db") as db:
        db.execute(
            "CREATE TRIGGER no_cy BEFORE INSERT ON seckill_orders WHEN new.buyer = 'cy'"
            " BEGIN SELECT RAISE(ABORT, 'unknown customer'); END"
        )
    await stage.buy("cy")
    await stage.buy("dan")
    await stage.write()


async def abandoned(stage: Stage) -> None:
    """A group that nobody reads."""
    await selling(stage)
    async with async_client(stage.url) as client:
        await client.xgroup_create(stream_key(SALE), "points", "0")


async def rows_gone(stage: Stage) -> None:
    """Somebody has cleaned up in the ledger."""
    await selling(stage)
    with sqlite3.connect("ledger.db") as db:
        db.execute("DELETE FROM seckill_orders WHERE buyer = 'bob'")
        db.execute("UPDATE seckill_orders SET state = 'held' WHERE buyer = 'ann'")
        db.execute("DELETE FROM seckill_events WHERE seq = 4")


async def ledger_restored(stage: Stage) -> None:
    """From a backup that is a little old; the stream still has what came after it."""
    await selling(stage)
    with sqlite3.connect("ledger.db") as db:
        db.execute("VACUUM INTO 'ledger-backup.db'")
    await stage.pay("cy")
    await stage.write()
    for file in Path.cwd().glob("ledger.db*"):
        file.unlink()
    shutil.move("ledger-backup.db", "ledger.db")


async def ledger_restored_late(stage: Stage) -> None:
    """The same, and the stream was trimmed."""
    await ledger_restored(stage)
    await asyncio.sleep(0.01)
    async with async_client(stage.url) as client:
        await trim(client, SALE, keep_ms=1)


async def full(stage: Stage) -> None:
    await selling(stage)
    async with async_client(stage.url) as client:
        await client.config_set("maxmemory", 1_000_000)


async def over(stage: Stage) -> None:
    """The morning after: nobody holds anything any more."""
    await selling(stage)
    bob = await stage.buy("bob", 2)
    assert (await stage.engine.release(SALE, bob.id)).ok
    await stage.write()


SCENES: Final[dict[str, Scene]] = {
    scene.__name__.replace("_", "-"): scene
    for scene in (
        *(selling, lost, wiped, restored, forked, edited, behind, poison, abandoned, rows_gone),
        *(ledger_restored, ledger_restored_late, full, over),
    )
}
