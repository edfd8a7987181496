"""Connections whose peer has closed and that this side has not: looked at, compared, dated."""

from check_pgsock.errors import SourceError, StateError
from check_pgsock.sockets.model import CLOSE_WAIT, Socket
from check_pgsock.sockets.unix_sockets import UnixSocket
from check_pgsock.unix.leg import read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Optional, Union

    from check_pgsock.contract import Run
    from check_pgsock.first_seen import FirstSeen
    from check_pgsock.legs import Leg
    from check_pgsock.sockets.reader import Reader
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View

    Unclosed = Union[Socket, UnixSocket]


def look(reader: "Reader", leg: "Leg") -> "list[Unclosed]":
    """The sockets whose peer is gone: those in CLOSE_WAIT, and their like of Unix sockets.

    Raises SourceError.
    """
    sockets = reader.sockets(leg.query(CLOSE_WAIT, info=True)) if leg.ports else []
    return [*sockets, *read_told(reader, leg).gone]


def read_told(reader: "Reader", leg: "Leg") -> "Sessions":
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


def identity(one: "Unclosed") -> str:
    """What makes a socket the same in two looks: its cookie; under procfs, which knows none, its
    inode and addresses.
    """
    if one.cookie is not None or isinstance(one, UnixSocket):
        return str(one.cookie)
    local, remote = one.local_address.hex(), one.remote_address.hex()
    return f"{one.inode} {local} {one.local_port} {remote} {one.remote_port}"


def staying(first: "Iterable[Unclosed]", second: "Iterable[Unclosed]") -> "list[Unclosed]":
    """The sockets of the second look that were in the first one too."""
    seen = {identity(one) for one in first}
    return [one for one in second if identity(one) in seen]


def closed_for(one: "Unclosed") -> "Optional[float]":
    """For how many seconds the peer has been gone, at the least, as the kernel tells it; None where
    it does not: under procfs, and of Unix sockets.

    A FIN acknowledges, as every segment does, and so sets tcpi_last_ack_recv (tcp_ack in
    net/ipv4/tcp_input.c). Mostly nothing follows, and it is exact. But the peer's kernel answers
    keepalive probes for as long as it knows the connection (net.ipv4.tcp_fin_timeout, 60 s; after
    that with a RST, which ends the socket), and a program that has only shut down its sending half
    acknowledges what it receives: so it is a lower bound.
    """
    if isinstance(one, UnixSocket) or one.info is None:
        return None
    return one.info.last_ack_received_ms / 1000


def kernel_dates(reader: "Reader", leg: "Leg") -> bool:
    """Whether the kernel tells of all of `leg`, by the source in use, for how long."""
    return not leg.paths and all(one.used == "netlink" for one in reader.each)


def open_first_seen(run: "Run", view: "View", leg: "Leg", *more: object) -> "Optional[FirstSeen]":
    """What earlier runs of this service saw (`more` tells it from others of the same leg); None
    without --min-age, of a saved moment, and where there is no directory to keep it in and the
    kernel tells it. Raises StateError.
    """
    if run.options.min_age is None or view.reader.saved:
        return None
    from check_pgsock.first_seen import FirstSeen
    from check_pgsock.socket_state import NO_DIRECTORY, open_store, service_key

    store = open_store(run, view)
    if store is not None:
        return FirstSeen(store, service_key(run, view, leg, *more))
    if kernel_dates(view.reader, leg):
        return None
    what = "Unix sockets do" if leg.paths else "procfs does"
    raise StateError(
        f"{what} not tell for how long a peer has been gone, and to see it from run to run there "
        f"is {NO_DIRECTORY}"
    )


def earlier_ages(run: "Run", view: "View", leg: "Leg") -> "dict[str, float]":
    """The sockets, by identity, that an earlier moment of a recording holds, --min-age before; a
    socket does not come back from CLOSE_WAIT. Raises SourceError.
    """
    earlier = None if view.recorded is None else view.recorded.earlier(run.options.min_age)
    if earlier is None:
        return {}
    return {identity(one): run.options.min_age for one in look(earlier, leg)}


def age(one: "Unclosed", history: "Mapping[str, float]") -> "Optional[float]":
    """For how many seconds the peer has been gone, at the least, from the kernel and from the ages
    that a `history` tells, by identity; None where neither does.
    """
    known = [each for each in (closed_for(one), history.get(identity(one))) if each is not None]
    return max(known, default=None)


def split_by_age(
    found: "list[Unclosed]", history: "Mapping[str, float]", least: float
) -> "tuple[list[Unclosed], list[Unclosed]]":
    """(those of `least` seconds or more, the younger ones); raises SourceError where it is not
    known of one.
    """
    old: list[Unclosed] = []
    young: list[Unclosed] = []
    for one in found:
        seconds = age(one, history)
        if seconds is None:
            raise SourceError(
                "this saved moment does not tell for how long a peer has been gone: --min-age "
                "needs a recording by netlink of TCP connections, or an earlier moment in it"
            )
        (old if seconds >= least else young).append(one)
    return old, young
