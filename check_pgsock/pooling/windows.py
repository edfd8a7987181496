"""What one database's sessions did between two runs, from samples of its statistics; pure.

The statistics are counted when a statement, or a wait in a transaction, ends, and flushed when the
transaction does: a plain difference of two samples may miss most of a window with long statements.
So each sample notes what the sessions had spent by then that was in none of the counters, and a
window is the difference of the counters, plus that at its end, less that at its start.

How a transaction's time before its present statement was divided is not known. What the window's
doings leave open is in `lowest` and `highest`, the least and the greatest busy ratio.

The window begins with a run of the same statistics, so long ago as is asked for; while there was
too little activity since, with an earlier one, up to a day ago; while none is so long ago, with the
oldest one. On a first run it is all that the statistics hold; its length is known only where their
reset is.
"""

import math

from check_pgsock.pooling.origins import EARLIER_RUN, FIRST_RUN, NO_STATE
from check_pgsock.pooling.samples import LONGEST, Progress
from check_pgsock.postgres import statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Optional

    from check_pgsock.pooling.samples import History, Sample

# How a window came about, besides those of `origins`.
RECENT_RUNS = "recent runs"  # none as long ago as a window between two runs has to be
OLDEST_RUN = "oldest run"  # none as long ago as is asked for
ASKED = "asked"  # all that the statistics hold is what was asked for

# By how much, and by how many seconds, a window holds more than its sessions can have done, before
# it is late: sessions flush up to a second later than they could.
_LATE, _LATE_SECONDS = 0.05, 2.0
# Seconds between two samples that the load of is told: what is shorter tells of single statements.
_SHORTEST_LOAD = 50.0


class Window:
    """What one database's sessions did from one moment to another, seconds of all sessions added.

    `seconds` is its length; None where it is not known: then there are sums, but no averages.
    `counted` is (active, idle) as the counters alone have it. `oldest` is the age of the oldest
    transaction at either end, `unseen` the sessions there whose doings cannot be seen. One that
    `is_late` holds more or less than its sessions did: some of it comes into the statistics late.
    One that `is_early` is the past of a server that has only just taken another's place.
    """

    __slots__ = (
        "active", "counted", "highest", "idle", "is_early", "is_late", "lowest", "oldest", "origin",
        "seconds", "unseen",
    )  # fmt: skip

    def __init__(
        self, origin: str, seconds: "Optional[float]", before: "Optional[Sample]", after: "Sample"
    ) -> None:
        start, end = (Progress() if before is None else before.progress), after.progress
        self.origin = origin
        self.seconds = seconds
        self.counted = (
            after.statistics.active - (before.statistics.active if before else 0.0),
            after.statistics.idle - (before.statistics.idle if before else 0.0),
        )
        active = self.counted[0] + end.active - start.active
        idle = self.counted[1] + end.idle - start.idle
        spent = max(active + idle + end.unsplit - start.unsplit, 0.0)
        least = min(max(active - start.unsplit, 0.0), spent)
        most = min(max(active + end.unsplit, least), spent)
        # What is open is divided as the rest is.
        share = max(active, 0.0) / (max(active, 0.0) + max(idle, 0.0) or 1.0)
        self.active = min(max(share * spent, least), most)
        self.idle = spent - self.active
        self.lowest = least / spent if spent else 0.0
        self.highest = most / spent if spent else 0.0
        self.is_early = self.is_late = False
        if before is not None and seconds is not None:
            new = after.statistics.sessions - before.statistics.sessions
            possible = (before.backends + new) * seconds
            if spent > possible * (1 + _LATE) + _LATE_SECONDS:
                self.distrust()
        self.oldest = max(end.oldest, start.oldest)
        self.unseen = max(end.unseen, start.unseen)

    def distrust(self) -> None:
        """Note that it does not hold what its sessions did: the busy ratio may be any."""
        self.is_late = True
        self.lowest, self.highest = 0.0, 1.0

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

    @property
    def load(self) -> "Optional[float]":
        """How many connections transactions held, on average."""
        return (self.active + self.idle) / self.seconds if self.seconds else None


def _thousandths(number: float) -> float:
    """`number` rounded down, so that `at least` is true of it: as printed, and as perfdata."""
    return math.floor(number * 1000 + 1e-6) / 1000


def choose_window(
    history: "History",
    since: "Optional[float]",
    shortest: float,
    is_enough: "Callable[[Window], bool]",
) -> Window:
    """The window that ends with the sample of now.

    It begins with the newest one of the same statistics that is at least `since` ago (None: with
    their beginning) and has enough activity since; where none has, with the oldest of the day.
    Where none is so long ago it begins with the oldest, if that is `shortest` ago. Else it is all
    that the statistics hold: a retry sees what the first run saw. That `is_early` where earlier
    runs saw other statistics, unless it is known to have begun after them.
    """
    now = history.now
    if since is None:
        return _since_beginning(now, ASKED)
    if history.earlier is None:
        return _since_beginning(now, NO_STATE)
    if not history.earlier:
        return _since_beginning(now, FIRST_RUN)
    chosen = None
    for one in history.same:
        seconds = now.taken - one.taken
        if seconds < since:
            continue
        if chosen is not None and seconds > LONGEST:
            break
        chosen = Window(EARLIER_RUN, seconds, one, now)
        if is_enough(chosen):
            break
    if chosen is not None:
        return chosen
    if history.same and now.taken - history.same[-1].taken >= shortest:
        oldest = history.same[-1]
        return Window(OLDEST_RUN, now.taken - oldest.taken, oldest, now)
    others = [one.statistics for one in history.earlier if one not in history.same]
    if not others:
        return _since_beginning(now, RECENT_RUNS)
    why = RECENT_RUNS if history.same else statistics.why_new(others[-1], now.statistics)
    reset = now.statistics.stats_reset
    if reset is not None and others[-1].taken < reset < now.taken:
        return _since_beginning(now, why)
    window = Window(why, None, None, now)
    window.is_early = True
    return window


def between_runs(history: "History") -> "Iterator[tuple[float, Window]]":
    """The windows from one run to a next within a day, but those that are late; each after how
    many seconds ago it ended.
    """
    later = history.now
    for one in history.within(LONGEST):
        if later.taken - one.taken >= _SHORTEST_LOAD:
            window = Window(EARLIER_RUN, later.taken - one.taken, one, later)
            if not window.is_late:
                yield history.now.taken - later.taken, window
            later = one


def _since_beginning(now: "Sample", origin: str) -> Window:
    """Everything the statistics hold."""
    reset, seconds = now.statistics.stats_reset, None
    if reset is not None and now.taken > reset:
        seconds = now.taken - reset
    return Window(origin, seconds, None, now)
