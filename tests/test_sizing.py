"""The formulas of the largest and the smallest pool."""

from __future__ import annotations

import math

import pytest

from check_pgsock.pooling.sizing import (
    RARELY,
    busy_ratio,
    capacity,
    largest_allowed,
    smallest_sufficient,
    upper_limit,
    waiting_probability,
)


@pytest.mark.parametrize(
    ("active", "idle", "ratio"),
    [
        (1.0, 3.0, 0.25),
        (0.0, 5.0, 0.0),
        (5.0, 0.0, 1.0),
        (0.0, 0.0, None),
        (0.9996, 0.0004, 1.0),  # as it is printed
        (0.9994, 0.0006, 0.999),
        (1e-6, 5.0, 0.001),  # not nothing
    ],
)
def test_busy_ratio(active: float, idle: float, ratio: float | None) -> None:
    assert busy_ratio(active, idle) == ratio


@pytest.mark.parametrize(
    ("cores", "io_limit", "ratio", "parallelism", "limit"),
    [
        (4, None, 0.5, 1, 8.0),
        (4, 2, 0.5, 1, 4.0),  # the smaller of cores and I/O
        (4, 100, 0.5, 1, 8.0),
        (4, None, 0.5, 4, 2.0),
        (1.5, None, 1.0, 1, 1.5),
        (4, None, 0.0, 1, None),  # nothing executes: no limit
    ],
)
def test_upper_limit(
    cores: float, io_limit: float | None, ratio: float, parallelism: float, limit: float | None
) -> None:
    assert upper_limit(capacity(cores, io_limit), ratio, parallelism) == limit


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        (26.7, 27),
        (26.4, 26),
        (26.0, 26),  # just the limit
        (10.000000000000002, 10),
        (9.999999999999998, 10),
        (3.97, 4),  # 2 cores at a busy ratio of 0.504: a pool of 4 is not too large by turns
        (3.7, 3),
        (2.0, 2),
        (1.9, 1),
        (0.2, 1),  # a pool needs one
        (1e12, 10**12),
    ],
)
def test_largest_allowed(limit: float, allowed: int) -> None:
    assert largest_allowed(limit) == allowed


def erlang_c(connections: int, load: float) -> float:
    """The textbook's form."""
    full = load**connections / math.factorial(connections) * connections / (connections - load)
    return full / (sum(load**k / math.factorial(k) for k in range(connections)) + full)


@pytest.mark.parametrize(
    ("connections", "load"), [(1, 0.5), (2, 1.0), (3, 2.0), (15, 10.0), (26, 10.0), (100, 80.0)]
)
def test_waiting_probability(connections: int, load: float) -> None:
    assert waiting_probability(connections, load) == pytest.approx(erlang_c(connections, load))


def test_waiting_for_ever() -> None:
    assert waiting_probability(2, 2.0) == 1
    assert waiting_probability(1, 3.0) == 1
    assert waiting_probability(1, 0.0) == 0


@pytest.mark.parametrize("load", [0.001, 0.01, 0.3, 1, 4.2, 10, 80, 1000])
def test_the_smallest_pool_is_the_first_that_hardly_ever_lets_wait(load: float) -> None:
    number = smallest_sufficient(load)
    assert number is not None
    assert number > load
    assert waiting_probability(number, load) <= RARELY
    assert number == 1 or waiting_probability(number - 1, load) > RARELY


def test_no_server_holds_a_pool_for_everything() -> None:
    assert smallest_sufficient(1e6) is None
