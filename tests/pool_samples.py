"""Samples of a database's statistics, for the tests of windows and pools."""

from __future__ import annotations

from typing import Any

from check_pgsock.pooling.samples import Progress, Sample
from check_pgsock.postgres.statistics import Statistics

EPOCH = 1_700_000_000.0


def sample(at: float, active: float = 0.0, idle: float = 0.0, **other: Any) -> Sample:
    """A sample `at` seconds after the server's start, reset at its start; `other` are counters,
    or parts of the sample.
    """
    values: dict[str, Any] = {
        "name": "app",
        "oid": 5,
        "postmaster_start": EPOCH,
        "address": "192.0.2.1",
        "port": 5432,
        "stats_reset": EPOCH,
        "taken": EPOCH + at,
        "active": active,
        "idle": idle,
        "session": active + idle,
        "abandoned": 0,
        "fatal": 0,
        "killed": 0,
        "sessions": 1,
    }
    parts = {name: other.pop(name) for name in Sample.__slots__ if name in other}
    counters = Statistics(**{**values, **other})
    return Sample(counters, **{"progress": Progress(), "backends": 5, **parts})
