"""Whose postmaster a listener is, found without a connection.

A process title proves nothing by itself, since any process may call itself `postgres: ...`, nor
does a port on a command line: a pooler may hold it. A postmaster counts as the owner of a port
only by the proofs of `prove`.
"""

from check_pgsock.legs import accepting
from check_pgsock.processes import (
    POSTGRES_COMMANDS,
    TITLE_PREFIX,
    Process,
    ProcessTable,
    parse_stat,
    parse_title_peer,
)
from check_pgsock.servers import limits
from check_pgsock.sockets.model import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Callable, Optional

    Peer = tuple[bytes, int]

_MOST_EVIDENCE = 50  # connections that are looked up again: any one of them proves


class Cluster:
    """A postmaster and the clients that its children's titles name (read when first asked)."""

    __slots__ = ("_peers", "_table", "children", "postmaster")

    def __init__(
        self, postmaster: Process, children: "list[tuple[int, str]]", table: ProcessTable
    ) -> None:
        self.postmaster = postmaster
        self.children = children  # process id and command
        self._table = table
        self._peers: Optional[set[Peer]] = None

    @property
    def peers(self) -> "set[Peer]":
        """Address and port of each client named in a title; only children with the postmaster's
        own uid count.
        """
        if self._peers is None:
            self._peers = set()
            for pid, command in self.children:
                child = self._table.process(pid, command, self.postmaster.pid)
                if child is not None and child.uid == self.postmaster.uid and _is_titled(child):
                    peer = parse_title_peer(child.title)
                    if peer is not None:
                        self._peers.add(peer)
        return self._peers

    @property
    def port(self) -> "Optional[int]":
        """The port on the postmaster's command line, if it is there."""
        return limits.parse_whole(limits.parse_arguments(self.postmaster.arguments).get("port"))


class Census:
    """The processes that may be seen: the clusters of some users, and what else these run.

    `children` are those of the processes that may be postmasters, by process id, where they are
    known already; without it all processes are read.
    """

    __slots__ = ("_commands", "_table", "_uids", "clusters")

    def __init__(
        self, table: ProcessTable, uids: "Collection[int]",
        children: "Optional[dict[int, list[tuple[int, str]]]]" = None,
    ) -> None:  # fmt: skip
        self._table = table
        self._uids = uids
        self._commands: Optional[dict[int, tuple[str, int]]] = None
        self.clusters = self._find_clusters(children or self._find_children())

    @property
    def _all(self) -> "dict[int, tuple[str, int]]":
        if self._commands is None:
            self._commands = self._table.commands()
        return self._commands

    def _find_children(self) -> "dict[int, list[tuple[int, str]]]":
        """The processes of PostgreSQL below each that has some."""
        children: dict[int, list[tuple[int, str]]] = {}
        for pid, (command, parent) in self._all.items():
            if command in POSTGRES_COMMANDS:
                children.setdefault(parent, []).append((pid, command))
        return children

    def _find_clusters(self, children: "dict[int, list[tuple[int, str]]]") -> "list[Cluster]":
        """A postmaster is whose children call themselves `postgres: ...`: a wrapper that is named
        postgres, too, is none.
        """
        clusters = []
        for pid, below in children.items():
            command, parent = self._stat(pid)
            if command not in POSTGRES_COMMANDS:
                continue
            process = self._table.process(pid, command, parent)
            if process is None or process.uid not in self._uids or _is_titled(process):
                continue
            if any(_is_titled(self._table.process(*child, pid)) for child in below):
                clusters.append(Cluster(process, below, self._table))
        return clusters

    def _stat(self, pid: int) -> "tuple[str, int]":
        """Command and parent of a process; no command where it is gone."""
        if self._commands is not None:
            return self._commands.get(pid, ("", 0))
        try:
            return parse_stat(self._table.read(pid, "stat") or b"")
        except (ValueError, IndexError):
            return "", 0

    def cluster_of(self, pid: int, endpoint: str) -> Cluster:
        """The cluster whose postmaster is this process; raises limits.LimitUnknown."""
        for one in self.clusters:
            if one.postmaster.pid == pid:
                return one
        raise unseen(endpoint)

    def is_complete(self) -> bool:
        """Whether the users run nothing but the clusters found, as far as all of this machine's
        processes can be seen.
        """
        if not self._table.sees_all():
            return False
        known = {one.postmaster.pid for one in self.clusters}
        for pid, (command, parent) in self._all.items():
            is_child = parent in known and command in POSTGRES_COMMANDS
            if pid not in known and not is_child:
                process = self._table.process(pid, command, parent)
                if process is not None and process.uid in self._uids:
                    return False
        return True


def _is_titled(process: "Optional[Process]") -> bool:
    return process is not None and process.title.startswith(TITLE_PREFIX)


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
        made together with one that did: with the next inode, by the same user, with the same
        backlog, as a postmaster makes the listeners of all its addresses in one go.
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
        return one.inode in reached or any(other.inode in reached for other in self._made_with(one))

    def is_one(self) -> bool:
        """Whether the listeners that matter were all made together."""
        return len(self._made_with(self.listeners[0])) >= len(self.listeners)

    def _made_with(self, one: Listener) -> "list[Listener]":
        """The unbroken run of inodes around `one`, itself included."""
        by_inode = {
            other.inode: other
            for other in self.bound
            if other.uid == one.uid and other.backlog == one.backlog
        }
        run = [one]
        if one.backlog is None:
            return run
        for step in (1, -1):
            inode = one.inode + step
            while inode in by_inode:
                run.append(by_inode[inode])
                inode += step
        return run


def prove(
    port: Port,
    clusters: "list[Cluster]",
    held: "Callable[[int], Optional[set[int]]]",
    visible: "Callable[[int], set[int]]",
    local_ports: "Callable[[set[Peer]], dict[Peer, set[int]]]",
    is_alone: "Callable[[int, int], bool]",
    is_complete: "Callable[[], bool]",
) -> "tuple[Cluster, str]":
    """The cluster whose postmaster owns all listeners of `port` that matter; the proof in words.

    `held` gives the socket inodes of a process, or None where they may not be read; `visible`
    the inodes of the listeners in a process's network namespace; `local_ports` the local ports
    that some remote ends are connected to; `is_alone` says whether a process and its descendants
    are all that is in a cgroup and have no other port; `is_complete` whether the listeners' user
    runs nothing but these clusters. Raises limits.LimitUnknown.
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
    evidence = _find_evidence(port, candidates, local_ports)
    # Others may listen on the port, too, at other addresses.
    here = [one for one, proven in evidence.items() if port.is_touched(proven)]
    if len(here) == 1 and port.is_reached(evidence[here[0]]):
        return here[0], "the titles of its backends name connections of the port"
    alone = _alone(port, candidates, is_alone)
    if alone is not None and here in ([], [alone]):
        return alone, "it is alone in the listener's cgroup"
    if (
        len(candidates) == 1
        and not evidence
        and accounted.issuperset(port.other_ports())
        and port.is_one()
        and is_complete()
    ):
        return candidates[0], "it is the only one with the listener's uid"
    raise limits.unknown(
        f"port {port.number}",
        "which PostgreSQL server owns its listener cannot be proven from here",
    )


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


def unseen(endpoint: str) -> limits.LimitUnknown:
    """The error where no server can be the owner of an endpoint."""
    return limits.unknown(
        endpoint, "no PostgreSQL server that may be seen from here owns its listener"
    )


def _several(port: int) -> limits.LimitUnknown:
    return limits.unknown(
        f"port {port}",
        "several programs listen on it, at different addresses (choose one with --address)",
    )


def _find_evidence(
    port: Port,
    candidates: "list[Cluster]",
    local_ports: "Callable[[set[Peer]], dict[Peer, set[int]]]",
) -> "dict[Cluster, set[Peer]]":
    """For each cluster the connections of the port that its titles, and no other's, name.

    A client may use one local port for connections to several servers: a peer that two clusters
    name, or that is connected to another local port as well, proves nothing. A cluster with a
    client that is connected to another local port, and not to this one, has that other port.
    """
    claims: dict[Peer, int] = {}
    for one in candidates:
        for peer in one.peers:
            claims[peer] = claims.get(peer, 0) + 1
    found: dict[Cluster, set[Peer]] = {}
    for one in candidates:
        here = sorted(peer for peer in one.peers if peer in port.peers and claims[peer] == 1)
        gone = sorted(peer for peer in one.peers if peer not in port.peers)
        sample = {*here[:_MOST_EVIDENCE], *gone[:_MOST_EVIDENCE]}
        ports = local_ports(sample) if here else {}
        # (One that is closing, or orphaned, is not established, and still connected to this port.)
        if any(ports.get(peer, set()) - {port.number} for peer in gone):
            continue
        proven = {peer for peer in here[:_MOST_EVIDENCE] if ports.get(peer) == {port.number}}
        if proven:
            found[one] = proven
    return found
