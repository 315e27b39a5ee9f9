"""A database's port that takes connections and never says a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from seckill.errors import LedgerUnavailable
from seckill.ledger import Ledger, database


@pytest.fixture
async def port() -> AsyncIterator[int]:
    done = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        done.set()
        # The connections end before the loop does.
        await asyncio.sleep(0)


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "postgresql"])
async def test_it_is_not_waited_for(
    port: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.CONNECT_S <= 5
    monkeypatch.setattr(database, "CONNECT_S", 0.3)
    # Far longer than it takes, and shorter than asyncpg waits by itself.
    async with asyncio.timeout(50):
        with pytest.raises(LedgerUnavailable) as caught:
            await Ledger(f"{scheme}://u:hush@127.0.0.1:{port}/mall").start()
    said = str(caught.value)
    assert f"{scheme}://u:***@127.0.0.1:{port}/mall did not answer" in said
    assert "does the database run, and is ledger.url right?" in said
    assert "hush" not in said
