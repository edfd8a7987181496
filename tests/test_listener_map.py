"""The pooler architecture: the graph of made-up connections, its forms, and real servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.architecture import Edge, Graph, Node, build_graph
from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.hosts import LOCAL, NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.pgsock.links import Link, Party
from check_pgsock.pgsock.map_output import dot_lines, text_lines
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import Process
from check_pgsock.recording.replay import open_recording
from check_pgsock.servers.listeners import Endpoint
from check_pgsock.servers.owners import Owner
from check_pgsock.servers.programs import FORWARDER, POOLER, POSTGRESQL
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.pooled_reader import open_namespaces
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.unix.leg import read_sessions
from check_pgsock.unix.server import say_elsewhere
from check_pgsock.view import View
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.forwarding import forwarder
from tests.moment import LOCAL4
from tests.test_pgsock_listeners import STRANGER, listeners

READER = SocketReader("auto", None, Deadline(5))
REMOTE = bytes([10, 0, 0, 5])


def endpoint(
    port: int, kind: str | None, pids: tuple[int, ...] = (), uid: int = 26, proven: bool = True,
    target: str | None = None,
) -> Endpoint:  # fmt: skip
    """An endpoint on loopback."""
    found = Endpoint(READER, Listener(LOCAL4, port, uid, port, port, 0, 128))
    if kind is not None:
        command = {POSTGRESQL: "postgres", POOLER: "pgbouncer", FORWARDER: "docker-proxy"}[kind]
        each = tuple(Process(pid, 1, command, uid, []) for pid in pids)
        found.owner = Owner(kind, each, "", proven, target)
    return found


def name_user(uid: int) -> str:
    """What build_graph() calls users."""
    return f"user {uid}"


DATABASE = endpoint(5432, POSTGRESQL, (80,))
POOL = endpoint(6432, POOLER, (77,))
OTHER_POOL = endpoint(6433, POOLER, (78,))
UNKNOWN = endpoint(5433, None)
PROXY = endpoint(5434, FORWARDER, (99,), 0, False, "172.17.0.2:5432")
APPLICATION = Party(900, 1, "py|thon", 1000)


def graph_of(endpoints: list[Endpoint], links: list[Link]) -> Graph:
    """The graph, where no other programs run than those of the endpoints."""
    owners = [one.owner for one in endpoints if one.owner is not None]
    programs = Counter((one.processes[0].uid, one.kind) for one in owners)
    return build_graph(endpoints, links, name_user, programs)


def edges(endpoints: list[Endpoint], links: list[Link]) -> list[tuple[str, str, str, int, Any]]:
    """The edges of the graph, with the names of their nodes."""
    graph = graph_of(endpoints, links)
    names = {node.id: node.name for node in graph.nodes}
    return [(names[one.source], names[one.target], *one[2:]) for one in graph.edges]


def test_processes_are_known_by_their_servers() -> None:
    backend = Party(81, 80, "postgres", 26)
    found = edges(
        [POOL, DATABASE],
        [
            *[Link(APPLICATION, POOL)] * 3,
            Link(APPLICATION._replace(pid=901), POOL),
            *[Link(Party(77, 1, "pgbouncer", 26), DATABASE)] * 2,
            Link(Party(address=REMOTE), DATABASE),
            Link(backend, None, REMOTE, 5432),
            Link(APPLICATION, None, REMOTE, 5432),  # none of the endpoints' business
        ],
    )
    pool, database = "pgbouncer, process 77", "postgres, process 80"
    assert found == [
        ("py?thon, user 1000, 2 processes", pool, "127.0.0.1:6432", 4, "process"),
        (pool, database, "127.0.0.1:5432", 2, "process"),
        ("10.0.0.5", database, "127.0.0.1:5432", 1, "address"),
        (database, "10.0.0.5", "10.0.0.5:5432", 1, "process"),
    ]


def test_a_user_alone_stands_for_its_one_pooler() -> None:
    user = Party(uid=26)
    links = [Link(user, DATABASE), Link(user, POOL), Link(user, None, REMOTE, 5432)]
    pool, database = "pgbouncer, process 77", "postgres, process 80"
    assert edges([POOL, DATABASE], links) == [
        (pool, "10.0.0.5", "10.0.0.5:5432", 1, "user"),
        (pool, database, "127.0.0.1:5432", 1, "user"),
        ("user 26", pool, "127.0.0.1:6432", 1, "user"),  # not itself
    ]
    # With two of them, either may be it.
    assert edges([POOL, OTHER_POOL, DATABASE], links) == [
        ("user 26", "10.0.0.5", "10.0.0.5:5432", 1, "user"),
        ("user 26", database, "127.0.0.1:5432", 1, "user"),
        ("user 26", pool, "127.0.0.1:6432", 1, "user"),
    ]
    # Also with one that is not shown.
    programs = {(26, POOLER): 2, (26, POSTGRESQL): 1}
    graph = build_graph([POOL, DATABASE], links[:1], name_user, programs)
    assert graph.edges == [Edge("n2", "n1", "127.0.0.1:5432", 1, "user")]
    assert graph.nodes[2].name == "user 26"
    # A server without a pooler: it may be a client of that user, but elsewhere only it goes.
    assert edges([DATABASE], links[::2]) == [
        (database, "10.0.0.5", "10.0.0.5:5432", 1, "user"),
        ("user 26", database, "127.0.0.1:5432", 1, "user"),
    ]
    assert edges([PROXY], [Link(Party(uid=0), None, REMOTE, 22)]) == []  # root runs everything


def test_what_is_not_known() -> None:
    graph = graph_of([UNKNOWN, PROXY], [Link(Party(), UNKNOWN)])
    assert graph.nodes == [
        Node("n0", "server", "unknown program of user 26", None, (), 26, None, ("127.0.0.1:5433",)),
        Node("n1", "server", "probably docker-proxy, process 99", "docker-proxy", (99,), 0, None,
             ("127.0.0.1:5434",), "172.17.0.2:5432"),
        Node("n2", "unknown", "unknown", None, (), None, None),
    ]  # fmt: skip
    assert graph.edges == [Edge("n2", "n0", "127.0.0.1:5433", 1, None)]


GRAPH = graph_of(
    [POOL, DATABASE, PROXY],
    [
        *[Link(APPLICATION, POOL)] * 3,
        *[Link(Party(uid=26), DATABASE)] * 2,
        Link(Party(uid=26), None, REMOTE, 5432),
    ],
)


def test_the_text() -> None:
    limits = {"127.0.0.1:6432": 100, "127.0.0.1:5432": 97, "127.0.0.1:5434": None}
    assert list(text_lines(GRAPH, limits)) == [
        "pgbouncer, process 77",
        "  127.0.0.1:6432: 3 connections of 100",
        "    <- 3 from py?thon, user 1000, process 900",
        "  -> 2 to 127.0.0.1:5432 of postgres, process 80 (by its user alone)",
        "  -> 1 to 10.0.0.5:5432 (by its user alone)",
        "postgres, process 80",
        "  127.0.0.1:5432: 2 connections of 97",
        "    <- 2 from pgbouncer, process 77 (by its user alone)",
        "probably docker-proxy, process 99",
        "  127.0.0.1:5434: 0 connections",
        "  forwards to 172.17.0.2:5432",
    ]


def test_many_clients_are_summed_up() -> None:
    links = [Link(Party(address=bytes([10, 0, 0, last])), POOL) for last in range(1, 24)]
    lines = list(text_lines(graph_of([POOL], links), {}))
    assert lines[1] == "  127.0.0.1:6432: 23 connections"
    assert lines[-1] == "    <- 3 from 3 more"
    assert len(lines) == 23


def test_graphviz() -> None:
    assert list(dot_lines(GRAPH)) == [
        "digraph pgsock {",
        "  rankdir=LR;",
        "  node [shape=ellipse];",
        '  n0 [shape=box, label="pgbouncer, process 77\\n127.0.0.1:6432"];',
        '  n1 [shape=box, label="postgres, process 80\\n127.0.0.1:5432"];',
        '  n2 [shape=box, label="probably docker-proxy, process 99\\n127.0.0.1:5434\\n'
        'forwards to 172.17.0.2:5432"];',
        '  n3 [label="py?thon, user 1000, process 900"];',
        '  n4 [label="10.0.0.5"];',
        '  n3 -> n0 [label="3"];',
        '  n0 -> n1 [label="2", style=dashed];',
        '  n0 -> n4 [label="1", style=dashed];',
        "}",
    ]


def test_no_name_leaves_its_string() -> None:
    names = ('a"];x->y', "back\\", '\\"', "\\N")
    nodes = [Node(f"n{n}", "host", name, None, (), None, None) for n, name in enumerate(names)]
    lines = list(dot_lines(Graph(nodes, [])))[3:-1]
    # A string ends at the first quote that no backslash stands before.
    quoted = [re.fullmatch(r'  n\d \[label="((?:[^"\\]|\\.)*)"\];', line) for line in lines]
    assert [one and re.sub(r"\\(.)", r"\1", one[1]) for one in quoted] == list(names)


def idle_user() -> str:
    """A user who runs nothing: what a stranger sees of its connections is this test's."""
    busy = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            busy.add(process.stat().st_uid)
    users = ("games", "irc", "list", "lp", "mail", "man", "news", "proxy", "uucp", "www-data")
    for user in users:
        with contextlib.suppress(KeyError):
            if pwd.getpwnam(user).pw_uid not in busy:
                return user
    pytest.skip("this machine has no user who runs nothing")


def test_the_map_of_real_servers(make_pg: MakePg, sessions: OpenSessions) -> None:
    support.require("root")
    support.require("pgbouncer")
    user = idle_user()
    pg = make_pg(settings={"max_connections": 20}, user=user)
    with PgBouncerServer(pg, user=user) as pgbouncer:
        check_the_map(pg, pgbouncer, sessions)


def check_the_map(pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions) -> None:
    """With sessions on both, over TCP and a Unix socket."""
    for session in sessions(pg, 3) + sessions(pgbouncer, 2):
        session.query("SELECT 1")
    ports = ("-p", str(pg.port), "-p", str(pgbouncer.port))
    with pg.administrator() as over_socket:
        over_socket.query("SELECT 1")
        found = listeners("--map", *ports)
        text = support.run("pgsock", "listeners", "--map", *ports)
        dot = support.run("pgsock", "listeners", "--dot", *ports)
        stranger = listeners("--map", *ports, user=STRANGER)
    application = f"{support.own_command()}, user root, process {os.getpid()}"
    server, pooler = f"postgres, process {pg.pid}", f"pgbouncer, process {pgbouncer.pid}"
    tcp, pool = f"127.0.0.1:{pg.port}", f"127.0.0.1:{pgbouncer.port}"
    path = str(pg.socket_directory / f".s.PGSQL.{pg.port}")
    assert named_edges(found) == {
        (application, server, tcp, 3, "process"),
        (application, server, path, 1, "process"),
        (application, pooler, pool, 2, "process"),
        (pooler, server, tcp, 2, "process"),
    }
    # Only what the kernel tells everybody: users.
    assert named_edges(stranger) == {
        ("user root", server, tcp, 3, "user"),
        ("user root", server, path, 1, "user"),
        ("user root", f"probably {pooler}", pool, 2, "user"),
        (f"probably {pooler}", server, tcp, 2, "user"),
    }
    pool_path = str(pgbouncer.socket_directory / f".s.PGSQL.{pgbouncer.port}")
    blocks = [
        [
            server,
            f"  {tcp}: 5 connections of 17",
            f"    <- 3 from {application}",
            f"    <- 2 from {pooler}",
            f"  {path}: 1 connection of 17",
            f"    <- 1 from {application}",
        ],
        [
            pooler,
            f"  {pool}: 2 connections of 100",
            f"    <- 2 from {application}",
            f"  {pool_path}: 0 connections of 100",
            f"  -> 2 to {tcp} of {server}",
        ],
    ]
    blocks.sort(key=lambda block: int(block[1].partition(":")[2].partition(":")[0]))
    assert text == (0, "".join(f"{line}\n" for block in blocks for line in block), "")
    assert (dot.code, dot.err) == (0, "")
    assert dot.out.startswith("digraph pgsock {\n")
    assert dot.out.count(" -> ") == 4


def named_edges(found: Any) -> set[tuple[Any, ...]]:
    """The edges of the JSON, with the names of their nodes."""
    names = {node["id"]: node["name"] for node in found["nodes"]}
    keys = ("endpoint", "connections", "known_by")
    return {
        (names[one["source"]], names[one["target"]], *(one[key] for key in keys))
        for one in found["edges"]
    }


def test_sessions_of_clients_in_other_network_namespaces(
    make_pg: MakePg, two_hosts: tuple[NamespaceHost, NamespaceHost], tmp_path: Path
) -> None:
    there, _ = two_hosts
    user = idle_user()
    pg = make_pg(user=user)  # no other server's: it is the user's sessions that are counted
    path = str(pg.socket_directory / f".s.PGSQL.{pg.port}")
    port, both = ("-p", str(pg.port)), ("--netns", "self", "--netns", str(there.process.pid))
    client = f"{support.own_command()}, user root, process {os.getpid()}"
    server = f"postgres, process {pg.pid}"
    note = (
        f"{path}: not counted: at least 2 sessions over Unix sockets of the server, of clients in "
        "other network namespaces (--netns adds them)"
    )
    with contextlib.ExitStack() as stack:
        for host in (LOCAL, there, there):
            with host.entered():
                stack.enter_context(Session.connect(str(pg.socket_directory), pg.port))
        here = listeners("--map", *port)
        assert named_edges(here) == {(client, server, path, 1, "process")}
        assert here["notes"] == [note]
        text = support.run("pgsock", "listeners", "--map", *port)
        assert text.out.splitlines()[-1] == note
        # To a stranger they may be another server's of the user, which has but one.
        stranger = listeners("--map", *port, user=STRANGER)
        assert note.replace("server,", "server, or of another of its user,") in stranger["notes"]
        whole = listeners("--map", *port, *both)
        assert named_edges(whole) == {(client, server, f"{path} in self", 3, "process")}
        assert whole["notes"] == []
        # There procfs alone may be read: by name, and of nobody known.
        stranger = listeners("--map", *port, *both, user=STRANGER)
        assert named_edges(stranger) == {
            ("user root", server, f"{path} in self", 1, "user"),
            ("unknown", server, f"{path} in self", 2, None),
        }
        # What `pgsock connections --socket` says comes of the same.
        deadline = Deadline(20)
        for names, expected in ((["self"], note.partition(": ")[2]), (both[1::2], None)):
            view = View(open_namespaces(names, "auto", deadline), LiveProc("/proc"), deadline)
            assert say_elsewhere(view, read_sessions(view.reader, (path,))) == expected
        file = tmp_path / "moment"
        done = support.run("pgsock", "record", str(file))
        assert done.code == 0, done
        view = open_recording(str(file), None, (), deadline)
        recorded = read_sessions(view.reader, (path,))
        assert len(recorded.connected) == 1
        assert say_elsewhere(view, recorded) is None  # titles of another moment tell nothing


def test_poolers_that_share_a_port(pg: PostgresServer) -> None:
    support.require("root")
    support.require("pgbouncer")
    settings = {"so_reuseport": 1}
    with (
        PgBouncerServer(pg, settings=settings) as one,
        PgBouncerServer(pg, settings=settings, port=one.port) as other,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(12):
            stack.enter_context(one.connect())
        found = named_edges(listeners("--map", "-p", str(one.port)))
        held = {
            f"pgbouncer, process {pooler.pid}": sum(
                row["addr"] == "127.0.0.1" for row in pooler.console("SHOW CLIENTS")
            )
            for pooler in (one, other)
        }
    name = f"127.0.0.1:{one.port}"
    counted = {edge[1]: edge[3] for edge in found if edge[2] == name}
    assert counted == {pooler: count for pooler, count in held.items() if count}
    assert sum(held.values()) == 12


def test_a_forwarder_connects_on(pg: PostgresServer) -> None:
    support.require("root")
    port = processes.free_port()
    arguments = [f"TCP-LISTEN:{port},fork", f"TCP:127.0.0.1:{pg.port}"]
    ends = ("127.0.0.1", port), ("127.0.0.1", pg.port)
    with forwarder("socat", arguments, *ends) as pid, Session.connect("127.0.0.1", port):
        found = listeners("--map", "-p", str(pg.port), "-p", str(port))
    client = f"{support.own_command()}, user root, process {os.getpid()}"
    assert named_edges(found) == {
        (client, f"socat, process {pid}", f"127.0.0.1:{port}", 1, "process"),
        (f"socat, process {pid}", f"postgres, process {pg.pid}", f"127.0.0.1:{pg.port}", 1,
         "process"),
    }  # fmt: skip
    (node,) = (one for one in found["nodes"] if one["program"] == "socat")
    assert node["forwards_to"] == f"127.0.0.1:{pg.port}"
