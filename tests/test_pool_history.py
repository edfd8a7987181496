"""The usual size of a pool: pure, on pools as they live."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from check_pgsock.sessions.pool_history import (
    KEPT,
    PoolSample,
    find_usual_size,
    is_due,
    pack_pool,
    parse_pool,
    span_needed,
    span_of,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
IDLE_FOR = 15 * MINUTE
NOW = 1000 * DAY  # midnight

Shape = Callable[[float], "tuple[int, int]"]  # hours before now: total, in use


def usual(shape: Shape, hours: float, idle_for: float = IDLE_FOR) -> int | None:
    """The usual size of a pool that was sampled every five minutes for so many hours."""
    count = int(hours * 12)
    samples = [PoolSample(NOW - n * 5 * MINUTE, *shape(n / 12)) for n in range(count, -1, -1)]
    return find_usual_size(samples[:-1], samples[-1], idle_for)


def by_day(day: tuple[int, int], night: tuple[int, int]) -> Shape:
    """Working hours are 8 to 18; it is midnight."""
    return lambda ago: day if 6 <= ago % 24 < 16 else night


def since(ago: float, before: tuple[int, int], after: tuple[int, int]) -> Shape:
    return lambda hours: after if hours <= ago else before


def leak_at(ago: float, size: int, lost: int) -> Shape:
    """A pool all in use, of which `lost` connections more were opened and forgotten: for one idle
    time they count as in use.
    """
    return lambda hours: (
        (size, size)
        if hours > ago
        else (size + lost, size + lost if hours > ago - IDLE_FOR / HOUR else size)
    )


@pytest.mark.parametrize(
    ("shape", "hours", "expected"),
    [
        # A fixed pool, in use by day: silent at night, it is as large as ever.
        (by_day((20, 20), (20, 0)), 24, 20),
        # The connection used last is taken first: 12 of 20 are never used.
        (lambda ago: (20, 8), 2, 20),
        # It grows by day and shrinks at night, in time or late.
        (by_day((60, 60), (10, 4)), 24 * 7, 60),
        (by_day((60, 60), (60, 2)), 12, 60),
        # A restart, and an application that is stopped every night.
        (lambda ago: (0, 0) if 1 <= ago < 1.2 else (50, 12), 2, 50),
        (by_day((50, 12), (0, 0)), 24 * 7, 50),
        # One of two applications restarts.
        (lambda ago: (30, 12) if 1 <= ago < 1.1 else (50, 12), 4, 50),
        # A leak, steady for 10 hours, or at once 3 hours ago, does not become usual.
        (lambda ago: (20 + int(6 * min(10 - ago, 10)) if ago < 10 else 20, 20), 24, 20),
        (leak_at(3, 50, 30), 48, 50),
        # What has been there for most of the time is usual.
        (since(46, (50, 50), (80, 50)), 48, 80),
        # Nobody was there at all.
        (lambda ago: (0, 0), 2, 0),
    ],
)
def test_the_usual_size(shape: Shape, hours: float, expected: int) -> None:
    assert usual(shape, hours) == expected


def test_a_short_burst_is_no_size() -> None:
    """Used together for 25 minutes, then silent, then still there."""
    burst = since(2, (10, 10), (40, 10))
    assert usual(lambda ago: (40, 40) if 1.6 < ago <= 2 else burst(ago), 48) == 10
    assert usual(lambda ago: (40, 40) if 1.4 < ago <= 2 else burst(ago), 48) == 40


def test_before_enough_has_been_seen_nothing_is_usual() -> None:
    assert usual(lambda ago: (20, 20), 11 / 12) is None
    assert usual(lambda ago: (20, 20), 1) == 20
    assert usual(lambda ago: (20, 20), 3, idle_for=HOUR) is None
    assert usual(lambda ago: (20, 20), 4, idle_for=HOUR) == 20
    # A week of hours, but three samples.
    samples = [PoolSample(NOW - n * DAY, 9, 9) for n in (2, 1, 0)]
    assert find_usual_size(samples[:-1], samples[-1], IDLE_FOR) is None
    assert find_usual_size([], samples[-1], IDLE_FOR) is None


def test_the_time_that_is_needed() -> None:
    assert span_needed(2) == span_needed(IDLE_FOR) == HOUR
    assert span_needed(HOUR) == 4 * HOUR
    assert span_needed(30 * DAY) == KEPT / 2
    assert span_of([], PoolSample(NOW, 1, 1)) == 0
    assert span_of([PoolSample(NOW - 5, 1, 1)], PoolSample(NOW, 1, 1)) == 5


def test_runs_that_are_far_apart() -> None:
    """Once an hour: what was in use in two runs in a row was so for a while."""
    seen = [(9, 9), (9, 9), (9, 2), (9, 9), (4, 1), (4, 1), (9, 1)]
    samples = [PoolSample(NOW + n * HOUR, *one) for n, one in enumerate(seen)]
    assert find_usual_size(samples[:-1], samples[-1], IDLE_FOR) == 9
    samples = [PoolSample(NOW + n * HOUR, *one) for n, one in enumerate(seen[2:])]
    assert find_usual_size(samples[:-1], samples[-1], IDLE_FOR) == 4


def test_what_comes_after_now_is_not_history() -> None:
    samples = [PoolSample(NOW + n * HOUR, 50, 50) for n in range(9)]
    assert find_usual_size(samples, PoolSample(NOW, 10, 10), IDLE_FOR) is None


def test_samples_are_kept_every_few_minutes() -> None:
    kept = [PoolSample(NOW, 1, 1)]
    assert is_due([], NOW)
    assert not is_due(kept, NOW + 60)
    assert is_due(kept, NOW + 299)
    assert is_due(kept, NOW - 600)


def test_what_is_stored() -> None:
    sample = PoolSample(NOW, 20, 3)
    assert parse_pool(NOW, pack_pool(sample)) == sample
    others: list[object] = [None, {}, [1], [1, "2"], [1, 2, 3], [1.5, 2]]
    for other in others:
        assert parse_pool(NOW, other) is None
