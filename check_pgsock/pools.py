"""One pool per database, assessed by the formula of `sizing`: sizes, outcomes and words; pure."""

from check_pgsock import sizing
from check_pgsock.postgres import statistics
from check_pgsock.postgres.statistics import Statistics, Window
from check_pgsock.text import clean, plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

# Outcomes of an assessment.
JUDGED = "judged"
TOO_LITTLE = "too little activity"
NO_STATEMENTS = "no statements"

# The check's own session is in the statistics, with up to 30 ms a run: in a window shorter than
# this (seconds) that alone may look like activity, so activity is averaged over this at least.
_SHORTEST_AVERAGED = 2.0
# Seconds of sessions in statements and transactions that a ratio means something of where it is
# not known since when they were counted: 2,000 sessions of the check.
LEAST_COUNTED = 60.0


class Backends:
    """Client backends of one database and role that have a state in common.

    `hidden` says that the role of the check may not see their kind and state, `unflushed` that
    they are in a statement or transaction whose time is not in the statistics yet (None: not
    known).
    """

    __slots__ = ("application", "count", "hidden", "oid", "role", "state", "unflushed")

    def __init__(
        self, *, oid: int, role: str, application: str, state: "Optional[str]", hidden: bool,
        unflushed: "Optional[bool]", count: int,
    ) -> None:  # fmt: skip
        self.oid = oid
        self.role = role
        self.application = application
        self.state = state
        self.hidden = hidden
        self.unflushed = unflushed
        self.count = count


class Terms:
    """What the formula and its use are given besides the statistics."""

    __slots__ = ("cores", "io_limit", "least_busy", "min_window", "parallelism", "pool_size")

    def __init__(
        self,
        cores: float,
        io_limit: "Optional[float]" = None,
        parallelism: float = 1.0,
        least_busy: float = 0.1,
        pool_size: "Optional[int]" = None,  # None: the client backends that are seen
        min_window: float = 60.0,  # seconds between two runs
    ) -> None:
        self.cores = cores
        self.io_limit = io_limit
        self.parallelism = parallelism
        self.least_busy = least_busy
        self.pool_size = pool_size
        self.min_window = min_window


class Pool:
    """One database's pool: its size, the window, and the largest size that the formula allows.

    `allowed` is None unless the outcome is JUDGED, `ratio` is None where it is of too little.
    Of the client backends `hidden` hide their kind, `unflushed` are in statements or transactions
    that are not in the statistics yet, and of `unseen` that is not known.
    """

    __slots__ = (
        "allowed", "hidden", "name", "outcome", "ratio", "size", "unflushed", "unseen", "window",
    )  # fmt: skip

    def __init__(
        self, name: str, size: int, hidden: int, window: Window, outcome: str,
        ratio: "Optional[float]" = None, allowed: "Optional[int]" = None,
        unflushed: int = 0, unseen: int = 0,
    ) -> None:  # fmt: skip
        self.name = name
        self.size = size
        self.hidden = hidden
        self.unflushed = unflushed
        self.unseen = unseen
        self.window = window
        self.outcome = outcome
        self.ratio = ratio
        self.allowed = allowed

    @property
    def fullness(self) -> "tuple[float, int]":
        """What the worst pool has most of: its size in terms of the largest allowed one."""
        return (self.size / self.allowed if self.allowed else 0.0, self.size)


def assess(
    current: Statistics,
    earlier: "Optional[list[Statistics]]",
    backends: "Iterable[Backends]",
    terms: Terms,
) -> Pool:
    """Assess the pool of one database."""
    own = [one for one in backends if one.oid == current.oid]
    size = sum(one.count for one in own) if terms.pool_size is None else terms.pool_size
    hidden = sum(one.count for one in own if one.hidden) if terms.pool_size is None else 0
    unflushed = sum(one.count for one in own if one.unflushed)
    unseen = sum(one.count for one in own if one.unflushed is None)
    window = statistics.choose_window(current, earlier, terms.min_window)
    ratio = sizing.busy_ratio(window.active, window.idle)
    outcome, limit = TOO_LITTLE, None
    if ratio is not None and window.active + window.idle >= _least(window, terms.least_busy):
        limit = sizing.upper_limit(terms.cores, terms.io_limit, ratio, terms.parallelism)
        outcome = NO_STATEMENTS if limit is None else JUDGED
    return Pool(
        current.name, size, hidden, window, outcome,
        None if outcome == TOO_LITTLE else ratio,
        None if limit is None else sizing.largest_allowed(limit),
        unflushed, unseen,
    )  # fmt: skip


def _least(window: Window, least_busy: float) -> float:
    """The seconds of sessions in statements and transactions that are enough to judge."""
    if window.seconds is None:
        return LEAST_COUNTED
    return least_busy * max(window.seconds, _SHORTEST_AVERAGED)


def find_worst(pools: "list[Pool]") -> Pool:
    """The pool that is largest in terms of what it may be; of those not judged the largest."""
    judged = [one for one in pools if one.outcome == JUDGED]
    return max(judged or pools, key=lambda one: one.fullness)


def describe(pool: Pool, least_busy: float) -> str:
    """One pool in a sentence, without what is said of its window's origin."""
    what = f"pool of {pool.size} on database {clean(pool.name)}"
    window = pool.window
    if pool.outcome == JUDGED:
        return (
            f"{what}, largest allowed is {pool.allowed}: busy ratio {pool.ratio:.3f} over "
            f"{_span(window)}"
        )
    progress = describe_progress(pool)
    tail = f"; {progress}" if progress else ""
    if pool.outcome == NO_STATEMENTS:
        return (
            f"{what}: {window.spent:.3f} s idle in transactions and no statement's time over "
            f"{_span(window)}, which sets no limit{tail}"
        )
    least = "at least " if progress else ""
    little = f"too little activity to judge the {what}"
    if window.active + window.idle == 0:
        return f"{little}: no statement's or transaction's time over {_span(window)}{tail}"
    if window.seconds is None or window.seconds < _SHORTEST_AVERAGED:
        return (
            f"{little}: {least}{window.spent:.3f} s busy or in transaction over {_span(window)}, "
            f"below {_least(window, least_busy):g} s{tail}"
        )
    return (
        f"{little}: {least}{window.busy_sessions:.3f} sessions busy and "
        f"{window.in_transaction_sessions:.3f} idle in transaction over {_span(window)}, together "
        f"below {least_busy:g}{tail}"
    )


def describe_progress(pool: Pool) -> str:
    """What of the sessions' doings now is not in the statistics; empty where nothing is."""
    parts = []
    if pool.unflushed:
        parts.append(
            f"{plural(pool.unflushed, 'session')} {'is' if pool.unflushed == 1 else 'are'} in "
            "statements or transactions that are not in the statistics yet"
        )
    if pool.unseen:
        parts.append(f"what {plural(pool.unseen, 'further session')} may be in cannot be seen")
    return ", and ".join(parts)


def _span(window: Window) -> str:
    return "all that the statistics hold" if window.seconds is None else duration(window.seconds)


def describe_origin(window: Window, min_window: float) -> "Optional[str]":
    """What is to be said of a window that does not simply begin with an earlier run."""
    if window.origin == statistics.LAST_RUN:
        return None
    why = {
        statistics.NO_STATE: "no state directory (--state-dir) keeps what the last run saw",
        statistics.FIRST_RUN: "first run",
        statistics.RECENT_RUNS: f"no run on these statistics is {min_window:g} s ago "
        "(--min-window)",
        statistics.RESET: "the statistics were reset since the last run",
        statistics.CRASH: "the statistics were lost in a crash since the last run",
        statistics.RESTART: "the server started anew, or another took its place, since the last "
        "run",
        statistics.OTHER_SERVER: "another server answers than at the last run (a fail-over?)",
        statistics.OTHER_DATABASE: "the database was made anew since the last run",
        statistics.CLOCK_STEP: "the server's clock was set back since the last run",
    }[window.origin]
    if window.seconds is None:
        return f"{why}: judged over {_span(window)}, whose beginning is not known"
    return f"{why}: judged over the {_span(window)} since the statistics were reset"


def describe_size(pool: Pool, terms: Terms) -> "list[str]":
    """What is to be said of a size that was observed."""
    if terms.pool_size is not None:
        return []
    seen = plural(pool.size, "client backend")
    notes = [f"the pool's size is what is seen now, {seen}; --pool-size names the configured one"]
    if pool.hidden:
        notes.append(
            f"{pool.hidden} of them belong to other roles and hide their kind, so parallel "
            "workers are counted, too; grant pg_read_all_stats to the role of the check"
        )
    return notes


def top_backends(pool: Pool, oid: int, backends: "Iterable[Backends]") -> "list[str]":
    """Who holds the client backends of a database, the largest number first."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for one in backends:
        if one.oid == oid:
            states = groups.setdefault((one.role, one.application), {})
            state = one.state or "in a hidden state"
            states[state] = states.get(state, 0) + one.count
    lines = []
    for (role, application), states in sorted(
        groups.items(), key=lambda item: (-sum(item[1].values()), item[0])
    ):
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        name = f" application {clean(application)}" if application else ""
        who = f"role {clean(role)}{name}" if role else f"an unknown role{name}"
        lines.append(f"{plural(sum(states.values()), 'session')} of {who}: {parts}")
    return lines or [f"no other session is on database {clean(pool.name)} now"]


def duration(seconds: float) -> str:
    """`4.2 s`, `300 s`, `17 min`, `5.2 h`, `12 days`."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
