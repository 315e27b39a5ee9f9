"""A real server for the session, and for each test a sale id and an engine of its own.

The server is the one ``Engine.embedded`` would start, so SECKILL_REDIS_SERVER runs the whole suite
on another one. It does not wait for its disk: what a crash leaves behind is tested on servers that
the crash tests start themselves.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings

from seckill.embedded import EmbeddedServer, find_server
from seckill.engine import Engine
from seckill.errors import EmbeddedError
from seckill.keys import LEDGER_MARK
from seckill.sale import Sale
from seckill.status import Status
from tests.support import async_client, make_sale

# The files that take longest, the longest first, by what they took side by side on two cores.
LONG = (
    "unit/test_benchmarks.py",
    "packaging/test_packaging.py",
    "ledger/test_guides.py",
    "cli/test_damage.py",
    "web/test_ledger.py",
    "ledger/test_ledger.py",
    "cli/test_demo.py",
    "cli/test_sales.py",
    "cli/test_bad_input.py",
    "cli/test_ledger.py",
    "ledger/test_runner.py",
    "web/test_metrics.py",
    "integration/test_doctor.py",
    "web/test_evening.py",
    "lua/test_queue_no_shows.py",
    "integration/test_relay.py",
    "packaging/test_deploy.py",
    "unit/test_docs.py",
    "ledger/test_ledger_faults.py",
    "properties/test_hot_route.py",
    "web/test_hot_route_connection.py",
    "ledger/test_reconcile.py",
    "ledger/test_reconcile_running.py",
    "cli/test_queue.py",
    "integration/test_embedded.py",
    "packaging/test_alerts.py",
    "properties/test_queue_twin.py",
    "lua/test_queue_damage.py",
    "web/test_hot_route_rules.py",
    "cli/test_serve.py",
    "properties/test_engine_twin.py",
    "cli/test_rehearse.py",
    "unit/test_open_loop.py",
    "ledger/test_whose_ledger.py",
    "web/test_hot_route_aiohttp.py",
    "unit/test_rehearse.py",
    "cli/test_reconcile.py",
    "ledger/test_ledger_errors.py",
    "cli/test_rebuild.py",
    "references/test_references.py",
    "ledger/test_export.py",
    "web/test_workers.py",
    "cli/test_relay.py",
    "web/test_flood.py",
    "ledger/test_letters.py",
    "cli/test_doctor.py",
    "ledger/test_remove.py",
    "faults/test_crash.py",
    "faults/test_load.py",
    "faults/test_topologies.py",
    "faults/test_servers.py",
    "faults/test_chaos.py",
    "integration/test_fencing.py",
    "ledger/test_reconcile_redis.py",
    "unit/test_arrivals.py",
    "web/test_examples.py",
    "cli/test_keys.py",
    "properties/test_mutations.py",
    "cli/test_ledger_life.py",
    "cli/test_groups.py",
    "unit/test_draw.py",
    "ledger/test_reconcile_forged.py",
    "integration/test_lane_late.py",
    "web/test_gate.py",
    "ledger/test_databases.py",
    "integration/test_consumer.py",
    "integration/test_events.py",
)


# Hypothesis fails a test whose examples take long, and on a busy machine any may. Whatever else the
# profile says that is in force (there is one for CI) stays.
settings.register_profile(
    "patient",
    settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps pytest-xdist from sorting files by how many tests they have: the longest have few. And
    Ctrl-C works, also where a script runs the tests in the background: its shell has them, and all
    they start, ignore SIGINT."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that in the end no process of pytest-xdist waits long for the other."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


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


@pytest.fixture(autouse=True)
def no_ledgers_mark(request: pytest.FixtureRequest) -> None:
    """Each test may bring a ledger of its own to the server that they share."""
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        if isinstance(server, EmbeddedServer):
            with redis.Redis.from_url(server.url) as client:
                client.delete(LEDGER_MARK)


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

    Nothing sweeps deadlines unless a test asks for it, and a busy machine may take its time.
    """
    usual = {"durability": "memory", "sweep_ms": 0, "timeout_ms": 30_000}
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Engine:
            engine = Engine(server.url, **(usual | options))
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
