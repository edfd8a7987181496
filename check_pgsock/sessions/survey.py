"""Who holds the connections of a leg: sockets, titles and processes read and brought together.

A title counts only for a child of the postmaster that is proven to own the listener: see
postmaster.py. Descriptors are read only for what titles leave open, and only where they may be.
"""

from check_pgsock.legs import Leg, accepting
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.ownership import find_cluster
from check_pgsock.sessions import connections
from check_pgsock.sessions.ages import DEFAULT_INTERVAL, confirm_setting, prove_period
from check_pgsock.sessions.backends import Backends
from check_pgsock.sessions.connections import CLIENT, SERVER, Connection
from check_pgsock.sessions.holders import Holder, find_holders
from check_pgsock.sessions.surveyed import Survey
from check_pgsock.sockets.model import CLOSE, ESTABLISHED, LISTEN, TIME_WAIT, Query
from check_pgsock.sockets.unix_sockets import UnixSocket
from check_pgsock.text import plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

    from check_pgsock.sessions.backends import Backend
    from check_pgsock.sockets.model import Listener, Socket
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.view import View

    Ends = tuple[bytes, int, bytes, int]  # local address and port, remote address and port

# All but listeners, what is left of closed connections, and what was never connected.
CONNECTED = 0x1FFE & ~(1 << LISTEN | 1 << TIME_WAIT | 1 << CLOSE)


def survey(
    view: "View", leg: Leg, states: int = CONNECTED, unix: bool = False,
    bound: "Optional[list[Listener]]" = None,
) -> Survey:  # fmt: skip
    """All that is known of the TCP connections of `leg` in `states`.

    With `unix` the sessions over Unix sockets of the servers found on a server leg are in it, as
    their titles tell of them. `bound` are the listeners on its ports, where these were just read.
    Raises SourceError.
    """
    found = Survey(view.files.wall_clock())
    for reader in view.reader.each:
        # (Of several places they do not tell which they are in.)
        place = _Place(view, reader, found, bound if len(view.reader.each) == 1 else None)
        for port in leg.ports:
            if leg.server:
                place.add_server_leg(leg, port, states, unix)
            else:
                place.add_client_leg(leg, port, states)
    return found


class _Server:
    """The connections that some listeners of one port accepted, and their backends if these are a
    PostgreSQL server's.
    """

    __slots__ = ("backends", "listeners", "sockets")

    def __init__(
        self, listeners: "list[Listener]", sockets: "list[Socket]", backends: "Optional[Backends]"
    ) -> None:
        self.listeners = listeners
        self.sockets = sockets
        self.backends = backends


class _Place:
    """One place of a view, being surveyed."""

    def __init__(
        self, view: "View", reader: "SocketReader", found: Survey,
        bound: "Optional[list[Listener]]",
    ) -> None:  # fmt: skip
        self._bound = bound
        self._view = view
        self._reader = reader
        self._found = found
        self._table = view.processes()
        self._now = view.files.since_boot()
        self._servers: dict[int, list[_Server]] = {}
        self._local: set[int] = set()  # backends of Unix sessions that are in `found`

    def add_server_leg(self, leg: Leg, port: int, states: int, unix: bool) -> None:
        """Add the connections accepted on `port`."""
        accepts = leg.filter
        for server in self._find_servers(port):
            backends = server.backends
            listeners = leg.listeners(server.listeners)
            if listeners:
                self._found.add_server(listeners, backends is not None)
            wanted = [
                one
                for one in server.sockets
                if states >> one.state & 1
                and (accepts is None or accepts(one.local_address, one.remote_address))
            ]
            of: dict[Socket, Optional[Backend]] = {}
            if backends is not None:
                of = {one: backends.of_socket(one) for one in server.sockets}
            rest = [one for one in wanted if of.get(one) is None]
            # The other ends of those that come from this host.
            ends = {
                _mirrored(one): one
                for one in self._reader.sockets(Query((port,), False, CONNECTED, info=True))
            }
            clients = [end for end in (ends.get(one[1:5]) for one in wanted) if end is not None]
            holders = self._find_holders([*clients, *(rest if backends is None else [])])
            period = self._find_period(of, server.sockets) if rest else None
            at_most = None if backends is None else backends.postmaster_age
            for one in wanted:
                holder = holders.get(one.inode)
                limit = at_most if holder is None else holder.age
                end = ends.get(one[1:5])
                peer = None if end is None else holders.get(end.inode)
                row = connections.of_socket(one, SERVER, of.get(one), holder, period, limit, end)
                if end is not None and end.inode:
                    row["peer_uid"] = end.uid
                if peer is not None:
                    row["peer_pid"], row["peer_process"] = peer.pid, peer.command
                self._append(row, None if not server.listeners else backends is not None)
            if unix and backends is not None and accepts is None:
                for each in backends.local():
                    self._add_local(None, each)
                self._add_untold(backends, of)

    def _add_local(self, one: "Optional[UnixSocket]", backend: "Backend") -> None:
        """Add a session over a Unix socket, once."""
        if backend.pid not in self._local:
            self._local.add(backend.pid)
            self._append(connections.of_unix_socket(one, backend), True)

    def _add_untold(self, backends: Backends, of: "Mapping[Socket, Optional[Backend]]") -> None:
        """Add the sessions over Unix sockets of backends whose titles do not tell that they are:
        by their descriptors, or else say how many there may be. `of` are the backends that are
        known of the server's TCP connections; each other one of these has one, too.
        """
        known = {one.pid for one in of.values() if one is not None}
        untold = [one for one in backends.untold() if one.pid not in known | self._local]
        if not untold:
            return
        accepted = {
            one.inode: one
            for one in self._reader.unix(1 << ESTABLISHED, lambda one: one.path is not None)
            if isinstance(one, UnixSocket)
        }
        hidden = 0
        for each in untold:
            held = self._table.socket_inodes(each.pid)
            hidden += held is None
            for inode in accepted.keys() & (held or set()):
                self._add_local(accepted[inode], each)
        hidden -= sum(each is None and _was_asked_for(one) for one, each in of.items())
        if hidden > 0:
            self._found.notes.append(
                f"up to {plural(hidden, 'session')} over Unix sockets are not shown: of as many "
                "backends neither a title (it may be cut) nor a TCP connection tells what they "
                "are, which root and the server's user can see"
            )

    def add_client_leg(self, leg: Leg, port: int, states: int) -> None:
        """Add the connections opened from here to `port`."""
        sockets = self._reader.sockets(
            Query((port,), False, states, leg.filter, info=True, cgroup=True)
        )
        backends: dict[Ends, Optional[Backend]] = {}
        proven: dict[Ends, bool] = {}
        for server in self._find_servers(port):
            ends = {_mirrored(one): one for one in server.sockets}
            if server.listeners and any(one[1:5] in ends for one in sockets):
                self._found.add_server(server.listeners, server.backends is not None)
                proven.update(dict.fromkeys(ends, server.backends is not None))
            if server.backends is not None:
                for end, one in ends.items():
                    backends[end] = server.backends.of_socket(one)
        holders = self._find_holders(sockets)
        programs: dict[Optional[int], list[Socket]] = {}
        for one in sockets:
            holder = holders.get(one.inode)
            programs.setdefault(None if holder is None else holder.pid, []).append(one)
        for pid, held in programs.items():
            of = {one: backends.get(one[1:5]) for one in held}
            # Different programs may have different periods.
            period = None if pid is None else self._find_period(of, held)
            for one in held:
                holder = holders.get(one.inode)
                at_most = None if holder is None else holder.age
                row = connections.of_socket(one, CLIENT, of[one], holder, period, at_most)
                self._append(row, proven.get(one[1:5]))

    def _append(self, one: Connection, is_proven: "Optional[bool]") -> None:
        if self._reader.namespace is not None:
            one["namespace"] = self._reader.namespace.name
        self._found.add(one, is_proven)

    def _find_servers(self, port: int) -> "list[_Server]":
        """The servers that listen on `port`, each with the connections it accepted."""
        if port not in self._servers:
            self._servers[port] = self._look_for_servers(port)
        return self._servers[port]

    def _look_for_servers(self, port: int) -> "list[_Server]":
        accepted = self._reader.sockets(Query((port,), True, CONNECTED, info=True, cgroup=True))
        known = self._reader.listeners(port) if self._bound is None else self._bound
        bound = [one for one in known if one.port == port]
        if not bound:
            return [_Server([], accepted, None)]
        whole = self._backends(port, bound, bound, accepted)
        if whole is not None or len(bound) == 1:
            return [_Server(bound, accepted, whole)]
        # Different servers may listen at different addresses.
        servers = []
        by_listener: dict[Optional[int], list[Socket]] = {one.inode: [] for one in bound}
        for one in accepted:
            taker = accepting(one.local_address, bound)
            by_listener.setdefault(None if taker is None else taker.inode, []).append(one)
        for inode, sockets in by_listener.items():
            listeners = [each for each in bound if each.inode == inode]
            backends = self._backends(port, listeners, bound, sockets) if listeners else None
            servers.append(_Server(listeners, sockets, backends))
        return servers

    def _backends(
        self, port: int, listeners: "list[Listener]", bound: "list[Listener]",
        accepted: "list[Socket]",
    ) -> "Optional[Backends]":  # fmt: skip
        try:
            cluster, _ = find_cluster(self._view, self._reader, port, listeners, bound, accepted)
        except LimitUnknown:
            return None
        heard = {(one.remote_address, one.remote_port) for one in accepted if _was_asked_for(one)}
        return Backends(self._table, cluster, heard, self._now)

    def _find_period(
        self, of: "Mapping[Socket, Optional[Backend]]", sockets: "list[Socket]"
    ) -> "Optional[float]":
        """The keepalive period of `sockets`, which one server or one program holds; `of` are the
        backends that are known of them.
        """
        pairs = [(one, each.age) for one, each in of.items() if each and each.age is not None]
        interval = self._reader.setting("net/ipv4/tcp_keepalive_intvl") or DEFAULT_INTERVAL
        period = prove_period(pairs, interval)
        if period is None and not pairs:
            setting = self._reader.setting("net/ipv4/tcp_keepalive_time")
            if setting and confirm_setting(setting, sockets):
                period = setting
        return period

    def _find_holders(self, sockets: "list[Socket]") -> "dict[int, Holder]":
        """The processes that hold `sockets`, by inode, where descriptors may be read."""
        inodes, uids = {one.inode for one in sockets}, {one.uid for one in sockets}
        return find_holders(self._table, inodes, uids, self._now)


def _mirrored(one: "Socket") -> "Ends":
    return one.remote_address, one.remote_port, one.local_address, one.local_port


def _was_asked_for(one: "Socket") -> bool:
    """Whether there may be a session over an accepted connection: its client has sent something."""
    return bool(one.inode) and (one.info is None or one.info.bytes_received != 0)
