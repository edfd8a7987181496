"""What listeners have dropped: SYNs and handshakes that the kernel refused, per second.

The kernel counts what each listener drops since it was made, and with it what it merely ignores:
SYNs that a client repeats because the answer was lost, what a port scan sends. What all listeners
of a network namespace have refused it counts apart: the smaller number is what one has refused at
most. With TCP_DEFER_ACCEPT, as PgBouncer has it, one bare ACK or more of every connection is
ignored: then the listener's counter says nothing. PostgreSQL never sets that, so only its listeners
are judged.
"""

from collections import namedtuple

from check_pgsock.history import Reading, find_growth
from check_pgsock.processes import parse_start_ticks
from check_pgsock.servers.programs import POSTGRESQL
from check_pgsock.socket_state import NO_DIRECTORY, open_store, service_key
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.sources.netstat import read_listen_drops
from check_pgsock.text import plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Callable, NamedTuple, Optional

    from check_pgsock.accept_queue import Queue
    from check_pgsock.contract import Run
    from check_pgsock.legs import Leg
    from check_pgsock.servers.owners import Owner
    from check_pgsock.view import View

    class Counter(NamedTuple):
        """What one listener has dropped, as the store keeps it: in a list of these values."""

        endpoint: str  # network namespace, address and port: who listens there later follows it
        inode: int
        cookie: "Optional[int]"
        drops: int
        refused: int  # by all listeners of its network namespace
        kind: "Optional[str]"  # of its program, where that is proven: see servers.programs
        owner: "Optional[list[int]]"  # likewise: process id and start (parse_start_ticks()) of one

else:
    Counter = namedtuple("Counter", "endpoint inode cookie drops refused kind owner")

_NOT_JUDGED = "drops are not judged, the queue is"


class Drops:
    """The drops per second of a leg's listeners (None: not judged), and what is to be said of
    them, always and with -v. `owners` are process id and start of the proven ones, by the
    listener's inode. `commit` keeps this run's counters for the next ones.
    """

    __slots__ = ("commit", "notes", "owners", "rate", "told")

    def __init__(self, *notes: str) -> None:
        self.rate: Optional[float] = None
        self.notes = list(notes)
        self.told: list[str] = []
        self.owners: dict[int, tuple[int, int]] = {}
        self.commit: Optional[Callable[[], None]] = None


def read_drops(run: "Run", view: "View", leg: "Leg", queues: "Iterable[Queue]") -> Drops:
    """The drops of the TCP listeners among `queues`, over --over seconds.

    Raises StateError and SourceError.
    """
    listeners = [(one, one.listener) for one in queues if isinstance(one.listener, Listener)]
    if not listeners:
        return Drops()
    if any(one.drops is None for _, one in listeners):
        return Drops(f"{_NOT_JUDGED}: {view.reader.used} does not tell them")
    if view.reader.saved:
        return Drops(f"{_NOT_JUDGED}: a saved moment tells no rate")
    refused = {
        None if one.namespace is None else one.namespace.name: read_listen_drops(one.namespace)
        for one in view.reader.each
    }
    if None in refused.values():
        return Drops(f"{_NOT_JUDGED}: /proc/net/netstat cannot be read")
    store = open_store(run, view)
    if store is None:
        return Drops(
            f"{_NOT_JUDGED}: each run needs the counters of earlier ones, and there is "
            f"{NO_DIRECTORY}"
        )
    over = run.options.over
    key = service_key(run, view, leg, over)
    samples = [(one.at, parse_counters(one.data)) for one in store.samples(key)]
    proven = {
        (one.inode, one.cookie): (one.kind, one.owner)
        for _, all_of in samples
        for one in all_of
        if one.kind is not None
    }
    now = [
        Counter(
            queue.name, one.inode, one.cookie, one.drops or 0, refused[queue.namespace] or 0,
            *proven.get((one.inode, one.cookie), (None, None)),
        )
        for queue, one in listeners
    ]  # fmt: skip
    found = Drops()
    judged = _choose(found, view, leg, now)
    found.owners = {one.inode: (one.owner[0], one.owner[1]) for one in now if one.owner is not None}
    found.commit = lambda: store.commit({key: now}, run.now, over)
    _measure(found, judged, samples, run.now, over)
    return found


def parse_counters(data: object) -> "list[Counter]":
    """The counters of one sample; none where it is not what this version writes."""
    if not isinstance(data, list):
        return []
    return [Counter(*one) for one in data if isinstance(one, list) and len(one) == 7]


def _choose(found: Drops, view: "View", leg: "Leg", now: "list[Counter]") -> "list[Counter]":
    """The counters that tell what was refused; says of the others why they do not, and sets in
    `now` what is proven, which holds for as long as the listener does.
    """
    owners = {}
    if any(one.kind is None for one in now):
        from check_pgsock.servers.listener_owners import find_owners  # few runs ask

        owners = find_owners(view, leg.ports)
    judged = []
    for place, one in enumerate(now):
        kind, owner = one.kind, owners.get(one.inode)
        if kind is None and owner is not None:
            kind = owner.kind
            if owner.proven:
                now[place] = one._replace(kind=kind, owner=_identify(view, owner))
        if kind == POSTGRESQL:
            judged.append(one)
        elif kind is None:
            found.notes.append(
                f"drops on {one.endpoint} are not judged: whose listener it is cannot be told from "
                "here (to root it is, and to all while there are sessions over TCP, or if its unit "
                "has one server alone), and a pooler's may count connections that were made"
            )
        else:
            found.told.append(
                f"drops on {one.endpoint} are not judged: its program is a {kind}, whose listener "
                "may count connections that were made"
            )
    return judged


def _identify(view: "View", owner: "Owner") -> "Optional[list[int]]":
    """Process id and start of the one process that an owner is."""
    if len(owner.processes) != 1:
        return None
    pid = owner.processes[0].pid
    try:
        return [pid, parse_start_ticks(view.processes().read(pid, "stat") or b"")]
    except (ValueError, IndexError):
        return None


def _measure(
    found: Drops,
    judged: "list[Counter]",
    samples: "list[tuple[float, list[Counter]]]",
    now: float,
    over: float,
) -> None:
    """Set the rate of the `judged` counters since the `samples`, and say what it is made of."""
    rates = []
    for one in judged:
        earlier = [
            (at, each) for at, all_of in samples for each in all_of if each.endpoint == one.endpoint
        ]
        dropped = find_growth(
            (Reading(at, (each.inode, each.cookie), each.drops) for at, each in earlier),
            Reading(now, (one.inode, one.cookie), one.drops),
            over,
        )
        refused = find_growth(
            (Reading(at, None, each.refused) for at, each in earlier),
            Reading(now, None, one.refused),
            over,
        )
        since = ""
        if dropped is not None and refused is not None:
            rates.append(min(dropped, refused).rate(over))
            since = (
                f", {dropped.amount} of them in the last {write_seconds(dropped.seconds)}, when "
                f"its network namespace refused {refused.amount}"
            )
        found.told.append(f"{plural(one.drops, 'drop')} on {one.endpoint} since it listens{since}")
    if rates:
        found.rate = sum(rates)
    elif judged:
        found.notes.append("drops are judged from the next run on: this one is the first")
