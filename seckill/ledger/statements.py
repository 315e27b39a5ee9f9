"""What the ledger writes, in the words of each database.

Every statement may be repeated and come in any order: an event that is there already is left as it
is, and an order only moves up to a higher version.

PostgreSQL takes a whole batch in one statement, an array a column, which costs a fraction of a row
at a time; the drivers of the other two do as well with their own ``executemany``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    String,
    Table,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from seckill.ledger.database import RowRefused
from seckill.ledger.tables import EVENTS, ITEMS, ORDERS, SALES

__all__ = ["put_events", "put_items", "put_orders", "put_sale"]

Rows = Sequence[dict[str, Any]]
_Change = Callable[[Any, Any], ColumnElement[Any]]


async def put_events(connection: AsyncConnection, rows: Rows) -> int:
    """Writes events that are not there yet; how many were not. Rows in the order of seq."""
    return await _put(connection, EVENTS, rows)


async def put_orders(connection: AsyncConnection, rows: Rows) -> None:
    """Writes orders that are new or of a higher version than what is there."""
    await _put(connection, ORDERS, rows)


async def put_sale(connection: AsyncConnection, row: dict[str, Any]) -> int:
    """Writes a sale that is not there yet; 1 if it was not."""
    return await _put(connection, SALES, [row])


async def put_items(connection: AsyncConnection, rows: Rows) -> int:
    """Writes a sale's items that are not there yet; how many were not."""
    return await _put(connection, ITEMS, rows)


def _newer(name: str) -> _Change:
    """The column goes with the version."""
    return lambda old, new: case((new["version"] > old["version"], new[name]), else_=old[name])


def _told(name: str, nothing: str) -> _Change:
    """The column comes with the order's first event, before or after the others. ``nothing`` is
    SQL: a parameter here, behind the row's own, is more than MySQL's driver can place."""
    absent: ColumnElement[Any] = literal_column(nothing)
    return lambda old, new: case((new[name] != absent, new[name]), else_=old[name])


# What becomes of the columns of an order that is there: functions of the old and the new row. Who
# ordered what never changes. The version comes last: MySQL's assignments see those before them.
_ORDER_CHANGES: Final[dict[str, _Change]] = {
    **{name: _newer(name) for name in ("state", "deadline_ms", "payment", "refund")},
    **{name: _newer(name) for name in ("changed_ms", "record")},
    "attrs": _told("attrs", "''"),
    "held_ms": _told("held_ms", "0"),
    "version": _newer("version"),
}


async def _put(connection: AsyncConnection, table: Table, rows: Rows) -> int:
    """Inserts rows; of those whose key is there already, changes what may change. Returns how many
    were new, if nothing may."""
    if not rows:
        return 0
    dialect = connection.dialect.name
    # Of one column after the other for PostgreSQL, of one row after the other for the others.
    values = _columns(table, rows) if dialect == "postgresql" else rows
    result = await connection.execute(_statement(dialect, table), values)
    return int(result.rowcount)


@cache
def _statement(dialect: str, table: Table) -> Any:
    """Made once: to make it, and to see that it is the same again, costs more than to use it."""
    changes = _ORDER_CHANGES if table is ORDERS else {}
    match dialect:
        case "postgresql":
            return _with_changes(_of_arrays(table), table, changes)
        case "sqlite":
            return _with_changes(sqlite.insert(table), table, changes)
        case _:
            return _mysql(table, changes)


def _of_arrays(table: Table) -> postgresql.Insert:
    arrays = [func.unnest(_array(column)).label(column.name) for column in table.columns]
    names = [column.name for column in table.columns]
    return postgresql.insert(table).from_select(names, select(*arrays))


def _array(column: Column[Any]) -> ColumnElement[Any]:
    """The parameter for the values of a column. A number's width is checked by the cast; a text's
    is when it is inserted, where a cast would cut what does not fit, without a word."""
    kind = Text() if isinstance(column.type, String) else column.type
    return cast(bindparam(column.name, type_=Text()), ARRAY(kind))


def _columns(table: Table, rows: Rows) -> dict[str, str]:
    """The rows as values for ``_of_arrays``. Raises RowRefused for a NUL, which is the one
    character that PostgreSQL can't hold."""
    names = [column.name for column in table.columns]
    columns = zip(*map(itemgetter(*names), rows), strict=True)
    return {
        name: _text_array(values) if isinstance(values[0], str) else _number_array(values)
        for name, values in zip(names, columns, strict=True)
    }


def _text_array(values: tuple[str, ...]) -> str:
    """As PostgreSQL writes an array. The driver would take several times as long over a list, of
    which it asks each member whether it is one, too."""
    joined = "\0".join(values)
    if joined.count("\0") >= len(values):
        raise RowRefused("a text has a NUL character, which PostgreSQL can't hold")
    quoted = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return f'{{"{quoted}"}}'


def _number_array(values: tuple[int, ...]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def _with_changes(statement: Any, table: Table, changes: dict[str, _Change]) -> Any:
    key = list(table.primary_key.columns)
    if not changes:
        return statement.on_conflict_do_nothing(index_elements=key)
    changed = _changed(table, statement.excluded, changes)
    return statement.on_conflict_do_update(index_elements=key, set_=changed)


def _mysql(table: Table, changes: dict[str, _Change]) -> Any:
    # Not IGNORE, which would also cut values that do not fit.
    statement = mysql.insert(table)
    if not changes:
        first = next(iter(table.primary_key.columns))
        return statement.on_duplicate_key_update([(first.name, first)])
    changed = _changed(table, statement.inserted, changes)
    return statement.on_duplicate_key_update(list(changed.items()))


def _changed(table: Table, new: Any, changes: dict[str, _Change]) -> dict[str, ColumnElement[Any]]:
    return {name: change(table.c, new) for name, change in changes.items()}
