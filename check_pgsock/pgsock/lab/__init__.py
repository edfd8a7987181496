"""Throw-away real servers and the load on them, for the demo and the tests."""
