"""Assesses the pool of one database by the formulas of `sizing`, from its samples; pure."""

from check_pgsock.pooling import pools, sizing, windows
from check_pgsock.pooling.pools import Pool
from check_pgsock.pooling.samples import LONGEST
from check_pgsock.postgres import parallelism

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.pooling.pools import Size, Terms
    from check_pgsock.pooling.samples import History
    from check_pgsock.pooling.windows import Window
    from check_pgsock.postgres.parallelism import Looks

# The check's own session is in the statistics, with up to 30 ms a run: in a window shorter than
# this (seconds) that alone may look like activity, so activity is averaged over this at least.
SHORTEST_AVERAGED = 2.0
# Seconds of sessions in statements and transactions that a ratio means something of where it is
# not known since when they were counted: 2,000 sessions of the check.
LEAST_COUNTED = 60.0
# Runs whose looks are enough to contradict the statistics.
_LEAST_RUNS = 2
# Looks at statements that tell their parallelism: of fewer, one that happens to start weighs much.
_LEAST_LOOKS = 20
# Seconds that client backends were seen in which are the pool's size: one that was lowered before
# is no longer judged by what it was.
RECENT = 3600.0
# The same where a size is configured: more than that are there all the time, or were before.
RECENT_CONFIGURED = 600.0


def assess(
    history: "History",
    terms: "Terms",
    configured: "Optional[Size]" = None,
    elsewhere: "Optional[Looks]" = None,
    is_session: bool = False,
) -> Pool:
    """Assess the pool of one database; `elsewhere` are the looks at all databases."""

    def is_enough(window: "Window") -> bool:
        long = window.seconds is None or window.seconds >= terms.shortest
        spent = window.active + window.idle
        return long and spent >= least_spent(window, terms.least_busy) and not window.is_late

    window = windows.choose_window(history, terms.since, is_enough)
    seen = _most_backends(history, RECENT if configured is None else RECENT_CONFIGURED)
    peak = _most_backends(history, LONGEST)
    each = 0 if configured is None else configured.connections * terms.poolers
    pool = Pool(
        history.now.statistics.name, window, max(each, seen), seen, configured,
        _choose_parallelism(terms, history.looks, elsewhere), is_session, terms.poolers,
    )  # fmt: skip
    if is_unseen(window, history):
        window.distrust()
    if not (is_enough(window) or window.is_late):
        return pool
    if window.active + window.idle <= 0:
        pool.outcome = pools.UNRELIABLE if window.is_late else pools.TOO_LITTLE
        return pool
    if is_session:
        pool.ratio = _session_ratio(window, history)
        pool.needed = peak
    else:
        pool.ratio = sizing.busy_ratio(window.active, window.idle)
        load = max(
            windows.highest_load(history) or 0.0,
            0.0 if window.is_late else window.load or 0.0,
        )
        pool.needed = sizing.smallest_sufficient(load) if load else None
    if pool.needed is not None and 0 < peak < (each or pool.needed):
        # It never was full, or each client has a connection of its own: more were never wanted.
        pool.needed = min(pool.needed, peak)
    if pool.ratio is None:
        pool.outcome = pools.UNDATED
        return pool
    # A ratio that is not reliable is judged where it is wrong whatever it is.
    judged = pool.ratio if pool.is_reliable else window.lowest
    limit = sizing.upper_limit(terms.capacity, judged, pool.parallelism)
    pool.outcome = pools.JUDGED if limit is not None else pools.NO_STATEMENTS
    if not pool.is_reliable and limit is None:
        pool.outcome = pools.UNRELIABLE
    pool.allowed = None if limit is None else sizing.largest_allowed(limit)
    pool.work = pool.size * judged * pool.parallelism
    return pool


def is_unseen(window: "Window", history: "History") -> bool:
    """Whether the looks of the window's runs saw far more sessions at work, idle in transactions,
    or either, than the statistics have: from version 15 on what touches no table comes into these
    later.
    """
    if window.seconds is None:
        return False
    looks = [one.looks for one in history.within(window.seconds) if one.looks is not None]
    if len(looks) < _LEAST_RUNS:
        return False
    seen, times = parallelism.add(looks), len(looks) * parallelism.LOOKS
    return any(
        count / times > 3 * spent / window.seconds + 1
        for count, spent in (
            (seen.leaders, window.active),
            (seen.idle, window.idle),
            (seen.leaders + seen.idle, window.active + window.idle),
        )
    )


def least_spent(window: "Window", least_busy: float) -> float:
    """The seconds of sessions in statements and transactions that are enough to judge."""
    if window.seconds is None:
        return LEAST_COUNTED
    return least_busy * max(window.seconds, SHORTEST_AVERAGED)


def _most_backends(history: "History", seconds: float) -> int:
    """The most client backends seen within so many seconds."""
    return max(one.backends for one in history.within(seconds))


def _session_ratio(window: "Window", history: "History") -> "Optional[float]":
    """The share of executing in all time of sessions: with session pooling a client holds its
    connection between transactions, too. By the client backends seen: session_time is not that of
    sessions which are idle.
    """
    if window.seconds is None:
        return None
    seen = [one.backends for one in history.within(window.seconds)]
    held = sum(seen) / len(seen) * window.seconds
    return sizing.busy_ratio(window.active, max(held - window.active, 0.0))


def _choose_parallelism(
    terms: "Terms", own: "Looks", elsewhere: "Optional[Looks]"
) -> "tuple[float, str]":
    if terms.parallelism is not None:
        return terms.parallelism, pools.GIVEN
    for looks, origin in ((own, pools.MEASURED), (elsewhere, pools.MEASURED_ELSEWHERE)):
        if looks is not None and looks.leaders >= _LEAST_LOOKS:
            found = parallelism.parallelism(looks)
            if found is not None:
                return round(found, 3), origin
    return 1.0, pools.ASSUMED
