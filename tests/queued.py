"""What the tests of queues share: buyers who join, wait and are called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from seckill.admission import Admission
from seckill.engine import Engine
from seckill.keys import queue_keys
from seckill.queue import Place
from seckill.sale import Sale
from tests.support import async_client

__all__ = ["CROWD", "admission", "called", "close_list", "joined", "place", "until"]

CROWD = [f"buyer-{number}" for number in range(8)]


def admission(mode: Any = "queue", **fields: Any) -> Admission:
    """A queue whose list, if it has one, closes when a test says so."""
    if mode != "queue":
        fields = {"draw_at": datetime.now(UTC) + timedelta(minutes=30)} | fields
    return Admission(mode=mode, **fields)


async def joined(engine: Engine, sale: Sale, buyer: str, **options: Any) -> Place:
    answer = await engine.queue.join(sale.id, buyer, **options)
    assert answer.place is not None, answer
    return answer.place


async def place(engine: Engine, sale: Sale, buyer: str) -> Place:
    """Where a buyer stands, as of now."""
    await engine.queue.look(sale.id)
    return await joined(engine, sale, buyer)


async def until(happened: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await happened()):  # noqa: ASYNC110 - it happens in Redis
            await asyncio.sleep(0.02)
    return found


async def called(engine: Engine, sale: Sale, buyer: str) -> Place:
    """The buyer's place once it is called."""

    async def look() -> Place | None:
        found = await place(engine, sale, buyer)
        return found if found.phase == "called" else None

    found = await until(look)
    assert isinstance(found, Place)
    return found


async def close_list(engine: Engine, sale: Sale) -> None:
    """The moment has come at which the list of tickets closes."""
    async with async_client(engine.url) as client:
        key = queue_keys(sale.id)[0]
        await client.hset(key, "draw_ms", "0")
        await engine.queue.look(sale.id)
        assert await client.hget(key, "closed") is not None
        await client.hset(key, "closed_ms", str(sale.draw_ms))
