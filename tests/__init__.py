"""Tests: units without I/O mirror the package's modules; functional ones use real servers."""
