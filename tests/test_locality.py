"""Whether a backend's word and the process of its id are one server, on this host."""

from __future__ import annotations

import pytest

from check_pgsock.postgres.locality import TOLERANCE, judge_locality


@pytest.mark.parametrize(
    ("found", "start", "proven", "reason"),
    [
        (("postgres", 99.99), 100.0, True, "is a postgres process here, started 0.010 s apart"),
        (("postmaster", 100.0), 100.0, True, "is a postgres process here, started 0.000 s apart"),
        (None, 100.0, False, "is no process that can be seen here"),
        (("ba|sh", 100.0), 100.0, False, "is here a process called ba?sh"),
        (("postgres", 100.0), None, False, "hides when it started"),
        (
            ("postgres", 100.0),
            100.1 + TOLERANCE,
            False,
            "and the process here started 0.6 s apart",
        ),
    ],
)
def test_locality(
    found: tuple[str, float] | None, start: float | None, proven: bool, reason: str
) -> None:
    locality = judge_locality(7, start, found)
    assert (locality.proven, locality.reason) == (proven, f"its backend 7 {reason}")
