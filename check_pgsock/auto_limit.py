"""`--limit auto`: from a leg to the limit of the server that accepts its connections."""


from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg
from check_pgsock.postmaster import LimitReader, LimitUnknown, prove, read_clusters
from check_pgsock.processes import ProcessTable
from check_pgsock.sockets.model import ESTABLISHED, Listener
from check_pgsock.sockets.sources import SocketReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.limits import Limit


def read_limit(
    leg: Leg,
    reader: SocketReader,
    found: "list[Listener]",
    proc_root: "Optional[str]",
    deadline: Deadline,
) -> "tuple[Limit, str, Optional[str]]":
    """(limit, proof of whose server it is, pending change of it) of the leg's one port.

    Raises LimitUnknown, naming --limit, wherever that cannot be told for certain.
    """
    (port,) = leg.ports
    if reader.saved:
        raise LimitUnknown(
            f"the limit of port {port} is not in a saved moment; name it with --limit N"
        )
    if leg.server:
        listeners = leg.listeners(found)
        peers = {
            (one.remote_address, one.remote_port)
            for one in reader.sockets(Leg(leg.ports).query(ESTABLISHED))
        }
    else:
        listeners, peers = _listeners_of_client_leg(leg, reader, port)
    table = ProcessTable(deadline, proc_root or "/proc")
    clusters, others = read_clusters(table, {one.uid for one in listeners})
    owner, proof = prove(
        port, clusters, table.socket_inodes, listeners, peers, reader.listeners(), others
    )
    backlogs = {one.backlog for one in listeners if reader.of_this_host}
    backlog = backlogs.pop() if len(backlogs) == 1 else None
    source = LimitReader(table, owner, port, backlog, deadline)
    limit = source.read()
    return limit, f"{proof} (process {owner.pid})", source.pending


def _listeners_of_client_leg(
    leg: Leg, reader: SocketReader, port: int
) -> "tuple[list[Listener], set[tuple[bytes, int]]]":
    """Listeners and peers of the server on this host that the client leg's connections end at.

    Proven by the other ends: of every address that the leg connects to, one is here too.
    """
    accepted = reader.sockets(Leg(leg.ports).query(ESTABLISHED))
    ends = {one[1:5] for one in accepted}
    targets: dict[bytes, bool] = {}
    for one in reader.sockets(leg.query(ESTABLISHED)):
        mirrored = (one.remote_address, one.remote_port, one.local_address, one.local_port) in ends
        targets[one.remote_address] = targets.get(one.remote_address, False) or mirrored
    listeners = reader.listeners(port)
    if not listeners or not all(targets.values()):
        raise LimitUnknown(
            f"the limit of port {port} cannot be read: the server of this client leg is not on "
            "this host; name the usable slots (or this host's share of them) with --limit N"
        )
    return listeners, {(one.remote_address, one.remote_port) for one in accepted}


