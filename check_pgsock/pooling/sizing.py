"""How large a pool may be and has to be: the formula, and its counterpart from queueing; pure.

The most, as published for PostgreSQL's max_connections and for pools (Laurenz Albe, "Sizing a
connection pool the wrong way"):

    connections < min(num_cores, parallel_io_limit) / (session_busy_ratio * avg_parallelism)

session_busy_ratio is the time sessions spent executing over the time they spent executing or
idle in a transaction: what is left out is the time between transactions, in which a connection
of transaction pooling serves somebody else.

The least, so that no client has to wait: connections are the servers of a queue M/M/n (A. K.
Erlang, 1917), offered so many transactions at a time on average.
"""

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

# What is measured is no more exact: a pool at the limit must not be too large by turns. Of large
# pools it is half a connection, so that who calculates the limit gets the same number.
_TOLERANCE, _MOST_TOLERATED = 0.05, 0.5
# A pool is large enough where a client waits with at most this probability.
RARELY = 0.01
# No pool is larger: PostgreSQL's MAX_BACKENDS is 2^18 - 1.
_LARGEST = 1 << 18


def busy_ratio(active: float, idle_in_transaction: float) -> "Optional[float]":
    """The share of executing in the time of transactions; None where there was none.

    In thousandths, as it is printed: who puts the printed number into the formula gets the same
    limit, and 1.000 and 0.9999 are one number. Where anything executed it is 0.001 at least.
    """
    total = active + idle_in_transaction
    if total <= 0:
        return None
    return max(round(active / total, 3), 0.001) if active > 0 else 0.0


def capacity(cores: float, io_limit: "Optional[float]") -> float:
    """How many processes the server can run at once; without `io_limit` the cores alone limit."""
    return cores if io_limit is None else min(cores, io_limit)


def upper_limit(capacity: float, ratio: float, parallelism: float) -> "Optional[float]":
    """The number of connections that fills the server; None (no limit) where nothing executes."""
    work = ratio * parallelism
    return capacity / work if work > 0 else None


def largest_allowed(limit: float) -> int:
    """The greatest whole number up to `limit`, with a tolerance; at least 1: a pool needs one.

    A pool of just the limit keeps all that the server can run at work, and nothing waits for it.
    """
    return max(math.floor(limit + min(limit * _TOLERANCE, _MOST_TOLERATED)), 1)


def waiting_probability(connections: int, load: float) -> float:
    """The probability that a client finds all connections taken (Erlang C).

    `load` is the mean number of connections in use where none is short of one.
    """
    return next(
        probability for number, probability in _probabilities(load) if number == connections
    )


def smallest_sufficient(load: float) -> "Optional[int]":
    """The smallest pool in which a client waits RARELY; None where no server could hold it."""
    for number, probability in _probabilities(load):
        if probability <= RARELY:
            return number
        if number >= _LARGEST:
            break
    return None


def _probabilities(load: float) -> "Iterator[tuple[int, float]]":
    """(connections, Erlang C), from one connection on, without an end."""
    blocked = 1.0  # Erlang B, by its recursion over the number of connections
    number = 0
    while True:
        number += 1
        blocked = load * blocked / (number + load * blocked)
        use = load / number
        yield number, 1.0 if use >= 1 else blocked / (1 - use * (1 - blocked))
