"""CLOSE_WAIT excess: connections whose peer is gone and that stay unclosed on this side.

A socket is in CLOSE_WAIT from the peer's close until our program closes its own end: normally
less than a millisecond. One that stays is a program that does not notice: on the server leg a
backend whose client went away under a running statement (it works on for nobody and holds its
slot), on the client leg an application that never closes what the server ended.

Counted are the sockets in CLOSE_WAIT in two looks, --settle apart; the second look is taken only
when the first exceeds a threshold. Of a recording these are two of its moments, the later one
chosen by --moment; without an earlier one it is judged as it is, as any saved moment is.

A Unix socket (--socket) has no CLOSE_WAIT: counted are the sessions that the server keeps though
their client is gone, which netlink tells and procfs does not.
"""

from check_pgsock import options as opts
from check_pgsock.errors import SourceError
from check_pgsock.legs import Leg
from check_pgsock.plugin import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.plugin import run as run_check
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
    who_holds,
)
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, Socket
from check_pgsock.sockets.unix_sockets import UnixSocket
from check_pgsock.text import plural
from check_pgsock.unix.leg import read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import NoReturn, Union

    from check_pgsock.sockets.reader import Reader
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View

    Unclosed = Union[Socket, UnixSocket]

DEFAULT_SETTLE = 1.0
CLIENT_GONE = "whose client is gone"


def add_options(parser: opts.Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--settle", metavar="SECONDS", type=opts.argument(opts.parse_seconds),
        default=DEFAULT_SETTLE,
        help=f"time between the two looks (default: {DEFAULT_SETTLE:g})",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """The second look must fit into the deadline."""
    opts.require_below_timeout(options, "settle")


def identity(one: "Unclosed") -> tuple[object, ...]:
    """What makes a socket the same in two looks: its cookie; under procfs, which knows none, its
    inode and addresses.
    """
    if one.cookie is not None or isinstance(one, UnixSocket):
        return (one.cookie,)
    return (
        one.inode,
        one.local_address,
        one.local_port,
        one.remote_address,
        one.remote_port,
    )


def staying(first: "list[Unclosed]", second: "list[Unclosed]") -> "list[Unclosed]":
    """The sockets of the second look that were in the first one too."""
    seen = {identity(one) for one in first}
    return [one for one in second if identity(one) in seen]


def look(reader: "Reader", leg: Leg) -> "list[Unclosed]":
    """The sockets whose peer is gone: those in CLOSE_WAIT, and their like of Unix sockets."""
    sockets = reader.sockets(leg.query(CLOSE_WAIT)) if leg.ports else []
    return [*sockets, *read_told(reader, leg).gone]


def read_told(reader: "Reader", leg: Leg) -> "Sessions":
    """The sessions over Unix sockets; raises SourceError where it is not told who is gone."""
    sessions = read_sessions(reader, leg.paths)
    if sessions.tells_gone:
        return sessions
    refusal = next((one.refusal for one in reader.each if one.refusal), None)
    why = "" if refusal is None else f", which did not answer: {refusal}"
    raise SourceError(
        "procfs does not tell which sessions over a Unix socket have lost their client: --socket "
        f"needs netlink here{why}"
    )


def probe(run: Run) -> Report:
    """Count once; look twice at the sockets only when the count exceeds a threshold."""
    leg = opts.chosen_leg(run.options)
    view = open_view(run)
    reader = view.reader
    tally = count(reader, leg, CLOSE_WAIT, ESTABLISHED, LISTEN)
    doubts = refuse_forwarded(view, leg, tally.listeners)
    sessions = read_told(reader, leg)
    number = tally.count(CLOSE_WAIT) + len(sessions.gone)
    unclosed: list[Unclosed] = []
    notes, told = session_notes(view, leg, sessions)
    looks = 1
    if run.exceeds("close_wait", number):
        unclosed = look(reader, leg)
        earlier = None if view.recorded is None else view.recorded.earlier(run.options.settle)
        if earlier is not None:
            unclosed, looks = staying(look(earlier, leg), unclosed), 2
        elif reader.saved:
            notes.append("a saved moment, judged as it is: which of them stay cannot be told")
        else:
            first, looks = unclosed, 2
            run.deadline.doing = "waiting for the second look"
            run.deadline.sleep(run.options.settle)
            unclosed = staying(first, look(reader, leg))
        number = len(unclosed)
    elif reader.saved:
        notes.append("a saved moment, judged as it is")
    stay = f", unchanged for {run.options.settle:g} s" if looks == 2 and number else ""
    return Report(
        f"{plural(number, 'connection')} {condition(leg)}{stay} {leg.describe()}",
        [
            Metric("close_wait", number),
            Metric("established", tally.count(ESTABLISHED) + sessions.established),
        ],
        notes=[*reader.notes(), *doubts, *notes],
        who=lambda: who(view, leg, unclosed or look(reader, leg)),
        told=[f"looked {'twice' if looks == 2 else 'once'}", *told],
        details=[*reader.describe(), *sessions.describe()],
        floor=listener_floor(run, leg, tally.listeners, sessions.missing),
    )


def condition(leg: Leg) -> str:
    """What is wrong with the connections that are counted; a Unix socket has no CLOSE_WAIT."""
    if not leg.paths:
        return "in CLOSE_WAIT"
    return f"in CLOSE_WAIT or {CLIENT_GONE}" if leg.ports else CLIENT_GONE


def who(view: "View", leg: Leg, unclosed: "Sequence[Unclosed]") -> "list[str]":
    """Lines on the peers that are gone, and of Unix sockets on who still serves them."""
    inodes = {one.inode for one in unclosed}
    lines = who_holds(view, leg, 1 << CLOSE_WAIT, "in CLOSE_WAIT", inodes or None)
    gone = [one for one in unclosed if isinstance(one, UnixSocket)]
    if gone:
        from check_pgsock.unix.who import server_lines

        lines += server_lines(view, gone, CLIENT_GONE, WHO_LINES - len(lines))
    return lines


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
