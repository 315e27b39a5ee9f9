"""A sale with orders in every state and a ledger that has them all, for whoever plants faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import redis
from sqlalchemy import text

from seckill.engine import Engine
from seckill.keys import shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.drift import Drift, DriftKind, Report
from seckill.ledger.reconcile import reconcile
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.trim import trim
from seckill.verify import verify
from tests.support import make_item, make_sale

__all__ = ["PATIENCE_S", "Shop", "events_of", "only", "open_shop", "row_of", "trim_all"]

PATIENCE_S = 0.3


class Shop(NamedTuple):
    """A sale with orders in every state, and a ledger that has them all."""

    engine: Engine
    ledger: Ledger
    sale: Sale
    client: redis.Redis
    orders: dict[str, str]

    @property
    def keys(self) -> tuple[str, ...]:
        return shard_keys(self.sale.id)

    async def sql(self, statement: str, **values: Any) -> None:
        async with self.ledger.engine.begin() as connection:
            done = await connection.execute(text(statement), {"s": self.sale.id} | values)
            assert done.rowcount > 0, "the fault was not made"

    async def edit(self, table: str, change: str, which: str = "1 = 1", **values: Any) -> None:
        await self.sql(
            f"UPDATE seckill_{table} SET {change} WHERE sale = :s AND {which}",  # noqa: S608 - ours
            **values,
        )

    async def keep(self) -> None:
        """A runner writes everything there is."""
        await LedgerRunner(self.engine, self.ledger, sales=(self.sale.id,), once=True).run()

    async def compare(self, *, fix: bool = False) -> Report:
        return await reconcile(
            self.engine, self.ledger, self.sale.id, fix=fix, patience_s=PATIENCE_S
        )

    async def finds(self, *kinds: DriftKind) -> Report:
        """Exactly these kinds are found; nothing is written."""
        report = await self.compare()
        assert set(report.left) == set(kinds), report.drifts
        assert not report.mended
        return report

    async def mends(self, *kinds: DriftKind) -> Report:
        """These kinds are found and mended, and afterwards all is well."""
        await self.finds(*kinds)
        report = await self.compare(fix=True)
        assert not report.left, report.drifts
        assert set(report.mended) == set(kinds)
        assert all(drift.mended for drift in report.drifts)
        await self.is_clean()
        assert (await verify(self.engine, self.sale.id)).ok
        return report

    async def leaves(self, *kinds: DriftKind) -> Report:
        """These kinds are found, and are no business of ``fix``."""
        await self.finds(*kinds)
        report = await self.compare(fix=True)
        assert set(report.left) == set(kinds), report.drifts
        assert not report.mended
        return report

    async def is_clean(self) -> Report:
        report = await self.compare()
        assert report.ok, report.drifts
        assert report.decided, report.undecided
        return report

    def entries(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        return self.client.xrange(stream_key(self.sale.id))


@asynccontextmanager
async def open_shop(engine: Engine, client: redis.Redis, url: str) -> AsyncIterator[Shop]:
    items = tuple(make_item(sku, total=10 + place) for place, sku in enumerate("ab"))
    sale = make_sale(items=items)
    await engine.create(sale)
    await engine.open(sale.id)
    orders = {}
    for name in ("held", "paying", "confirmed", "late", "refunded", "gone", "released"):
        outcome = await engine.reserve(sale.id, name, "k", {"a": 1, "b": 1}, attrs=f"{name}|x|y")
        assert outcome.order is not None
        orders[name] = outcome.order.id
    await engine.begin_payment(sale.id, orders["paying"])
    for name in ("confirmed", "refunded", "gone"):
        await engine.confirm(sale.id, orders[name], f"pay-{name}")
    await engine.refund(sale.id, orders["refunded"], "r1", return_units=True, return_limit=True)
    await engine.refund(sale.id, orders["gone"], "r2", return_units=False, return_limit=False)
    for name in ("released", "late"):
        await engine.release(sale.id, orders[name])
    await engine.confirm(sale.id, orders["late"], "too-late")
    await engine.add_stock(sale.id, "b", 3, key="more")
    await engine.add_stock(sale.id, "b", -1, key="less")
    await engine.pause(sale.id, "stock | check")
    await engine.resume(sale.id)
    async with Ledger(url) as ledger:
        shop = Shop(engine, ledger, sale, client, orders)
        await shop.keep()
        yield shop


def only(report: Report) -> Drift:
    """The one drift there is."""
    [drift] = report.drifts
    return drift


async def row_of(shop: Shop, order: str) -> dict[str, Any]:
    query = text("SELECT * FROM seckill_orders WHERE sale = :s AND id = :o")
    async with shop.ledger.engine.connect() as connection:
        found = await connection.execute(query, {"s": shop.sale.id, "o": order})
        return dict(found.mappings().one())


async def events_of(shop: Shop) -> list[dict[str, Any]]:
    query = text("SELECT * FROM seckill_events WHERE sale = :s ORDER BY seq")
    async with shop.ledger.engine.connect() as connection:
        found = await connection.execute(query, {"s": shop.sale.id})
        return [dict(row) for row in found.mappings()]


async def trim_all(shop: Shop) -> None:
    """Takes everything that was acknowledged out of the stream."""
    await asyncio.sleep(0.002)
    await trim(shop.engine._calls.client_of("sk:sales"), shop.sale.id, keep_ms=0)
    assert not shop.entries()
