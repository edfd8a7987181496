"""What only the database knows: the one place that talks to PostgreSQL."""
