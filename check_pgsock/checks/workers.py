"""Workers: how connections and work spread over processes, and who hoards the pool.

Workers are the processes that hold this host's end of the ESTABLISHED connections: application
processes on the client leg, several PgBouncers on one port (so_reuseport) on the server leg. They
are compared with their siblings alone, processes of one program: same user, name, command line and
cgroup, but for the numbers in these; of a pooler, those of one name that listen at one address.
`spread` says how many times as many connections as its siblings on average (at least one each) the
busiest worker holds: above 4 is a WARNING by default. busiest_worker is its share, in %, of all
that it and its siblings hold; -w and -c judge it, without a default: what is even depends on how
many they are. A worker without siblings, and one with fewer than --min-connections, is not judged:
one process with a large pool is as it should be. Of several programs the most uneven one is shown.

On the server leg of PostgreSQL, where each backend holds one connection, workers are the clients:
their processes where these are on this host and may be seen, else the peers' addresses, of which
only busiest_worker is judged: nobody knows how much a host should hold. Shown is also what the
sessions do, as their titles tell, which everybody may read: `active`, `waiting` (for a lock or a
synchronous standby), `idle` and `idle_in_transaction`, each the mean of five looks in --window;
`utilization` is the part of the sessions that is active or waiting, in %. They have thresholds, and
no defaults: a healthy pool may well be at 100 %. cpu_bound counts the backends that spent more than
half of the window on a processor. Sessions over Unix sockets of the same server count, walsenders
do not. Where it is not proven whose server it is, none of this is known, and a threshold that names
it makes the check UNKNOWN rather than OK. A recording is one look, without cpu_bound.

Processes are seen by root, by their own user (each its own), and with CAP_SYS_PTRACE together with
CAP_DAC_READ_SEARCH. To others cgroups (systemd units) stand for them where they tell like ones
apart, such as pgbouncer@1.service and pgbouncer@2.service; else the check is UNKNOWN. On the server
leg of PostgreSQL it needs no rights.
"""

from check_pgsock import options as opts
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.option_values import parse_count, parse_seconds
from check_pgsock.plugin import run as run_check
from check_pgsock.sessions.activity import NOT_ACCEPTED, WAITING
from check_pgsock.sessions.connections import say_counts
from check_pgsock.sessions.states import ACTIVE
from check_pgsock.sessions.workers import STATES, Kind, Utilization, find_most_uneven, group
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
)
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN
from check_pgsock.text import plural, say_top
from check_pgsock.unix.leg import read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional, Union

    from check_pgsock.legs import Leg
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.view import View

DEFAULT_WINDOW = 1.0
SHORTEST_WINDOW = 0.1
DEFAULT_LEAST = 20
_HELD = 1 << ESTABLISHED | 1 << CLOSE_WAIT
# Labels of a PostgreSQL server's sessions that thresholds can be given for.
_OF_SESSIONS = ("active", "waiting", "utilization")


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--min-connections", metavar="N", type=argument(parse_count),
        default=DEFAULT_LEAST,
        help="a worker with fewer connections hoards nothing and is not judged (default: "
        f"{DEFAULT_LEAST})",
    )  # fmt: skip
    parser.add_argument(
        "--window", metavar="SECONDS", type=argument(parse_seconds),
        default=DEFAULT_WINDOW,
        help="how long the sessions of a PostgreSQL server are looked at, server leg (default: "
        f"{DEFAULT_WINDOW:g})",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """The looks must fit into the deadline; processor times are told in steps of 10 ms."""
    if options.window < SHORTEST_WINDOW:
        raise UsageError(f"--window {options.window:g} is too short; at least {SHORTEST_WINDOW:g}")
    opts.require_below_timeout(options, "window")


def probe(run: Run) -> Report:
    """Find who holds the leg's connections, and on PostgreSQL's side what its sessions do."""
    # Most of what --help and a mistyped option need not wait for.
    from check_pgsock.sessions.holding import find_workers
    from check_pgsock.sessions.survey import survey
    from check_pgsock.sessions.unproven import may_be_unproven, say_unix_unseen, say_why
    from check_pgsock.unix.survey import add_unix_socket

    leg = opts.chosen_leg(run.options)
    view = open_view(run)
    reader = view.reader
    if reader.saved and view.recorded is None:
        raise PgsockError(
            "--proc-root holds no processes, so whose the connections are cannot be told: run the "
            "check where they are, or on a recording (--source FILE)"
        )
    tally = count(reader, leg, ESTABLISHED, LISTEN)
    unix = read_sessions(reader, leg.paths)
    floor = listener_floor(run, leg, tally.listeners, unix.missing)
    doubts = refuse_forwarded(view, leg, tally.listeners)
    notes, told = session_notes(view, leg, unix)
    found = survey(view, leg, _HELD, unix=not leg.paths)
    for path in leg.paths:
        add_unix_socket(view, path, found)
    notes += found.notes
    # On the client leg the backends, if seen, are the other ends.
    backends = [one for one in found.connections if leg.server and one["backend_pid"] is not None]
    used = None
    walsenders: set[int] = set()
    if leg.server and found.proven:
        used, walsenders = _watch(run, view, backends, notes)
    may_be = leg.server and may_be_unproven(view, leg, found)
    if may_be:
        notes += say_unix_unseen(view, leg)
    held = [
        one
        for one in found.connections
        if one["state"] in (None, "ESTABLISHED")
        and one["activity"] != NOT_ACCEPTED
        and one["backend_pid"] not in walsenders
    ]
    why = say_why(view) if may_be else None
    holding = find_workers(view, leg, held, leg.listeners(tally.listeners), why)
    notes += holding.describe()
    waiting = tally.not_accepted + unix.not_accepted if leg.server else 0
    if waiting:
        notes.append(f"{plural(waiting, 'connection')} not accepted yet, and no worker's")
    kinds = group(holding.workers)
    uneven = _choose(kinds, run.options.min_connections)
    return Report(
        headline(leg, kinds, uneven, used),
        measure(kinds, uneven, used),
        notes=[*reader.notes(), *doubts, *notes],
        who=lambda: who(kinds, used),
        told=told,
        details=[*reader.describe(), *unix.describe()],
        floor=floor,
        unknown=untold(leg, used, why) if floor is None else None,
    )


def _watch(
    run: Run, view: "View", backends: "list[Connection]", notes: "list[str]"
) -> "tuple[Utilization, set[int]]":
    """What the sessions of these backends do, and which of them are walsenders; adds to `notes`
    what qualifies it.
    """
    from check_pgsock.sessions.looks import Looks

    looks = Looks(view, backends)
    used = Utilization(looks.watch(0 if view.reader.saved else run.options.window))
    if used.unknown:
        notes.append(f"what {plural(used.unknown, 'session')} more do is not known")
    if looks.by_socket:
        notes.append(
            f"what {plural(looks.by_socket, 'session')} do is told by their sockets alone: in a "
            "transaction counts as idle, waiting as active"
        )
    return used, looks.walsenders


def untold(leg: "Leg", used: "Optional[Utilization]", why: "Optional[str]") -> "dict[str, str]":
    """The labels of what sessions do, where that is not known, each with the reason: `why` it is
    not proven whose they are, where it may be that they are PostgreSQL's.
    """
    if used is not None and used.counts is not None:
        return {}
    if why is None:
        why = "it is that of the sessions of a PostgreSQL server, on its server leg"
        if used is not None:
            why = f"no session's state is known of the connections {leg.describe()}"
    return dict.fromkeys(_OF_SESSIONS, why)


def _choose(kinds: "list[Kind]", least: int) -> "Optional[Kind]":
    """The kind of workers to be judged: addresses only where nothing else can be."""
    known = [one for one in kinds if not one.is_of_peers]
    return find_most_uneven(known, least) or find_most_uneven(kinds, least)


def headline(
    leg: "Leg", kinds: "list[Kind]", uneven: "Optional[Kind]", used: "Optional[Utilization]"
) -> str:
    """`37 of 50 sessions active, 3 waiting (utilization 80 %) on port 5432; process 4711 (python3)
    holds 60 of 90 connections (67 %) of 4 workers`
    """
    where = leg.describe()
    parts = []
    if used is not None:
        parts.append(f"{say_used(used)} {where}")
        where = ""
    if uneven is not None:
        noun = "peers" if uneven.is_of_peers else "workers"
        parts.append(
            f"{uneven.busiest.name} holds {uneven.busiest.connections} of "
            f"{uneven.connections} connections ({uneven.share:.0f} %) of {len(uneven.workers)} "
            f"{noun} {where}".rstrip()
        )
    elif used is None:
        number = sum(one.connections for one in kinds)
        workers = sum(len(one.workers) for one in kinds)
        has_siblings = any(len(one.workers) > 1 for one in kinds)
        why = ", too few to judge" if has_siblings else ", none like another" * (workers > 1)
        of = f" of {plural(workers, 'worker')}" if workers else ""
        parts.append(f"{plural(number, 'connection')}{of} {where}{why}")
    return "; ".join(parts)


def say_used(used: Utilization) -> str:
    """`37 of 50 sessions active, 3 waiting (utilization 80 %)`"""
    if used.counts is None:
        return f"{plural(used.unknown, 'session')}, what they do is not known,"
    percent = "" if used.percent is None else f" (utilization {used.percent:.0f} %)"
    return (
        f"{used.counts[ACTIVE]:.0f} of {plural(used.sessions, 'session')} active, "
        f"{used.counts[WAITING]:.0f} waiting{percent}"
    )


def measure(
    kinds: "list[Kind]", uneven: "Optional[Kind]", used: "Optional[Utilization]"
) -> "list[Metric]":
    """The metrics of this check; those of sessions only where some are known of.

    Where there is nothing to judge, share and spread are those of the busiest worker's kind.
    """
    shown = uneven or next(iter(kinds), None)
    share, spread = (0.0, 1.0) if shown is None else (shown.share, shown.spread)
    judged = uneven is not None
    is_spread_judged = uneven is not None and not uneven.is_of_peers
    metrics = [
        Metric("busiest_worker", round(share, 1), "%", maximum=100, judged=judged),
        Metric("spread", round(spread, 2), judged=is_spread_judged),
        Metric("workers", sum(len(one.workers) for one in kinds)),
    ]
    if used is None:
        return metrics
    if used.counts is not None:
        for state in STATES:
            metrics.append(Metric(state.replace(" ", "_"), _whole(used.counts[state])))
        metrics.append(Metric("sessions", used.sessions))
    if used.counts is not None:
        metrics.append(Metric("utilization", round(used.percent or 0.0, 1), "%", maximum=100))
    if used.cpu_bound is not None:
        metrics.append(Metric("cpu_bound", used.cpu_bound))
    return metrics


def _whole(mean: float) -> "Union[int, float]":
    rounded = round(mean, 1)
    return int(rounded) if rounded.is_integer() else rounded


def who(kinds: "list[Kind]", used: "Optional[Utilization]") -> "list[str]":
    """Lines on the busiest workers, and on what the sessions do."""
    told = []
    if used is not None and used.counts is not None:
        # Parts of sessions that add up to less than half of one are left out.
        states = say_counts({name: round(n) for name, n in used.counts.items() if round(n)})
        bound = f"; {used.cpu_bound} of them cpu bound" if used.cpu_bound else ""
        told = [f"sessions: {states}{bound}"]
    counts = {one.name: one.connections for kind in kinds for one in kind.workers}
    return say_top(counts, str, "workers", "established", WHO_LINES - len(told)) + told


SPEC = CheckSpec(
    name="workers",
    description=__doc__,
    judged=(
        Judged("busiest_worker", "the busiest worker's share of its kind's connections in %"),
        Judged("spread", "times its siblings' mean that the busiest process holds", "4"),
        Judged("active", "sessions of PostgreSQL that are active"),
        Judged("waiting", "sessions of PostgreSQL that wait for a lock or a standby"),
        Judged("utilization", "sessions of PostgreSQL that are active or waiting, in %"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_workers."""
    run_check(SPEC)
