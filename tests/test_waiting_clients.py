"""How many clients of a pooler wait, by its sockets: the bounds, without sockets."""

from __future__ import annotations

import pytest

from check_pgsock.sessions.waiting_clients import Bound, Estimate


@pytest.mark.parametrize(
    ("awaiting", "unclear", "busy", "maybe", "local", "least", "most"),
    [
        ([], [], 0, 0, 0, (0, 0), (0, 0)),
        ([3, 2, 1], [], 3, 0, 0, (0, 0), (0, 0)),
        # Whoever is served, the third oldest request or an older one waits.
        ([1, 9, 5, 7], [], 2, 0, 0, (2, 5), (2, 9)),
        # The pooler's own queries make it busier than its clients are waiting.
        ([1], [], 4, 0, 0, (0, 0), (0, 0)),
        # What may be busy lowers what is sure, what may await an answer raises what may be.
        ([9, 5], [], 0, 1, 0, (1, 5), (2, 9)),
        ([9, 5], [], 0, 0, 2, (0, 0), (2, 9)),
        ([9, 5], [7, 99], 2, 0, 0, (0, 0), (2, 99)),
        ([], [3], 0, 0, 0, (0, 0), (1, 3)),
    ],
)
def test_bounds(
    awaiting: list[float], unclear: list[float], busy: int, maybe: int, local: int,
    least: tuple[int, float], most: tuple[int, float],
) -> None:  # fmt: skip
    found = Estimate()
    found.awaiting, found.unclear = awaiting, unclear
    found.busy, found.maybe_busy, found.local = busy, maybe, local
    assert (found.least, found.most) == (Bound(*least), Bound(*most))
