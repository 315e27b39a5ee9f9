"""Brings the tables up to date. Migrations only add: the version before and the version after work
on the same tables, so programs may be replaced one after the other.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, select, text

from seckill.errors import LedgerUnavailable
from seckill.ledger.tables import IDENTITY

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["identify", "is_current", "upgrade"]

VERSION_TABLE: Final = "seckill_version"
# Any number will do, as long as nobody else locks by it; these are the letters "seckill" as bytes.
_LOCK: Final = int.from_bytes(b"seckill", "big")
LOCK_SECONDS: Final = 60
_VERSIONS: Final = Table(
    VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True)
)


async def upgrade(engine: AsyncEngine) -> None:
    """Brings the tables to this version; several processes may do so at once.

    Does nothing to tables that a later version has brought further: they serve this one as well.
    Raises LedgerUnavailable when another process takes too long over it.
    """
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def is_current(connection: Connection) -> bool:
    """Whether the tables serve this version. Only reads."""
    return _is_done(connection, _config())


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config()
    if _is_done(connection, config):
        return
    with _alone(connection):
        # Another process may have done it meanwhile, and further than this one knows.
        if not _is_done(connection, config):
            # Alembic would name its key, which MySQL ignores with a warning to whoever looks on.
            _VERSIONS.create(connection, checkfirst=True)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            # With the tables, because who keeps a ledger may not have the right to write this one.
            _identify(connection)


async def identify(engine: AsyncEngine) -> None:
    """Gives the ledger an id if it has none: its tables were made, and then the process ended."""

    def alone(connection: Connection) -> None:
        with _alone(connection):
            _identify(connection)

    async with engine.begin() as connection:
        await connection.run_sync(alone)


def _identify(connection: Connection) -> None:
    if connection.scalar(select(IDENTITY.c.id)) is None:
        row = {"place": 1, "id": secrets.token_hex(16), "made_at_ms": int(time.time() * 1000)}
        connection.execute(insert(IDENTITY).values(row))


def _is_done(connection: Connection, config: Config) -> bool:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(config)
    options = {"version_table": VERSION_TABLE}
    current = MigrationContext.configure(connection, opts=options).get_current_revision()
    if current is None or current == script.get_current_head():
        return current is not None
    # A revision that is not ours comes from a later version, and migrations only add.
    return current not in {each.revision for each in script.walk_revisions()}


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
            if not connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), name):
                raise LedgerUnavailable("another process has been changing its tables for a minute")
            try:
                # A new view of the tables, after what the other process did.
                connection.exec_driver_sql("COMMIT")
                yield
                # Before anybody else may look.
                connection.exec_driver_sql("COMMIT")
            finally:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": VERSION_TABLE})
