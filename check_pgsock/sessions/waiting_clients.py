"""Clients of a pooler on this host that wait for a server connection, from its sockets: bounds.

A pooler forwards a request as soon as it has a server connection for its client. Until the answer
comes the request is the last word on the client's connection, and, once it has been forwarded, on
one of the pooler's own to the server as well. So of the clients that await an answer as many wait
as there are more of them than busy server connections, at least: what else is taken for busy (the
pooler's own queries, connections of other programs of its user where descriptors may not be read)
only lowers that. Sockets are read in the order clients, server connections, clients, and those
clients count that await the same answer before and after: each of them waited in between, or had a
server connection that was busy.

Whoever they are, all but as many as there are busy server connections wait, so the first of those
has waited at least as long as the oldest request but as many (tcp_info: since its last byte came).
A client that has not been let in yet is not told from one that is slow to answer, and counts not.
A pooler that waits for a CPU itself hands on nothing: requests of the last 50 ms do not count, and
server connections that had an answer in that time may be busy.

Where a request and an answer came within one tick of the kernel's clock (4 ms) it is not known
which was the last word, unless the other end is on this host, too, or tells by a late ACK. A client
that asks again at once, and then waits, looks so (18 of 18, measured); one that has nothing to do
does not, as its ACK comes late (0 of 100). Such a client waits at most, but not for sure; neither
is a server connection of that kind, or one over a Unix socket, busy for sure.
"""

from collections import namedtuple

from check_pgsock.errors import SourceError
from check_pgsock.servers.listener_owners import describe_owner, describe_process, find_owners
from check_pgsock.servers.programs import POOLER
from check_pgsock.sessions.activity import UNKNOWN, judge_activity
from check_pgsock.sessions.holders import find_holders
from check_pgsock.sessions.states import ACTIVE
from check_pgsock.sockets.model import ESTABLISHED, Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import NamedTuple, Optional

    from check_pgsock.servers.owners import Owner
    from check_pgsock.sockets.model import Listener, Socket
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.view import View

    Ends = tuple[bytes, int, bytes, int]

    class Bound(NamedTuple):
        """So many clients wait, the first for so many seconds."""

        waiting: int
        seconds: float

else:
    Bound = namedtuple("Bound", "waiting seconds")

# So long a pooler may take to hand something on: seconds.
_HANDED_ON = 0.05
# For so long a client may take to acknowledge an answer by itself (TCP_DELACK_MAX is 0.2 s).
_SETTLED = 0.5


class Estimate:
    """What the sockets of poolers tell of the clients that wait.

    `clients` are all connections of clients; `awaiting` are the seconds for which each that awaits
    an answer does, `unclear` the same of those that may. `busy` are the server connections that
    await one, `maybe_busy` those that may; `local` those over Unix sockets. `exact`: all are the
    pooler's own for sure. `owners` says who listens.
    """

    __slots__ = (
        "awaiting", "busy", "clients", "exact", "local", "maybe_busy", "owners", "unclear",
    )  # fmt: skip

    def __init__(self) -> None:
        self.clients = 0
        self.awaiting: list[float] = []
        self.unclear: list[float] = []
        self.busy = 0
        self.maybe_busy = 0
        self.local = 0
        self.exact = True
        self.owners: list[str] = []

    @property
    def least(self) -> Bound:
        """At least so many wait, the first at least so long."""
        served = self.busy + self.maybe_busy + self.local
        oldest = sorted(self.awaiting, reverse=True)[served:]
        return Bound(len(oldest), oldest[0] if oldest else 0.0)

    @property
    def most(self) -> Bound:
        """At most so many wait, the first at most so long; where `exact`."""
        possible = self.awaiting + self.unclear
        waiting = max(len(possible) - self.busy, 0)
        return Bound(waiting, max(possible) if waiting else 0.0)


def estimate_waiting(view: "View", ports: "Sequence[int]") -> Estimate:
    """The clients that wait on the poolers that listen on `ports`.

    Raises SourceError where nothing of it can be known: the reason, and what to do.
    """
    found = Estimate()
    listeners = view.reader.listeners(*ports)
    owners = find_owners(view, ports)
    pids: set[int] = set()
    for one in listeners:
        owner = _require_pooler(view, one, owners.get(one.inode))
        found.owners.append(f"port {one.port}: {describe_owner(view, owner)}")
        pids.update(each.pid for each in owner.processes)
    held = _held(view, pids)
    found.exact = held is not None
    for reader in view.reader.each:
        _add(found, reader, tuple(ports), held)
    return found


def _require_pooler(view: "View", listener: "Listener", owner: "Optional[Owner]") -> "Owner":
    """The owner of a listener; raises SourceError where that is no pooler."""
    if owner is None:
        uids = set() if listener.uid is None else {listener.uid}
        for one in find_holders(view.processes(), [listener.inode], uids).values():
            raise SourceError(
                f"on port {listener.port} listens {describe_process(view, one.pid, one.command)}, "
                "which by its name is no pooler that is known here: name the pooler's port, or ask "
                "PgBouncer's console (--dsn)"
            )
        raise SourceError(
            f"whether a pooler listens on port {listener.port} is not known: run the check as root "
            "or as the pooler's user, or ask PgBouncer's console (--dsn)"
        )
    if owner.kind != POOLER:
        raise SourceError(
            f"on port {listener.port} listens {describe_owner(view, owner)}, no pooler: name the "
            "pooler's port"
        )
    return owner


def _held(view: "View", pids: "Collection[int]") -> "Optional[set[int]]":
    """The inodes of the sockets that the processes hold; None where that may not be read."""
    held: set[int] = set()
    for pid in pids:
        inodes = view.processes().socket_inodes(pid)
        if inodes is None:
            return None
        held |= inodes
    return held


def _add(
    found: Estimate, reader: "SocketReader", ports: "tuple[int, ...]", held: "Optional[set[int]]"
) -> None:
    """Take in the sockets of one place."""
    accepted = Query(ports, True, 1 << ESTABLISHED, info=True)
    before = reader.sockets(accepted)
    every = reader.sockets(Query((), True, 1 << ESTABLISHED, info=True))
    after = [one for one in reader.sockets(accepted) if one.inode]
    if any(one.info is None for one in after):
        raise SourceError(
            "procfs does not tell when a client sent its request: use --source netlink, or ask "
            "PgBouncer's console (--dsn)"
        )
    found.clients += len(after)
    ends = {_ends(one): one for one in every}
    earlier = {_request(one): _judge(one, True, ends) for one in before}
    for one in after:
        activity, seconds = _judge(one, True, ends), _age(one)
        if activity == earlier.get(_request(one)) == ACTIVE and seconds > _HANDED_ON:
            found.awaiting.append(seconds)
        elif activity == UNKNOWN and seconds > _SETTLED:
            found.unclear.append(seconds)
    users = {one.uid for one in after}
    listening = {one.port for one in reader.listeners()}
    clients = {_mirrored(one) for one in after}  # that are on this host, and may be of its user
    for one in every:
        is_own = one.inode in held if held is not None else one.uid in users
        if is_own and one.local_port not in listening and _ends(one) not in clients:
            activity = _judge(one, False, ends)
            if activity == ACTIVE:
                found.busy += 1
            elif activity == UNKNOWN or _age(one) <= _HANDED_ON:
                found.maybe_busy += 1
    if users:
        found.local += _count_local(reader, ports, users, held)


def _judge(one: "Socket", is_client: bool, ends: "Mapping[Ends, Socket]") -> str:
    """What the connection of a client, or to a server, is doing."""
    return judge_activity(one, is_client, None, ends.get(_mirrored(one))).activity


def _request(one: "Socket") -> "tuple[int, Optional[int]]":
    """What tells a client's request from its next."""
    return one.inode, None if one.info is None else one.info.bytes_received


def _age(one: "Socket") -> float:
    """Seconds since data last came in: a client's request, or a server's answer."""
    return 0.0 if one.info is None else one.info.last_data_received_ms / 1000


def _ends(one: "Socket") -> "Ends":
    return one.local_address, one.local_port, one.remote_address, one.remote_port


def _mirrored(one: "Socket") -> "Ends":
    return one.remote_address, one.remote_port, one.local_address, one.local_port


def _count_local(
    reader: "SocketReader",
    ports: "Sequence[int]",
    users: "Collection[int]",
    held: "Optional[set[int]]",
) -> int:
    """The connections over Unix sockets that these users, or processes, have to PostgreSQL."""
    from check_pgsock.sockets.unix_sockets import UnixSocket

    own = tuple(b".s.PGSQL.%d" % one for one in ports)

    def is_servers(path: "Optional[bytes]") -> bool:
        return path is not None and b"/.s.PGSQL." in path and not path.endswith(own)

    found = reader.unix(1 << ESTABLISHED, lambda one: is_servers(one.path))
    peers = reader.unix_peers([one for one in found if isinstance(one, UnixSocket)])
    if held is not None:
        return sum(one.inode in held for one in peers.values())
    return sum(one.uid in users for one in peers.values())
