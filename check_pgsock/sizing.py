"""The pool-size formula, as published for PostgreSQL's max_connections and for pools; pure.

    connections < min(num_cores, parallel_io_limit) / (session_busy_ratio * avg_parallelism)

session_busy_ratio is the time sessions spent executing over the time they spent executing or
idle in a transaction: what is left out is the time between transactions, in which a pooled
connection serves somebody else.
"""

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# Quotients of measured milliseconds: what differs by less than this is the same number.
_RELATIVE_ERROR = 1e-9


def busy_ratio(active: float, idle_in_transaction: float) -> "Optional[float]":
    """The share of executing in the time of transactions; None where there was none.

    In thousandths, as it is printed: who puts the printed number into the formula gets the same
    limit, and 1.000 and 0.9999 are one number. Where anything executed it is 0.001 at least.
    """
    total = active + idle_in_transaction
    if total <= 0:
        return None
    return max(round(active / total, 3), 0.001) if active > 0 else 0.0


def upper_limit(
    cores: float, io_limit: "Optional[float]", ratio: float, parallelism: float
) -> "Optional[float]":
    """What the number of connections must stay below; None (no limit) where nothing executes.

    Without `io_limit` the cores alone limit.
    """
    work = ratio * parallelism
    if work <= 0:
        return None
    return (cores if io_limit is None else min(cores, io_limit)) / work


def largest_allowed(limit: float) -> int:
    """The greatest whole number strictly below `limit`, but at least 1: a pool needs one."""
    return max(math.ceil(limit * (1 - _RELATIVE_ERROR)) - 1, 1)
