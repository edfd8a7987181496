"""The backends of one PostgreSQL server: read from its postmaster's children, without a query.

Titles come first, since everybody may read them; descriptors only for what no title names.
"""

from collections import namedtuple

from check_pgsock.processes import parse_cpu_ticks, parse_title_area
from check_pgsock.sessions.children import match_peers, parse_children
from check_pgsock.sessions.titles import LOCAL, PARALLEL_WORKER, UNKNOWN, Title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple, Optional

    from check_pgsock.processes import ProcessTable
    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.sessions.titles import Peer
    from check_pgsock.sockets.model import Socket

# An own C library may let a title have less room than its area.
_OWN_LIBRARY = b"LD_LIBRARY_PATH="

if TYPE_CHECKING:

    class Backend(NamedTuple):
        """One child of a postmaster. Absent is None, never 0."""

        pid: int
        title: Title
        age: "Optional[float]"  # seconds
        cpu_seconds: "Optional[float]"  # user and system time, of its own
        workers: int  # its parallel workers, now

else:
    Backend = namedtuple("Backend", "pid title age cpu_seconds workers")


class Backends:
    """The backends of `cluster`; `heard` are the remote ends of those of its connections that
    have sent something. Ages are those of `now`, in seconds since the machine's boot.
    """

    __slots__ = ("_held", "_matched", "_table", "by_pid", "postmaster_age")

    def __init__(
        self, table: "ProcessTable", cluster: "Cluster", heard: "Iterable[Peer]", now: float
    ) -> None:
        self._table = table
        self._held: Optional[dict[int, int]] = None
        heard = set(heard)
        titles = read_titles(table, cluster, heard)
        stats = {pid: table.read(pid, "stat") or b"" for pid in titles}
        leaders = [one.leader for one in titles.values() if one.kind == PARALLEL_WORKER]
        self.by_pid = {
            pid: Backend(
                pid,
                title,
                table.age_of(stats[pid], now),
                _cpu_seconds(stats[pid], table.files.ticks_per_second),
                leaders.count(pid),
            )
            for pid, title in titles.items()
        }
        self._matched = match_peers(titles, heard)
        self.postmaster_age = table.age(cluster.postmaster.pid, now)

    def of_socket(self, one: "Socket") -> "Optional[Backend]":
        """The backend of an accepted connection of this server: by its title, else by its
        descriptors, where these may be read.
        """
        if not one.inode:
            return None
        pid = self._matched.get((one.remote_address, one.remote_port))
        return self.by_pid[pid] if pid is not None else self.of_inode(one.inode)

    def of_inode(self, inode: int) -> "Optional[Backend]":
        """The backend that holds a socket, where descriptors may be read."""
        if self._held is None:
            matched = set(self._matched.values())
            self._held = {}
            for pid in self.by_pid:
                if pid not in matched:
                    inodes = self._table.socket_inodes(pid)
                    if inodes is None:
                        break  # what holds for one of them holds for all
                    self._held.update(dict.fromkeys(inodes, pid))
        holder = self._held.get(inode)
        return None if holder is None else self.by_pid[holder]

    def untold(self) -> "list[Backend]":
        """Those whose title does not tell what they are (it is cut), but for those whose TCP
        connection is known.
        """
        matched = set(self._matched.values())
        return [
            one
            for pid, one in self.by_pid.items()
            if one.title.kind == UNKNOWN and pid not in matched
        ]

    def local(self) -> "list[Backend]":
        """Those whose clients came over a Unix socket."""
        return [one for one in self.by_pid.values() if one.title.host == LOCAL]


def read_titles(
    table: "ProcessTable", cluster: "Cluster", peers: "Iterable[Peer]" = ()
) -> "dict[int, Title]":
    """What the titles of the children say that have the postmaster's own uid, by process id;
    `peers` as children.parse_children takes them.
    """
    postmaster = cluster.postmaster
    raws = {}
    for pid, _ in cluster.children:
        raw = table.read(pid, "cmdline")
        if raw and table.uid(pid) == postmaster.uid:
            raws[pid] = raw
    command_line = table.read(postmaster.pid, "cmdline") or b""
    area = parse_title_area(table.read(postmaster.pid, "stat") or b"")
    if area and _OWN_LIBRARY in (table.read(postmaster.pid, "environ") or _OWN_LIBRARY):
        area = None
    return parse_children(raws, command_line, area, peers=set(peers))


def _cpu_seconds(stat: bytes, ticks_per_second: int) -> "Optional[float]":
    try:
        return parse_cpu_ticks(stat) / ticks_per_second
    except (ValueError, IndexError):
        return None
