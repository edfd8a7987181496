"""Pools, as the database's statistics and PgBouncer's console tell of them."""
