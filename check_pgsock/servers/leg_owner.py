"""Whose server the connections of a leg end at: found once, for its limit and for its slots."""

from check_pgsock.legs import Leg, listeners_at
from check_pgsock.servers import limits
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.ownership import made_after, prove_owner
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Listener, Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.servers.limits import Limit
    from check_pgsock.sockets.reader import Reader, SocketReader
    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View


class Target:
    """The listeners of one place that the connections of a leg end at.

    `listeners` are those of its one port (None without), `bound` all on that port, `accepted` what
    these have accepted, or hold ready; `unix` are those of its socket files.
    """

    __slots__ = ("_accepted", "bound", "listeners", "name", "port", "reader", "unix")

    def __init__(self, reader: "SocketReader", leg: Leg, unix: "list[UnixListener]") -> None:
        self.reader = reader
        self.port: Optional[int] = leg.ports[0] if leg.ports else None
        self.name = " and ".join(  # as limits.unknown takes it
            [f"port {one}" for one in leg.ports] + [f"socket {one}" for one in leg.paths]
        )
        self.listeners: list[Listener] = []
        self.bound: list[Listener] = []
        self._accepted: Optional[list[Socket]] = None
        self.unix = unix

    @property
    def accepted(self) -> "list[Socket]":
        """Those connections, read when first asked for; raises SourceError."""
        if self._accepted is None:
            # A backend whose client is gone is one of the server's, too.
            ports = () if self.port is None else (self.port,)
            query = Leg(ports).query(ESTABLISHED, CLOSE_WAIT)
            self._accepted = self.reader.sockets(query) if ports else []
        return self._accepted

    @property
    def all(self) -> "list[Listener | UnixListener]":
        """The listeners of both kinds."""
        return [*self.listeners, *self.unix]


def find_target(view: "View", leg: Leg, found: "list[Listener]", sessions: "Sessions") -> Target:
    """The listeners that the connections of `leg` end at, on whose ports a server leg has `found`
    these, and on whose paths `sessions` those.

    Raises LimitUnknown where they are not in one place of this host, or several servers' for sure.
    """
    if len(leg.ports) > 1:
        ports = ", ".join(map(str, leg.ports))
        raise limits.unknown(f"ports {ports}", "several ports are several servers'")
    if len(view.reader.each) > 1:
        raise limits.unknown(leg.describe(), "several network namespaces may have several servers")
    (reader,) = view.reader.each
    target = Target(reader, leg, sessions.listeners)
    if reader.saved and view.recorded is None:
        error = LimitUnknown(
            f"the limit of {target.name} is not in a saved moment; name it with --limit N"
        )
        error.why = "a saved moment holds no processes"
        raise error
    if target.port is not None:
        if leg.server:
            target.bound, target.listeners = found, leg.listeners(found)
        else:
            target.bound = reader.listeners(target.port)
            target.listeners = _listeners_of_client_leg(leg, reader, target)
    return target


def _listeners_of_client_leg(leg: Leg, reader: "Reader", target: Target) -> "list[Listener]":
    """The listeners on this host that the client leg's connections end at.

    Proven by the other ends: of every address that the leg connects to, one is here too.
    """
    ends = {one[1:5] for one in target.accepted if one.state == ESTABLISHED}
    targets: dict[bytes, bool] = {}
    for one in reader.sockets(leg.query(ESTABLISHED)):
        mirrored = (one.remote_address, one.remote_port, one.local_address, one.local_port) in ends
        targets[one.remote_address] = targets.get(one.remote_address, False) or mirrored
    if not targets:
        raise limits.unknown(
            target.name, "no connection shows now which server this client leg has"
        )
    if not all(targets.values()):
        raise LimitUnknown(
            f"the limit of {target.name} cannot be read: the server of this client leg is not on "
            "this host; name the usable slots (or this host's share of them) with --limit N"
        )
    bound = target.bound
    return [one for one in bound if any(one in listeners_at(each, bound) for each in targets)]


def find_owner(view: "View", target: Target) -> "tuple[Cluster, str]":
    """The PostgreSQL server that all listeners of `target` are proven to be of, and the proof in
    words. Raises LimitUnknown.
    """
    if target.port is None:
        from check_pgsock.unix.server import find_owner as find_owner_of_paths

        return find_owner_of_paths(view, target.name, target.unix)
    cluster, proof = prove_owner(
        view, target.reader, target.port, target.listeners, target.bound, lambda: target.accepted
    )
    if target.unix and not _has_too(view, cluster, target):
        raise limits.unknown(target.name, "that all of them are one server's cannot be proven here")
    return cluster, proof


def _has_too(view: "View", cluster: "Cluster", target: Target) -> bool:
    """Whether the server of the port is proven to be that of the socket files as well."""
    pid = cluster.postmaster.pid
    if view.recorded is not None:
        try:
            return all(view.recorded.owner(target.name, [one])[0] == pid for one in target.unix)
        except LimitUnknown:
            return False
    held = view.processes().socket_inodes(pid)
    if held is not None:
        return held.issuperset(one.inode for one in target.unix)
    made = made_after(target.listeners, target.bound, target.reader.unix_listeners())
    return all(one.inode in made for one in target.unix)


class Owned:
    """Whose the endpoint of a leg is: the server's that is proven to have it, or not known.

    `target` is None where it is none of one server on this host; `cluster` and `proof` are None
    without one, and `error` then says why.
    """

    __slots__ = ("cluster", "error", "proof", "target")

    def __init__(self) -> None:
        self.target: Optional[Target] = None
        self.cluster: Optional[Cluster] = None
        self.proof: Optional[str] = None
        self.error: Optional[LimitUnknown] = None


def look_for_owner(
    view: "View", leg: Leg, listeners: "list[Listener]", sessions: "Sessions"
) -> Owned:
    """Whose the endpoint of `leg` is, which `listeners` and those of `sessions` are of.

    Raises SourceError.
    """
    found = Owned()
    try:
        found.target = find_target(view, leg, listeners, sessions)
        found.cluster, found.proof = find_owner(view, found.target)
    except LimitUnknown as error:
        found.error = error
    return found


def read_limit(view: "View", owned: Owned) -> "tuple[Limit, str, Optional[str]]":
    """(limit, proof of whose it is, pending change of it), of PostgreSQL or of PgBouncer.

    Raises LimitUnknown.
    """
    if owned.cluster is None or owned.target is None:
        assert owned.error is not None
        if owned.target is not None:
            from check_pgsock.servers import pooler_limit

            found = pooler_limit.read_pooler_limit(view, owned.target)
            if found is not None:
                return found
            raise pooler_limit.explain_unread(view, owned.target) or owned.error
        raise owned.error
    from check_pgsock.servers.auto_limit import read_limit_of  # many runs are told the limit

    target, postmaster = owned.target, owned.cluster.postmaster
    # A recording keeps what was found by port, or by socket file.
    listeners = target.listeners or target.unix
    limit, pending = read_limit_of(view, target.reader, postmaster, target.name, listeners)
    return limit, f"{owned.proof} (process {postmaster.pid})", pending
