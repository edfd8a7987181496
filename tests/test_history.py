"""History: growth of counters over several samples, and quantiles."""

from __future__ import annotations

import pytest

from check_pgsock.history import Growth, Reading, find_growth, quantile


def readings(*samples: tuple[float, int], identity: object = "a") -> list[Reading]:
    """Readings of one counter."""
    return [Reading(at, identity, value) for at, value in samples]


@pytest.mark.parametrize(
    ("earlier", "growth"),
    [
        pytest.param([], None, id="first-run"),
        pytest.param(readings((1000, 5)), None, id="of-the-same-time"),
        pytest.param(readings((1050, 5)), None, id="before-the-clock-was-set-back"),
        pytest.param(readings((990, 7)), Growth(3, 10), id="shorter-than-the-span"),
        pytest.param(
            readings((600, 1), (690, 2), (700, 4), (900, 9)), Growth(6, 300), id="exactly-the-span"
        ),
        pytest.param(readings((650, 1), (690, 2), (701, 4)), Growth(8, 310), id="newest-old-one"),
        pytest.param(readings((0, 1)), Growth(9, 1000), id="long-ago"),
        pytest.param(readings((990, 7), (600, 1)), Growth(9, 400), id="in-any-order"),
        pytest.param(readings((900, 4), (950, 20)), Growth(16 + 10, 100), id="lower-than-before"),
        pytest.param(
            readings((900, 40), identity="b"), Growth(10, 100), id="another-listener-since"
        ),
        pytest.param(
            [*readings((900, 4), identity="b"), *readings((950, 3))],
            Growth(3 + 7, 100),
            id="another-listener-in-between",
        ),
        pytest.param(readings((900, 10)), Growth(0, 100), id="nothing-new"),
    ],
)
def test_growth(earlier: list[Reading], growth: Growth | None) -> None:
    assert find_growth(earlier, Reading(1000, "a", 10), 300) == growth


def test_a_restart_with_an_empty_counter_adds_nothing() -> None:
    earlier = readings((900, 40))
    assert find_growth(earlier, Reading(1000, "new", 0), 300) == Growth(0, 100)


def test_a_rate_is_over_so_many_seconds_at_least() -> None:
    assert Growth(30, 10).rate(300) == 0.1
    assert Growth(30, 600).rate(300) == 0.05


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1), (0.25, 2), (0.5, 3), (0.75, 4), (0.99, 4), (1, 4)]
)
def test_quantile(share: float, value: float) -> None:
    assert quantile([4, 1, 3, 2], share) == value


def test_quantile_of_one() -> None:
    assert quantile([7.5], 0.95) == 7.5
