"""A Redis for each file of these tests, and an intake for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import uvloop

from seckill.embedded import EmbeddedServer
from tests.web.intake import Intake, intake_on

# What is close to the sockets: a mall that embeds the intake may run it on asyncio's own loop.
ON_BOTH_LOOPS = (
    *("test_hot_route_connection", "test_hot_route_smuggling", "test_reply", "test_rounds"),
    *("test_slow_clients", "test_socket_edges"),
)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Whatever serves here runs on uvloop, as `seckill serve` does. The two differ in when data
    comes, in what a transport is, and in when it is written."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.stem in ON_BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis's clock is asked for, however long a busy machine takes to answer: many tests send a
    request for the time only because it is short."""
    monkeypatch.setattr("seckill.server.clock.ASK_S", 60.0)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
async def intake(redis_server: EmbeddedServer) -> AsyncIterator[Intake]:
    async with intake_on(redis_server.url) as intake:
        yield intake
