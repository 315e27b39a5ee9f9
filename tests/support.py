"""What the tests of the engine share: sales, time travel, pictures of what Redis holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import redis
from redis.asyncio import Redis as AsyncRedis

from seckill.engine import Engine
from seckill.keys import NAMES, shard_keys
from seckill.sale import Item, Sale

__all__ = [
    "HOUR_MS",
    "Dump",
    "async_client",
    "be_unaware",
    "dump",
    "make_item",
    "make_sale",
    "new_sale_id",
    "rewind",
    "shift",
    "travel",
]

HOUR_MS = 3_600_000

Dump = dict[str, Any]


def new_sale_id() -> str:
    """An id no other test has: every test gets a namespace of its own on the shared server."""
    return f"t-{uuid4().hex[:16]}"


def make_item(sku: str = "a", **fields: Any) -> Item:
    defaults: dict[str, Any] = {
        "title": f"商品 {sku}",
        "price_fen": 9_900,
        "total": 10,
        "limit_per_buyer": 0,
    }
    return Item(sku=sku, **(defaults | fields))


def make_sale(stock: Mapping[str, int] | None = None, **fields: Any) -> Sale:
    """A sale that has been open for a minute and will be for an hour, without limits.

    ``stock`` maps SKU to total: the short way to its items.
    """
    now = datetime.now(UTC)
    defaults: dict[str, Any] = {
        "id": new_sale_id(),
        "title": "晚8点秒杀",
        "opens_at": now - timedelta(minutes=1),
        "ends_at": now + timedelta(hours=1),
        "items": tuple(
            make_item(sku, total=total) for sku, total in (stock or {"a": 10, "b": 10}).items()
        ),
        "max_lapsed": 0,
    }
    admission = fields.get("admission")
    if admission is not None and admission.mode == "draw":
        defaults["limit_per_buyer"] = 1  # A draw must know what a winner may take.
    return Sale(**(defaults | fields))


@asynccontextmanager
async def async_client(url: str) -> AsyncIterator[AsyncRedis]:
    client = AsyncRedis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


async def shift(client: AsyncRedis, sale: str, ms: int) -> None:
    """Makes ``ms`` pass in this sale. Deadlines count from origin_ms and the window is two
    numbers, so all that is ahead comes nearer when the three move back; no clock is mocked."""
    async with client.pipeline(transaction=True) as pipe:
        for field in ("origin_ms", "opens_ms", "ends_ms"):
            pipe.hincrby(shard_keys(sale)[0], field, -ms)
        await pipe.execute()


async def travel(engine: Engine, sale: str, ms: int) -> None:
    """``shift`` on the engine's server."""
    async with async_client(engine.url) as client:
        await shift(client, sale, ms)


def rewind(client: redis.Redis, sale: str, ms: int) -> None:
    """As if all of this sale had happened ``ms`` earlier than it did, and nobody had touched it
    since: an outage of that length, or a clock that jumped. The stream is written anew, for its
    ids carry the sale's time."""
    keys = shard_keys(sale)
    entries: Any = client.xrange(keys[6])
    client.delete(keys[6])
    for entry_id, fields in entries:
        at, _, seq = entry_id.decode().partition("-")
        client.xadd(keys[6], fields, id=f"{int(at) - ms}-{seq}")
    for field in ("last_ms", "origin_ms", "opens_ms", "ends_ms"):
        client.hincrby(keys[0], field, -ms)


def dump(client: redis.Redis, sale: str) -> Dump:
    """Everything Redis holds of a sale, by the name of the key, in a form that compares."""
    return {name: _dump_key(client, key) for name, key in zip(NAMES, shard_keys(sale), strict=True)}


def _dump_key(client: redis.Redis, key: str) -> Any:
    kind = bytes(client.type(key))  # type: ignore[arg-type]
    match kind:
        case b"hash":
            return client.hgetall(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"stream":
            return client.xrange(key)
        case b"string":
            return client.get(key)
        case b"none":
            return None
    raise AssertionError(f"{key} is a {kind!r}")


def be_unaware(engine: Engine, sale: str) -> None:
    """From now on this engine is like one that was started since: nobody here was told anything."""
    engine._calls.home(shard_keys(sale)[0]).told.forget()
