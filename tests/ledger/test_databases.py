"""The databases that the ledger's tests stand on: each answers, and keeps what was committed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.databases import DatabaseServer, PostgresServer

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
}


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection and a transaction of its own."""
    parsed = make_url(url)
    engine = create_async_engine(
        parsed.set(drivername=DRIVERS[parsed.drivername]), poolclass=NullPool
    )
    async with engine.begin() as connection:
        yield connection
    await engine.dispose()


async def fill(url: str) -> None:
    async with connect(url) as connection:
        await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO t VALUES (:id)"), [{"id": 1}, {"id": 2}])


async def count(url: str) -> int:
    async with connect(url) as connection:
        return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())


# Each test makes a table of the same name: they do not meet.
@pytest.mark.parametrize("_again", [1, 2])
async def test_every_test_has_an_empty_database(database_url: str, _again: int) -> None:
    await fill(database_url)
    assert await count(database_url) == 2


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_a_restart_keeps_what_was_committed(
    database_server: DatabaseServer | None, database_url: str, kill: bool
) -> None:
    if database_server is None:
        pytest.skip("SQLite has no server")
    await fill(database_url)
    pid = database_server.pid
    async with connect(database_url) as idle:
        await idle.execute(text("SELECT 1"))
        database_server.stop(kill=kill)
        await idle.invalidate()
    assert not Path(f"/proc/{pid}").exists()
    database_server.start()
    assert database_server.pid != pid
    assert await count(database_url) == 2


async def test_a_killed_server_is_started_again(
    database_server: DatabaseServer | None, database_url: str
) -> None:
    """A test that ends between kill and start does not take the others with it."""
    if database_server is None:
        pytest.skip("SQLite has no server")
    os.kill(database_server.pid, signal.SIGKILL)
    database_server._process.wait()  # type: ignore[union-attr]
    async with database_server.database() as url:
        await fill(url)
    await fill(database_url)


async def test_a_connection_left_open_does_not_keep_its_database(
    database_server: DatabaseServer | None,
) -> None:
    if database_server is None:
        pytest.skip("SQLite has no server")
    async with database_server.database() as url:
        await fill(url)
        left = connect(url)
        connection = await left.__aenter__()
        await connection.execute(text("SELECT * FROM t"))
    await connection.invalidate()
    await left.__aexit__(None, None, None)


def test_a_missing_server_skips_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECKILL_TEST_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(pytest.skip.Exception, match="apt install postgresql"):
        PostgresServer()
