"""From a URL to a database: the driver, its settings, and our own errors for its errors."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any, Final

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from seckill.errors import (
    InvalidInput,
    LedgerRefused,
    LedgerUnavailable,
    MissingExtra,
    SeckillError,
)

__all__ = ["RowRefused", "check_url", "connect", "our_errors", "shown_url"]

# What users write, the SQLAlchemy dialect with its driver, the driver's module, and our extra.
_DRIVERS: Final = {
    "sqlite": ("sqlite+aiosqlite", "aiosqlite", "ledger"),
    "postgresql": ("postgresql+asyncpg", "asyncpg", "postgresql"),
    "postgres": ("postgresql+asyncpg", "asyncpg", "postgresql"),
    "mysql": ("mysql+asyncmy", "asyncmy", "mysql"),
    "mariadb": ("mariadb+asyncmy", "asyncmy", "mysql"),
}
_EXAMPLE: Final = "write sqlite:///ledger.db, postgresql://user@host/name or mysql://user@host/name"
# What a URL may say beyond the address, and what the driver calls it.
_OPTIONS: Final = {
    "sqlite": {"mode": "mode", "uri": "uri"},
    "postgresql": {"host": "host", "ssl": "ssl", "sslmode": "ssl"},
    "mysql": {"unix_socket": "unix_socket", "ssl_ca": "ssl_ca"},
}
CONNECTIONS: Final = 5
_POOL: Final = "seckill"
CONNECT_S: Final = 5
BUSY_MS: Final = 30_000
_AGAIN_S: Final = 0.02


def connect(url: str) -> AsyncEngine:
    """Connections to the database that a URL names; none is made yet.

    Raises InvalidInput for the URL, MissingExtra for its driver.
    """
    at = _parse(url)
    options: dict[str, Any] = {}
    match at.get_backend_name():
        case "postgresql":
            import asyncpg  # type: ignore[import-untyped]

            options["connect_args"] = {"async_creator_fn": _in_time(asyncpg.connect, at)}
        case "mysql" | "mariadb":
            import asyncmy

            options["connect_args"] = {
                "async_creator_fn": _in_time(asyncmy.connect, at),
                # SQLAlchemy asks for FOUND_ROWS, with which a row that was there counts as new.
                "client_flag": 0,
                # A value that does not fit is refused, whatever this server does otherwise.
                "init_command": "SET SESSION sql_mode = 'STRICT_ALL_TABLES'",
            }
    if at.get_backend_name() != "sqlite":
        # A connection that a restarted database has cut is noticed before it is used.
        options |= {"pool_pre_ping": True, "pool_size": CONNECTIONS}
    engine = create_async_engine(at, pool_logging_name=_POOL, hide_parameters=True, **options)
    # It would log a traceback for each connection that breaks; who uses one says so in its words.
    logging.getLogger(f"sqlalchemy.pool.impl.AsyncAdaptedQueuePool.{_POOL}").disabled = True
    if at.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "do_connect", _try_sqlite)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _in_time(make: Callable[..., Awaitable[Any]], at: URL) -> Callable[..., Awaitable[Any]]:
    """The driver's own connect, with a bound on all of it: what a driver bounds is only a part, and
    a port that takes connections and never speaks would be waited for without end."""

    async def connect(*args: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await make(*args, **options)
        except TimeoutError:
            where = at.set(drivername=at.get_backend_name()).render_as_string(hide_password=True)
            problem = f"{where} did not answer within {CONNECT_S} s"
            raise LedgerUnavailable(f"{problem}; {_IS_IT_THERE}") from None

    return connect


def check_url(url: str) -> None:
    """Raises InvalidInput for a URL that is no database's or names a folder that is not there,
    MissingExtra for its driver."""
    file = _file(_parse(url))
    if file is not None and not file.absolute().parent.is_dir():
        problem = f"{file.absolute().parent} is no folder that is there"
        raise InvalidInput("ledger.url", problem, "make it, or name a file in another one")


def shown_url(url: str) -> str:
    """The URL without its password, for messages."""
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    try:
        at = make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidInput("ledger.url", "is not a URL of a database", _EXAMPLE) from None
    known = _DRIVERS.get(at.drivername)
    if known is None:
        problem = f"{at.drivername!r} is no database that the ledger knows"
        raise InvalidInput("ledger.url", problem, _EXAMPLE)
    if not at.database:
        raise InvalidInput("ledger.url", "names no file and no database", _EXAMPLE)
    if (file := _file(at)) is not None and file.is_dir():
        remedy = f"name a file in it: sqlite:///{file}/ledger.db"
        raise InvalidInput("ledger.url", f"{file} is a folder", remedy)
    drivername, module, extra = known
    if find_spec(module) is None:
        raise MissingExtra(extra, module)
    at = at.set(drivername=drivername)
    allowed = _OPTIONS["mysql" if extra == "mysql" else at.get_backend_name()]
    for name in at.query:
        if name not in allowed:
            problem, names = f"{name[:40]!r} can't be set in this URL", ", ".join(allowed)
            raise InvalidInput("ledger.url", problem, f"leave it out; there are {names}")
    return at.set(query={allowed[name]: value for name, value in at.query.items()})


def _file(at: URL) -> Path | None:
    """Where an SQLite database is, if it is in a file and the URL says so plainly."""
    name = at.database or ""
    if at.get_backend_name() != "sqlite" or name.startswith(("file:", ":memory:")):
        return None
    return Path(name)


def _try_sqlite(_: object, __: object, place: Any, options: Any) -> None:
    # aiosqlite's thread outlives a file that can't be opened, and complains when the loop is gone.
    sqlite3.connect(place[0], uri=bool(options.get("uri"))).close()


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    # Readers do not wait for the writer, and a commit is on disk before it is acknowledged.
    connection.run_async(_write_ahead)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


async def _write_ahead(connection: Any) -> None:
    """Waits as any other statement does for who has the file: SQLite does not, where another
    process that opens a new file writes to it already, because both might want to go further."""
    end_s = monotonic() + BUSY_MS / 1000
    while True:
        try:
            async with connection.execute("PRAGMA journal_mode=WAL"):
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or monotonic() > end_s:
                raise
        await asyncio.sleep(_AGAIN_S)


class RowRefused(LedgerRefused):
    """The database will not have one of these values; others may do."""


@contextmanager
def our_errors() -> Iterator[None]:
    """Turns what a driver raises into ours: LedgerUnavailable for what may pass, LedgerRefused for
    what the database will say again, RowRefused when that is about the values."""
    try:
        yield
    except DBAPIError as error:
        kind: type[SeckillError] = LedgerRefused
        if _is_about_values(error):
            kind = RowRefused
        elif _may_pass(error):
            kind = LedgerUnavailable
        raise kind(_words(error, kind)) from error
    except OverflowError:
        # SQLite's driver, before it asks SQLite.
        raise RowRefused("a number is too large for its column") from None
    except OSError as error:
        # A driver that could not even connect.
        said = str(error) or type(error).__name__
        raise LedgerUnavailable(f"{said}; {_IS_IT_THERE}") from error


# What no waiting mends: codes of PostgreSQL and MySQL and words of SQLite, and what to do.
_IS_IT_THERE: Final = "does the database run, and is ledger.url right?"
_REMEDIES: Final = (
    (
        {"42P01", "42703", 1054, 1146},
        ("no such table", "no such column", "has no column"),
        "bring the tables up to date: seckill ledger migrate",
    ),
    ({"28000", "28P01", 1045, 1698}, (), "correct the user and the password of ledger.url"),
    ({"3D000", 1049}, (), "make the database, or correct its name in ledger.url"),
    (set[object](), ("not a database",), "name the ledger's own file in ledger.url"),
    (
        {"42501", 1044, 1142, 1143, 1227, 1290},
        ("readonly database",),
        "give the ledger's user the right to write there",
    ),
)
# The same for what may pass by itself, or by a hand outside of the ledger.
_PASSING: Final = (
    ({"53100", 1021, 1114}, ("disk is full",), "free some space on the database's disk"),
    (set[object](), ("unable to open",), "is there such a folder, and may this user write there?"),
    ({"53300", 1040}, (), "let the database have more connections"),
    # Deadlocks and waits for a lock.
    ({"40001", "40P01", "55P03", 1205, 1213}, ("is locked",), "it will be tried again"),
)


def _code(error: DBAPIError) -> object:
    """MySQL's number, or PostgreSQL's five characters, of which two tell the kind; else None."""
    first = error.orig.args[0] if error.orig and error.orig.args else None
    # MySQL has five characters as well, but many an error shares them.
    return first if isinstance(first, int) else getattr(error.orig, "sqlstate", None)


def _remedy(error: DBAPIError, known: Iterable[tuple[set[Any], tuple[str, ...], str]]) -> str:
    code, text = _code(error), str(error.orig)
    for codes, words, remedy in known:
        if code in codes or any(each in text for each in words):
            return remedy
    return ""


def _is_about_values(error: DBAPIError) -> bool:
    code = _code(error)
    if isinstance(error, (DataError, IntegrityError)):
        return True
    if isinstance(code, str):
        return code[:2] in ("22", "23")
    # What the driver itself could not write down.
    return isinstance(getattr(error.orig, "__cause__", None), ValueError)


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same statement may do later: the database is away, busy, or had a deadlock."""
    if error.connection_invalidated:
        return True
    code = _code(error)
    if isinstance(code, str):
        # The connection was lost, the transaction undone for another's sake, something is used up
        # or locked, the server is shutting down, or its system failed it.
        return code[:2] in ("08", "40", "53", "55", "57", "58")
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    return not _remedy(error, _REMEDIES)


def _words(error: DBAPIError, kind: type[SeckillError]) -> str:
    """What the database said and what to do, without the statement and without any value, which
    may be personal."""
    said = str(error.orig)
    cause = getattr(error.orig, "__cause__", None)
    if message := getattr(cause, "message", None):
        said = message  # PostgreSQL's, without its detail, which quotes rows.
    elif isinstance(_code(error), int) and error.orig is not None:
        said = str(error.orig.args[-1])
    said = " ".join(said.rpartition(">: ")[2].split())
    said = _DRIVERS_VALUE.sub(r"\1", _QUOTED_VALUE.sub(r"\1", said))[:200]
    if kind is RowRefused:
        return said
    remedy = _remedy(error, (*_REMEDIES, *_PASSING))
    return f"{said}; {remedy or _IS_IT_THERE}" if remedy or kind is LedgerUnavailable else said


# MySQL: Incorrect string value: '…' for column …; PostgreSQL: value "…" is out of range, and
# invalid input syntax for type integer: "…"; asyncpg: … for query argument $9: … (why).
_QUOTED_VALUE: Final = re.compile(r"""(value|entry|(?<=type )\w+):? ('.*?'(?= for |$)|".*")""")
_DRIVERS_VALUE: Final = re.compile(r"(query argument \$\d+): .*(?= \()", re.DOTALL)
