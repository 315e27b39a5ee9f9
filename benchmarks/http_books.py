"""Where the servers of the benchmark `http` keep their orders: each kind of books opens sales and
counts what was sold, so that no answer of a server is believed without a look.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from benchmarks.machine import cpu_seconds, family_seconds
from benchmarks.plan import Plan
from benchmarks.references.launch import Missing
from benchmarks.servers import durability_of
from benchmarks.workload import SKU, Wire
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.sale import Sale

if TYPE_CHECKING:
    import asyncio

    from tests.databases import PostgresServer

__all__ = ["Books", "RedisBooks", "RedisOneBooks", "Sold", "SqlBooks"]


class Sold(msgspec.Struct, frozen=True):
    """Orders that stand in the books, and units that are left."""

    orders: int
    left: int


class Books(Protocol):
    """The books of one server."""

    store: str

    def open(self, sale: Sale, *, gone: bool) -> None:
        """Opens a sale. ``gone``: all its units are sold already."""

    def count(self, sale: str) -> Sold:
        """What has been sold."""

    def close(self, sale: str) -> None:
        """Nobody will look at this sale any more."""

    def cpu_seconds(self) -> float:
        """What the store has cost so far."""


class RedisBooks:
    """Our own sales."""

    store = "Redis"

    def __init__(self, embedded: EmbeddedServer, wire: Wire, runner: asyncio.Runner) -> None:
        self._embedded = embedded
        self._wire = wire
        self._runner = runner

    def open(self, sale: Sale, *, gone: bool) -> None:
        self._runner.run(self._open(sale, gone))

    async def _open(self, sale: Sale, gone: bool) -> None:
        url, durability = self._embedded.url, durability_of("always")
        async with Engine(url, durability=durability, sweep_ms=0) as engine:
            assert (await engine.create(sale)).ok
            assert (await engine.open(sale.id)).ok
            if gone:
                total = sale.items[0].total
                assert (await engine.reserve(sale.id, "first", "k1", {SKU: total})).ok

    def count(self, sale: str) -> Sold:
        return self._count(sale, "")

    def _count(self, sale: str, suffix: str) -> Sold:
        _, stock, _, orders, *_ = shard_keys(sale)
        # Some may still be under way, so both at the same moment.
        self._wire.call("MULTI")
        self._wire.call("HLEN", orders + suffix)
        self._wire.call("HGET", stock + suffix, "0:available")
        count, left = self._wire.call("EXEC")
        return Sold(int(count), int(left))

    def close(self, sale: str) -> None:
        """They are verified in the end."""

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._embedded.pid)


class RedisOneBooks(RedisBooks):
    """The same sales for lua/reserve_one.lua, with keys of their own, as in benchmarks/lane.py."""

    def open(self, sale: Sale, *, gone: bool) -> None:
        super().open(sale, gone=gone)
        for key in shard_keys(sale.id)[:2]:
            self._wire.call("COPY", key, f"{key}-one")

    def count(self, sale: str) -> Sold:
        return self._count(sale, "-one")

    def close(self, sale: str) -> None:
        self._wire.call("UNLINK", *(f"{key}-one" for key in shard_keys(sale)))


class SqlBooks:
    """Rows of a private PostgreSQL, which waits for its disk as in production."""

    store = "PostgreSQL"

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        """Starts the server. Raises Missing."""
        try:
            import asyncpg  # type: ignore[import-untyped]
            import pytest

            from tests.databases import PostgresServer
        except ImportError as error:
            raise Missing(f"no {error.name}") from None
        try:
            self._server: PostgresServer = stack.enter_context(PostgresServer())
        except pytest.skip.Exception:
            raise Missing("no postgres") from None
        self._runner = stack.enter_context(plan.runner())
        self.url = self._server.url("postgres")
        self._connection: Any = self._runner.run(asyncpg.connect(self.url))
        stack.callback(lambda: self._runner.run(self._connection.close()))
        schema = resources.files("benchmarks").joinpath("references/sql.sql").read_text("utf-8")
        self._runner.run(self._connection.execute(schema))
        self.version = f"PostgreSQL {self._one('SHOW server_version').split()[0]}"
        assert self._one("SHOW synchronous_commit") == "on"
        assert self._one("SHOW fsync") == "on"

    def _one(self, sql: str, *values: object) -> Any:
        return self._runner.run(self._connection.fetchval(sql, *values))

    def open(self, sale: Sale, *, gone: bool) -> None:
        item = sale.items[0]
        self._one(
            "INSERT INTO sales VALUES ($1, 'open', $2, $3, $4, $5, $6)",
            sale.id,
            int(sale.opens_at.timestamp() * 1000),
            int(sale.ends_at.timestamp() * 1000),
            sale.hold_ms,
            sale.limit_per_order,
            sale.limit_per_buyer,
        )
        self._one(
            "INSERT INTO stock VALUES ($1, $2, $3, $4)",
            sale.id,
            item.sku,
            item.limit_per_buyer,
            0 if gone else item.total,
        )
        # What one slice has left to be written is not to be paid for by the next one.
        self._one("CHECKPOINT")

    def count(self, sale: str) -> Sold:
        count, left = self._one(
            "SELECT ((SELECT count(*) FROM orders o WHERE o.sale = s.sale), available)"
            " FROM stock s WHERE sale = $1",
            sale,
        )
        return Sold(count, left)

    def close(self, sale: str) -> None:
        """Its rows are in nobody's way."""

    def cpu_seconds(self) -> float:
        return family_seconds(self._server.pid)
