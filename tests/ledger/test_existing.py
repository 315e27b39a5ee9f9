"""Who only reads a ledger makes no table: with no right to, and also with every right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from seckill.errors import InvalidInput, LedgerRefused
from seckill.ledger import Ledger
from seckill.ledger.database import check_url, connect
from seckill.ledger.existing import ExistingLedger, NoLedger
from seckill.ledger.migrate import VERSION_TABLE
from tests.databases import PostgresServer
from tests.ledger.scripted import SALE, fill, settled


async def tables(url: str) -> list[str]:
    engine = connect(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(lambda at: inspect(at).get_table_names())
    finally:
        await engine.dispose()


async def test_an_empty_database_stays_empty(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        await execute(database_url, "PRAGMA user_version = 1")
    with pytest.raises(NoLedger, match="no ledger yet; `seckill ledger run` makes it") as caught:
        await ExistingLedger(database_url).start()
    assert "***" in str(caught.value) or database_url in str(caught.value)
    assert await tables(database_url) == []
    async with Ledger(database_url) as ledger:
        await fill(ledger, settled())
    async with ExistingLedger(database_url) as ledger:
        assert (await ledger.sale(SALE))["state"] == "settled"


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    ledger = ExistingLedger(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(NoLedger):
        await ledger.start()
    assert ledger.file is not None
    assert not ledger.file.exists()


async def test_tables_of_an_earlier_version_stay_as_they_are(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with Ledger(url):
        pass
    await pretend(url, "0001")
    with pytest.raises(
        LedgerRefused, match=r"earlier version; .* seckill ledger migrate"
    ) as caught:
        await ExistingLedger(url).start()
    assert not isinstance(caught.value, NoLedger)
    # A later one serves this one as well.
    await pretend(url, "9999")
    async with ExistingLedger(url):
        pass


async def pretend(url: str, version: str) -> None:
    """The tables are of this version, as far as anybody can tell."""
    await execute(url, f"UPDATE {VERSION_TABLE} SET version_num = '{version}'")  # noqa: S608


async def execute(url: str, statement: str) -> None:
    engine = connect(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


@pytest.mark.slow
async def test_a_reader_before_there_is_a_ledger(postgres: PostgresServer) -> None:
    async with postgres.database() as admin:
        await postgres._execute("CREATE USER early_reader PASSWORD 'change-me'")
        try:
            reader = re.sub("//[^@]*@", "//early_reader:change-me@", admin)
            with pytest.raises(NoLedger, match="seckill ledger migrate"):
                await ExistingLedger(reader).start()
        finally:
            await postgres._execute("DROP USER early_reader")


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    for look in (check_url, Ledger):
        with pytest.raises(InvalidInput, match=f"{tmp_path} is a folder; name a file in it"):
            look(f"sqlite:///{tmp_path}")
    with pytest.raises(InvalidInput, match=r"nowhere is no folder that is there"):
        check_url(f"sqlite:///{tmp_path}/nowhere/ledger.db")
    check_url(f"sqlite:///{tmp_path}/ledger.db")
