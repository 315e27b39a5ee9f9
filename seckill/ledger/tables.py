"""The ledger's tables, in any database that SQLAlchemy speaks to.

    seckill_sales    one row a sale: its definition, how it stands, and how far Redis was seen
    seckill_items    one row an SKU: price and total
    seckill_orders   one row an order, as of its highest version
    seckill_events   one row an event: the whole history, as it stood in the sale's stream
    seckill_ledger   one row: which ledger this is

Times are Unix milliseconds on the sale's clock unless a column says otherwise, money is fen. A
mall may read all of this and join it with its own tables; it writes none of it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import mysql

__all__ = ["EVENTS", "IDENTITY", "ITEMS", "METADATA", "ORDERS", "SALES"]

METADATA: Final = MetaData()


def _id(length: int) -> String:
    """An id. MySQL would compare it without regard to case; it is ASCII, so its keys are short."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def _words(length: int) -> String:
    """Words of people."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


def _text() -> Text:
    return Text().with_variant(
        mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


SALES: Final = Table(
    "seckill_sales",
    METADATA,
    Column("sale", _id(40), primary_key=True),
    # Tells this sale from one that was lost and made anew under the same id.
    Column("made", _id(80), nullable=False),
    Column("definition", _text(), nullable=False),
    Column("origin_ms", BigInteger, nullable=False),
    Column("opens_ms", BigInteger, nullable=False),
    Column("ends_ms", BigInteger, nullable=False),
    Column("state", _id(10), nullable=False),
    Column("reason", _words(200), nullable=False),
    # The event that gave it this state, so that an older one that comes later changes nothing.
    Column("state_seq", BigInteger, nullable=False),
    # The highest seq that Redis was seen to have, and when (on the ledger's own clock).
    Column("seen_seq", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    # Refusals by status as JSON, as the engines have counted them.
    Column("refusals", _text(), nullable=False),
    # When its keys were removed from Redis; 0 while they are there.
    Column("removed_at_ms", BigInteger, nullable=False),
)

ITEMS: Final = Table(
    "seckill_items",
    METADATA,
    Column("sale", _id(40), primary_key=True),
    Column("position", SmallInteger, primary_key=True, autoincrement=False),
    Column("sku", _id(40), nullable=False),
    Column("title", _words(200), nullable=False),
    Column("price_fen", BigInteger, nullable=False),
    # As created, or as the last change of stock left it.
    Column("total", BigInteger, nullable=False),
    Column("total_seq", BigInteger, nullable=False),
)

ORDERS: Final = Table(
    "seckill_orders",
    METADATA,
    Column("sale", _id(40), primary_key=True),
    Column("id", _id(24), primary_key=True),
    Column("buyer", _id(64), nullable=False),
    Column("state", _id(10), nullable=False),
    Column("version", SmallInteger, nullable=False),
    # Units by SKU, as JSON.
    Column("items", _text(), nullable=False),
    Column("units", Integer, nullable=False),
    Column("amount_fen", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    # The payment that paid for it, once it is confirmed; the refund, once it is refunded.
    Column("payment", _id(64), nullable=False),
    Column("refund", _id(64), nullable=False),
    # When it was reserved, and when this version began. 0: that event is not here yet.
    Column("held_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    # What the caller of reserve gave along.
    Column("attrs", _text(), nullable=False),
    # As it stands in Redis, see lua/lib/record.lua.
    Column("record", _text(), nullable=False),
    Index("seckill_orders_buyer", "buyer"),
)

EVENTS: Final = Table(
    "seckill_events",
    METADATA,
    Column("sale", _id(40), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", _id(20), nullable=False),
    # The order's id, or "sale".
    Column("subject", _id(24), nullable=False),
    # What follows the kind's word in the stream.
    Column("body", _text(), nullable=False),
)

IDENTITY: Final = Table(
    "seckill_ledger",
    METADATA,
    # Always 1, so that there can't be two.
    Column("place", SmallInteger, primary_key=True, autoincrement=False),
    # Made once. A backup and a copy have the same.
    Column("id", _id(32), nullable=False),
    Column("made_at_ms", BigInteger, nullable=False),
)
