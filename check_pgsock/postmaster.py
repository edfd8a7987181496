"""Whose postmaster a listener is, found without a connection.

A process title proves nothing by itself, since any process may call itself `postgres: ...`, nor
does a port on a command line: a pooler may hold it. A postmaster counts as the owner of a port
only by the proofs of `prove`.
"""

from check_pgsock import limits
from check_pgsock.legs import WILDCARDS
from check_pgsock.processes import (
    POSTGRES_COMMANDS,
    TITLE_PREFIX,
    Process,
    ProcessTable,
    parse_title_peer,
)
from check_pgsock.sockets.model import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Callable, Optional

    Peer = tuple[bytes, int]

# What the database's user runs beside the server and what does not listen. Anything else of that
# user might be a pooler, and then the uid of a listener does not say whose it is.
_HARMLESS = frozenset(
    ("bash", "dash", "sh", "zsh", "su", "sudo", "cron", "sleep", "psql", "pg_dump", "pg_dumpall",
     "pg_restore", "pg_basebackup", "pg_receivewal", "pgbench", "vacuumdb")
)  # fmt: skip
_MOST_EVIDENCE = 50  # connections that are looked up again: any one of them proves


class Cluster:
    """A postmaster and the clients that its children's titles name (read when first asked)."""

    __slots__ = ("_children", "_peers", "_table", "postmaster")

    def __init__(
        self, postmaster: Process, children: "list[tuple[int, str]]", table: ProcessTable
    ) -> None:
        self.postmaster = postmaster
        self._children = children
        self._table = table
        self._peers: Optional[set[Peer]] = None

    @property
    def peers(self) -> "set[Peer]":
        """Address and port of each client named in a title; only children with the postmaster's
        own uid count.
        """
        if self._peers is None:
            self._peers = set()
            for pid, command in self._children:
                child = self._table.process(pid, command, self.postmaster.pid)
                if (
                    child is not None
                    and child.uid == self.postmaster.uid
                    and child.title.startswith(TITLE_PREFIX)
                ):
                    peer = parse_title_peer(child.title)
                    if peer is not None:
                        self._peers.add(peer)
        return self._peers

    @property
    def port(self) -> "Optional[int]":
        """The port on the postmaster's command line, if it is there."""
        return limits.parse_whole(limits.parse_arguments(self.postmaster.arguments).get("port"))


class Census:
    """The processes that may be seen: the clusters of some users, and what else these run."""

    __slots__ = ("_commands", "_table", "_uids", "clusters")

    def __init__(self, table: ProcessTable, uids: "Collection[int]") -> None:
        self._table = table
        self._uids = uids
        self._commands = table.commands()
        self.clusters = self._find_clusters()

    def _find_clusters(self) -> "list[Cluster]":
        servers = {
            pid: found for pid, found in self._commands.items() if found[0] in POSTGRES_COMMANDS
        }
        children: dict[int, list[tuple[int, str]]] = {}
        for pid, (command, parent) in servers.items():
            children.setdefault(parent, []).append((pid, command))
        clusters = []
        for pid, (command, parent) in servers.items():
            if parent in servers or pid not in children:
                continue
            process = self._table.process(pid, command, parent)
            if process is not None and process.uid in self._uids:
                clusters.append(Cluster(process, children[pid], self._table))
        return clusters

    def strangers(self) -> "set[str]":
        """Commands of the users' processes that are no PostgreSQL's, nor started by one, and that
        are not known to listen on nothing.
        """
        found = set()
        for pid, (command, parent) in self._commands.items():
            if command in POSTGRES_COMMANDS or command in _HARMLESS or self._is_child(pid):
                continue
            process = self._table.process(pid, command, parent)
            if process is not None and process.uid in self._uids:
                found.add(command)
        return found

    def _is_child(self, pid: int) -> bool:
        seen: set[int] = set()
        while pid in self._commands and pid not in seen:
            seen.add(pid)
            command, pid = self._commands[pid]
            if command in POSTGRES_COMMANDS:
                return True
        return False


def prove(
    port: int,
    clusters: "list[Cluster]",
    held: "Callable[[int], Optional[set[int]]]",
    listeners: "list[Listener]",
    peers: "dict[Peer, bytes]",
    elsewhere: "Callable[[set[Peer]], set[Peer]]",
    other_ports: "Collection[int]",
    strangers: "Callable[[], set[str]]",
) -> "tuple[Process, str]":
    """The postmaster that owns all of `listeners` on `port`, and the proof in words.

    `held` gives the socket inodes of a process, or None where they may not be read. `peers` are
    the remote ends of the port's connections, each with the local address it is connected to;
    `elsewhere` tells which of some peers have a connection to another local port too.
    `other_ports` are those that the listeners' user listens on besides, `strangers` gives the
    commands of this user's processes that might listen. Raises limits.LimitUnknown.
    """
    inodes = {one.inode for one in listeners}
    if len({one.uid for one in listeners}) > 1:
        raise _several(port)
    candidates = []
    for cluster in clusters:
        found = held(cluster.postmaster.pid)
        if found is None:
            candidates.append(cluster)
        elif inodes <= found:
            return cluster.postmaster, "it holds the listener"
        elif inodes & found:
            raise _several(port)
    if not candidates:
        raise limits.unknown(
            port, "no PostgreSQL server that may be seen from here owns its listener"
        )
    # A postmaster has one port: what its command line names excludes it, though it proves nothing.
    accounted = {one.port for one in candidates if one.port not in (None, port)}
    candidates = [one for one in candidates if one.port in (None, port)]
    alike = len({one.backlog for one in listeners}) == 1 and listeners[0].backlog is not None
    evidence = _find_evidence(candidates, peers, elsewhere)
    if len(evidence) == 1:
        ((cluster, proven),) = evidence.items()
        bound = {one.address for one in listeners}
        reached = {address for peer in proven for address in _accepting(bound, peers[peer])}
        # Further addresses that no evidence reaches are the same server's if nobody else's.
        if bound <= reached or alike or not strangers():
            return (
                cluster.postmaster,
                "the titles of its backends name connections of the port",
            )
    elif (
        len(candidates) == 1
        and not evidence
        and accounted.issuperset(other_ports)
        and (alike or len(listeners) == 1)
        and not strangers()
    ):
        return candidates[0].postmaster, "it is the only one with the listener's uid"
    raise limits.unknown(
        port, "which PostgreSQL server owns its listener cannot be proven from here"
    )


def _several(port: int) -> limits.LimitUnknown:
    return limits.unknown(
        port, "several programs listen on it, at different addresses (choose one with --address)"
    )


def _find_evidence(
    candidates: "list[Cluster]",
    peers: "dict[Peer, bytes]",
    elsewhere: "Callable[[set[Peer]], set[Peer]]",
) -> "dict[Cluster, set[Peer]]":
    """For each cluster the connections of the port that its titles, and no other's, name.

    A client may use one local port for connections to several servers: a peer that two clusters
    name, or that is connected to another local port as well, proves nothing.
    """
    claims: dict[Peer, int] = {}
    for one in candidates:
        for peer in one.peers:
            claims[peer] = claims.get(peer, 0) + 1
    found: dict[Cluster, set[Peer]] = {}
    for one in candidates:
        joined = sorted(peer for peer in one.peers if peer in peers and claims[peer] == 1)
        found[one] = set(joined[:_MOST_EVIDENCE])
    everything = {peer for joined in found.values() for peer in joined}
    ambiguous = elsewhere(everything) if everything else set()
    return {one: joined - ambiguous for one, joined in found.items() if joined - ambiguous}


def _accepting(bound: "set[bytes]", address: bytes) -> "set[bytes]":
    """Those of the bound addresses that a connection to `address` was accepted at: that very one,
    else a wildcard.
    """
    return {address} if address in bound else bound.intersection(WILDCARDS)
