"""How the sessions of a database ended, counted over several runs; pure.

Authority: PostgreSQL manual, "The Cumulative Statistics System", pg_stat_database, for the counters
sessions, sessions_abandoned, sessions_fatal and sessions_killed. A session is counted when it is
first ready for a query, the three kinds of ends when it ends (pgstat_report_connect() and
pgstat_report_disconnect() in pgstat_database.c); walsenders, parallel and autovacuum workers are no
sessions. There is no counter of all ends: those are the new sessions less the growth of the open
ones, so an estimate, and at least the sum of the three kinds.

Counters are added up from run to run since the newest one that is so long ago, so that a retry
keeps the evidence. Those of another server, postmaster or database are never subtracted; after a
reset or a crash all that the statistics hold came since. Times are those of the server's clock.
"""

from check_pgsock.pooling.origins import EARLIER_RUN, FIRST_RUN, NO_STATE
from check_pgsock.postgres.statistics import (
    Statistics,
    continues,
    is_same_server,
    parse_statistics,
    why_new,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

KINDS = ("abandoned", "fatal", "killed")
# What PostgreSQL 14 to 18 count as the time of a session that fails while it starts (the database
# refuses it, or a setting that it asks for): all since 2000-01-01, where timestamps begin.
_EPOCH = 946684800.0
# The least that this can be: version 14 came out on 2021-09-30.
LEAST_FALSE_TIME = 1632960000.0 - _EPOCH

_ADDED = (*KINDS, "sessions", "session", "active", "idle")


class Sample:
    """One database at one moment: its counters, and its open sessions but the check's own."""

    __slots__ = ("backends", "statistics")

    def __init__(self, statistics: Statistics, backends: int) -> None:
        self.statistics = statistics
        self.backends = backends

    def as_json(self) -> "list[object]":
        """What the store keeps."""
        return [self.statistics.as_json(), self.backends]


def parse_sample(data: object) -> "Optional[Sample]":
    """A sample of the store; None for one that another version wrote."""
    if not isinstance(data, list) or len(data) != 2 or not isinstance(data[1], int):
        return None
    statistics = parse_statistics(data[0])
    return None if statistics is None else Sample(statistics, data[1])


class Ends:
    """What became of sessions from one moment to another, of one database or of several.

    `origin` is EARLIER_RUN where that is counted since an earlier run, `seconds` ago, NO_STATE
    where it is all that the statistics hold, and else says why nothing is counted: all are 0.
    `began_anew` says that statistics began anew in between, so that some may be missing. `session`
    is the time of sessions in seconds, `in_transaction` what of it they spent in transactions.
    """

    __slots__ = (
        "abandoned", "began_anew", "ended", "false_starts", "fatal", "in_transaction", "killed",
        "new", "origin", "rates", "seconds", "session",
    )  # fmt: skip

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.seconds = 0.0
        self.new = self.ended = self.abandoned = self.fatal = self.killed = 0
        self.session = self.in_transaction = 0.0
        self.false_starts = 0  # of the fatal ones, those that failed while they started
        self.began_anew = False
        self.rates: dict[str, float] = {}  # per second, of KINDS and "new"; empty: not known

    @property
    def is_counted(self) -> bool:
        """Whether the numbers are known."""
        return self.origin in (EARLIER_RUN, NO_STATE)

    @property
    def ended_badly(self) -> int:
        """Those of all three kinds."""
        return self.abandoned + self.fatal + self.killed

    def share(self, kind: str) -> "Optional[float]":
        """How many of a hundred ended sessions ended so; None where none ended."""
        return 100.0 * float(getattr(self, kind)) / self.ended if self.ended else None


def find_ends(now: Sample, earlier: "Optional[list[Sample]]", over: float) -> Ends:
    """What became of the sessions of one database since the newest of the `earlier` samples that
    is `over` seconds ago, or else since the oldest.

    `earlier` are in the order of their commits; None: there is no store. Rates are over `over`
    seconds at least: what a short span holds says little.
    """
    if earlier is None:
        begin = Sample(_zero(now.statistics), 0)
        return _count([begin, now], Ends(NO_STATE))
    chain = [now]
    for one in reversed(earlier):
        if not _is_same(one, now):
            continue  # an address that leads to several servers in turn
        if one.statistics.taken >= chain[-1].statistics.taken:
            break  # the clock was set back: how long ago is that?
        chain.append(one)
        if now.statistics.taken - one.statistics.taken >= over:
            break
    if len(chain) == 1:
        why = why_new(earlier[-1].statistics, now.statistics) if earlier else FIRST_RUN
        return Ends(why)
    chain.reverse()
    found = _count(chain, Ends(EARLIER_RUN))
    found.seconds = now.statistics.taken - chain[0].statistics.taken
    span = max(found.seconds, over)
    found.rates = {kind: getattr(found, kind) / span for kind in (*KINDS, "new")}
    return found


def add_up(each: "Iterable[Ends]") -> Ends:
    """All of them together. Where some are counted, those that are not are left out."""
    every = list(each)
    counted = [one for one in every if one.is_counted]
    if not counted:
        return Ends(every[0].origin)
    total = Ends(counted[0].origin)
    total.seconds = max(one.seconds for one in counted)
    total.began_anew = any(one.began_anew for one in counted)
    for name in (*KINDS, "new", "ended", "session", "in_transaction", "false_starts"):
        setattr(total, name, sum(getattr(one, name) for one in counted))
    for kind in counted[0].rates:
        total.rates[kind] = sum(one.rates[kind] for one in counted)
    return total


def _is_same(one: Sample, other: Sample) -> bool:
    before, after = one.statistics, other.statistics
    return is_same_server(before, after) and before.oid == after.oid


def _zero(statistics: Statistics) -> Statistics:
    """Where the counters began."""
    data = statistics.as_json()
    return Statistics(**{**data, **dict.fromkeys(_ADDED, 0)})  # type: ignore[arg-type]


def _count(chain: "list[Sample]", found: Ends) -> Ends:
    """Add up what came from each sample of `chain` to the next."""
    grown: dict[str, float] = dict.fromkeys(_ADDED, 0)
    for one, other in zip(chain, chain[1:]):
        before, after = one.statistics, other.statistics
        went_on = continues(before, after)
        for name in _ADDED:
            grown[name] += getattr(after, name) - (getattr(before, name) if went_on else 0)
        # Where nothing had been counted yet (14 dates statistics from their first session on)
        # nothing is missing.
        found.began_anew |= not went_on and any(getattr(before, name) for name in _ADDED)
    found.abandoned, found.fatal, found.killed = (int(grown[kind]) for kind in KINDS)
    found.new = int(grown["sessions"])
    left = chain[-1].backends - chain[0].backends
    found.ended = max(found.new - left, found.ended_badly)
    found.session = grown["session"]
    found.in_transaction = grown["active"] + grown["idle"]
    if found.origin == EARLIER_RUN and found.fatal:
        false_time = max(chain[0].statistics.taken - _EPOCH, LEAST_FALSE_TIME)
        found.false_starts = min(int(found.session // false_time), found.fatal)
    return found
