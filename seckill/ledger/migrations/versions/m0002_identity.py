"""Which ledger this is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds a table for its id, which migrate.py then writes there."""
    own = mysql.VARCHAR(32, charset="ascii", collation="ascii_bin")
    op.create_table(
        "seckill_ledger",
        sa.Column("place", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(32).with_variant(own, "mysql", "mariadb"), nullable=False),
        sa.Column("made_at_ms", sa.BigInteger, nullable=False),
    )
