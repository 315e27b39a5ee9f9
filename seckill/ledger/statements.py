"""What the ledger writes, in the words of each database.

Every statement may be repeated and come in any order: an event that is there already is left as it
is, and an order only moves up to a higher version.

PostgreSQL takes a whole batch as arrays in one statement, which costs a fraction of a row at a time;
the drivers of the other two do as well with their own ``executemany``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ARRAY, Table, bindparam, case, func, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from seckill.ledger.tables import EVENTS, ITEMS, ORDERS, SALES

__all__ = ["put_events", "put_items", "put_orders", "put_sale"]

Rows = Sequence[dict[str, Any]]

# What a higher version of an order brings along; who ordered what never changes.
_BY_VERSION: Final = ("state", "deadline_ms", "payment", "refund", "changed_ms", "record")


async def put_events(connection: AsyncConnection, rows: Rows) -> int:
    """Writes events that are not there yet; how many were not. Rows in the order of seq."""
    return await _put(connection, EVENTS, rows, {})


async def put_orders(connection: AsyncConnection, rows: Rows) -> None:
    """Writes orders that are new or of a higher version than what is there."""
    await _put(connection, ORDERS, rows, _ORDER_CHANGES)


async def put_sale(connection: AsyncConnection, row: dict[str, Any]) -> int:
    """Writes a sale that is not there yet; 1 if it was not."""
    return await _put(connection, SALES, [row], {})


async def put_items(connection: AsyncConnection, rows: Rows) -> int:
    """Writes a sale's items that are not there yet; how many were not."""
    return await _put(connection, ITEMS, rows, {})


# By name, what becomes of a column of a row that is there: a function of the old and the new one.
# The version comes last: MySQL's assignments see what those before them have done.
_ORDER_CHANGES: Final = {
    **{
        name: lambda old, new, name=name: case(
            (new["version"] > old["version"], new[name]), else_=old[name]
        )
        for name in _BY_VERSION
    },
    "attrs": lambda old, new: case((new["attrs"] != "", new["attrs"]), else_=old["attrs"]),
    "held_ms": lambda old, new: case((new["held_ms"] > 0, new["held_ms"]), else_=old["held_ms"]),
    "version": lambda old, new: case(
        (new["version"] > old["version"], new["version"]), else_=old["version"]
    ),
}


async def _put(
    connection: AsyncConnection, table: Table, rows: Rows, changes: dict[str, Any]
) -> int:
    """Inserts rows; of those whose key is there already, changes these columns. Returns how many
    were new, if there are no changes."""
    if not rows:
        return 0
    name = connection.dialect.name
    if name == "postgresql":
        columns = [column.name for column in table.columns]
        arrays = {column: [row[column] for row in rows] for column in columns}
        result = await connection.execute(_of_arrays(table, changes), arrays)
    elif name == "sqlite":
        result = await connection.execute(_sqlite(table, changes), rows)
    else:
        result = await connection.execute(_mysql(table, changes), rows)
    return int(result.rowcount)


def _of_arrays(table: Table, changes: dict[str, Any]) -> Any:
    columns = list(table.columns)
    arrays = [
        func.unnest(bindparam(column.name, type_=ARRAY(column.type))).label(column.name)
        for column in columns
    ]
    statement = postgresql.insert(table).from_select([each.name for each in columns], select(*arrays))
    key = list(table.primary_key.columns)
    if not changes:
        return statement.on_conflict_do_nothing(index_elements=key)
    new = statement.excluded
    return statement.on_conflict_do_update(index_elements=key, set_=_changed(table, new, changes))


def _sqlite(table: Table, changes: dict[str, Any]) -> Any:
    statement = sqlite.insert(table)
    key = list(table.primary_key.columns)
    if not changes:
        return statement.on_conflict_do_nothing(index_elements=key)
    new = statement.excluded
    return statement.on_conflict_do_update(index_elements=key, set_=_changed(table, new, changes))


def _mysql(table: Table, changes: dict[str, Any]) -> Any:
    # Not IGNORE, which would also cut values that do not fit.
    statement = mysql.insert(table)
    if not changes:
        first = next(iter(table.primary_key.columns))
        return statement.on_duplicate_key_update([(first.name, first)])
    changed = _changed(table, statement.inserted, changes)
    return statement.on_duplicate_key_update(list(changed.items()))


def _changed(table: Table, new: Any, changes: dict[str, Any]) -> dict[str, ColumnElement[Any]]:
    return {name: change(table.c, new) for name, change in changes.items()}
