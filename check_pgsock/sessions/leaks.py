"""Which connections nobody uses any more, and for how long; pure. All times are in seconds.

A connection over TCP has clocks of its own. One over a Unix socket has none, and procfs tells none:
of these the title says what the session does, and the processor time of its backend whether it has
done anything since an earlier run saw it so.
"""

from collections import namedtuple

from check_pgsock.sessions.activity import (
    BY_TITLE,
    CLIENT_NOT_READING,
    SUSPECTED_DEAD_PEER,
    UNKNOWN,
    WAITING,
)
from check_pgsock.sessions.connections import CLIENT, OVER_UNIX
from check_pgsock.sessions.states import ACTIVE, IDLE, IDLE_IN_TRANSACTION
from check_pgsock.sessions.titles import WALSENDER
from check_pgsock.text import clean, plural, say_top, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import NamedTuple, Optional

    from check_pgsock.sessions.connections import Connection

if TYPE_CHECKING:

    class Leak(NamedTuple):
        """A connection that nobody uses, and for how long; None: not known. One that is not
        `certain` may as well be at one statement since.
        """

        connection: Connection
        seconds: "Optional[float]"
        certain: bool

else:
    Leak = namedtuple("Leak", "connection seconds certain")


class Leaks:
    """What nobody uses, each connection once, and what cannot be judged.

    Of `unknown` nothing tells whether they are idle, of `untimed` for how long; `told` is how many
    sessions and dead peers are judged. Of `untitled` no title tells whether they are in a
    transaction, if they are idle, which most are, too, in one of the other lists or in none.
    """

    __slots__ = (
        "dead_peers", "idle_in_transaction", "silent", "told", "unknown", "untimed", "untitled",
    )  # fmt: skip

    def __init__(self) -> None:
        self.silent: list[Leak] = []
        self.idle_in_transaction: list[Leak] = []
        self.dead_peers: list[Leak] = []
        self.unknown: list[Connection] = []
        self.untimed: list[Connection] = []
        self.untitled: list[Connection] = []
        self.told = 0

    @property
    def others(self) -> int:
        """How many leak whatever a pool keeps."""
        return len(self.idle_in_transaction) + len(self.dead_peers)

    @property
    def uncertain(self) -> int:
        """How many of the silent may be at work."""
        return sum(not one.certain for one in self.silent)

    @property
    def hidden(self) -> "list[Connection]":
        """Those that cannot be judged now, nor by themselves later: they have no clock."""
        return [one for one in (*self.unknown, *self.untimed) if one["received_bytes"] is None]


def leave_out_walsenders(
    connections: "Iterable[Connection]",
) -> "tuple[list[Connection], int]":
    """The connections that are no walsender's, and how many are left out besides which may be one:
    an idle walsender has the title that a user called walsender has.
    """
    rest, doubtful = [], 0
    for one in connections:
        if one["backend_type"] is None and one["backend_pid"] is not None:
            doubtful += 1
        elif one["backend_type"] != WALSENDER:
            rest.append(one)
    return rest, doubtful


def find_leaks(
    connections: "Iterable[Connection]",
    idle_for: float,
    in_transaction_for: float,
    watched: "Mapping[int, float]",
) -> Leaks:
    """Those of the connections that are idle, or idle in a transaction, for longer than this, or
    whose peer is suspected to be dead. `watched` tells for how long the sessions without_clock()
    are known to have done nothing, by the process id of their backend.
    """
    found = Leaks()
    for one in connections:
        activity, seconds = one["activity"], one["idle_seconds"]
        if activity == SUSPECTED_DEAD_PEER:
            found.dead_peers.append(Leak(one, seconds, True))
        found.told += activity in (SUSPECTED_DEAD_PEER, ACTIVE, WAITING, CLIENT_NOT_READING)
        if activity not in (IDLE, IDLE_IN_TRANSACTION, UNKNOWN):
            continue
        if activity != IDLE_IN_TRANSACTION and one["activity_known_by"] != BY_TITLE:
            found.untitled.append(one)
        bound = in_transaction_for if activity == IDLE_IN_TRANSACTION else idle_for
        if seconds is None:
            if _is_younger(one, min(bound, in_transaction_for) if activity == UNKNOWN else bound):
                seconds = 0.0
            elif activity == UNKNOWN:
                found.unknown.append(one)
                continue
            elif one["backend_pid"] not in watched:
                found.untimed.append(one)
                continue
            else:
                seconds = watched[one["backend_pid"]]
        found.told += 1
        if seconds > bound:
            leaked = found.idle_in_transaction if activity == IDLE_IN_TRANSACTION else found.silent
            leaked.append(Leak(one, seconds, activity != UNKNOWN))
    return found


def count_possible(
    found: Leaks, stateful: "Iterable[Connection]", idle_for: float, in_transaction_for: float
) -> "tuple[int, int]":
    """(of the connections whose title does not tell it how many may be idle in transaction for
    longer than this, how many of these are silent). Only `stateful` ones may be: those of a
    server, not of a pooler or of one on another host, where nothing ever tells it.
    """
    known = {id(one) for one in stateful}
    possible = silent = 0
    for one in found.untitled:
        seconds = one["idle_seconds"]
        if id(one) not in known or _is_younger(one, in_transaction_for):
            continue
        if seconds is None or seconds > in_transaction_for:
            possible += 1
            silent += seconds is not None and seconds > idle_for
    return possible, silent


def _is_younger(one: "Connection", seconds: float) -> bool:
    age = one["age_seconds"]
    return age is not None and not one["age_is_lower_bound"] and age <= seconds


def without_clock(connections: "Iterable[Connection]") -> "list[Connection]":
    """Those sessions of which nothing but earlier runs can tell for how long they are idle."""
    return [
        one
        for one in connections
        if one["activity"] in (IDLE, IDLE_IN_TRANSACTION)
        and one["idle_seconds"] is None
        and one["backend_pid"] is not None
    ]


def say_unjudged(found: Leaks, doubtful: int) -> "list[str]":
    """What is not known of which connections; so many `doubtful` may be walsenders."""
    notes = []
    if found.unknown:
        notes.append(
            "not judged, since whether it is idle is not known: "
            + plural(len(found.unknown), "connection")
        )
    if found.untimed:
        notes.append(
            "not judged, since for how long they are idle is told by earlier runs alone (Unix "
            f"sockets, procfs; see --state-dir): {plural(len(found.untimed), 'session')}"
        )
    if doubtful:
        notes.append(
            f"not judged, since its title may be a walsender's: {plural(doubtful, 'session')}"
        )
    if found.uncertain:
        notes.append(
            f"{found.uncertain} of the silent may be at one statement since: question and answer "
            "came within one tick of the clock"
        )
    return notes


def leak_lines(found: Leaks, most: int) -> "list[str]":
    """Lines that say whose connections nobody uses, of each kind, and for how long the longest of
    them; at most `most`.
    """
    kinds = [
        (leaks, noun)
        for leaks, noun in (
            (found.dead_peers, "with a suspected dead peer"),
            (found.idle_in_transaction, "idle in transaction"),
            (found.silent, "silent"),
        )
        if leaks
    ]
    lines = []
    for leaks, noun in kinds:
        counts: dict[str, int] = {}
        longest: dict[str, Leak] = {}
        for one in sorted(leaks, key=lambda leak: leak.seconds or 0.0):
            whose = _say_whose(one.connection)
            counts[whose] = counts.get(whose, 0) + 1
            longest[whose] = one
        said = {whose: whose + _say_longest(one) for whose, one in longest.items()}
        lines += say_top(counts, said.__getitem__, "of others", noun, most // len(kinds))
    return lines


def _say_whose(one: "Connection") -> str:
    """`user app on shop from 10.0.0.5 by python3 (4711)`, as far as it is known."""
    is_client = one["leg"] == CLIENT
    parts = []
    if one["user"] is not None:
        parts.append(f"user {clean(one['user'])}")
    if one["database"] is not None:
        parts.append(f"on {clean(one['database'])}")
    if one["peer_address"] == OVER_UNIX:
        parts.append("over a Unix socket")
    else:
        parts.append(f"{'to' if is_client else 'from'} {one['peer_address']}")
    prefix = "" if is_client else "peer_"
    if one[f"{prefix}pid"] is not None:
        parts.append(f"by {clean(one[f'{prefix}process'])} ({one[f'{prefix}pid']})")
    return " ".join(parts)


def _say_longest(leak: Leak) -> str:
    pid = leak.connection["backend_pid"]
    text = "" if leak.seconds is None else f", for up to {write_seconds(leak.seconds)}"
    return text if pid is None else f"{text} (backend {pid})"
