"""The migrations make the tables that the code expects, only ever add, and disturb nobody."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import (
    AddColumnOp,
    CreateIndexOp,
    CreateTableOp,
    ExecuteSQLOp,
    MigrateOperation,
)
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from seckill.errors import LedgerUnavailable
from seckill.ledger import Ledger, migrate
from seckill.ledger.rows import Known, Raw
from seckill.ledger.tables import METADATA
from tests.children import child
from tests.databases import DatabaseServer
from tests.support import make_sale

ROOT = Path(__file__).parents[2]
HELD = Raw(1, 5, "00" + 22 * "a", "held||h1------900000|0|buyer-1|room=1")
# What works on a table that an older version is writing to.
EXPANDING = (CreateTableOp, CreateIndexOp, AddColumnOp)

START = """
import asyncio, sys
from seckill.ledger import Ledger

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with Ledger(sys.argv[1]) as ledger:
        print(await ledger.sales())

asyncio.run(main())
"""


def version_of(connection: Connection) -> str | None:
    options = {"version_table": migrate.VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


async def run(ledger: Ledger, work: Any) -> Any:
    async with ledger.engine.begin() as connection:
        return await connection.run_sync(work)


async def test_they_make_what_the_code_expects(database_url: str) -> None:
    def compare(connection: Connection) -> list[Any]:
        options = {
            "version_table": migrate.VERSION_TABLE,
            "compare_type": True,
            "compare_server_default": True,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)

    async with Ledger(database_url) as ledger:
        assert await run(ledger, compare) == []
        head = ScriptDirectory.from_config(migrate._config()).get_current_head()
        assert await run(ledger, version_of) == head
        # What compare_metadata does not look at.
        for table in METADATA.sorted_tables:
            key = await run(ledger, lambda c, t=table: inspect(c).get_pk_constraint(t.name))
            assert key["constrained_columns"] == [column.name for column in table.primary_key]
            indexes = await run(ledger, lambda c, t=table: inspect(c).get_indexes(t.name))
            names = {index["name"] for index in indexes}
            assert names == {index.name for index in table.indexes}


async def test_mysql_tells_ids_apart_by_case(mariadb: DatabaseServer) -> None:
    """Its default would not; `A` and `a` are two buyers, and 商品 does not fit latin1."""
    async with mariadb.database() as url, Ledger(url) as ledger:
        async with ledger.engine.connect() as connection:
            query = (
                "SELECT table_name, column_name, character_set_name, collation_name"
                " FROM information_schema.columns WHERE table_schema = DATABASE()"
                " AND collation_name IS NOT NULL AND table_name <> 'seckill_version'"
            )
            columns = (await connection.execute(text(query))).all()
        assert len(columns) > 20
        assert {tuple(column[2:]) for column in columns} == {
            ("ascii", "ascii_bin"),
            ("utf8mb4", "utf8mb4_bin"),
        }


class Recorder:
    """Stands where a migration expects Alembic's `op`, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[MigrateOperation] = []
        context = MigrationContext.configure(dialect_name="sqlite")
        self._operations = Operations(context)
        self._operations.invoke = self._keep  # type: ignore[method-assign]

    def _keep(self, operation: MigrateOperation) -> Any:
        self.asked.append(operation)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)


def narrowing(operation: MigrateOperation, made: set[str]) -> str | None:
    """Why an operation would break a program of the version before, if it would."""
    if not isinstance(operation, EXPANDING):
        return f"{type(operation).__name__} does more than adding"
    if isinstance(operation, CreateTableOp):
        made.add(operation.table_name)
    elif operation.table_name in made:
        return None
    elif isinstance(operation, CreateIndexOp) and operation.unique:
        return f"a unique index on {operation.table_name} refuses what was taken before"
    elif isinstance(operation, AddColumnOp):
        column = operation.column
        if not column.nullable and column.server_default is None:
            return f"{operation.table_name}.{column.name} is NOT NULL and has no default"
    return None


def problems_of(module: Any) -> list[str]:
    recorder, made = Recorder(), set[str]()
    real, module.op = module.op, recorder
    try:
        module.upgrade()
    finally:
        module.op = real
    assert recorder.asked, module.__name__
    return [why for each in recorder.asked if (why := narrowing(each, made))]


def test_they_only_add() -> None:
    script = ScriptDirectory.from_config(migrate._config())
    revisions = list(script.walk_revisions())
    assert revisions
    assert len(script.get_heads()) == 1
    for revision in revisions:
        assert problems_of(revision.module) == [], revision.revision


def test_what_would_not_only_add_is_seen() -> None:
    import sqlalchemy as sa

    class Bad:
        op: Any = None
        __name__ = "bad"

        def upgrade(self) -> None:
            self.op.create_table("new", sa.Column("a", sa.Integer))
            self.op.add_column("new", sa.Column("b", sa.Integer, nullable=False))
            self.op.add_column("old", sa.Column("b", sa.Integer))
            self.op.add_column("old", sa.Column("c", sa.Integer, nullable=False))
            self.op.drop_column("old", "d")
            self.op.alter_column("old", "e", type_=sa.String(3))
            self.op.create_index("unique", "old", ["f"], unique=True)
            self.op.execute("DELETE FROM old")

    told = problems_of(Bad())
    assert [why.partition(" ")[0] for why in told] == [
        "old.c", "DropColumnOp", "AlterColumnOp", "a", "ExecuteSQLOp",
    ]  # fmt: skip
    assert issubclass(ExecuteSQLOp, MigrateOperation)


@pytest.mark.slow
async def test_processes_that_start_at_once(database_url: str) -> None:
    command = (sys.executable, "-c", START, database_url)
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    async with child(*command, cwd=ROOT, **pipes) as one, child(*command, cwd=ROOT, **pipes) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        ended = await asyncio.gather(one.communicate(b"go\n"), two.communicate(b"go\n"))
    assert ended == [(b"[]\n", b"")] * 2
    async with Ledger(database_url) as ledger:
        assert await run(ledger, version_of) is not None


async def test_ledgers_that_start_at_once(database_url: str) -> None:
    """Closer together than processes can be."""
    ledgers = [Ledger(database_url) for _ in range(4)]
    await asyncio.gather(*(ledger.start() for ledger in ledgers))
    for ledger in ledgers:
        assert await ledger.sales() == []
        await ledger.aclose()


async def test_a_new_file_that_somebody_writes_to(tmp_path: Path) -> None:
    """SQLite's own patience does not cover the change to a write-ahead log then."""
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        starting = asyncio.create_task(ledger.start())
        done, _ = await asyncio.wait([starting], timeout=0.5)
        assert not done
        other.execute("COMMIT")
        await starting
        assert await ledger.sales() == []
        await ledger.aclose()


async def test_tables_of_a_later_version(database_url: str) -> None:
    """Programs are replaced one after the other: the older ones still write, and change nothing."""
    async with Ledger(database_url) as ledger:
        later = ("UPDATE seckill_version SET version_num = '9999'",)
        later += ("ALTER TABLE seckill_orders ADD COLUMN shipped_ms BIGINT",)
        async with ledger.engine.begin() as connection:
            for statement in later:
                await connection.execute(text(statement))
    known = Known(make_sale(), 1, "run:1")
    async with Ledger(database_url) as ledger:
        await ledger.know(known)
        await ledger.write([(known, [HELD])])
        assert await ledger.counts(known.sale.id) == (1, 1)
        assert await run(ledger, version_of) == "9999"


async def test_a_later_version_that_comes_first(database_url: str) -> None:
    """It has the lock when this one begins to wait for it."""
    async with Ledger(database_url) as later:
        async with later.engine.begin() as connection:
            await connection.execute(text("UPDATE seckill_version SET version_num = '9999'"))

        def upgrade(connection: Connection) -> None:
            with migrate._alone(connection):
                pass
            config = migrate._config()
            assert migrate._is_done(connection, config)

        await run(later, upgrade)


async def test_mysql_has_it_all_before_the_next_one_looks(mariadb: DatabaseServer) -> None:
    """Its lock does not end with the transaction, as that of PostgreSQL does."""
    async with mariadb.database() as url:
        ledger, other = Ledger(url), Ledger(url)
        async with ledger.engine.begin() as connection:
            await connection.run_sync(migrate._upgrade)
            # The transaction is still open.
            await other.start()
        await ledger.aclose()
        await other.aclose()


async def test_a_lock_that_never_comes(
    mariadb: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
    lock = text("SELECT GET_LOCK('seckill_version', 1)")
    async with mariadb.database() as url:
        ledger, other = Ledger(url), Ledger(url)
        async with other.engine.begin() as connection:
            assert await connection.scalar(lock) == 1
            with pytest.raises(LedgerUnavailable, match="another process"):
                await ledger.start()
        await other.aclose()
        await ledger.start()
        await ledger.aclose()
