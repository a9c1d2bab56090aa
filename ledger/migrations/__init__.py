"""The ledger's database schema, one alembic revision a step; `store.migrate` runs them."""
