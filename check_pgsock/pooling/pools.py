"""One pool per database, assessed by the formulas of `sizing`: what it is, may be and has to be;
and what all pools of a server come to together; pure.
"""

from check_pgsock.pooling import sizing, windows
from check_pgsock.pooling.windows import Progress, Sample, Window
from check_pgsock.postgres import parallelism
from check_pgsock.postgres.parallelism import Looks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from typing import Optional

# Outcomes of an assessment.
JUDGED = "judged"
TOO_LITTLE = "too little activity"
NO_STATEMENTS = "no statements"
UNRELIABLE = "unreliable"
UNDATED = "undated"  # whole sessions, and since when is not known

# Where a parallelism is from.
GIVEN = "given"
MEASURED = "measured"
MEASURED_ELSEWHERE = "measured on all databases"
ASSUMED = "assumed"

TRANSACTION, SESSION = "transaction", "session"

# Seconds of a window that is long enough whatever --since says.
_SHORTEST = 60.0
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
# A busy ratio that may be by so much another one is not to be relied on.
RELIABLE = 0.05


class Backends:
    """Client backends of one database and role that have a state in common.

    `hidden` says that the role of the check may not see their kind and state; `active`, `idle`,
    `unsplit` and `oldest` are what they add to a Progress.
    """

    __slots__ = (
        "active", "application", "count", "hidden", "idle", "oid", "oldest", "role", "state",
        "unsplit",
    )  # fmt: skip

    def __init__(
        self, *, oid: int, role: str, application: str, state: "Optional[str]", hidden: bool,
        active: float, idle: float, unsplit: float, oldest: "Optional[float]", count: int,
    ) -> None:  # fmt: skip
        self.oid = oid
        self.role = role
        self.application = application
        self.state = state
        self.hidden = hidden
        self.active = active
        self.idle = idle
        self.unsplit = unsplit
        self.oldest = oldest
        self.count = count


def sum_progress(backends: "Iterable[Backends]") -> Progress:
    """What the backends have spent that is in no counter yet."""
    progress = Progress()
    for one in backends:
        if one.state in (None, "disabled"):
            progress.unseen += one.count
            continue
        progress.active += one.active
        progress.idle += one.idle
        progress.unsplit += one.unsplit
        progress.oldest = max(progress.oldest, one.oldest or 0.0)
    return progress


class Size:
    """How many connections a pool may open: `connections` by each pooler, as `source` says;
    `setting` is what changes it, `name` is that of the pool (database/user) where it is one;
    `notes` qualify it.
    """

    __slots__ = ("connections", "name", "notes", "setting", "source")

    def __init__(
        self,
        connections: int,
        source: str,
        setting: str = "",
        name: str = "",
        notes: "Sequence[str]" = (),
    ) -> None:
        self.connections = connections
        self.source = source
        self.setting = setting
        self.name = name
        self.notes = notes


class Terms:
    """What the formulas and their use are given besides the statistics."""

    __slots__ = ("cores", "io_limit", "least_busy", "parallelism", "poolers", "since")

    def __init__(
        self,
        cores: float,
        io_limit: "Optional[float]" = None,
        parallelism: "Optional[float]" = None,  # None: as the looks tell
        least_busy: float = 0.1,
        since: "Optional[float]" = 60.0,  # seconds between two runs; None: since the reset
        poolers: int = 1,
    ) -> None:
        self.cores = cores
        self.io_limit = io_limit
        self.parallelism = parallelism
        self.least_busy = least_busy
        self.since = since
        self.poolers = poolers

    @property
    def shortest(self) -> float:
        """The seconds that a window has to have, since a fresh reset, too."""
        return _SHORTEST if self.since is None else min(self.since, _SHORTEST)

    @property
    def capacity(self) -> float:
        """How many processes the server can run at once."""
        return sizing.capacity(self.cores, self.io_limit)


class Pool:
    """One database's pool.

    `size` is what is judged: the larger of what is `configured` and the most client backends
    `seen` within an hour. `allowed` is the largest size that the formula allows, None unless
    the outcome is JUDGED; `needed` the smallest that no client has to wait for, None where that is
    not known; `work` the processes that execute where all of it is in use; `ratio` is None where
    it is of too little. With `is_session` a client holds its connection until it leaves.
    """

    __slots__ = (
        "allowed", "configured", "is_session", "name", "needed", "outcome", "parallelism",
        "parallelism_is", "poolers", "ratio", "seen", "size", "window", "work",
    )  # fmt: skip

    def __init__(
        self, name: str, window: Window, size: int, seen: int, configured: "Optional[Size]",
        parallelism: "tuple[float, str]", is_session: bool = False, poolers: int = 1,
    ) -> None:  # fmt: skip
        self.name = name
        self.window = window
        self.size = size
        self.seen = seen
        self.configured = configured
        self.is_session = is_session
        self.poolers = poolers
        self.parallelism, self.parallelism_is = parallelism
        self.outcome = TOO_LITTLE
        self.ratio: Optional[float] = None
        self.allowed: Optional[int] = None
        self.needed: Optional[int] = None
        self.work: Optional[float] = None

    @property
    def is_observed(self) -> bool:
        """Whether the size is what is seen, not what is configured."""
        return self.configured is None or self.size > self.configured.connections * self.poolers

    @property
    def is_reliable(self) -> bool:
        """Whether what is not known of the window can hardly change the busy ratio."""
        return self.window.highest - self.window.lowest <= RELIABLE

    @property
    def fullness(self) -> "tuple[float, int]":
        """What the worst pool has most of: its size in terms of the largest allowed one."""
        return (self.size / self.allowed if self.allowed else 0.0, self.size)


def assess(
    current: Sample,
    earlier: "Optional[list[Sample]]",
    terms: Terms,
    configured: "Optional[Size]" = None,
    elsewhere: "Optional[Looks]" = None,
    is_session: bool = False,
) -> Pool:
    """Assess the pool of one database; `elsewhere` are the looks at all databases."""

    def is_enough(window: Window) -> bool:
        long = window.seconds is None or window.seconds >= terms.shortest
        spent = window.active + window.idle
        return long and spent >= least_spent(window, terms.least_busy) and not window.is_late

    window = windows.choose_window(current, earlier, terms.since, is_enough)
    same = windows.find_same(current, earlier or [])
    day = [one for one in same if current.taken - one.taken <= windows.LONGEST]
    span = RECENT if configured is None else RECENT_CONFIGURED
    recent = [one for one in day if current.taken - one.taken <= span]
    seen = max(one.backends for one in [current, *recent])
    peak = max(one.backends for one in [current, *day])
    each = 0 if configured is None else configured.connections * terms.poolers
    pool = Pool(
        current.statistics.name, window, max(each, seen), seen, configured,
        _choose_parallelism(terms, current, day, elsewhere), is_session,
        terms.poolers,
    )  # fmt: skip
    if is_unseen(window, [current, *day]):
        window.distrust()
    if not (is_enough(window) or window.is_late) or window.active + window.idle <= 0:
        return pool
    if is_session:
        pool.ratio = _session_ratio(window, current, day)
        pool.needed = peak
    else:
        pool.ratio = sizing.busy_ratio(window.active, window.idle)
        load = max(
            windows.highest_load(current, day) or 0.0,
            0.0 if window.is_late else window.load or 0.0,
        )
        pool.needed = sizing.smallest_sufficient(load) if load else None
    if pool.needed is not None and 0 < peak < (each or pool.needed):
        # It never was full, or each client has a connection of its own: more were never wanted.
        pool.needed = min(pool.needed, peak)
    if pool.ratio is None:
        pool.outcome = UNDATED
        return pool
    # A ratio that is not reliable is judged where it is wrong whatever it is.
    judged = pool.ratio if pool.is_reliable else window.lowest
    limit = sizing.upper_limit(terms.capacity, judged, pool.parallelism)
    pool.outcome = JUDGED if limit is not None else NO_STATEMENTS
    if not pool.is_reliable and limit is None:
        pool.outcome = UNRELIABLE
    pool.allowed = None if limit is None else sizing.largest_allowed(limit)
    pool.work = pool.size * judged * pool.parallelism
    return pool


def is_unseen(window: Window, samples: "list[Sample]") -> bool:
    """Whether the looks of the window's runs saw far more at work than the statistics have: from
    version 15 on statements that touch no table come into these later.
    """
    seen = [
        one.looks.leaders
        for one in samples
        if one.looks is not None and samples[0].taken - one.taken <= (window.seconds or 0.0)
    ]
    if window.seconds is None or len(seen) < _LEAST_RUNS:
        return False
    busy = window.active / window.seconds
    return sum(seen) / len(seen) / parallelism.LOOKS > 3 * busy + 1


def least_spent(window: Window, least_busy: float) -> float:
    """The seconds of sessions in statements and transactions that are enough to judge."""
    if window.seconds is None:
        return LEAST_COUNTED
    return least_busy * max(window.seconds, SHORTEST_AVERAGED)


def _session_ratio(window: Window, current: Sample, day: "list[Sample]") -> "Optional[float]":
    """The share of executing in all time of sessions: with session pooling a client holds its
    connection between transactions, too. By the client backends seen: session_time is not that of
    sessions which are idle.
    """
    if window.seconds is None:
        return None
    seen = [one.backends for one in [current, *day] if current.taken - one.taken <= window.seconds]
    held = sum(seen) / len(seen) * window.seconds
    return sizing.busy_ratio(window.active, max(held - window.active, 0.0))


def _choose_parallelism(
    terms: Terms, current: Sample, day: "list[Sample]", elsewhere: "Optional[Looks]"
) -> "tuple[float, str]":
    if terms.parallelism is not None:
        return terms.parallelism, GIVEN
    own = parallelism.add(one.looks for one in [current, *day] if one.looks is not None)
    for looks, origin in ((own, MEASURED), (elsewhere, MEASURED_ELSEWHERE)):
        if looks is not None and looks.leaders >= _LEAST_LOOKS:
            found = parallelism.parallelism(looks)
            if found is not None:
                return round(found, 3), origin
    return 1.0, ASSUMED


def find_worst(pools: "list[Pool]") -> Pool:
    """The pool that is largest in terms of what it may be; of those not judged the largest."""
    judged = [one for one in pools if one.outcome == JUDGED]
    return max(judged or pools, key=lambda one: one.fullness)


def find_working(assessed: "Mapping[int, Pool]", chosen: "Container[int]") -> "list[Pool]":
    """The pools whose work is known, by the oid of their database. Of one that is not `chosen` it
    has to be known since when it was counted, too: what somebody did there at some time in the
    server's life is no reason to take it for a pool that is in use.
    """
    return [
        one
        for oid, one in assessed.items()
        if one.work is not None and (oid in chosen or one.window.seconds is not None)
    ]


def full_load(pools: "Iterable[Pool]", capacity: float) -> "Optional[float]":
    """What the server would have to run where all pools are in full use, in percent of what it
    can; None where nothing is known of any pool.
    """
    works = [one.work for one in pools if one.work is not None]
    return sum(works) / capacity * 100 if works else None
