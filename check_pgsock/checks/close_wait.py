"""CLOSE_WAIT excess: connections whose peer is gone and that stay unclosed on this side.

A socket is in CLOSE_WAIT from the peer's close until our program closes its own end: normally
less than a millisecond. One that stays is a program that does not notice: on the server leg a
backend whose client went away under a running statement (it works on for nobody and holds its
slot: `orphans`), or a server that is stopped or starved, of which clients gave up before it took
them (`not_accepted`); on the client leg an application that never closes what the server ended.

Counted are the sockets in CLOSE_WAIT in two looks, --settle apart; the second look is taken only
when the first exceeds a threshold. Of a recording these are two of its moments, the later one
chosen by --moment; without an earlier one it is judged as it is, as any saved moment is.

--only-orphans counts only what a process holds; --user, --exclude-user and --database only
sessions whose backends' titles say so (`established` stays that of all). --min-age counts only
what has been so for that long, and the others as `younger`: after a fail-over the idle pool of an
application is in CLOSE_WAIT until it is used again. By netlink the kernel tells since when TCP
connections are, at the least (`oldest`: seconds, 0 where there is none); with --min-age each run
keeps besides when it saw which first, in the state directory. procfs and Unix sockets tell
nothing else: there the directory is needed, and what the first run sees is new. Of a recording it
is the kernel's word, or an earlier moment that holds the connection, too; it has no `oldest`.

A Unix socket (--socket) has no CLOSE_WAIT: counted are the sessions that the server keeps though
their client is gone, which netlink tells and procfs does not.
"""

from check_pgsock import options as opts
from check_pgsock import unclosed
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg, format_address
from check_pgsock.option_values import parse_age
from check_pgsock.plugin import run as run_check
from check_pgsock.sessions.selection import Selection, chosen_selection
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
)
from check_pgsock.socket_state import add_state_key
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, Socket
from check_pgsock.sockets.unix_sockets import UnixSocket
from check_pgsock.text import plural
from check_pgsock.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from typing import NoReturn

    from check_pgsock.sessions.connections import Connection
    from check_pgsock.unclosed import Unclosed

CLIENT_GONE = "whose client is gone"


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    opts.add_settle(parser)
    parser.add_argument(
        "--only-orphans", action="store_true",
        help="count only connections that a process holds, not those that the server has not "
        "accepted",
    )  # fmt: skip
    parser.add_argument(
        "--min-age", metavar="SECONDS", type=argument(parse_age),
        help="count only connections whose peer has been gone for that long, such as 300 on the "
        "client leg (default: all that stay)",
    )  # fmt: skip
    add_state_key(parser)
    opts.add_session_options(parser)


def validate(options: "Namespace") -> None:
    """The second look must fit into the deadline."""
    opts.require_below_timeout(options, "settle")


def probe(run: Run) -> Report:
    """Look once; twice only when what is counted exceeds a threshold."""
    options = run.options
    leg = opts.chosen_leg(options)
    view = open_view(run)
    reader = view.reader
    tally = count(reader, leg, CLOSE_WAIT, ESTABLISHED, LISTEN)
    doubts = refuse_forwarded(view, leg, tally.listeners)
    sessions = unclosed.read_told(reader, leg)
    notes, told = session_notes(view, leg, sessions)
    selection = chosen_selection(options)
    first_seen = unclosed.open_first_seen(run, view, leg, selection.describe())
    found = unclosed.look(reader, leg) if tally.count(CLOSE_WAIT) or sessions.gone else []
    history: Mapping[str, float] = {}
    if first_seen is not None:
        history = first_seen.see(map(unclosed.identity, found), view.files.since_boot())
    elif options.min_age is not None and found:
        history = unclosed.earlier_ages(run, view, leg)
    chosen, said = choose(view, leg, found, selection, options.only_orphans)
    younger: list[Unclosed] = []
    if options.min_age is not None:
        chosen, younger = unclosed.split_by_age(chosen, history, options.min_age)
    looks = 1
    if run.exceeds("close_wait", len(chosen)):
        earlier = None if view.recorded is None else view.recorded.earlier(options.settle)
        if earlier is not None:
            chosen, looks = unclosed.staying(unclosed.look(earlier, leg), chosen), 2
        elif reader.saved:
            notes.append("a saved moment, judged as it is: which of them stay cannot be told")
        else:
            run.deadline.doing = "waiting for the second look"
            run.deadline.sleep(options.settle)
            chosen, looks = unclosed.staying(chosen, unclosed.look(reader, leg)), 2
    elif reader.saved:
        notes.append("a saved moment, judged as it is")
    if younger:
        said.append(
            f"not counted: {plural(len(younger), 'connection')} for less than {options.min_age:g} s"
        )
    established = tally.count(ESTABLISHED) + sessions.established
    metrics = [Metric("close_wait", len(chosen)), Metric("established", established)]
    metrics += measure_kinds(leg, chosen, options.only_orphans)
    if options.min_age is not None:
        metrics.append(Metric("younger", len(younger)))
    if first_seen is not None or unclosed.kernel_dates(reader, leg):
        metrics += measure_oldest(chosen, history)
    return Report(
        headline(len(chosen), leg, options, looks) + selection.describe(),
        metrics,
        notes=[*reader.notes(), *doubts, *notes, *said],
        who=lambda: who(view, leg, chosen, history),
        told=[f"looked {'twice' if looks == 2 else 'once'}", *told],
        details=[*reader.describe(), *sessions.describe()],
        floor=listener_floor(run, leg, tally.listeners, sessions.missing),
        commit=None if first_seen is None else lambda: first_seen.commit(run.now),
    )


def choose(
    view: "View",
    leg: Leg,
    found: "list[Unclosed]",
    selection: Selection,
    only_orphans: bool,
) -> "tuple[list[Unclosed], list[str]]":
    """Those that the options choose, and what is to be said about the others.

    What the server has not accepted is no session: nobody's, and no database's. Raises
    PgsockError.
    """
    held = [one for one in found if one.inode]
    waiting = [one for one in found if not one.inode]
    notes: list[str] = []
    if held and selection:
        rows = name_sessions(view, leg, held)
        # A backend that is just ending has lost its title.
        still = set(map(unclosed.identity, unclosed.look(view.reader, leg)))
        rows = [(one, row) for one, row in rows if unclosed.identity(one) in still]
        chosen, notes = selection.choose([row for _, row in rows])
        kept = {id(row) for row in chosen}
        held = [one for one, row in rows if id(row) in kept]
    if waiting and (only_orphans or selection.users or selection.databases):
        number = plural(len(waiting), "connection")
        notes.append(f"not counted: {number} that the server has not accepted")
        waiting = []
    return [*held, *waiting], notes


def measure_kinds(leg: Leg, chosen: "list[Unclosed]", only_orphans: bool) -> "list[Metric]":
    """How many of a server leg a process holds, and how many it has not accepted, if these are
    counted; of a Unix socket the kernel does not tell who gave up in the queue.
    """
    if not leg.server:
        return []
    held = sum(1 for one in chosen if one.inode)
    metrics = [Metric("orphans", held)]
    if leg.ports and not only_orphans:
        metrics.append(Metric("not_accepted", len(chosen) - held))
    return metrics


def measure_oldest(chosen: "list[Unclosed]", history: "Mapping[str, float]") -> "list[Metric]":
    """For how long the peer that has been gone longest is; nothing where that of one is unknown."""
    ages = [unclosed.age(one, history) for one in chosen]
    known = [each for each in ages if each is not None]
    return [Metric("oldest", round(max(known, default=0)), "s")] if len(known) == len(ages) else []


def headline(number: int, leg: Leg, options: "Namespace", looks: int) -> str:
    """`7 connections in CLOSE_WAIT for 300 s or more, unchanged for 1 s to port 5432`"""
    text = f"{plural(number, 'connection')} {name_condition(leg)}"
    if options.min_age is not None:
        text += f" for {options.min_age:g} s or more"
    if options.only_orphans:
        text += ", held by a process"
    if looks == 2 and number:
        text += f", unchanged for {options.settle:g} s"
    return f"{text} {leg.describe()}"


def name_condition(leg: Leg) -> str:
    """What is wrong with the connections; a Unix socket has no CLOSE_WAIT."""
    if not leg.paths:
        return "in CLOSE_WAIT"
    return f"in CLOSE_WAIT or {CLIENT_GONE}" if leg.ports else CLIENT_GONE


def name_sessions(
    view: "View", leg: Leg, found: "list[Unclosed]"
) -> "list[tuple[Unclosed, Connection]]":
    """What is known of each of these connections; without those that have ended since.

    Raises SourceError.
    """
    from check_pgsock.sessions.survey import survey  # most runs have none to name

    surveyed = survey(view, leg, 1 << CLOSE_WAIT)
    if any(isinstance(one, UnixSocket) for one in found):
        from check_pgsock.unix.survey import add_unix_socket

        for path in leg.paths:
            add_unix_socket(view, path, surveyed)
    rows = {
        row["inode"] or (row["local_port"], row["peer_address"], row["peer_port"]): row
        for row in surveyed.connections
    }
    named = [(one, rows.get(one.inode or _ends(one))) for one in found]
    return [(one, row) for one, row in named if row is not None]


def _ends(one: "Unclosed") -> object:
    assert isinstance(one, Socket)  # of a Unix socket the accepted end alone is told
    return one.local_port, format_address(one.remote_address), one.remote_port


def who(
    view: "View", leg: Leg, chosen: "list[Unclosed]", history: "Mapping[str, float]"
) -> "list[str]":
    """Lines on which connections these are and for how long, what ends them, and whose program is
    at fault. Raises SourceError.
    """
    if not chosen:
        return []
    from check_pgsock.sessions.orphans import advice_lines, orphan_lines

    # To look for names must not cost the verdict.
    deadline = Deadline(view.deadline.remaining() / 2)
    named = name_sessions(View(view.reader, view.files, deadline, view.recorded), leg, chosen)
    advice = advice_lines([row for _, row in named])
    told = [
        (row, unclosed.age(one, history))
        for one, row in named
        if row["backend_pid"] is not None or isinstance(one, Socket)
    ]
    # Sessions over Unix sockets of a server that is not PostgreSQL, or is not known.
    rest = [one for one, row in named if row["backend_pid"] is None and isinstance(one, UnixSocket)]
    room = WHO_LINES - len(advice)
    lines = orphan_lines(told, name_condition(leg), room if not rest else room // 2)
    if rest:
        from check_pgsock.unix.who import server_lines

        lines += server_lines(view, rest, CLIENT_GONE, room - len(lines))
    return lines + advice


SPEC = CheckSpec(
    name="close_wait",
    description=__doc__,
    judged=(Judged("close_wait", "connections that stay in CLOSE_WAIT", "5", "20"),),
    probe=probe,
    add_options=add_options,
    validate=validate,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_close_wait."""
    run_check(SPEC)
