"""Brings the tables up to date. Migrations only add: the version before and the version after work
on the same tables, so programs may be replaced one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["upgrade"]

VERSION_TABLE: Final = "seckill_version"
# Any number will do, as long as nobody else locks by it; these are the letters "seckill" as bytes.
_LOCK: Final = int.from_bytes(b"seckill", "big")
LOCK_SECONDS: Final = 60


async def upgrade(engine: AsyncEngine) -> None:
    """Brings the tables to this version; several processes may do so at once."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    options = {"version_table": VERSION_TABLE}
    config = _config()
    head = ScriptDirectory.from_config(config).get_current_head()
    current = MigrationContext.configure(connection, opts=options).get_current_revision()
    if current == head:
        return
    with _alone(connection):
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("seckill.ledger.migrations")))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Waits until no other process does this."""
    match connection.dialect.name:
        case "postgresql":
            # Until the end of the transaction.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield
        case "sqlite":
            # The driver begins a transaction with the first write only.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
        case _:
            name = {"name": VERSION_TABLE, "seconds": LOCK_SECONDS}
            connection.execute(text("SELECT GET_LOCK(:name, :seconds)"), name)
            try:
                yield
            finally:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": VERSION_TABLE})
