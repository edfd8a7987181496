"""Whose postmaster a listener is, found without a connection: decided on values alone.

A process title proves nothing by itself, since any process may call itself `postgres: ...`, nor
does a port on a command line: a pooler may hold it. A postmaster counts as the owner of a port
only by the proofs of `prove`.
"""

from check_pgsock.legs import accepting
from check_pgsock.servers import limits
from check_pgsock.servers.clusters import unseen
from check_pgsock.sockets.model import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Callable, Optional

    from check_pgsock.servers.auto_limit import AnyListener
    from check_pgsock.servers.clusters import Cluster, Peer

_MOST_EVIDENCE = 50  # connections that are looked up again: any one of them proves


def made_with(one: "AnyListener", among: "Iterable[AnyListener]") -> "set[int]":
    """The inodes of the listeners that were made in one go with `one`, itself included.

    A postmaster makes the listeners of all its addresses one after the other, and right after them
    those of its Unix sockets: by the same user, with the same backlog, without a gap between the
    inodes (measured on 14 to 18). The kernel gives these out by processor (get_next_ino() in
    fs/inode.c): what runs beside the start may leave a gap, and then nothing tells.
    """
    run = {one.inode}
    if one.uid is None or one.backlog is None:
        return run
    alike = {each.inode for each in among if (each.uid, each.backlog) == (one.uid, one.backlog)}
    for step in (1, -1):
        inode = one.inode + step
        while inode in alike:
            run.add(inode)
            inode += step
    return run


class Port:
    """What is known of the port whose owner is sought.

    `bound` are all its listeners, `listeners` those that matter; `peers` are the remote ends of
    its connections, each with the local address it is connected to; `other_ports` reads those
    that the listeners' user listens on besides.
    """

    __slots__ = ("bound", "listeners", "number", "other_ports", "peers")

    def __init__(
        self,
        number: int,
        listeners: "list[Listener]",
        bound: "list[Listener]",
        peers: "dict[Peer, bytes]",
        other_ports: "Callable[[], Collection[int]]",
    ) -> None:
        self.number = number
        self.listeners = listeners
        self.bound = bound
        self.peers = peers
        self.other_ports = other_ports

    @property
    def inodes(self) -> "set[int]":
        """The inodes of the listeners that matter."""
        return {one.inode for one in self.listeners}

    def accepting(self, address: bytes) -> "Optional[Listener]":
        """The listener that takes connections to a local address; None where several may."""
        return accepting(address, self.bound)

    def is_reached(self, proven: "set[Peer]") -> bool:
        """Whether every listener that matters accepted one of the `proven` connections, or was
        made together with one that did.
        """
        reached = self._reached(proven)
        return all(self._is_with(one, reached) for one in self.listeners)

    def is_touched(self, proven: "set[Peer]") -> bool:
        """Whether that is so for any of them, or may be."""
        reached = self._reached(proven)
        return None in reached or any(self._is_with(one, reached) for one in self.listeners)

    def _reached(self, proven: "set[Peer]") -> "set[Optional[int]]":
        """The inodes of what accepted these connections; None where several may have."""
        takers = [self.accepting(self.peers[peer]) for peer in proven]
        return {None if one is None else one.inode for one in takers}

    def _is_with(self, one: Listener, reached: "set[Optional[int]]") -> bool:
        return not reached.isdisjoint(made_with(one, self.bound))

    def is_one(self) -> bool:
        """Whether the listeners that matter were all made together."""
        return self.inodes <= made_with(self.listeners[0], self.bound)


def prove(
    port: Port,
    clusters: "list[Cluster]",
    held: "Callable[[int], Optional[set[int]]]",
    visible: "Callable[[int], set[int]]",
    local_ports: "Callable[[set[Peer]], dict[Peer, set[int]]]",
    is_alone: "Callable[[int, int], bool]",
    is_complete: "Callable[[], Optional[bool]]",
) -> "tuple[Cluster, str]":
    """The cluster whose postmaster owns all listeners of `port` that matter; the proof in words.

    `held` gives the socket inodes of a process, or None where they may not be read; `visible`
    the inodes of the listeners in a process's network namespace; `local_ports` the local ports
    that programs of the listeners' user hold connections of some remote ends on; `is_alone` says
    whether a process and its descendants are all that is in a cgroup and have no other port;
    `is_complete` whether the listeners' user runs nothing but these clusters, None where that may
    be so in a moment. Raises limits.LimitUnknown.
    """
    if len({one.uid for one in port.listeners}) > 1:
        raise _several(port.number)
    candidates = []
    for cluster in clusters:
        found = held(cluster.postmaster.pid)
        if found is None:
            if port.inodes <= visible(cluster.postmaster.pid):
                candidates.append(cluster)
        elif port.inodes <= found:
            return cluster, "it holds the listener"
        elif port.inodes & found:
            raise _several(port.number)
    if not candidates:
        raise unseen(f"port {port.number}")
    # A postmaster has one port: what its command line names excludes it, though it proves nothing.
    accounted = {one.port for one in candidates if one.port not in (None, port.number)}
    candidates = [one for one in candidates if one.port in (None, port.number)]
    evidence, has_left = _find_evidence(port, candidates, local_ports)
    # Others may listen on the port, too, at other addresses.
    here = [one for one, proven in evidence.items() if port.is_touched(proven)]
    if len(here) == 1 and port.is_reached(evidence[here[0]]):
        return here[0], "the titles of its backends name connections of the port"
    alone = _alone(port, candidates, is_alone)
    if alone is not None and here in ([], [alone]):
        return alone, "it is alone in the listener's cgroup"
    is_only: Optional[bool] = False
    if (
        len(candidates) == 1
        and not evidence
        and accounted.issuperset(port.other_ports())
        and port.is_one()
    ):
        is_only = is_complete()
    if is_only:
        return candidates[0], "it is the only one with the listener's uid"
    error = limits.unknown(
        f"port {port.number}",
        "which PostgreSQL server owns its listener cannot be proven from here",
    )
    error.is_settled = is_only is not None and not has_left
    raise error


def _alone(
    port: Port, candidates: "list[Cluster]", is_alone: "Callable[[int, int], bool]"
) -> "Optional[Cluster]":
    """The one cluster that is alone in the cgroup that all listeners that matter were made in."""
    cgroups = {one.cgroup for one in port.listeners}
    cgroup = cgroups.pop()
    if cgroups or cgroup is None:
        return None
    # (Two cannot be alone in one.)
    return next((one for one in candidates if is_alone(one.postmaster.pid, cgroup)), None)


def _several(port: int) -> limits.LimitUnknown:
    return limits.unknown(
        f"port {port}",
        "several programs listen on it, at different addresses (choose one with --address)",
    )


def _find_evidence(
    port: Port,
    candidates: "list[Cluster]",
    local_ports: "Callable[[set[Peer]], dict[Peer, set[int]]]",
) -> "tuple[dict[Cluster, set[Peer]], bool]":
    """For each cluster the connections of the port that its titles, and no other's, name; whether
    some were not found again that might have been such.

    A client may use one local port for connections to several servers: a peer that two clusters
    name, or that is connected to another local port as well, proves nothing. A cluster with a
    client that is connected to another local port, and not to this one, has that other port.

    A title counts that says before and after the sockets are read the same: all the while its
    backend held its connection, which so is one of those that a process of this user holds. What
    was closed before and is in TIME_WAIT, often under the same remote port, says nothing.
    """
    claims: dict[Peer, int] = {}
    for one in candidates:
        for peer in one.peers:
            claims[peer] = claims.get(peer, 0) + 1
    found: dict[Cluster, set[Peer]] = {}
    has_left = False
    for one in candidates:
        here = sorted(peer for peer in one.peers if peer in port.peers and claims[peer] == 1)
        gone = sorted(peer for peer in one.peers if peer not in port.peers)
        here, gone = here[:_MOST_EVIDENCE], gone[:_MOST_EVIDENCE]
        ports = local_ports({*here, *gone}) if here else {}
        # (One that is closing, or orphaned, is not established, and still connected to this port.)
        elsewhere = [peer for peer in gone if ports.get(peer, set()) - {port.number}]
        if any(one.still_names(peer) for peer in elsewhere):
            continue
        mine = {peer for peer in here if not ports.get(peer, set()) - {port.number}}
        proven = {peer for peer in mine if peer in ports and one.still_names(peer)}
        if proven:
            found[one] = proven
        elif mine:
            has_left = True
    return found, has_left
