"""Who is connected to what: the ESTABLISHED connections of endpoints and of their owners, read.

Each connection is seen once: those that an endpoint accepted by the accepted end, those that an
owner made to elsewhere by the end that connected. The accepted end of a Unix session is in the
network namespace of its client, whatever the one of the endpoint: it is looked for in all places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock.errors import SourceError
from check_pgsock.legs import listeners_at
from check_pgsock.pgsock.listener_rows import join_names, pids_of
from check_pgsock.servers.programs import POOLER, POSTGRESQL
from check_pgsock.sessions.holders import find_holders
from check_pgsock.sockets.model import ESTABLISHED, Listener, Query
from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket
from check_pgsock.text import plural
from check_pgsock.unix.leg import Sessions
from check_pgsock.unix.server import say_elsewhere

if TYPE_CHECKING:
    from check_pgsock.servers.listeners import Endpoint
    from check_pgsock.sockets.model import Socket
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.sockets.unix_sockets import AnyUnix
    from check_pgsock.view import View

    Ends = tuple[bytes, int, bytes, int]  # local address and port, remote address and port


class Party(NamedTuple):
    """Who connected: a process, or its user alone, or an address; nothing where none is known."""

    pid: int | None = None
    parent: int | None = None
    command: str | None = None
    uid: int | None = None
    address: bytes | None = None


class Link(NamedTuple):
    """One connection: to an endpoint, or to an address and port that is none of them."""

    client: Party
    endpoint: Endpoint | None
    address: bytes | None = None
    port: int | None = None


def read_links(view: View, endpoints: Sequence[Endpoint]) -> tuple[list[Link], list[str]]:
    """The connections that `endpoints` accepted, and those to elsewhere that users of their owners
    made; and sentences on what is missing of them. Raises SourceError.
    """
    links = _Links(view, endpoints)
    links.read()
    return links.found, links.notes or _say_elsewhere(view, endpoints)


def _say_elsewhere(view: View, endpoints: Iterable[Endpoint]) -> list[str]:
    """Sentences on the sessions over Unix sockets of PostgreSQL servers among `endpoints` that are
    in none of the places read.
    """
    servers: dict[tuple[int, ...], list[tuple[Endpoint, UnixListener]]] = {}
    for one, listener in _unix(endpoints):
        if one.owner is not None and one.owner.kind == POSTGRESQL:
            servers.setdefault(pids_of(one), []).append((one, listener))
    notes: dict[str, list[str]] = {}
    for mine in servers.values():
        sessions = Sessions()
        sessions.listeners = [listener for _, listener in mine]
        note = say_elsewhere(view, sessions)
        if note is not None:
            notes.setdefault(note, []).extend(one.label for one, _ in mine)
    return [f"{join_names(names)}: {note}" for note, names in notes.items()]


def say_other_unix(view: View, endpoints: Sequence[Endpoint]) -> list[str]:
    """A sentence on connections over Unix sockets that poolers among `endpoints` have made to
    others, as far as descriptors may be read. Raises SourceError.
    """
    table = view.processes()
    pids = {
        pid
        for one in endpoints
        if one.owner is not None and one.owner.kind == POOLER
        for pid in pids_of(one)
    }
    held = {inode for pid in pids for inode in table.socket_inodes(pid) or ()}
    chosen = {listener.path for _, listener in _unix(endpoints)}

    def is_session(one: AnyUnix) -> bool:
        return one.path is not None and one.path not in chosen

    number = 0
    for reader in view.reader.each if held else ():
        sessions = reader.unix(1 << ESTABLISHED, is_session)
        number += sum(isinstance(one, UnixSocket) and one.peer_inode in held for one in sessions)
    if not number:
        return []
    connections = plural(number, "connection")
    return [f"not shown: {connections} over Unix sockets to endpoints of other ports (drop -p)"]


def _unix(endpoints: Iterable[Endpoint]) -> list[tuple[Endpoint, UnixListener]]:
    return [(one, one.listener) for one in endpoints if isinstance(one.listener, UnixListener)]


class _Links:
    def __init__(self, view: View, endpoints: Sequence[Endpoint]) -> None:
        self.found: list[Link] = []
        self.notes: list[str] = []
        self._view = view
        self._endpoints = endpoints
        self._parties: dict[int, Party] = {}

    def read(self) -> None:
        places = {
            one.reader: one.reader.sockets(Query((), True, 1 << ESTABLISHED))
            for one in self._endpoints
        }
        unix = [self._read_unix(reader) for reader in self._view.reader.each]
        ends = {reader: {one[1:5]: one for one in sockets} for reader, sockets in places.items()}
        accepted: list[tuple[list[Endpoint], Socket, Socket | None]] = []
        outgoing: list[Socket] = []
        users = self._users()
        for reader, sockets in places.items():
            ports = self._by_port(reader)
            listened = {one.port for one in reader.listeners()}
            others = [each for other, each in ends.items() if other is not reader]
            for one in sockets:
                bound = ports.get(one.local_port)
                if bound is not None:
                    client = _find_end(one, ends[reader], others)
                    accepted.append((_taking(one, bound), one, client))
                elif one.uid in users and one.inode and one.local_port not in listened:
                    outgoing.append(one)
        clients = [client for _, _, client in accepted if client is not None]
        peers = [peer for each in unix for _, peer in each if peer is not None]
        shared = [one for taking, one, _ in accepted if len(taking) > 1]
        self._read_holders([*clients, *outgoing, *shared], peers)
        reached = {client.inode for client in clients}
        for taking, one, client in accepted:
            party = Party(address=one.remote_address) if client is None else self._party(client)
            self.found.append(Link(party, self._choose(taking, one)))
        for each in unix:
            self.found += [
                Link(Party() if peer is None else self._party(peer), endpoint)
                for endpoint, peer in each
            ]
        for one in outgoing:
            if one.inode not in reached:
                link = Link(self._party(one), None, one.remote_address, one.remote_port)
                self.found.append(link)

    def _users(self) -> set[int]:
        owners = [one.owner for one in self._endpoints if one.owner is not None]
        return {process.uid for owner in owners for process in owner.processes}

    def _by_port(self, reader: SocketReader) -> dict[int, list[Endpoint]]:
        found: dict[int, list[Endpoint]] = {}
        for one in self._endpoints:
            if one.reader is reader and isinstance(one.listener, Listener):
                found.setdefault(one.listener.port, []).append(one)
        return found

    def _read_unix(self, reader: SocketReader) -> list[tuple[Endpoint, UnixSocket | None]]:
        """The sessions of clients in a place over any Unix endpoint, with the clients' ends."""
        mine = _unix(self._endpoints)

        def is_session(one: AnyUnix) -> bool:
            return isinstance(one, UnixSocket) and one.inode != 0 and one.peer_inode != 0

        if not mine:
            return []
        try:
            sessions = reader.unix(1 << ESTABLISHED, is_session)
        except SourceError as error:
            self.notes.append(f"sessions over Unix sockets are not shown: {error}")
            return []
        found = [
            (_accepting(one, reader, mine), one) for one in sessions if isinstance(one, UnixSocket)
        ]
        peers = reader.unix_peers(one for endpoint, one in found if endpoint is not None)
        return [
            (endpoint, peers.get(one.peer_inode or 0))
            for endpoint, one in found
            if endpoint is not None
        ]

    def _read_holders(self, sockets: Iterable[Socket], unix: Iterable[UnixSocket]) -> None:
        ends = [(one.inode, one.uid) for one in sockets]
        ends += [(one.inode, one.uid) for one in unix if one.uid is not None]
        table = self._view.processes()
        now = self._view.files.since_boot()
        holders = find_holders(table, {end[0] for end in ends}, {end[1] for end in ends}, now)
        commands = table.commands() if holders else {}
        for inode, uid in ends:
            holder = holders.get(inode)
            if holder is not None:
                _, parent = commands.get(holder.pid, ("", 0))
                self._parties[inode] = Party(holder.pid, parent, holder.command, uid)

    def _choose(self, taking: list[Endpoint], one: Socket) -> Endpoint:
        """The endpoint that accepted a connection: where several share a port, its holder's."""
        holder = self._party(one).pid
        for each in taking:
            if each.owner and holder in {process.pid for process in each.owner.processes}:
                return each
        return taking[0]

    def _party(self, one: Socket | UnixSocket) -> Party:
        return self._parties.get(one.inode) or Party(uid=one.uid if one.inode else None)


def _find_end(
    one: Socket, ends: dict[Ends, Socket], others: list[dict[Ends, Socket]]
) -> Socket | None:
    """The client's end of an accepted connection: in the same place, or in another."""
    mirrored = (one.remote_address, one.remote_port, one.local_address, one.local_port)
    found = ends.get(mirrored)
    if found is None and not _is_loopback(one.remote_address):
        found = next((each[mirrored] for each in others if mirrored in each), None)
    return found


def _accepting(
    one: UnixSocket, reader: SocketReader, endpoints: Iterable[tuple[Endpoint, UnixListener]]
) -> Endpoint | None:
    """The endpoint that accepted the session `one` of a client in the place of `reader`.

    Told by its socket file. Where either end has none it is told by name, in the same place
    first: procfs tells no files, and an abstract name is known in one place alone (unix(7)).
    """
    named = [
        (each, listener)
        for each, listener in endpoints
        if listener.path == one.path
        if each.reader is reader or not listener.path.startswith(b"\0")
    ]
    for each, listener in named:
        if one.file is not None and listener.file == one.file:
            return each
    alike = [each for each, listener in named if one.file is None or listener.file is None]
    return min(alike, key=lambda each: each.reader is not reader, default=None)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def _taking(one: Socket, bound: list[Endpoint]) -> list[Endpoint]:
    """The endpoints of one port that take connections like this one: several that share a port
    (SO_REUSEPORT).
    """
    inodes = {
        each.inode
        for each in listeners_at(
            one.local_address,
            [each.listener for each in bound if isinstance(each.listener, Listener)],
        )
    }
    return [each for each in bound if each.listener.inode in inodes] or bound
