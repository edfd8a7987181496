"""Session statistics of pg_stat_database: two samples make a window; pure.

Authority: PostgreSQL manual, "The Cumulative Statistics System", pg_stat_database. The counters
are cumulative, in milliseconds, and flushed at the end of a transaction: a plain difference does
not hold what statements and transactions in progress have spent so far.

A window is the difference of two samples of the same statistics: same postmaster start, address
and port, database oid and stats_reset, and no counter that went down. Two servers behind one
address, and what was before a reset, are never subtracted. Times are those of the server's clock.

Without such a sample the window is all that the statistics hold. Its length is known only where
stats_reset is: from version 15 on that is NULL until the first reset, and again after a crash,
while the counters outlive a clean restart: neither the server's start nor the last run is their
beginning.
"""

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# How a window came about.
LAST_RUN = "last run"
FIRST_RUN = "first run"
RECENT_RUNS = "recent runs"  # none as long ago as a window between two runs has to be
NO_STATE = "no state"
RESET = "reset"
CRASH = "crash"
RESTART = "restart"
OTHER_SERVER = "other server"
OTHER_DATABASE = "other database"
CLOCK_STEP = "clock step"

_COUNTERS = ("active", "idle", "session", "sessions", "abandoned", "fatal", "killed")
_IDENTITY = ("postmaster_start", "address", "port", "oid", "stats_reset")


class Statistics:
    """The counters of one database at one moment; times in seconds, since the epoch or spent.

    `idle` is idle in transaction, `session` all time of sessions, `sessions` their number, of
    which so many were `abandoned` by their clients, ended by `fatal` errors or `killed`.
    """

    __slots__ = (
        "abandoned", "active", "address", "fatal", "idle", "killed", "name", "oid", "port",
        "postmaster_start", "session", "sessions", "stats_reset", "taken",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        oid: int,
        postmaster_start: float,
        address: "Optional[str]",  # None: a Unix socket
        port: "Optional[int]",
        stats_reset: "Optional[float]",  # None: never reset, or crashed since
        taken: float,
        active: float,
        idle: float,
        session: float,
        sessions: int,
        abandoned: int,
        fatal: int,
        killed: int,
    ) -> None:
        self.name = name
        self.oid = oid
        self.postmaster_start = postmaster_start
        self.address = address
        self.port = port
        self.stats_reset = stats_reset
        self.taken = taken
        self.active = active
        self.idle = idle
        self.session = session
        self.sessions = sessions
        self.abandoned = abandoned
        self.fatal = fatal
        self.killed = killed

    def as_json(self) -> "dict[str, object]":
        """What the store keeps."""
        return {name: getattr(self, name) for name in self.__slots__}


def parse_statistics(data: object) -> "Optional[Statistics]":
    """A sample of the store; None for one that another version wrote."""
    if not isinstance(data, dict) or set(data) != set(Statistics.__slots__):
        return None
    for name in (*_COUNTERS, "postmaster_start", "taken"):
        if not isinstance(data[name], (int, float)):
            return None
    return Statistics(**data)


class Window:
    """What one database's sessions did from one moment to another, seconds of all sessions added.

    `seconds` is its length; None where it is not known: then there are sums, but no averages.
    """

    __slots__ = ("active", "idle", "origin", "seconds")

    def __init__(self, origin: str, seconds: "Optional[float]", active: float, idle: float) -> None:
        self.origin = origin
        self.seconds = seconds
        self.active = active
        self.idle = idle

    @property
    def spent(self) -> float:
        """The time of sessions in statements and transactions, down to a thousandth."""
        return _thousandths(self.active + self.idle)

    @property
    def busy_sessions(self) -> "Optional[float]":
        """How many sessions executed, on average, down to a thousandth."""
        return _thousandths(self.active / self.seconds) if self.seconds else None

    @property
    def in_transaction_sessions(self) -> "Optional[float]":
        """How many sessions were idle in a transaction, on average, down to a thousandth."""
        return _thousandths(self.idle / self.seconds) if self.seconds else None


def _thousandths(number: float) -> float:
    """`number` rounded down, so that `at least` is true of it: as printed, and as perfdata."""
    return math.floor(number * 1000 + 1e-6) / 1000


def choose_window(
    current: Statistics,
    earlier: "Optional[list[Statistics]]",
    shortest: float,
) -> Window:
    """The window that ends with `current`.

    `earlier` are stored samples in the order of their commits; None: there is no store. The
    window begins with the newest one of the same statistics that is at least `shortest` ago, and
    where there is none, with the beginning of those: a retry sees what the first run saw.
    """
    if earlier is None:
        return _since_beginning(current, NO_STATE)
    if not earlier:
        return _since_beginning(current, FIRST_RUN)
    later = current
    for one in reversed(earlier):
        if not is_same_server(one, current) or one.oid != current.oid:
            continue  # an address that leads to several servers in turn
        if one.taken >= later.taken or not continues(one, later):
            break
        seconds = current.taken - one.taken
        if seconds >= shortest:
            return Window(LAST_RUN, seconds, current.active - one.active, current.idle - one.idle)
        later = one
    if later is not current:
        return _since_beginning(current, RECENT_RUNS)
    why = why_new(earlier[-1], current)
    # A clock that was set back, or counters that fell with no other reset: how long ago is that?
    other_reset = earlier[-1].stats_reset != current.stats_reset
    return _since_beginning(current, why, why != CLOCK_STEP and (why != RESET or other_reset))


def is_same_server(one: Statistics, other: Statistics) -> bool:
    """Whether both are of one postmaster, at the same address and port."""
    return (one.postmaster_start, one.address, one.port) == (
        other.postmaster_start,
        other.address,
        other.port,
    )


def continues(before: Statistics, after: Statistics) -> bool:
    """Whether the counters of `after` went on from those of `before`."""
    return all(getattr(before, name) == getattr(after, name) for name in _IDENTITY) and all(
        getattr(before, name) <= getattr(after, name) for name in _COUNTERS
    )


def why_new(before: Statistics, after: Statistics) -> str:
    """Why `after` does not go on from the last run's `before`."""
    if (before.address, before.port) != (after.address, after.port):
        return OTHER_SERVER
    if before.postmaster_start != after.postmaster_start:
        return RESTART
    if before.oid != after.oid:
        return OTHER_DATABASE
    if continues(before, after):
        return CLOCK_STEP
    return CRASH if after.stats_reset is None else RESET


def _since_beginning(current: Statistics, origin: str, dated: bool = True) -> Window:
    """Everything the statistics hold; `dated` unless their time of reset is not to be believed."""
    seconds = None
    if dated and current.stats_reset is not None and current.taken > current.stats_reset:
        seconds = current.taken - current.stats_reset
    return Window(origin, seconds, current.active, current.idle)
