"""One pool per database: what it is, may be and has to be; and what all pools of a server come to
together; pure.
"""

from check_pgsock.pooling import sizing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from typing import Optional

    from check_pgsock.pooling.windows import Window

# Outcomes of an assessment.
JUDGED = "judged"
TOO_LITTLE = "too little activity"
TOO_EARLY = "too early"
NO_STATEMENTS = "no statements"
UNRELIABLE = "unreliable"
UNDATED = "undated"  # whole sessions, and since when is not known

# Where a parallelism is from.
GIVEN = "given"
MEASURED = "measured"
ASSUMED = "assumed"

TRANSACTION, SESSION = "transaction", "session"

# Seconds of a window that is long enough whatever --since says.
_SHORTEST = 60.0
# A busy ratio that may be by so much another one is not to be relied on.
RELIABLE = 0.05


class Size:
    """How many connections a pool may open: `connections` by each pooler, as `source` says;
    `setting` is what changes it, `name` is that of the pool (database/user) where it is one;
    `notes` qualify it. `held` is how many clients hold one now or wait for it; None: not told.
    """

    __slots__ = ("connections", "held", "name", "notes", "setting", "source")

    def __init__(
        self,
        connections: int,
        source: str,
        setting: str = "",
        name: str = "",
        notes: "Sequence[str]" = (),
        held: "Optional[int]" = None,
    ) -> None:
        self.connections = connections
        self.held = held
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
    `seen` lately. `allowed` is the largest size that the formula allows, None unless the outcome is
    JUDGED; `needed` the smallest that no client has to wait for, None where that is not known, at
    the highest load, `load_ago` seconds ago; `work` the processes that execute where all of it is
    in use, `used` those that did, on average, in the window or the day's highest; `ratio` is None
    where it is of too little. Of `active` sessions so many are `waiting` for locks now. With
    `is_session` a client holds its connection until it leaves.
    """

    __slots__ = (
        "active", "allowed", "configured", "is_session", "load_ago", "name", "needed", "outcome",
        "parallelism", "parallelism_is", "poolers", "ratio", "seen", "size", "used", "waiting",
        "window", "work",
    )  # fmt: skip

    def __init__(
        self, name: str, window: "Window", size: int, seen: int, configured: "Optional[Size]",
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
        self.load_ago = 0.0
        self.work: Optional[float] = None
        self.used = 0.0
        self.active = self.waiting = 0

    @property
    def is_observed(self) -> bool:
        """Whether the size is what is seen, not what is configured."""
        return self.configured is None or self.size > self.configured.connections * self.poolers

    @property
    def is_reliable(self) -> bool:
        """Whether what is not known of the window can hardly change the busy ratio."""
        return self.window.highest - self.window.lowest <= RELIABLE

    @property
    def is_locked(self) -> bool:
        """Whether it is locks, more than the server, that its statements wait for now."""
        return 0 < self.active <= 2 * self.waiting

    @property
    def fullness(self) -> "tuple[float, int]":
        """What the worst pool has most of: its size in terms of the largest allowed one."""
        return (self.size / self.allowed if self.allowed else 0.0, self.size)


def find_worst(pools: "list[Pool]") -> Pool:
    """The pool that is largest in terms of what it may be; of those not judged the largest."""
    judged = [one for one in pools if one.outcome == JUDGED]
    return max(judged or pools, key=lambda one: one.fullness)


def find_working(assessed: "Mapping[int, Pool]", chosen: "Container[int]") -> "list[Pool]":
    """The pools whose work is known, by the oid of their database. One that is not `chosen` needs a
    connection, and it has to be known since when its work was counted: what somebody did there at
    some time in the server's life is no reason to take it for a pool that is in use.
    """
    return [
        one
        for oid, one in assessed.items()
        if one.work is not None
        and (oid in chosen or (one.size > 0 and one.window.seconds is not None))
    ]


def full_load(pools: "Iterable[Pool]", capacity: float) -> "Optional[float]":
    """What the server would have to run where all pools are in full use, in percent of what it
    can; None where nothing is known of any pool.
    """
    works = [one.work for one in pools if one.work is not None]
    return sum(works) / capacity * 100 if works else None
