"""Saturation: connections of a leg against those its endpoint can hold, and slots against limits.

The limit is the number of usable slots: for PostgreSQL max_connections less the reserved ones, for
PgBouncer max_client_conn, of all processes that share its port. `--limit auto` reads it without a
database connection: from the postmaster that is proven to own the port (its command line,
pg_control, its configuration confirmed by the listener's backlog, or that backlog alone), or from
the configuration file of a PgBouncer whose descriptors and file may be read; where none tells, the
check is UNKNOWN and asks for --limit.

`--limit sql` is for hosts of applications whose server is elsewhere (--leg client): the server that
--dsn names is asked for its limit, or PgBouncer's console for max_client_conn. The answer is kept
in the state directory, and asked for again after an hour; after a minute before a state other than
OK is said; and after five minutes where none of the connections is left that were there then, as
after a restart (without such, a server made smaller is noticed within an hour). While there is no
answer what is kept holds, and its age is said; a question that is refused for want of a slot is
CRITICAL. A role with LOGIN alone may ask. The CONNECTION LIMIT of its database is said, and not
judged. Checks with the same DSN share the answer.

`established` is judged, and where the server leg is proven to be a PostgreSQL server's also
`slots_used`: the connection slots in use, by the titles of its backends. A session holds one
whatever it came over (TCP, any Unix socket of the server, from any network namespace) and also when
its client is gone; walsenders, parallel and autovacuum workers and connections without a startup
packet hold none. The worse of the two wins. The walsenders so known are not counted as established
either. --peer, --exclude-peer, --user, --exclude-user and --database select what is established;
there are no slots_used then.

Where the server is not proven to be PostgreSQL, and may be, slots_used is missing, and a line
below says what is not counted and what to do. Whoever names --slots-used-warning or
--slots-used-critical relies on it: the check is UNKNOWN then rather than OK. So it is with
--fullest-process-warning and --fullest-process-critical where several processes share the port
and nothing tells what each of them holds.

`free` (what is left of the limit) has thresholds of its own, such as --free-critical 5: for "fewer
than 5 left". `not_accepted` are connections that the kernel has completed and the server has not
yet accepted: they count as established, as their clients see it.

--by user|database|peer with --group-limit NAME=N judges groups, each against its own limit, as the
CONNECTION LIMIT of a role or a database, or the size of a pool: `fullest_group` is the percentage
of the fullest one (a limit of 0 admits nobody: one session is 200 %). Users and databases are
counted by slot, of a proven server; peers by TCP connection, on any leg. `--group-limit '*'=N` is
the limit of each group that is not named.

Where several processes share one port (PgBouncer with so_reuseport) the kernel shares connections
out whether or not a process is full: `fullest_process`, the connections of the fullest one, is
judged against what it can hold itself: its own max_client_conn with --limit auto, and where
these differ and can be read; else an equal part of --limit, which is all processes' together. Who
holds how many is seen by root and by their own user alone; for anybody else the sum is judged,
which is said.

Of a Unix socket (--socket) established are the sessions whose client is there, close_wait those
that the server keeps for a client that is gone (under procfs both are established, and close_wait
is left out). Clients in other network namespaces are counted with --netns. --limit auto and
slots_used find the server of a Unix socket alone as root or as its own user; beside its port
(-p 5432 --socket /run/postgresql/.s.PGSQL.5432) as anybody.
"""

from check_pgsock import options as opts
from check_pgsock.command_line import Parser
from check_pgsock.contract import NOT_JUDGED, WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import UsageError
from check_pgsock.limit_option import (
    SQL,
    add_limit_option,
    given_limit,
    validate_limit,
    with_fresh_limit,
)
from check_pgsock.occupancy import Occupancy, occupy
from check_pgsock.plugin import run as run_check
from check_pgsock.sessions.groups import add_group_options, chosen_groups
from check_pgsock.sessions.selection import chosen_selection
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
    who_holds,
)
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_RECV
from check_pgsock.text import clean, plural
from check_pgsock.unix.leg import Sessions, read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

    from check_pgsock.sessions.groups import Group, GroupLimits
    from check_pgsock.view import View


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    add_limit_option(parser)
    opts.add_session_options(parser)
    add_group_options(parser)


def validate(options: "Namespace") -> None:
    """Raise UsageError for what contradicts itself."""
    validate_limit(options)
    chosen_groups(options)
    given = options.given_thresholds
    for label in ("slots_used", "fullest_process"):
        if label in given and options.leg == "client":
            raise UsageError(
                f"{given[label][0]} judges a server, on the server leg; drop it or --leg client"
            )
    for name in ("peer", "exclude_peer", "user", "exclude_user", "database"):
        if "slots_used" in given and getattr(options, name):
            raise UsageError(
                f"{given['slots_used'][0]} judges all slots of a server, and "
                f"--{name.replace('_', '-')} selects some; drop the one, or give it a service of "
                "its own"
            )


def probe(run: Run) -> Report:
    """Count the leg's sockets, find server, limit, slots and groups, put all into words."""
    leg, selection = opts.chosen_leg(run.options), chosen_selection(run.options)
    groups = chosen_groups(run.options)
    view = open_view(run)
    tally = count(view.reader, leg, ESTABLISHED, CLOSE_WAIT, SYN_RECV, LISTEN)
    sessions = read_sessions(view.reader, leg.paths)
    floor = listener_floor(run, leg, tally.listeners, sessions.missing)
    doubts = refuse_forwarded(view, leg, tally.listeners)
    notes, told = session_notes(view, leg, sessions)
    found = Occupancy(leg, tally, sessions)
    limit = given_limit(run, view)
    if limit is not None:
        found.limit = limit.usable
    is_there = floor is None
    if is_there and (limit is None or limit.usable is not None):
        occupy(found, view, selection, groups)
    if found.not_accepted:
        found.notes.append(
            f"{plural(found.not_accepted, 'connection')} of these not accepted yet: "
            "check_pgsock_accept_queue tells whether they stay so"
        )
    if limit is not None:
        found.notes += limit.notes
        found.told += limit.told
        if limit.refused is not None:
            floor = "critical", limit.refused
    if run.options.limit == SQL and not leg.server:
        found.notes.append(
            "the limit is the whole server's, and counted are this host's connections alone: those "
            "of other hosts take slots, too"
        )
    if is_there and found.limit is not None and "fullest_process" not in found.unknown:
        given = run.options.given_thresholds.get("fullest_process", ())
        if given and not found.workers:
            found.notes.append(f"{given[0]} does not apply: one process has the port, or none does")
    full = full_groups(run, found)
    return Report(
        headline(found, f"{leg.describe()}{clean(selection.describe(), 200)}", len(full)),
        measure(found, groups),
        notes=[*view.reader.notes(), *doubts, *notes, *found.notes],
        who=lambda: who(run, view, sessions, found, groups, full),
        told=[*told, *found.told],
        details=[*view.reader.describe(), *sessions.describe()],
        floor=floor,
        judged=NOT_JUDGED if found.limit is None else None,
        unknown=found.unknown,
    )


def full_groups(run: Run, found: Occupancy) -> "list[Group]":
    """The groups that alert, the fullest first."""
    if found.groups is None or not run.exceeds(*_of_group(found.groups.fullest)):
        return []
    return [one for one in found.groups.ranked if run.exceeds(*_of_group(one))]


def _of_group(one: "Group") -> "tuple[str, float]":
    return "fullest_group", round(one.percent, 1)


def headline(found: Occupancy, where: str, full: int = 0) -> str:
    """`42 of 97 connections (43 %) on port 5432`, or where slots in use are other in number
    `97 of 97 connection slots used (100 %), 42 connections on port 5432`; `full` groups alert.
    """
    established, limit, slots = found.established, found.limit, found.slots
    if limit is None:
        return f"{established} connections {where}, limit unknown"
    if slots is None or (slots.used == established and not slots.untold):
        text = f"{established} of {limit} connections ({100 * established / limit:.0f} %) {where}"
    else:
        text = (
            f"{'at least ' if slots.untold else ''}{slots.used} of {limit} connection slots used "
            f"({100 * slots.used / limit:.0f} %), {plural(established, 'connection')} {where}"
        )
    if found.workers:
        fullest = found.workers[0]
        text += f", {fullest.describe()} has {fullest.connections} of its {fullest.limit}"
    if found.groups is None:
        return text
    text += f", {found.groups.describe()}"
    return text if full < 2 else f"{text}, the fullest of {full} {found.groups.by}s that alert"


def measure(found: Occupancy, groups: "Optional[GroupLimits]") -> "list[Metric]":
    """The metrics of this check; left out is what needs the limit without one, what the options
    do not ask for, and what a Unix socket does not have or the source does not tell of it.
    """
    limit = found.limit
    metrics = [Metric("established", found.established, maximum=limit, base=limit)]
    if limit is not None:
        if found.slots is not None:
            metrics.append(Metric("slots_used", found.slots.used, maximum=limit, base=limit))
        metrics += [
            Metric("limit", limit),
            Metric("utilization", round(100 * found.taken / limit, 1), "%"),
            Metric("free", max(limit - found.taken, 0), maximum=limit, base=limit),
        ]
    if found.workers:
        held, share = found.workers[0].connections, found.workers[0].limit
        metrics.append(Metric("fullest_process", held, maximum=share, base=share))
    if found.groups is not None and groups is not None:
        metrics.append(Metric(*_of_group(found.groups.fullest), "%"))
        for one in found.groups.named:
            metrics.append(Metric(groups.label(one.name), one.count, maximum=one.limit))
    for label, value in (
        ("close_wait", found.close_wait),
        ("syn_recv", found.syn_recv),
        ("not_accepted", found.not_accepted),
    ):
        if value is not None:
            metrics.append(Metric(label, value))
    return metrics


def who(
    run: Run, view: "View", sessions: Sessions, found: Occupancy, groups: "Optional[GroupLimits]",
    full: "list[Group]",
) -> "list[str]":  # fmt: skip
    """Lines on who holds what alerts: the fullest group, the slots; else the connections."""
    leg, slots, limit = found.leg, found.slots, found.limit
    target = None if found.owned is None else found.owned.target
    if groups is not None and full:
        from check_pgsock.sessions.slot_holders import group_lines

        return group_lines(view, leg, target, slots, groups, full)
    if (
        slots is not None
        and target is not None
        and slots.used != found.established
        and run.exceeds("slots_used", slots.used, limit)
    ):
        from check_pgsock.sessions.slot_holders import slot_lines

        return slot_lines(view, target, slots)
    lines = [f"{one.describe()}: {one.connections} established" for one in found.workers[:3]]
    if found.selected is not None:
        from check_pgsock.sessions.connections import who_lines

        return lines + who_lines(found.selected, "established", WHO_LINES - len(lines))
    lines += who_holds(view, leg, 1 << ESTABLISHED, "established")
    if sessions.connected:
        from check_pgsock.unix.who import client_lines

        lines += client_lines(view, sessions.connected, "established", WHO_LINES - len(lines))
    return lines


SPEC = CheckSpec(
    name="saturation",
    description=__doc__,
    judged=(
        Judged("established", "ESTABLISHED connections", "80%", "90%", percent_of="the limit"),
        Judged("slots_used", "connection slots in use", "80%", "90%", percent_of="the limit"),
        Judged("free", "what is left of the limit", percent_of="the limit"),
        Judged("fullest_process", "connections of the fullest process of a shared port", "80%",
               "90%", percent_of="its part of the limit"),
        Judged("fullest_group", "percentage of its limit that the fullest group has", "80", "90"),
    ),
    probe=with_fresh_limit(probe),
    add_options=add_options,
    validate=validate,
)  # fmt: skip


def main() -> "NoReturn":
    """Entry point of check_pgsock_saturation."""
    run_check(SPEC)
