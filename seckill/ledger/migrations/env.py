"""What Alembic runs for each upgrade, on the connection that ``migrate.upgrade`` hands in."""

from __future__ import annotations

import warnings

from alembic import context

from seckill.ledger.migrate import VERSION_TABLE
from seckill.ledger.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction(), warnings.catch_warnings():
    # MariaDB has but one name for a primary key, and warns of any other.
    warnings.filterwarnings("ignore", "Name '.*' ignored for PRIMARY key")
    context.run_migrations()
