"""The PostgreSQL servers of this machine as their processes show them: postmasters and children.

Everybody may read these, and any process may call itself `postgres: ...`: what is found here
becomes the owner of a listener by the proofs of postmaster.py alone.
"""

from check_pgsock.processes import (
    POSTGRES_COMMANDS,
    TITLE_PREFIX,
    Process,
    ProcessTable,
    parse_command_line,
    parse_stat,
    parse_title_peer,
)
from check_pgsock.servers import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Optional

    Peer = tuple[bytes, int]

_YOUNG = 1.0  # seconds: what has just started may end as soon


class Cluster:
    """A postmaster and the clients that its children's titles name (read when first asked)."""

    __slots__ = ("_peers", "_table", "children", "postmaster")

    def __init__(
        self, postmaster: Process, children: "list[tuple[int, str]]", table: ProcessTable
    ) -> None:
        self.postmaster = postmaster
        self.children = children  # process id and command
        self._table = table
        self._peers: Optional[dict[Peer, int]] = None

    @property
    def peers(self) -> "dict[Peer, int]":
        """Address and port of each client named in a title, with the process id of the child that
        names it; only children with the postmaster's own uid count.
        """
        if self._peers is None:
            self._peers = {}
            for pid, _ in self.children:
                peer = self._read_peer(pid)
                if peer is not None and self._table.uid(pid) == self.postmaster.uid:
                    self._peers[peer] = pid
        return self._peers

    def still_names(self, peer: "Peer") -> bool:
        """Whether the child that named a client is there and names it as before: since then it has
        held its connection to this client, as a backend does until it ends.
        """
        pid = self.peers[peer]
        try:
            parent = parse_stat(self._table.read(pid, "stat") or b"")[1]
        except (ValueError, IndexError):
            return False
        return parent == self.postmaster.pid and self._read_peer(pid) == peer

    def _read_peer(self, pid: int) -> "Optional[Peer]":
        title = " ".join(parse_command_line(self._table.read(pid, "cmdline") or b""))
        return parse_title_peer(title) if title.startswith(TITLE_PREFIX) else None

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

    def is_complete(self) -> "Optional[bool]":
        """Whether the users run nothing but the clusters found, as far as all of this machine's
        processes can be seen; None where they do, but for what has just started, and may end soon.
        """
        if not self._table.sees_all():
            return False
        known = {one.postmaster.pid for one in self.clusters}
        found: Optional[bool] = True
        for pid, (command, parent) in self._all.items():
            is_child = parent in known and command in POSTGRES_COMMANDS
            if pid not in known and not is_child and self._table.uid(pid) in self._uids:
                age = self._table.age(pid)
                if age is not None and age >= _YOUNG:
                    return False
                found = None
        return found


def _is_titled(process: "Optional[Process]") -> bool:
    return process is not None and process.title.startswith(TITLE_PREFIX)


def unseen(endpoint: str) -> limits.LimitUnknown:
    """The error where no server can be the owner of an endpoint."""
    return limits.unknown(
        endpoint, "no PostgreSQL server that may be seen from here owns its listener"
    )
