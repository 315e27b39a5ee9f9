"""A real server for the session, and for each test a sale id and an engine of its own.

The server is the one ``Engine.embedded`` would start, so SECKILL_REDIS_SERVER runs the whole suite
on another one. It does not wait for its disk: what a crash leaves behind is tested on servers that
the crash tests start themselves.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer, find_server
from seckill.engine import Engine
from seckill.errors import EmbeddedError
from seckill.sale import Sale
from seckill.status import Status
from tests.support import async_client, make_sale


def pytest_report_header() -> str:
    try:
        binary = find_server()
        version = subprocess.run(
            [binary.path, "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (EmbeddedError, OSError, subprocess.SubprocessError) as error:
        return f"server: none ({error})"
    return f"server: {version} ({binary.origin})"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The server that the tests of this process share."""
    data_dir = tmp_path_factory.mktemp("server")
    with EmbeddedServer(data_dir, appendfsync="no") as server:
        yield server


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A raw client: what a test does behind the engine's back."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def aclient(server: EmbeddedServer) -> AsyncIterator[Any]:
    """A raw client on the test's event loop."""
    async with async_client(server.url) as client:
        yield client


MakeEngine = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def make_engine(server: EmbeddedServer) -> AsyncIterator[MakeEngine]:
    """Starts engines on the shared server, as processes would; they are closed after the test.

    Nothing sweeps deadlines unless a test asks for it.
    """
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Engine:
            engine = Engine(server.url, **({"durability": "memory", "sweep_ms": 0} | options))
            return await stack.enter_async_context(engine)

        yield make


@pytest.fixture
async def engine(make_engine: MakeEngine) -> Engine:
    return await make_engine()


MakeSale = Callable[..., Awaitable[Sale]]


@pytest.fixture
def open_sale(engine: Engine) -> MakeSale:
    """Creates and opens a sale; takes what ``make_sale`` takes."""

    async def make(*args: Any, **fields: Any) -> Sale:
        sale = make_sale(*args, **fields)
        assert (await engine.create(sale)).status is Status.CREATED
        assert (await engine.open(sale.id)).status is Status.DONE
        return sale

    return make
