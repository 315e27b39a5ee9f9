"""One event loop that the state machines run by hand, on the shared server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis as AsyncRedis

from seckill.embedded import EmbeddedServer
from tests.properties.world import World


@pytest.fixture(scope="module")
def world(server: EmbeddedServer) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    client = AsyncRedis.from_url(server.url)
    yield World(server.url, loop, client)
    loop.run_until_complete(client.aclose())
    loop.close()
