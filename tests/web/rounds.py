"""What the tests of rounds share: a round of the event loop that is full for as long as they want,
and clients whose bytes wait for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from seckill.server import rounds as module
from seckill.server.connection import Connection
from tests.web.hot import Client, Site, until

__all__ = ["connect", "held", "held_units", "send_in_parts"]


@asynccontextmanager
async def held(site: Site) -> AsyncIterator[deque[Any]]:
    """Whatever comes meanwhile waits; in the end it has its turn."""
    rounds = site.connections.rounds
    # None is under way, so nothing will come and end this one.
    await until(lambda: rounds._left == module.ROUND)
    rounds._left = 0
    try:
        yield rounds._waiting
    finally:
        rounds._next()


async def connect(site: Site, count: int) -> list[Client]:
    """Many, and the server waits for what they say."""
    clients = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        site._writers.append(writer)
        clients.append(Client(reader, writer))
    open_now = site.connections.connections
    await until(lambda: len(open_now) == count and all(each._waiter for each in open_now))
    return clients


async def send_in_parts(client: Client, connection: Connection, *parts: str | bytes) -> None:
    """Each in a packet of its own, which has come when the next one goes."""
    for part in parts:
        goal = len(connection._later or b"") + len(part)
        client.send(part)
        await until(lambda goal=goal: len(connection._later or b"") == goal)


async def held_units(site: Site, sale: str) -> int:
    return (await site.engine.snapshot(sale)).stock["a"].held - 1  # "first" has one.
