"""Whose postmaster a listener is, found without a connection.

A process title proves nothing by itself, since any process may call itself `postgres: ...`. A
postmaster counts as the owner of a port only by the proofs of `prove`.
"""

from check_pgsock import limits
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

# Programs that listen as the database's user on some systems: with one of them around, a uid
# alone does not say who listens.
_POOLERS = frozenset(
    ("pgbouncer", "odyssey", "pgcat", "pgdog", "pgpool", "haproxy", "envoy", "nginx", "socat",
     "ssh", "stunnel4", "stunnel", "docker-proxy", "rootlessport")
)  # fmt: skip


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


def read_clusters(table: ProcessTable, uids: "Collection[int]") -> "tuple[list[Cluster], set[str]]":
    """The clusters whose postmaster runs with one of `uids`, and the commands of all processes
    that are no PostgreSQL's.
    """
    commands = table.commands()
    servers = {
        pid: (command, parent)
        for pid, (command, parent) in commands.items()
        if command in POSTGRES_COMMANDS
    }
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, (command, parent) in servers.items():
        children.setdefault(parent, []).append((pid, command))
    clusters = []
    for pid, (command, parent) in servers.items():
        if parent in servers or pid not in children:
            continue
        process = table.process(pid, command, parent)
        if process is not None and process.uid in uids:
            clusters.append(Cluster(process, children[pid], table))
    others = {command for command, _ in commands.values() if command not in POSTGRES_COMMANDS}
    return clusters, others


def prove(
    port: int,
    clusters: "list[Cluster]",
    held: "Callable[[int], Optional[set[int]]]",
    listeners: "list[Listener]",
    peers: "Collection[Peer]",
    all_listeners: "list[Listener]",
    others: "Collection[str]",
) -> "tuple[Process, str]":
    """The postmaster that owns `listeners` on `port`, and the proof in words.

    `held` gives the socket inodes of a process or None, `peers` the remote ends of the port's
    connections. Raises limits.LimitUnknown.
    """
    inodes = {one.inode for one in listeners}
    readable = [(one, held(one.postmaster.pid)) for one in clusters]
    for cluster, found in readable:
        if found is not None and found & inodes:
            return cluster.postmaster, "it holds the listener"
    candidates = [cluster for cluster, found in readable if found is None]
    if not candidates:
        raise limits.unknown(
            port, "no PostgreSQL server that may be seen from here owns its listener"
        )
    ports = {
        one: limits.parse_whole(limits.parse_arguments(one.postmaster.arguments).get("port"))
        for one in candidates
    }
    named = [one for one in candidates if ports[one] == port]
    if len(named) == 1:
        return named[0].postmaster, "its command line names the port"
    candidates = [one for one in candidates if ports[one] in (None, port)]
    # A peer that two clusters claim (same address and port, to two servers) proves neither.
    claims: dict[Peer, int] = {}
    for one in candidates:
        for peer in one.peers:
            claims[peer] = claims.get(peer, 0) + 1
    joined = [
        one for one in candidates if any(peer in peers and claims[peer] == 1 for peer in one.peers)
    ]
    if len(joined) == 1:
        return joined[0].postmaster, "the titles of its backends name connections of the port"
    uids = {one.uid for one in listeners}
    listened = {one.port for one in all_listeners if one.uid in uids}
    if len(candidates) == 1 and listened == {port} and not _POOLERS.intersection(others):
        return candidates[0].postmaster, "it is the only one with the listener's uid"
    raise limits.unknown(
        port, "which PostgreSQL server owns its listener cannot be proven from here"
    )
