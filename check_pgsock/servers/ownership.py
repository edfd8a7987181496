"""From the listeners of a port to the PostgreSQL server that owns them: what is read for the proof.

postmaster.py decides, on values alone.
"""

from check_pgsock.processes import POSTGRES_COMMANDS
from check_pgsock.servers.candidates import children_of, list_programs
from check_pgsock.servers.cgroup_proof import is_alone
from check_pgsock.servers.postmaster import Census, Cluster, Port, prove, unseen
from check_pgsock.sockets.model import LISTEN, Listener, Query, Socket
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.sources import listener_inodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.view import View


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
    """
    table = view.processes()
    uids = {one.uid for one in listeners}
    if view.recorded is not None:
        pid, proof = view.recorded.owner(f"port {port}", listeners)
        return Census(table, uids).cluster_of(pid, f"port {port}"), proof

    def has_cgroup(pid: int, cgroup: int) -> bool:
        # A postmaster has one port: what listens there on another is not, or not only, its own.
        return is_alone(table, pid, cgroup) and all(
            one.port == port for one in reader.listeners() if one.cgroup == cgroup
        )

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
        lambda pid: listener_inodes(table.path(pid, "net"), port, view.deadline),
        lambda peers: _local_ports(reader, peers),
        has_cgroup,
        census.is_complete,
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


def made_with(
    listeners: "list[Listener]", bound: "list[Listener]", unix: "list[UnixListener]"
) -> "set[int]":
    """The inodes of the Unix listeners among `unix` that were made in one go with `listeners`.

    A postmaster makes those of its Unix sockets right after those of its port, of which `bound` are
    all: without a gap between the inodes, by the same user, with the same backlog (measured on 14
    to 18).
    """
    found: set[int] = set()
    for one in listeners:
        if one.backlog is not None:
            kin = (one.uid, one.backlog)
            alike = {each.inode for each in bound if (each.uid, each.backlog) == kin}
            alike |= {each.inode for each in unix if (each.uid, each.backlog) == kin}
            inode = one.inode
            while inode in alike:
                found.add(inode)
                inode += 1
    return found & {one.inode for one in unix}


def _local_ports(
    reader: SocketReader, peers: "set[tuple[bytes, int]]"
) -> "dict[tuple[bytes, int], set[int]]":
    """The local ports that each of the remote ends `peers` is connected to."""
    states = 0xFFFF & ~(1 << LISTEN)
    query = Query(tuple({remote for _, remote in peers}), False, states)
    found: dict[tuple[bytes, int], set[int]] = {}
    for one in reader.sockets(query):
        peer = (one.remote_address, one.remote_port)
        if peer in peers:
            found.setdefault(peer, set()).add(one.local_port)
    return found
