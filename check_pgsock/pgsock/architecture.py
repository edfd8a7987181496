"""The pooler architecture as a graph: who connects to whom, with how many connections; pure.

As JSON `nodes` are objects with

- `id`, `kind`: server (it owns endpoints), application (the processes of one program and user),
  user (any of its programs), host (an address), unknown
- `name`, `program`, `pids`, `uid`, `address`, and of a server `endpoints`, the names of its own,
  and `forwards_to`

and `edges` with

- `source` and `target`, the ids of nodes; `endpoint`, the name of the endpoint that the connections
  are to (elsewhere address and port); `connections`, how many are ESTABLISHED
- `known_by`, how it is known who connected: process (descriptors), address, or user (then a
  server is meant as the only one of that user which connects on); null for unknown
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock.legs import format_address, format_endpoint
from check_pgsock.servers.owners import OTHER
from check_pgsock.servers.programs import FORWARDER, POOLER, POSTGRESQL
from check_pgsock.text import clean

if TYPE_CHECKING:
    from check_pgsock.pgsock.links import Link
    from check_pgsock.servers.listeners import Endpoint

SERVER, APPLICATION, USER, HOST, UNKNOWN = "server", "application", "user", "host", "unknown"
BY_PROCESS, BY_USER, BY_ADDRESS = "process", "user", "address"

Key = tuple[Hashable, ...]  # of a node: its kind, and what makes it another


class Node(NamedTuple):
    """Something that connects, is connected to, or both; names are fit to print."""

    id: str
    kind: str
    name: str
    program: str | None
    pids: tuple[int, ...]
    uid: int | None
    address: str | None
    endpoints: tuple[str, ...] = ()
    forwards_to: str | None = None


class Edge(NamedTuple):
    """Connections from one node (its id) to an endpoint of another."""

    source: str
    target: str
    endpoint: str
    connections: int
    known_by: str | None


class Graph(NamedTuple):
    """Nodes, the servers first, and edges, the most connections first."""

    nodes: list[Node]
    edges: list[Edge]


def build_graph(
    endpoints: Sequence[Endpoint],
    links: Iterable[Link],
    user_name: Callable[[int], str],
    programs: Mapping[tuple[int, str], int],
) -> Graph:
    """The graph of `endpoints`, and of the connections that they and their owners have.

    `programs` are how many there are of each user and kind: see listeners.Found.
    """
    servers = _Servers(endpoints, programs)
    pids: dict[Key, set[int]] = {}
    counts: dict[tuple[Key, Key, str, str | None], int] = {}
    for link in links:
        source, known_by = servers.find_client(link)
        if link.endpoint is not None:
            target, name = _key_of(link.endpoint), link.endpoint.label
        elif link.address is not None and source[0] in (SERVER, USER) and source != (USER, 0):
            target, name = (HOST, link.address), format_endpoint(link.address, link.port)
        else:
            continue  # what else the owners' users do
        if link.client.pid is not None:
            pids.setdefault(source, set()).add(link.client.pid)
        counts[source, target, name, known_by] = counts.get((source, target, name, known_by), 0) + 1
    nodes = {
        key: _server_node(f"n{number}", members, user_name)
        for number, (key, members) in enumerate(servers.members.items())
    }
    others = {key for edge in counts for key in edge[:2]} - nodes.keys()
    for key in sorted(others, key=str):
        found = tuple(sorted(pids.get(key, ())))
        nodes[key] = _client_node(f"n{len(nodes)}", key, found, user_name)
    edges = [
        Edge(nodes[source].id, nodes[target].id, name, count, known_by)
        for (source, target, name, known_by), count in counts.items()
    ]
    names = {node.id: node.name for node in nodes.values()}
    edges.sort(key=lambda one: (-one.connections, names[one.source], one.endpoint))
    return Graph(list(nodes.values()), edges)


class _Servers:
    """The endpoints by the server that owns them, and the servers among the clients."""

    def __init__(
        self, endpoints: Iterable[Endpoint], programs: Mapping[tuple[int, str], int]
    ) -> None:
        self._programs = programs
        self.members: dict[Key, list[Endpoint]] = {}
        self._by_pid: dict[int, Key] = {}
        self._by_parent: dict[int, Key] = {}
        self._by_user: dict[int, dict[Key, str]] = {}  # with their kinds
        for one in endpoints:
            key = _key_of(one)
            self.members.setdefault(key, []).append(one)
            for process in one.owner.processes if one.owner is not None else ():
                assert one.owner is not None
                self._by_pid[process.pid] = key
                self._by_user.setdefault(process.uid, {})[key] = one.owner.kind
                if one.owner.kind != OTHER:
                    self._by_parent[process.pid] = key

    def find_client(self, link: Link) -> tuple[Key, str | None]:
        """The node that connected, and how it is known."""
        client = link.client
        if client.pid is not None:
            server = self._by_pid.get(client.pid) or self._by_parent.get(client.parent or 0)
            return server or (APPLICATION, client.command, client.uid), BY_PROCESS
        if client.address is not None:
            return (HOST, client.address), BY_ADDRESS
        if client.uid is None:
            return (UNKNOWN,), None
        server = self._find_by_user(client.uid, link.endpoint)
        return server or (USER, client.uid), BY_USER

    def _find_by_user(self, uid: int, endpoint: Endpoint | None) -> Key | None:
        """The one program of a user that is there to connect on; where it runs none, for
        connections to elsewhere its one server.
        """
        if uid == 0:
            return None  # root runs everything
        kinds: tuple[str, ...] = (POOLER, FORWARDER)
        number = sum(self._programs.get((uid, kind), 0) for kind in kinds)
        if not number and endpoint is None:
            kinds = (POSTGRESQL,)
            number = self._programs.get((uid, POSTGRESQL), 0)
        target = None if endpoint is None else _key_of(endpoint)
        servers = self._by_user.get(uid, {}).items()
        found = [key for key, kind in servers if kind in kinds and key != target]
        return found[0] if len(found) == number == 1 else None


def _key_of(one: Endpoint) -> Key:
    if one.owner is not None:
        return SERVER, tuple(each.pid for each in one.owner.processes)
    place = None if one.reader.namespace is None else one.reader.namespace.name
    return SERVER, place, one.listener.uid, one.name if one.port is None else one.port


def _server_node(number: str, members: Sequence[Endpoint], user_name: Callable[[int], str]) -> Node:
    first, names = members[0], tuple(dict.fromkeys(one.label for one in members))
    owner, uid = first.owner, first.listener.uid
    if owner is None:
        of = "" if uid is None else f" of {user_name(uid)}"
        return Node(number, SERVER, f"unknown program{of}", None, (), uid, None, names)
    pids = tuple(each.pid for each in owner.processes)
    likely = "" if all(one.is_proven for one in members) else "probably "
    program = clean(owner.command)
    name = f"{likely}{program}, {_say_pids(pids)}"
    target = None if owner.target is None else clean(owner.target)
    return Node(number, SERVER, name, program, pids, owner.processes[0].uid, None, names, target)


def _client_node(
    number: str, key: Key, pids: tuple[int, ...], user_name: Callable[[int], str]
) -> Node:
    kind, *what = key
    program = uid = address = None
    name = "unknown"
    if kind == APPLICATION:
        program, uid = clean(str(what[0])), int(str(what[1]))
        many = _say_pids(pids) if len(pids) == 1 else f"{len(pids)} processes"
        name = f"{program}, {user_name(uid)}, {many}"
    elif kind == USER:
        uid = int(str(what[0]))
        name = user_name(uid)
    elif kind == HOST and isinstance(what[0], bytes):
        name = address = format_address(what[0])
    return Node(number, str(kind), name, program, pids, uid, address)


def _say_pids(pids: tuple[int, ...]) -> str:
    return f"process{'' if len(pids) == 1 else 'es'} {', '.join(map(str, pids))}"
