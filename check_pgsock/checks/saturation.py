"""Saturation: ESTABLISHED connections of a leg against the connections its endpoint can hold.

The limit is the number of usable slots: for PostgreSQL max_connections less the reserved ones.
`--limit auto` reads it without a database connection from the postmaster that is proven to own
the port: its command line, pg_control, its configuration confirmed by the listener's backlog, or
that backlog alone; where none of them tells, the check is UNKNOWN and asks for --limit.

`established` is judged. `free` (usable slots left) has thresholds of its own, such as
--free-critical 5: for "fewer than 5 left". `not_accepted` are connections that the kernel has
completed and the server has not yet accepted: they count as established, as their clients see it.

Of a Unix socket (--socket) established are the sessions whose client is there, close_wait those
that the server keeps for a client that is gone (under procfs both are established, and close_wait
is left out). Clients in other network namespaces are counted with --netns. --limit auto finds the
server of a Unix socket as root or as the server's own user alone.
"""

from check_pgsock import options as opts
from check_pgsock.errors import UsageError
from check_pgsock.legs import Leg
from check_pgsock.plugin import NOT_JUDGED, WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.plugin import run as run_check
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
    who_holds,
)
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_RECV, Tally
from check_pgsock.unix.leg import Sessions, read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

    from check_pgsock.servers.limits import Limit
    from check_pgsock.view import View


def parse_limit(text: str) -> "Optional[int]":
    """A number of slots, or None for auto."""
    return None if text == "auto" else opts.parse_count(text)


def add_options(parser: opts.Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--limit", metavar="N|auto", type=opts.argument(parse_limit), default=None,
        help="usable slots of the endpoint (nothing is subtracted), or auto: read it from the "
        "PostgreSQL server on this host, without a connection (default: auto)",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """Several endpoints are one pool, whose size nothing but the administrator knows."""
    if options.limit is not None:
        return
    for name in ("port", "socket", "netns"):
        if len(set(getattr(options, name))) > 1:
            raise UsageError(
                f"several --{name} are one pool and need its size: name it with --limit N"
            )
    if options.port and options.socket:
        raise UsageError(
            "--port and --socket are one pool and need its size: name it with --limit N"
        )


def probe(run: Run) -> Report:
    """Count the leg's sockets, find the limit, put both into words."""
    leg = opts.chosen_leg(run.options)
    view = open_view(run)
    reader = view.reader
    tally = count(reader, leg, ESTABLISHED, CLOSE_WAIT, SYN_RECV, LISTEN)
    sessions = read_sessions(reader, leg.paths)
    established = tally.count(ESTABLISHED) + sessions.established
    floor = listener_floor(run, leg, tally.listeners, sessions.missing)
    doubts = refuse_forwarded(view, leg, tally.listeners)
    notes, told = session_notes(view, leg, sessions)
    slots: Optional[int] = run.options.limit
    if slots is None and floor is None:
        limit, proof, pending = find_limit(leg, view, tally, sessions)
        slots = limit.usable
        if leg.paths or leg.address is not None or leg.peers or leg.excluded_peers:
            notes.append(
                "only the connections selected are counted, against all slots of the server: "
                "others take slots, too"
            )
        notes += limit_notes(limit, pending)
        told.append(
            f"limit: {slots} usable of max_connections {limit.max_connections}, "
            f"read from {limit.source}; whose server it is: {proof}"
        )
    elif slots is not None:
        told.append(f"limit: {slots} usable, given by --limit")
    return Report(
        headline(established, slots, leg),
        measure(leg, tally, sessions, slots),
        notes=[*reader.notes(), *doubts, *notes],
        who=lambda: who(view, leg, sessions),
        told=told,
        details=[*reader.describe(), *sessions.describe()],
        floor=floor,
        judged=NOT_JUDGED if slots is None else None,
    )


def find_limit(
    leg: Leg, view: "View", tally: Tally, sessions: Sessions
) -> "tuple[Limit, str, Optional[str]]":
    """(limit, proof of whose server it is, pending change of it); raises LimitUnknown."""
    # Many runs are told the limit.
    if leg.paths:
        from check_pgsock.unix import server

        return server.read_limit(view, leg.paths[0], sessions.listeners)
    from check_pgsock.servers import auto_limit

    return auto_limit.read_limit(leg, view, tally.listeners)


def limit_notes(limit: "Limit", pending: "Optional[str]") -> "list[str]":
    """What qualifies a limit that was read."""
    notes = [pending] if pending else []
    if limit.assumed:
        notes.append(
            f"{limit.reserved} reserved slots are assumed (the defaults; their settings cannot be "
            "read from here)"
        )
    return notes


def headline(established: int, slots: "Optional[int]", leg: Leg) -> str:
    """`42 of 97 connections (43 %) on port 5432`"""
    if slots is None:
        return f"{established} connections {leg.describe()}, limit unknown"
    share = 100 * established / slots
    return f"{established} of {slots} connections ({share:.0f} %) {leg.describe()}"


def measure(leg: Leg, tally: Tally, sessions: Sessions, slots: "Optional[int]") -> "list[Metric]":
    """The metrics of this check; left out is what needs the limit without one, and what a Unix
    socket does not have or the source does not tell of it.
    """
    established = tally.count(ESTABLISHED) + sessions.established
    metrics = [Metric("established", established, maximum=slots, base=slots)]
    if slots is not None:
        metrics += [
            Metric("limit", slots),
            Metric("utilization", round(100 * established / slots, 1), "%"),
            Metric("free", max(slots - established, 0), maximum=slots, base=slots),
        ]
    if sessions.tells_gone:
        metrics.append(Metric("close_wait", tally.count(CLOSE_WAIT) + len(sessions.gone)))
    if leg.ports:
        metrics.append(Metric("syn_recv", tally.count(SYN_RECV)))
    return [*metrics, Metric("not_accepted", tally.not_accepted + sessions.not_accepted)]


def who(view: "View", leg: Leg, sessions: Sessions) -> "list[str]":
    """Lines on who holds the connections."""
    lines = who_holds(view, leg, 1 << ESTABLISHED, "established")
    if sessions.connected:
        from check_pgsock.unix.who import client_lines

        lines += client_lines(view, sessions.connected, "established", WHO_LINES - len(lines))
    return lines


SPEC = CheckSpec(
    name="saturation",
    description=__doc__,
    judged=(
        Judged("established", "ESTABLISHED connections", "80%", "90%", percent_of="the limit"),
        Judged("free", "usable slots left", percent_of="the limit"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_saturation."""
    run_check(SPEC)
