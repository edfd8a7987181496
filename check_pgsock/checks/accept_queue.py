"""Accept queue: connections that the kernel has completed and the server has not accepted.

A postmaster or pooler accepts a connection within milliseconds. One that is stopped, starved of
CPU, or held up leaves them in the queue of its listener (and their clients without an answer,
every check among them that connects). Where the queue is full, the kernel refuses handshakes:
clients retransmit, and time out. PostgreSQL's queue holds twice its max_connections and more, as
far as net.core.somaxconn allows. A full queue has one more connection in it than its backlog.

accept_queue is the number in the listener's queue that is fullest relative to its backlog; % is of
that backlog, rounded down to whole connections: with a backlog below 10 the first that stays
alerts at 10%. accept_wait is for how long the oldest has waited, in seconds: a few clients of a
stopped server fill no queue. Both count what is there in two looks, --settle apart; the second
look is taken only when the first exceeds a threshold, or sees anybody wait on a Unix socket. Of a
recording these are two of its moments, the later one chosen by --moment.

Of a Unix socket (--socket) the kernel does not tell for how long a connection has waited, but
whose it is: accept_wait is then a lower bound, since the first run that saw the same client wait,
by what that run stored. Without a state directory it is --settle.

listen_drops_rate are the SYNs and handshakes per second that the kernel refused over the last
--over seconds, by the counters that earlier runs stored (a restart of the server begins them
anew); where these reach back less, it is a lower bound. What a listener drops without refusing it,
as SYNs that are repeated, is not counted. It is judged of PostgreSQL's listeners alone: with
TCP_DEFER_ACCEPT, as PgBouncer has it, every connection is among the drops. The first run, and one
without a state directory, judge the queue without it.

procfs tells neither backlog nor drops nor how long a connection waits: there -w and -c must be
numbers of connections. Of Unix sockets nothing counts drops. accept_wait is left out where somebody
waits and it is not told for how long, as in a recording of Unix sockets. What forwards (haproxy,
nginx) is judged by its own queue, which is not that of the server behind it; a container's
published port (docker-proxy) is UNKNOWN: connections pass it by.
"""

from check_pgsock import options as opts
from check_pgsock.accept_queue import Look
from check_pgsock.accept_wait import Waits
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.legs import Leg, top_peers
from check_pgsock.listen_drops import read_drops
from check_pgsock.option_values import parse_seconds
from check_pgsock.plugin import run as run_check
from check_pgsock.servers.forwarders import POSSIBLE, describe, find_forwarders
from check_pgsock.servers.programs import CONTAINER_FORWARDERS
from check_pgsock.socket_check import listener_floor, open_view
from check_pgsock.socket_state import add_state_key
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Listener, Query, state_mask
from check_pgsock.sockets.sources.netlink import NetlinkSource
from check_pgsock.unix.leg import read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn

    from check_pgsock.accept_queue import Queue
    from check_pgsock.listen_drops import Drops
    from check_pgsock.sockets.reader import Reader
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View

DEFAULT_OVER = 300.0


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    opts.add_settle(parser)
    parser.add_argument(
        "--over", metavar="SECONDS", type=argument(parse_seconds), default=DEFAULT_OVER,
        help=f"listen_drops_rate is of so many last seconds (default: {DEFAULT_OVER:g})",
    )  # fmt: skip
    add_state_key(parser)


def validate(options: "Namespace") -> None:
    """There is a queue on the server leg alone, and it is one for all peers."""
    if options.leg == "client":
        raise UsageError(
            "--leg client has no accept queue: run the check where the server or pooler listens; "
            "drop it"
        )
    for name in ("peer", "exclude_peer"):
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with an accept queue, which is one for "
                "all peers; drop it"
            )
    opts.require_below_timeout(options, "settle")


def look(view: "View", reader: "Reader", leg: Leg) -> Look:
    """The queues of the leg, now. Raises SourceError."""
    found = Look()
    for place in reader.each if leg.ports else ():
        bound = place.listeners(*leg.ports, drops=True)
        waiting = []
        if any(one.accept_queue for one in bound):  # else there is nobody to ask for
            states = state_mask(ESTABLISHED, CLOSE_WAIT)
            asked = place.sockets(Query(leg.ports, True, states, info=True))
            waiting = [one for one in asked if not one.inode]
        found.add_tcp(place, bound, leg.listeners(bound), waiting)
    for path in leg.paths:
        sessions = read_sessions(reader, (path,))
        found.add_unix(
            sessions.listeners, sessions.not_accepted, read_clients(view, reader, sessions)
        )
        found.missing += sessions.missing
        found.notes += sessions.notes
        if any(one.accept_queue is None for one in sessions.listeners):
            found.notes.append(
                f"of {path} procfs tells the connections of this network namespace alone"
            )
    return found


def read_clients(
    view: "View", reader: "Reader", sessions: "Sessions"
) -> "dict[int, tuple[int, ...]]":
    """The inodes of the clients' ends that wait on Unix sockets, by the listener's; none where
    nobody waits, or where that is not told: under procfs and in a recording. Raises SourceError.
    """
    found: dict[int, tuple[int, ...]] = {}
    if not reader.saved and any(one.accept_queue for one in sessions.listeners):
        for place in reader.each:
            found.update(NetlinkSource(view.deadline, place.namespace).unix_queues())
    return found


def probe(run: Run) -> Report:
    """Read the queues, twice if they are too long, and what was dropped since earlier runs."""
    leg = opts.chosen_leg(run.options)
    view = open_view(run)
    reader = view.reader
    now = look(view, reader, leg)
    require_backlogs(run.options, view, now)
    doubts = describe_forwarders(view, now)
    looks = 1
    if is_too_much(run, now):
        earlier = None if view.recorded is None else view.recorded.earlier(run.options.settle)
        if earlier is not None:
            now, looks = now.staying(look(view, earlier, leg)), 2
        elif reader.saved:
            doubts.append("a saved moment, judged as it is: which of them stay cannot be told")
        else:
            first, looks = now, 2
            run.deadline.doing = "waiting for the second look"
            run.deadline.sleep(run.options.settle)
            now = look(view, reader, leg).staying(first)
    elif reader.saved:
        doubts.append("a saved moment, judged as it is")
    floor = listener_floor(run, leg, now.tcp, now.missing)
    drops = read_drops(run, view, leg, now.queues)
    waits = Waits(now)
    if looks == 2:
        waits.watch(run, view, leg)
    stayed = f", unchanged for {run.options.settle:g} s" if looks == 2 and now.length else ""
    return Report(
        headline(now, leg, stayed, waits, drops),
        measure(now, waits, drops),
        notes=[*reader.notes(), *doubts, *now.notes, *waits.notes, *drops.notes],
        who=lambda: who(view, leg, now, waits, drops),
        told=[f"looked {'twice' if looks == 2 else 'once'}", *drops.told],
        details=reader.describe(),
        floor=floor,
        commit=lambda: keep(drops, waits),
    )


def keep(drops: "Drops", waits: Waits) -> None:
    """Keep what the next run needs. Raises StateError."""
    for commit in (drops.commit, waits.commit):
        if commit is not None:
            commit()


def require_backlogs(options: "Namespace", view: "View", now: Look) -> None:
    """Raise PgsockError where a bound is a percentage of what is not told."""
    ranges = [one for one in (options.warning, options.critical) if one is not None]
    if any(one.has_percent for one in ranges) and any(one.backlog is None for one in now.queues):
        refusal = next((one.refusal for one in view.reader.each if one.refusal), None)
        why = "" if refusal is None else f", which did not answer: {refusal}"
        other = "" if view.reader.saved else f", or use --source netlink{why}"
        raise PgsockError(
            "procfs does not tell the backlog, which % of accept_queue is of: give -w and -c as "
            f"numbers of connections{other}"
        )


def describe_forwarders(view: "View", now: Look) -> "list[str]":
    """What is to be said of listeners that only forward: their queue is not that of the server.

    Raises PgsockError for that of a container's port: connections from elsewhere may pass it by,
    and what takes it accepts whatever the server in the container does.
    """
    notes = []
    for found in find_forwarders(view, now.tcp) if now.tcp else ():
        if found.certainty == POSSIBLE:
            from check_pgsock.servers.possible_forwarders import is_refuted  # few hosts

            if is_refuted(view, found):
                continue
        elif found.process.command in CONTAINER_FORWARDERS:
            raise PgsockError(describe(found))
        notes.append(f"a forwarder's queue is judged, not its server's: {describe(found)}")
    return notes


def is_too_much(run: Run, now: Look) -> bool:
    """Whether this look would raise WARNING or CRITICAL, or may: of those that wait on a Unix
    socket a second one tells who stays.
    """
    fullest = now.fullest
    if fullest is None or not now.length:
        return False
    return (
        any(one.length for one in now.unix)
        or run.exceeds("accept_queue", fullest.length, fullest.backlog)
        or run.exceeds("accept_wait", Waits(now).longest or 0)
    )


def headline(now: Look, leg: Leg, stayed: str, waits: Waits, drops: "Drops") -> str:
    """`37 of 200 in the accept queue on port 5432, oldest 12 s, 0 drops per second`"""
    fullest = now.fullest
    if fullest is None:
        return f"no accept queue {leg.describe()}"
    which = "the accept queue"
    if len(now.queues) > 1:
        which = f"the fullest of {len(now.queues)} accept queues"
    text = f"{say_length(fullest)} in {which} {leg.describe()}{stayed}{waits.describe()}"
    return text if drops.rate is None else f"{text}, {drops.rate:.3g} drops per second"


def say_length(queue: "Queue") -> str:
    """`37 of 200`, or of an unknown backlog `37`."""
    return f"{queue.length}" if queue.backlog is None else f"{queue.length} of {queue.backlog}"


def measure(now: Look, waits: Waits, drops: "Drops") -> "list[Metric]":
    """The metrics; left out is what the source does not tell, and all of it without a listener."""
    fullest = now.fullest
    if fullest is None:
        return []
    backlog = fullest.backlog
    metrics = [Metric("accept_queue", fullest.length, maximum=backlog, base=backlog)]
    if waits.longest is not None:
        metrics.append(Metric("accept_wait", waits.longest, "s"))
    if drops.rate is not None:
        metrics.append(Metric("listen_drops_rate", drops.rate))
    if backlog is not None:
        metrics.append(Metric("backlog", backlog))
    return [*metrics, Metric("waiting", now.length)]


def who(view: "View", leg: Leg, now: Look, waits: Waits, drops: "Drops") -> "list[str]":
    """Lines on the listeners, the fullest first, on their programs, and on who waits."""
    from check_pgsock.servers import listener_owners  # rarely asked

    unix = [one.listener for one in now.queues if not isinstance(one.listener, Listener)]
    owners = listener_owners.find_owners(view, leg.ports, unix)
    lines = []
    for one in now.ranked[: WHO_LINES // 2]:
        line = f"listener {one.name}: {say_length(one)} waiting{waits.describe(one)}"
        if one.others and isinstance(one.listener, Listener) and not now.shared:
            line += f", {one.others} of them reset by their clients"
        owner, known = owners.get(one.listener.inode), drops.owners.get(one.listener.inode)
        whose = None
        if known is not None and (owner is None or not owner.proven):
            whose = listener_owners.describe_known(view, *known)
        if whose is None and owner is not None:
            whose = listener_owners.describe_owner(view, owner)
        lines.append(line if whose is None else f"{line}; {whose}")
    return lines + top_peers(now.waiting, "waiting", WHO_LINES - len(lines))


SPEC = CheckSpec(
    name="accept_queue",
    description=__doc__,
    judged=(
        Judged(
            "accept_queue", "connections that stay unaccepted", "10%", "75%",
            percent_of="the listener's backlog",
        ),
        Judged("accept_wait", "seconds that the oldest of them has waited", "5", "30"),
        Judged("listen_drops_rate", "handshakes refused per second", "0", "1"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
)  # fmt: skip


def main() -> "NoReturn":
    """Entry point of check_pgsock_accept_queue."""
    run_check(SPEC)
