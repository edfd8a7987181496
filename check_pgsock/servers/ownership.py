"""From the listeners of a port to the PostgreSQL server that owns them: what is read for the proof.

postmaster.py decides, on values alone.
"""

from check_pgsock.servers.postmaster import Census, Cluster, Port, prove
from check_pgsock.sockets.model import LISTEN, Listener, Query, Socket
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.sources import listener_inodes

TYPE_CHECKING = False
if TYPE_CHECKING:
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
    table = view.processes()
    uids = {one.uid for one in listeners}
    census = Census(table, uids)
    if view.recorded is not None:
        pid, proof = view.recorded.owner(f"port {port}", listeners)
        return census.cluster_of(pid, f"port {port}"), proof
    return prove(
        Port(
            port,
            listeners,
            bound,
            {(one.remote_address, one.remote_port): one.local_address for one in accepted},
            lambda: {one.port for one in reader.listeners() if one.uid in uids} - {port},
        ),
        census.clusters,
        table.socket_inodes,
        lambda pid: listener_inodes(table.path(pid, "net"), port, view.deadline),
        lambda peers: _local_ports(reader, peers),
        census.is_complete,
    )


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
