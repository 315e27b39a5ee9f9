"""The databases that the ledger's tests stand on: each answers, and keeps what was committed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from asyncpg import PostgresError  # type: ignore[import-untyped]
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.databases import DatabaseServer, MariadbServer, PostgresServer

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
}


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection of its own."""
    parsed = make_url(url)
    engine = create_async_engine(
        parsed.set(drivername=DRIVERS[parsed.drivername]), poolclass=NullPool
    )
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def fill(url: str) -> None:
    async with connect(url) as connection:
        await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO t VALUES (:id)"), [{"id": 1}, {"id": 2}])
        await connection.commit()


async def count(url: str) -> int:
    async with connect(url) as connection:
        return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Both make a table of the same name, so neither may meet the other's.
@pytest.mark.parametrize("_turn", [1, 2])
async def test_every_test_has_an_empty_database(database_url: str, _turn: int) -> None:
    await fill(database_url)
    assert await count(database_url) == 2


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_a_restart_keeps_what_was_committed(
    database_server: DatabaseServer, kill: bool
) -> None:
    async with database_server.database() as url:
        await fill(url)
        pid = database_server.pid
        async with connect(url) as idle:
            await idle.execute(text("SELECT 1"))
            database_server.stop(kill=kill)
            assert not alive(pid)
            await idle.invalidate()
        database_server.start()
        assert database_server.pid != pid
        assert await count(url) == 2


async def test_a_server_that_died_is_started_again(database_server: DatabaseServer) -> None:
    """A test that fails between kill and start does not take the others with it."""
    async with database_server.database() as url:
        await fill(url)
        pid = database_server.pid
        os.kill(pid, signal.SIGKILL)
        database_server.stop()
        async with database_server.database() as other:
            await fill(other)
        assert await count(url) == 2


async def test_a_database_is_dropped_even_if_a_transaction_was_left_open(
    database_server: DatabaseServer,
) -> None:
    async with AsyncExitStack() as left_open:
        async with database_server.database() as url:
            await fill(url)
            left = await left_open.enter_async_context(connect(url))
            await left.execute(text("SELECT * FROM t"))
        await left.invalidate()
    with pytest.raises((DBAPIError, PostgresError), match=r"does not exist|Unknown database"):
        await count(url)


@pytest.mark.parametrize("server", [PostgresServer, MariadbServer])
def test_a_missing_server_skips_and_says_what_to_install(
    server: type[DatabaseServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECKILL_TEST_POSTGRES_BIN", raising=False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(pytest.skip.Exception, match=r"apt install (postgresql|mariadb-server)"):
        server()


def test_a_folder_that_is_named_must_hold_a_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECKILL_TEST_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(AssertionError, match="SECKILL_TEST_POSTGRES_BIN"):
        PostgresServer()
