"""What the socket checks do alike: open what they look at, say what a missing listener means."""

from check_pgsock import view
from check_pgsock.contract import WHO_LINES, Run
from check_pgsock.errors import PgsockError
from check_pgsock.legs import Leg, format_address
from check_pgsock.servers.forwarders import POSSIBLE, describe, find_forwarders
from check_pgsock.sockets.model import Listener, Tally
from check_pgsock.sockets.reader import Reader
from check_pgsock.unix.leg import Sessions
from check_pgsock.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Optional


def open_view(run: Run) -> View:
    """The sockets and processes that the options choose."""
    return view.open_view(run.options, run.deadline)


def count(reader: Reader, leg: Leg, *states: int) -> Tally:
    """The TCP sockets of `leg` in `states`, and their listeners; none where it has no port.

    Raises SourceError.
    """
    return reader.count(leg.query(*states)) if leg.ports else Tally()


def listener_floor(
    run: Run, leg: Leg, listeners: "list[Listener]", missing_sockets: "Sequence[str]" = ()
) -> "Optional[tuple[str, str]]":
    """The service state that --no-listener gives a server leg whose endpoint is not there, with
    its reason; None where all listeners are there, or on a client leg, whose listener is
    elsewhere. `missing_sockets` are the reasons for Unix sockets. Raises PgsockError for `unknown`.
    """
    if not leg.server:
        return None
    reasons = list(missing_sockets)
    missing = leg.missing_ports(listeners)
    if missing:
        at = f" at {format_address(leg.address)}" if leg.address is not None else ""
        reasons.insert(0, f"nothing listens on port {', '.join(map(str, missing))}{at}")
    if not reasons:
        return None
    reason = "; ".join(reasons)
    if run.options.no_listener == "unknown":
        other = "port another (--port)" if missing else "socket another (--socket)"
        raise PgsockError(
            f"{reason}; is the server down or the {other}? --no-listener decides what this means"
        )
    return run.options.no_listener, reason


def refuse_forwarded(view: View, leg: Leg, listeners: "list[Listener]") -> "list[str]":
    """Raise PgsockError where a listener of a server leg only forwards: whatever is counted on it,
    the sessions of the server behind it are elsewhere. Where it may, that is returned as notes; it
    is refused, too, if there is nothing on it that a server or a pooler would have.
    """
    mine = leg.listeners(listeners) if leg.server else []
    notes = []
    for found in find_forwarders(view, mine) if mine else ():
        if found.certainty != POSSIBLE:
            raise PgsockError(describe(found))
        from check_pgsock.servers.possible_forwarders import is_idle, is_refuted  # few hosts

        if not found.contested and is_idle(view, leg, found.listener.port):
            raise PgsockError(describe(found))
        if not is_refuted(view, found):
            notes.append(describe(found))
    return notes


def session_notes(view: View, leg: Leg, sessions: Sessions) -> "tuple[list[str], list[str]]":
    """What qualifies numbers that `sessions` over Unix sockets are part of: what is always said,
    and what -v says. Raises SourceError.
    """
    if not leg.paths:
        return [], []
    from check_pgsock.unix.server import say_elsewhere

    elsewhere = say_elsewhere(view, sessions)
    if elsewhere is not None:
        return [elsewhere, *sessions.notes], []
    return list(sessions.notes), [
        "sessions of clients in other network namespaces would not be counted: see --netns"
    ]


def who_holds(
    view: View, leg: Leg, states: int, noun: str, only: "Optional[Collection[int]]" = None
) -> "list[str]":
    """Lines that say who holds the TCP connections of `leg` in `states` (a mask), called `noun`;
    `only` are the inodes of those that matter. Raises SourceError.
    """
    if not leg.ports:
        return []
    from check_pgsock.sessions.connections import who_lines
    from check_pgsock.sessions.survey import survey  # most runs have nobody to name

    found = survey(view, leg, states)
    return who_lines(
        [one for one in found.connections if only is None or one["inode"] in only],
        noun,
        WHO_LINES // 2 if leg.paths else WHO_LINES,
    )
