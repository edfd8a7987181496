"""Monitoring of PostgreSQL connection pools from kernel socket state."""

__version__ = "0.1.0"
