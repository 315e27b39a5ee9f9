"""The ledger's migrations, for Alembic. They only add."""
