"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def _id(length: int) -> sa.String:
    own = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(own, "mysql", "mariadb")


def _words(length: int) -> sa.String:
    own = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(own, "mysql", "mariadb")


def _text() -> sa.Text:
    own = mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin")
    return sa.Text().with_variant(own, "mysql", "mariadb")


def _big(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, primary_key=key, autoincrement=False)


def upgrade() -> None:
    """Adds them."""
    op.create_table(
        "seckill_sales",
        sa.Column("sale", _id(40), primary_key=True),
        sa.Column("made", _id(80), nullable=False),
        sa.Column("definition", _text(), nullable=False),
        _big("origin_ms"),
        _big("opens_ms"),
        _big("ends_ms"),
        sa.Column("state", _id(10), nullable=False),
        sa.Column("reason", _words(200), nullable=False),
        _big("state_seq"),
        _big("seen_seq"),
        _big("seen_at_ms"),
        sa.Column("refusals", _text(), nullable=False),
        _big("removed_at_ms"),
    )
    op.create_table(
        "seckill_items",
        sa.Column("sale", _id(40), primary_key=True),
        sa.Column("position", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("sku", _id(40), nullable=False),
        sa.Column("title", _words(200), nullable=False),
        _big("price_fen"),
        _big("total"),
        _big("total_seq"),
    )
    op.create_table(
        "seckill_orders",
        sa.Column("sale", _id(40), primary_key=True),
        sa.Column("id", _id(24), primary_key=True),
        sa.Column("buyer", _id(64), nullable=False),
        sa.Column("state", _id(10), nullable=False),
        sa.Column("version", sa.SmallInteger, nullable=False),
        sa.Column("items", _text(), nullable=False),
        sa.Column("units", sa.Integer, nullable=False),
        _big("amount_fen"),
        _big("deadline_ms"),
        sa.Column("payment", _id(64), nullable=False),
        sa.Column("refund", _id(64), nullable=False),
        _big("held_ms"),
        _big("changed_ms"),
        sa.Column("attrs", _text(), nullable=False),
        sa.Column("record", _text(), nullable=False),
    )
    op.create_index("seckill_orders_buyer", "seckill_orders", ["buyer"])
    op.create_table(
        "seckill_events",
        sa.Column("sale", _id(40), primary_key=True),
        _big("seq", key=True),
        _big("at_ms"),
        sa.Column("kind", _id(20), nullable=False),
        sa.Column("subject", _id(24), nullable=False),
        sa.Column("body", _text(), nullable=False),
    )
