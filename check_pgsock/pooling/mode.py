"""Which mode of pooling the sessions of a database suit, by what they do; pure.

Two numbers tell it: how long sessions last, session_time per session, and the share of that time in
which they are in a transaction, (active_time + idle_in_transaction_time) / session_time. A session
that is not in a transaction needs no server connection in transaction pooling, so that the same
work fits into that share of the connections; in session pooling it keeps one until it ends, which
saves no more than the starts of short sessions. PostgreSQL manual, pg_stat_database.

Open sessions are in the counters up to the end of their last transaction. A session that fails
while it starts adds all time since 2000 to session_time (session_ends.LEAST_FALSE_TIME): where that
may have happened the statistics as a whole tell nothing, and what was counted between two runs may.
"""

from check_pgsock.pooling.origins import EARLIER_RUN
from check_pgsock.pooling.session_ends import LEAST_FALSE_TIME, Ends
from check_pgsock.text import write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from check_pgsock.postgres.statistics import Statistics

SHORT = 10.0  # seconds: to start one costs some milliseconds of a core, a thousandth of this
MOST_OF_IT = 50.0  # percent; above, transaction pooling would not even halve the connections
MOST_TOLD = 100.0  # times fewer server connections


class Usage:
    """How long sessions last, in seconds, and how many percent of that they are in a transaction;
    None: not known. `sessions` are those that tell it. `recent` says that it is of the time since
    an earlier run, else it is of all that the statistics hold.
    """

    __slots__ = ("length", "recent", "sessions", "share")

    def __init__(self, sessions: int, session: float, in_transaction: float, recent: bool) -> None:
        self.sessions = sessions
        self.recent = recent
        self.length: Optional[float] = session / sessions if sessions else None
        self.share: Optional[float] = None
        if session > 0:
            self.share = min(100 * in_transaction / session, 100.0)


def find_usage(databases: "Sequence[Statistics]", since: Ends, least: int) -> "Optional[Usage]":
    """What the sessions of the databases do; None where it cannot be told.

    `since` is what became of them since an earlier run, for where the statistics as a whole are
    not to be believed: of so few ended sessions as are below `least` there is no length.
    """
    if not any(one.fatal and one.session >= LEAST_FALSE_TIME for one in databases):
        return Usage(
            sum(one.sessions for one in databases),
            sum(one.session for one in databases),
            sum(one.active + one.idle for one in databases),
            recent=False,
        )
    if since.origin != EARLIER_RUN or since.false_starts:
        return None
    ended = since.ended if since.ended >= least else 0
    return Usage(ended, since.session, since.in_transaction, recent=True)


def describe_usage(usage: "Optional[Usage]", least: int) -> str:
    """What sessions do, and which mode of pooling that suits."""
    if usage is None:
        return (
            "how long sessions last is not known: one that failed while it started may count with "
            "all time since 2000; pg_stat_reset() begins anew"
        )
    what = "sessions"
    if usage.length is not None:
        length = "under 0.1 s" if usage.length < 0.1 else write_seconds(usage.length)
        what += f" last {length} on average"
    if usage.share is None:
        return "no time of sessions is counted yet"
    joint = " and" if usage.length is not None else ""
    span = "since an earlier run" if usage.recent else "in all that the statistics hold"
    what += f"{joint} are in a transaction for {usage.share:.1f} % of their time, {span}"
    if not usage.recent and usage.sessions < least:
        return f"{what}: too few to tell the mode of pooling ({usage.sessions}, --min-sessions)"
    return f"{what}: {advise(usage)}"


def advise(usage: Usage) -> str:
    """Whether transaction pooling would pay, or session pooling suffices; by a known share."""
    is_short = usage.length is not None and usage.length < SHORT
    if usage.share is not None and usage.share >= MOST_OF_IT:
        return f"session pooling suffices{', and saves their starts' if is_short else ''}"
    fewer = "hardly any server connection"
    if usage.share:
        fewer = f"{_factor(usage.share)} times fewer server connections"
    either = "; session pooling, too, saves their starts" if is_short else ""
    return f"transaction pooling would pay, where it is not in use already: {fewer}{either}"


def _factor(share: float) -> str:
    factor = 100 / share
    if factor > MOST_TOLD:  # what hardly does anything tells no number
        return f"over {MOST_TOLD:g}"
    return f"up to {factor:.1f}" if factor < 10 else f"up to {factor:.0f}"
