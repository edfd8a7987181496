"""Assesses the pool of one database by the formulas of `sizing`, from its samples; pure."""

from check_pgsock.pooling import pools, sizing, windows
from check_pgsock.pooling.pools import Pool
from check_pgsock.pooling.samples import LONGEST
from check_pgsock.postgres import parallelism

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.pooling.pools import Size, Terms
    from check_pgsock.pooling.samples import Backends, History
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
    is_session: bool = False,
    backends: "Iterable[Backends]" = (),
) -> Pool:
    """Assess the pool of one database, which `backends` are on now."""

    def is_enough(window: "Window") -> bool:
        long = window.seconds is None or window.seconds >= terms.shortest
        spent = window.active + window.idle
        return long and spent >= least_spent(window, terms.least_busy) and not window.is_late

    window = windows.choose_window(history, terms.since, terms.shortest, is_enough)
    seen = _most_backends(history, RECENT if configured is None else RECENT_CONFIGURED)
    peak = _most_backends(history, LONGEST)
    each = 0 if configured is None else configured.connections * terms.poolers
    pool = Pool(
        history.now.statistics.name, window, max(each, seen), seen, configured,
        _choose_parallelism(terms, history.looks), is_session, terms.poolers,
    )  # fmt: skip
    for one in backends:
        pool.active += one.executing
        pool.waiting += one.waiting
    if window.is_early:
        pool.outcome = pools.TOO_EARLY
        return pool
    if is_unseen(window, history):
        window.distrust()
    if not (is_enough(window) or window.is_late):
        return pool
    if window.active + window.idle <= 0:
        pool.outcome = pools.UNRELIABLE if window.is_late else pools.TOO_LITTLE
        return pool
    times = [] if window.is_late else [(0.0, window)]
    times += windows.between_runs(history)
    pool.used = max((one.active / one.seconds for _, one in times if one.seconds), default=0.0)
    pool.used *= pool.parallelism
    if is_session:
        pool.ratio = _session_ratio(window, history)
        # A pool that is full keeps the server's sessions as few as it has connections.
        pool.needed = max(peak, (configured and configured.held) or 0)
    else:
        pool.ratio = sizing.busy_ratio(window.active, window.idle)
        load, before = max(((one.load or 0.0, -ago) for ago, one in times), default=(0.0, 0.0))
        pool.needed, pool.load_ago = sizing.smallest_sufficient(load) if load else None, -before
    if not is_session and pool.needed and peak and not _was_full(each, peak):
        # More were never wanted.
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


def _was_full(size: int, peak: int) -> bool:
    """Whether clients may have wanted more connections than the `peak` that was seen, for `size`
    was all they got. Some beside these are those of administrators; where there are many more, or
    where no size is known (0), clients have connections whatever is configured.
    """
    return 0 < size <= peak < size + max(size / 2, 2)


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


def _choose_parallelism(terms: "Terms", looks: "Looks") -> "tuple[float, str]":
    if terms.parallelism is not None:
        return terms.parallelism, pools.GIVEN
    found = parallelism.parallelism(looks) if looks.leaders >= _LEAST_LOOKS else None
    return (1.0, pools.ASSUMED) if found is None else (round(found, 3), pools.MEASURED)
