"""What docs/handoff.md says to the database's administrator: the rights of its three users are
enough and no more than that, and its backups can be restored.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from seckill.errors import LedgerRefused
from seckill.ledger import Ledger
from seckill.ledger.database import connect
from seckill.ledger.export import export_csv
from seckill.ledger.forget import forget, retire
from seckill.ledger.report import make_report
from seckill.zone import CHINA, read_zone
from tests.databases import DatabaseServer, MariadbServer, PostgresServer
from tests.ledger.scripted import SALE, fill, settled
from tests.unit.test_docs import blocks_of, commands_of

pytestmark = pytest.mark.slow

REFUSED = re.compile("denied|permission")
NAMES = ("seckill_owner", "seckill_keeper", "seckill_reader")

# The tests' own administrator of MariaDB has every right but that of giving them to others.
MAY_GRANT = (
    (
        "UPDATE mysql.global_priv SET Priv ="
        " JSON_SET(Priv, '$.access', JSON_VALUE(Priv, '$.access') | 1024) WHERE User = 'seckill'"
    ),
    "FLUSH PRIVILEGES",
)


def sql_of(heading: str) -> list[str]:
    """The statements of the one block that begins with this comment."""
    blocks = [block.text for block in blocks_of("handoff") if block.text.startswith(heading)]
    assert len(blocks) == 1
    return [part.strip() for part in blocks[0].partition("\n")[2].split(";") if part.strip()]


def commands() -> list[str]:
    blocks = [block for block in blocks_of("handoff") if block.language == "console"]
    return [command for block in blocks for command, _ in commands_of(block.text)]


async def execute(url: str, statements: list[str]) -> None:
    engine = connect(url).execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


@pytest.fixture
async def users(database_server: DatabaseServer) -> Any:
    """The URLs of owner, keeper and reader, set up as the guide says."""
    async with database_server.database() as admin:
        owner, keeper, reader = (
            re.sub("//[^@]*@", f"//{name}:change-me-{number}@", admin)
            for number, name in enumerate(NAMES, 1)
        )
        if isinstance(database_server, PostgresServer):
            await execute(admin, sql_of("-- PostgreSQL, in the mall's database"))
            async with Ledger(owner):
                pass
            await execute(owner, sql_of("-- PostgreSQL, as seckill_owner"))
        else:
            database = admin.rpartition("/")[2]
            statements = [part.replace("mall.*", f"{database}.*") for part in sql_of("-- MySQL")]
            for statement in (*MAY_GRANT, *statements):
                await database_server._execute(statement)
            async with Ledger(owner):
                pass
        yield admin, owner, keeper, reader
        if isinstance(database_server, PostgresServer):
            await execute(admin, [f"DROP OWNED BY {name}" for name in NAMES])
        for name in NAMES:
            host = "" if isinstance(database_server, PostgresServer) else "@'%'"
            await database_server._execute(f"DROP USER IF EXISTS {name}{host}")


async def test_rights(users: tuple[str, ...]) -> None:
    """Each may do what it is for; the reader can't write, and nobody but the owner makes tables."""
    _, _, keeper, reader = users
    async with Ledger(keeper) as ledger:
        await fill(ledger, settled())
        await ledger.seen(SALE, 100)
        await ledger.refused(SALE, '{"sold_out": 3}')
        async with ledger.engine.begin() as connection:
            await connection.execute(text("UPDATE seckill_sales SET removed_at_ms = 1"))
        assert (await forget(ledger, "u1")).orders
        assert (await retire(ledger, before_ms=2 * 10**12)).sales == (SALE,)
        with pytest.raises(Exception, match=REFUSED):
            await execute(keeper, ["CREATE TABLE mine (id INTEGER)"])
        with pytest.raises(Exception, match=REFUSED):
            await execute(keeper, ["DELETE FROM seckill_events"])
    async with Ledger(reader) as ledger:
        assert (await make_report(ledger, SALE)).orders
        parts: list[str] = []
        assert (await export_csv(ledger, SALE, read_zone(CHINA), parts.append)).orders
        with pytest.raises(LedgerRefused, match="right to write"):
            await ledger.seen(SALE, 101)


async def test_backup(
    users: tuple[str, ...], database_server: DatabaseServer, tmp_path: Path
) -> None:
    """Backed up, spoilt, restored: by the guide's own commands."""
    admin, owner, keeper, _ = users
    programs = ("pg_dump", "pg_restore")
    if isinstance(database_server, MariadbServer):
        programs = ("mariadb-dump", "mariadb ")
    for program in programs:
        if shutil.which(program.strip()) is None:
            pytest.skip(f"there is no {program} here")
    at = urlsplit(admin)
    names = {
        "postgresql://seckill_owner@10.0.0.6/mall": owner,
        "--host 10.0.0.6 --user root --password mall": f"--host 127.0.0.1 --port {at.port}"
        f" --user {at.username} --password={at.password} {at.path[1:]}",
    }

    def run(program: str) -> None:
        [command] = [each for each in commands() if each.startswith(program)]
        for written, real in names.items():
            command = command.replace(written, real)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    async with Ledger(keeper) as ledger:
        await fill(ledger, settled())
        before = await orders(ledger)
        run(programs[0])
        await execute(admin, ["DELETE FROM seckill_orders WHERE buyer <> 'u1'"])
        await execute(admin, ["UPDATE seckill_orders SET state = 'held'"])
        assert await orders(ledger) != before
    run(programs[1])
    async with Ledger(keeper) as ledger:
        assert await orders(ledger) == before


async def orders(ledger: Ledger) -> list[Any]:
    return [row async for part in ledger.orders(SALE, "buyer", "state") for row in part]
