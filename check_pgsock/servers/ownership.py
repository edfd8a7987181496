"""From the listeners of a port to the PostgreSQL server that owns them: what is read for the proof.

postmaster.py decides, on values alone.
"""

from functools import partial

from check_pgsock.legs import Leg
from check_pgsock.processes import POSTGRES_COMMANDS
from check_pgsock.servers.candidates import children_of, list_programs
from check_pgsock.servers.cgroup_proof import is_alone
from check_pgsock.servers.clusters import Census, Cluster, unseen
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.postmaster import Port, made_with, prove
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, Listener, Query, Socket
from check_pgsock.sockets.reader import SocketReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.view import View

_LOOKS = 3
_PAUSE = 0.1  # seconds between two of them


def find_cluster(
    view: "View",
    reader: SocketReader,
    port: int,
    listeners: "list[Listener]",
    bound: "list[Listener]",
    accepted: "list[Socket]",
) -> "tuple[Cluster, str]":
    """The cluster that owns `listeners`, and the proof in words; of a recording as it was then.

    `reader` is the place of `view` that they are in, `bound` are all listeners on `port` there,
    `accepted` all connections to it. Raises limits.LimitUnknown where nothing proves it.
    """
    return prove_owner(view, reader, port, listeners, bound, lambda: accepted)


def prove_owner(
    view: "View",
    reader: SocketReader,
    port: int,
    listeners: "list[Listener]",
    bound: "list[Listener]",
    read_accepted: "Callable[[], list[Socket]]",
) -> "tuple[Cluster, str]":
    """The same; the connections, of which a pooler may have very many, are read only if there is a
    server that may own the port.

    Where a proof failed by what comes and goes (a session that has just ended, a process that has
    just started), all is read again, up to twice.
    """
    if view.recorded is not None:
        pid, proof = view.recorded.owner(f"port {port}", listeners)
        table, uids = view.processes(), {one.uid for one in listeners}
        return Census(table, uids).cluster_of(pid, f"port {port}"), proof
    looks = 0
    while True:
        looks += 1
        try:
            return _look(view, reader, port, listeners, bound, read_accepted)
        except LimitUnknown as error:
            if error.is_settled or looks == _LOOKS:
                raise
        view.deadline.doing = "waiting for another look at whose the listener is"
        view.deadline.sleep(_PAUSE)
        view.programs = None
        read_accepted = partial(reader.sockets, Leg((port,)).query(ESTABLISHED, CLOSE_WAIT))


def _look(
    view: "View",
    reader: SocketReader,
    port: int,
    listeners: "list[Listener]",
    bound: "list[Listener]",
    read_accepted: "Callable[[], list[Socket]]",
) -> "tuple[Cluster, str]":
    """One proof, or the reason why there is none: LimitUnknown."""
    table = view.processes()
    uids = {one.uid for one in listeners}
    inodes = {one.inode for one in listeners}

    def has_cgroup(pid: int, cgroup: int) -> bool:
        # A postmaster has one port: what listens there on another is not, or not only, its own.
        return is_alone(table, pid, cgroup) and all(
            one.port == port for one in reader.listeners() if one.cgroup == cgroup
        )

    def inodes_seen_by(pid: int) -> "set[int]":
        from check_pgsock.sockets.sources.procfs import listener_inodes  # most proofs do without

        return listener_inodes(table.path(pid, "net"), port, view.deadline)

    def is_complete() -> "Optional[bool]":
        # Listeners that are gone now may have been another's, which ended before it was looked for.
        return census.is_complete() and inodes <= {one.inode for one in reader.listeners(port)}

    census = Census(table, uids, find_families(view))
    if not census.clusters and len(uids) == 1:
        raise unseen(f"port {port}")
    return prove(
        Port(
            port,
            listeners,
            bound,
            {(one.remote_address, one.remote_port): one.local_address for one in read_accepted()},
            lambda: {one.port for one in reader.listeners() if one.uid in uids} - {port},
        ),
        census.clusters,
        table.socket_inodes,
        inodes_seen_by,
        lambda peers: _local_ports(reader, peers, uids),
        has_cgroup,
        is_complete,
    )


def find_families(view: "View") -> "dict[int, list[tuple[int, str]]]":
    """Process id and command of the children of each process that may be a postmaster, by its id;
    none where the kernel does not tell. Far fewer processes are read than there are.
    """
    table = view.processes()
    found = {}
    for pid, command in list_programs(view).items():
        below = children_of(table, pid) if command in POSTGRES_COMMANDS else ()
        if below:
            found[pid] = [(child, command) for child in sorted(below)]
    return found


def made_after(
    listeners: "list[Listener]", bound: "list[Listener]", unix: "list[UnixListener]"
) -> "set[int]":
    """The inodes of the Unix listeners among `unix` that a postmaster made in one go with
    `listeners`, right after those of its port, of which `bound` are all.
    """
    inodes = {one.inode for one in unix}
    return {
        inode
        for one in listeners
        for inode in inodes & made_with(one, [*bound, *unix])
        if inode > one.inode
    }


def _local_ports(
    reader: SocketReader, peers: "set[tuple[bytes, int]]", uids: "set[int]"
) -> "dict[tuple[bytes, int], set[int]]":
    """The local ports on which processes of these users hold connections of each of the remote
    ends `peers`; none of what waits to be accepted, or was closed.
    """
    states = 0xFFFF & ~(1 << LISTEN)
    query = Query(tuple({remote for _, remote in peers}), False, states)
    found: dict[tuple[bytes, int], set[int]] = {}
    for one in reader.sockets(query):
        peer = (one.remote_address, one.remote_port)
        if peer in peers and one.inode and one.uid in uids:
            found.setdefault(peer, set()).add(one.local_port)
    return found
