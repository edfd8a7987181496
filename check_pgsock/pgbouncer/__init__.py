"""PgBouncer: its configuration file."""
