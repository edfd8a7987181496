"""Session statistics of pg_stat_database, and whether two samples are of the same ones; pure.

Authority: PostgreSQL manual, "The Cumulative Statistics System", pg_stat_database. The counters
are cumulative, in milliseconds, and flushed at the end of a transaction: a plain difference does
not hold what statements and transactions in progress have spent so far.

Two samples are of the same statistics where postmaster start, address and port, database oid and
stats_reset are, and no counter went down. Two servers behind one address, and what was before a
reset, are never subtracted. Times are those of the server's clock.

stats_reset is NULL from version 15 on until the first reset, and again after a crash, while the
counters outlive a clean restart: neither the server's start nor the last run is their beginning.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# Why statistics do not go on from a sample.
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
