"""Fresh databases, on SQLite and on real servers that are started when a test first asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.databases import DatabaseServer, MariadbServer, PostgresServer

_servers: list[DatabaseServer] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the servers had to say goes with a test that failed: its folder is gone afterwards."""
    report = yield
    if report.failed:
        for server in _servers:
            report.sections.append((f"end of the log of {server.name}", server.tail()))
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL server that the tests of this process share."""
    with PostgresServer() as server:
        _servers.append(server)
        yield server
        _servers.remove(server)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """The MariaDB server that the tests of this process share."""
    with MariadbServer() as server:
        _servers.append(server)
        yield server
        _servers.remove(server)


@pytest.fixture(params=["postgres", "mariadb"])
def database_server(request: pytest.FixtureRequest) -> DatabaseServer:
    """Each of the two servers in turn, for tests that stop it; ``database()`` makes databases."""
    server: DatabaseServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database, in the form a user writes, on each of the three in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    name = {"postgresql": "postgres", "mariadb": "mariadb"}[request.param]
    server: DatabaseServer = request.getfixturevalue(name)
    async with server.database() as url:
        yield url
