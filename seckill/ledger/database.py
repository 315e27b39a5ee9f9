"""From a URL to a database: the driver, its settings, and our own errors for its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from seckill.errors import InvalidInput, LedgerRefused, LedgerUnavailable, MissingExtra

__all__ = ["connect", "our_errors", "shown_url"]

# What users write, the SQLAlchemy dialect with its driver, the driver's module, and our extra.
_DRIVERS: Final = {
    "sqlite": ("sqlite+aiosqlite", "aiosqlite", "ledger"),
    "postgresql": ("postgresql+asyncpg", "asyncpg", "postgresql"),
    "postgres": ("postgresql+asyncpg", "asyncpg", "postgresql"),
    "mysql": ("mysql+asyncmy", "asyncmy", "mysql"),
    "mariadb": ("mariadb+asyncmy", "asyncmy", "mysql"),
}
_EXAMPLE: Final = "write sqlite:///ledger.db, postgresql://user@host/name or mysql://user@host/name"
CONNECTIONS: Final = 5
BUSY_MS: Final = 30_000


def connect(url: str) -> AsyncEngine:
    """Connections to the database that a URL names; none is made yet.

    Raises InvalidInput for the URL, MissingExtra for its driver.
    """
    at = _parse(url)
    options: dict[str, Any] = {}
    if at.get_backend_name() != "sqlite":
        # A connection that a restarted database has cut is noticed before it is used.
        options = {"pool_pre_ping": True, "pool_size": CONNECTIONS}
    engine = create_async_engine(at, **options)
    if at.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def shown_url(url: str) -> str:
    """The URL without its password, for messages."""
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    try:
        at = make_url(url)
    except ArgumentError:
        raise InvalidInput("ledger.url", "is not a URL of a database", _EXAMPLE) from None
    known = _DRIVERS.get(at.drivername)
    if known is None:
        problem = f"{at.drivername!r} is no database that the ledger knows"
        raise InvalidInput("ledger.url", problem, _EXAMPLE)
    if at.drivername == "sqlite" and not at.database:
        raise InvalidInput("ledger.url", "names no file", "write sqlite:///path/ledger.db")
    drivername, module, extra = known
    if find_spec(module) is None:
        raise MissingExtra(extra, module)
    return at.set(drivername=drivername)


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # Readers do not wait for the writer, and a commit is on disk before it is acknowledged.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.close()


@contextmanager
def our_errors() -> Iterator[None]:
    """Turns what a driver raises into ours: LedgerUnavailable for what may pass, LedgerRefused for
    what the database will say again."""
    try:
        yield
    except DBAPIError as error:
        raise (LedgerUnavailable if may_pass(error) else LedgerRefused)(_words(error)) from error
    except OSError as error:
        # A driver that could not even connect.
        raise LedgerUnavailable(str(error) or type(error).__name__) from error


def may_pass(error: DBAPIError) -> bool:
    """Whether the same statement may do later: the database is away, busy, or had a deadlock."""
    if error.connection_invalidated:
        return True
    code = str(getattr(error.orig, "sqlstate", "") or getattr(error.orig, "pgcode", "") or "")
    # PostgreSQL: connection lost, too many of them, rolled back for another, out of something,
    # shutting down, and an error of its system.
    if code:
        return code[:2] in ("08", "40", "53", "55", "57", "58")
    return isinstance(error, (OperationalError, InterfaceError)) and not _is_lasting(error)


def _is_lasting(error: DBAPIError) -> bool:
    """OperationalErrors that no waiting mends: a table or column that is missing, a read-only
    file."""
    text = str(error.orig)
    return any(words in text for words in ("no such", "no column", "readonly", "unable to open"))


def _words(error: DBAPIError) -> str:
    """What the database said, without the statement and its values, which may be personal."""
    text = " ".join(str(error.orig).split())
    _, _, said = text.partition(">: ")
    return (said or text)[:300]
