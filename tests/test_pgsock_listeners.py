"""`pgsock listeners` on real servers: every value of every endpoint, as root and as a stranger."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
from typing import Any, Union

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import LOCAL, Host, NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.reader import SocketReader
from tests import restricted, support
from tests.conftest import Installations, MakePg, OpenSessions
from tests.forwarding import docker_proxy, forwarder

STRANGER = "daemon"
AnyServer = Union[PostgresServer, PgBouncerServer]

HOLDS = "it holds the listener"
TITLES = "the titles of its backends name connections of the port"
RUN = "the listener was made in one go with its TCP listeners"
BY_PORT = "the other listeners on this port are its own"
INI = "its configuration file names the listener"
OWNER = "that takes root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together"
DEFERS = (
    "a listener with TCP_DEFER_ACCEPT, as PgBouncer has it, counts connections that were made "
    "among them; only of PostgreSQL's it is known to have none"
)


def listeners(*arguments: str, user: str | None = None, on: Host = LOCAL) -> Any:
    """The JSON of a run that ends well."""
    done = support.run("pgsock", "listeners", "--json", *arguments, user=user, on=on)
    assert (done.code, done.err) == (0, ""), done
    found = json.loads(done.out)
    assert (found["command"], found["version"]) == ("listeners", 1)
    return found


def of(found: Any, *keys: str) -> list[list[Any]]:
    """Some values of each endpoint."""
    return [[one[key] for key in keys] for one in found["endpoints"]]


def user_of(server: AnyServer) -> tuple[int, str]:
    """The user that a server runs as."""
    uid = os.stat(f"/proc/{server.pid}").st_uid
    return uid, pwd.getpwuid(uid).pw_name


def row(server: AnyServer, unix: bool = False, **changes: Any) -> dict[str, Any]:
    """All that root sees of a server's endpoint, but for its age, with these changes."""
    uid, user = user_of(server)
    path = str(server.socket_directory / f".s.PGSQL.{server.port}")
    return {
        "network_namespace": None,
        "family": "unix" if unix else "ipv4",
        "address": None if unix else "127.0.0.1",
        "port": server.port,
        "path": path if unix else None,
        "pids": [server.pid],
        "uid": uid,
        "user": user,
        "owner_is_proven": True,
        "owner_known_by": HOLDS,
        "forwards_to": None,
        "accept_queue": 0,
        "drops": None if unix else 0,
        "limit_pending": None,
        "not_seen": {},
        **changes,
    }


def pg_row(server: PostgresServer, unix: bool = False, **changes: Any) -> dict[str, Any]:
    """That of a PostgreSQL server with 20 connections."""
    known = {
        "kind": "postgresql",
        "program": "postgres",
        "data_directory": str(server.data_directory),
        "major_version": server.version,
        "configuration_file": None,
        "backlog": 40 if server.version >= 16 else 84,
        "limit_usable_slots": 17,
        "limit_max_connections": 20,
        "limit_reserved_slots": 3,
        "limit_reserved_is_assumed": False,
        "limit_source": "pg_control",
    }
    return row(server, unix, **{**known, **changes})


def pgbouncer_row(server: PgBouncerServer, unix: bool = False, **changes: Any) -> dict[str, Any]:
    """That of a PgBouncer."""
    known = {
        "kind": "pooler",
        "program": "pgbouncer",
        "data_directory": None,
        "major_version": None,
        "configuration_file": str(server.ini),
        "backlog": 128,
        "limit_usable_slots": 100,
        "limit_max_connections": 100,
        "limit_reserved_slots": None,
        "limit_reserved_is_assumed": None,
        "limit_source": f"max_client_conn in {server.ini}",
    }
    return row(server, unix, **{**known, **changes})


def without_ages(found: Any) -> list[dict[str, Any]]:
    """The endpoints without the ages of their owners, which are this test's."""
    rows = found["endpoints"]
    for one in rows:
        assert 0 <= one.pop("started_seconds_ago") < 3600
    return list(rows)


def test_root_sees_everything(pg: PostgresServer, pgbouncer: PgBouncerServer) -> None:
    support.require("root")
    found = listeners("-p", str(pg.port))
    assert without_ages(found) == [pg_row(pg), pg_row(pg, unix=True)]
    assert found["notes"] == []
    found = listeners("-p", str(pgbouncer.port))
    assert without_ages(found) == [
        pgbouncer_row(pgbouncer, drops=None, not_seen={"drops": DEFERS}),
        pgbouncer_row(pgbouncer, unix=True),
    ]
    both = listeners()["endpoints"]
    assert {pg.port, pgbouncer.port} <= {one["port"] for one in both}


def test_a_stranger_sees_what_titles_and_files_prove(
    pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    support.require("root")
    sessions(pg, 2)
    found = listeners("-p", str(pg.port), user=STRANGER)
    rights = f": that takes root, or the user of process {pg.pid}"
    pending = f"postgres -C may not be run or does not answer{rights}"
    limit: dict[str, Any] = {
        "limit_source": "the listener's backlog of 40",
        "limit_reserved_is_assumed": True,
    }
    not_seen = {"limit_pending": pending}
    version: int | None = pg.version
    if pg.version < 16:
        limit = dict.fromkeys([key for key in pg_row(pg) if key.startswith("limit_")])
        not_seen = {
            "limit": "its command line does not set max_connections, pg_control: Permission "
            "denied, postgres -C may not be run or does not answer, the backlog does not tell it "
            f"on version 15{rights}"
        }
    assert without_ages(found) == [
        pg_row(pg, owner_known_by=TITLES, not_seen=not_seen, major_version=version, **limit),
        pg_row(pg, True, owner_known_by=RUN, not_seen=not_seen, major_version=version, **limit),
    ]
    found = listeners("-p", str(pgbouncer.port), user=STRANGER)
    likely: dict[str, Any] = {
        "owner_is_proven": False,
        "owner_known_by": INI,
        "not_seen": {"owner": OWNER},
    }
    not_seen = {**likely["not_seen"], "drops": DEFERS}
    assert without_ages(found) == [
        pgbouncer_row(pgbouncer, drops=None, **{**likely, "not_seen": not_seen}),
        pgbouncer_row(pgbouncer, unix=True, **likely),
    ]
    name = f"127.0.0.1:{pgbouncer.port}"
    assert found["notes"] == [
        f"not seen: who holds {name}, {found['endpoints'][1]['path']} ({OWNER})",
        f"not seen: drops of {name} ({DEFERS})",
    ]


def test_what_the_kernel_counts_as_dropped_may_have_been_accepted(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations
) -> None:
    support.require("pgbouncer")
    _, host = two_hosts  # whose counters are these servers' alone

    def count(name: str) -> int:
        with host.entered(), open("/proc/thread-self/net/netstat", encoding="ascii") as file:
            names, values = (line.split() for line in file if line.startswith("TcpExt:"))
        return int(values[names.index(name)])

    with (
        PostgresServer(
            installations.get(support.newest_major()), host=host, hba=["host all all all trust"]
        ) as pg,
        PgBouncerServer(pg) as pooler,
        contextlib.ExitStack() as stack,
    ):
        for server in (pg, pooler):
            for _ in range(5):
                stack.enter_context(server.connect()).query("SELECT 1")
        with host.entered():
            reader = SocketReader("netlink", None, Deadline(5))
            drops = {one.port: one.drops for one in reader.listeners(drops=True)}
        assert drops[pg.port] == 0
        assert drops[pooler.port] == count("TCPDeferAcceptDrop") >= 5
        assert count("ListenDrops") == 0
        ports = ("-p", str(pg.port), "-p", str(pooler.port))
        found = listeners(*ports, on=host)["endpoints"]
        told = {one["port"]: one["drops"] for one in found if one["family"] == "ipv4"}
        assert told == {pg.port: 0, pooler.port: None}
        done = support.run("pgsock", "listeners", "-p", str(pooler.port), on=host)
        line = done.out.splitlines()[1].split()
        assert (line[0], line[6:9]) == (f"192.0.2.2:{pooler.port}", ["0", "128", "-"])


def test_the_table(pg: PostgresServer) -> None:
    support.require("root")
    done = support.run("pgsock", "listeners", "-p", str(pg.port))
    assert (done.code, done.err) == (0, "")
    heading, *lines = done.out.splitlines()
    assert heading.split("  ")[0] == "endpoint"
    backlog = "40" if pg.version >= 16 else "84"
    common = ["postgresql", "postgres", str(pg.pid), user_of(pg)[1], str(pg.data_directory), "0"]
    assert [line.split() for line in lines] == [
        [f"127.0.0.1:{pg.port}", *common, backlog, "0", "17", "pg_control"],
        [str(pg.socket_directory / f".s.PGSQL.{pg.port}"), *common, backlog, "-", "17",
         "pg_control"],
    ]  # fmt: skip


def test_two_clusters_of_one_user_are_told_apart(make_pg: MakePg, sessions: OpenSessions) -> None:
    one, other = make_pg(settings={"listen_addresses": "127.0.0.1,::1"}), make_pg()
    sessions(one)
    sessions(other)
    for user in (None, STRANGER):
        found = listeners("-p", str(one.port), "-p", str(other.port), user=user)
        expected = sorted(
            [
                *[[one.port, family, [one.pid], True] for family in ("ipv4", "ipv6", "unix")],
                *[[other.port, family, [other.pid], True] for family in ("ipv4", "unix")],
            ],
            key=lambda values: values[:2],
        )
        assert of(found, "port", "family", "pids", "owner_is_proven") == expected


def test_two_clusters_on_one_port_are_told_apart(make_pg: MakePg, sessions: OpenSessions) -> None:
    """At different addresses: each by the clients that its listener accepted, also the limit."""
    one = make_pg()
    other = make_pg(
        port=one.port,
        settings={"listen_addresses": "127.0.0.2", "max_connections": 10},
        arguments=("-c", f"port={one.port}"),
    )
    sessions(one)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Session.connect("127.0.0.2", one.port))
        for user in (None, STRANGER):
            found = listeners("-p", str(one.port), user=user)
            assert of(found, "address", "pids", "owner_is_proven")[:2] == [
                ["127.0.0.1", [one.pid], True],
                ["127.0.0.2", [other.pid], True],
            ]
            assert sorted(of(found, "family", "pids")[2:]) == sorted(
                ["unix", [pg.pid]] for pg in (one, other)
            )
        for address, pg in (("127.0.0.1", one), ("127.0.0.2", other)):
            arguments = ("-p", str(one.port), "--address", address, "-vv")
            done = support.run("saturation", *arguments, user=STRANGER)
            assert done.code == 0
            assert f"(process {pg.pid})" in done.out


def test_a_socket_file_that_is_gone_is_said(make_pg: MakePg) -> None:
    support.require("root")
    pg = make_pg()
    path = pg.socket_directory / f".s.PGSQL.{pg.port}"
    path.unlink()
    done = support.run("pgsock", "listeners", "-p", str(pg.port))
    assert done.code == 0
    assert (
        f"{path}: its socket file is gone, nobody can connect to it any more"
        in done.out.splitlines()
    )


def test_a_server_makes_its_listeners_in_one_go(
    every_major: int, installations: Installations
) -> None:
    support.require("root")
    with (
        PostgresServer(
            installations.get(every_major), settings={"listen_addresses": "127.0.0.1,::1"}
        ) as pg,
        pg.connect(),
    ):
        found = listeners("-p", str(pg.port), user=STRANGER)
        assert of(found, "family", "pids")[:3] == [
            ["ipv4", [pg.pid]], ["ipv6", [pg.pid]], ["unix", [pg.pid]],
        ]  # fmt: skip
        proofs = [one for (one,) in of(found, "owner_known_by")]
        assert proofs[0] == TITLES
        # Inodes are given out by each processor: a server that changes it meanwhile has a gap.
        assert set(proofs[1:]) <= {TITLES, RUN, BY_PORT}


def test_both_families_and_one_listener_for_both(make_pg: MakePg, sessions: OpenSessions) -> None:
    pg = make_pg(settings={"listen_addresses": "*"})
    sessions(pg)
    found = listeners("-p", str(pg.port), user=STRANGER)
    assert of(found, "family", "address", "kind")[:2] == [
        ["ipv4", "0.0.0.0", "postgresql"],
        ["ipv6", "::", "postgresql"],
    ]
    port = processes.free_port()
    with forwarder("socat", [f"TCP6-LISTEN:{port},fork", "TCP:127.0.0.1:5432"], ("::", port)):
        found = listeners("-p", str(port))
        assert of(found, "family", "address", "kind", "program", "forwards_to") == [
            ["ipv6", "::", "forwarder", "socat", "127.0.0.1:5432"]
        ]


def test_poolers_that_share_a_port(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    support.require("root")
    settings = {"so_reuseport": 1}
    with (
        PgBouncerServer(pg, settings=settings) as one,
        PgBouncerServer(pg, settings=settings, port=one.port) as other,
    ):
        found = listeners("-p", str(one.port))
        assert {
            (each["family"], each["pids"][0], each["configuration_file"])
            for each in found["endpoints"]
        } == {
            (family, server.pid, str(server.ini))
            for family in ("ipv4", "unix")
            for server in (one, other)
        }
        found = listeners("-p", str(one.port), user=STRANGER)
        pids = sorted([one.pid, other.pid])
        assert of(found, "pids", "owner_is_proven", "limit_usable_slots")[:2] == [
            [pids, False, None], [pids, False, None],
        ]  # fmt: skip


def test_changes_that_are_pending(make_pg: MakePg) -> None:
    support.require("root")
    pg = make_pg(settings={"max_connections": 20})
    pg.configure({"max_connections": 30})
    found = listeners("-p", str(pg.port))
    text = "the configuration file says max_connections 30, in effect after a restart"
    assert of(found, "limit_usable_slots", "limit_pending") == [[17, text], [17, text]]
    names = f"127.0.0.1:{pg.port}, {found['endpoints'][1]['path']}"
    assert found["notes"] == [
        f"{names}: {text}", f"{names}: 3 reserved slots are assumed (the defaults)",
    ]  # fmt: skip
    support.require("pgbouncer")
    with PgBouncerServer(pg, max_client_conn=50) as pooler:
        assert of(listeners("-p", str(pooler.port)), "limit_pending") == [[None], [None]]
        changed = os.stat(pooler.ini).st_mtime + 60
        os.utime(pooler.ini, (changed, changed))
        text = f"{pooler.ini} has changed since the process started: SHOW CONFIG tells what is in "
        text += "effect"
        found = listeners("-p", str(pooler.port))
        assert of(found, "limit_usable_slots", "limit_pending") == [[50, text], [50, text]]


def test_a_configuration_file_that_may_not_be_read(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations
) -> None:
    support.require("pgbouncer")
    _, host = two_hosts  # no other pooler is there, and its usual port is free
    with (
        PostgresServer(installations.get(support.newest_major()), host=host) as pg,
        PgBouncerServer(pg, port=6432) as pooler,
    ):
        pooler.ini.chmod(0o600)
        found = listeners("-p", "6432", user=STRANGER, on=host)
        proof = "it is the only such program whose usual port this is"
        reason = (
            f"{pooler.ini} cannot be read, Permission denied: that takes root, or the user of "
            f"process {pooler.pid}"
        )
        keys = ("program", "owner_known_by", "configuration_file", "limit_source", "not_seen")
        expected = ["pgbouncer", proof, str(pooler.ini), None, {
            "limit": reason, "owner": OWNER, "drops": DEFERS,
        }]  # fmt: skip
        assert of(found, *keys)[0] == expected


def test_names_and_titles_make_no_server() -> None:
    support.require("root")
    port = processes.free_port()
    title = f"postgres: app app 127.0.0.1({port}) idle"
    with forwarder("postgres", [title], ("127.0.0.1", port), user="nobody") as pid:
        keys = ("kind", "program", "pids", "owner_is_proven", "not_seen")
        own = ["other", "postgres", [pid], True, {"drops": DEFERS}]
        assert of(listeners("-p", str(port)), *keys) == [own]
        assert of(listeners("-p", str(port), user=STRANGER), *keys) == [
            [None, None, [], None, {"owner": OWNER, "drops": DEFERS}]
        ]
        # To its own user it is what it is.
        assert of(listeners("-p", str(port), user="nobody"), *keys) == [own]


LISTEN_OVER_UNIX = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_socket_of_the_same_name_is_not_the_servers(make_pg: MakePg) -> None:
    support.require("root")
    account = accounts.account_of("nobody")
    assert account is not None
    with fresh_directory("pgsock-imitation-", executable=True) as directory:
        directory.chmod(0o755)
        accounts.own(directory, account)
        port = processes.free_port()
        path = str(directory / f".s.PGSQL.{port}")
        backlog = "40" if support.newest_major() >= 16 else "84"
        imitation = subprocess.Popen(
            [support.SYSTEM_PYTHON, "-c", LISTEN_OVER_UNIX, path, backlog],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory,
            user=account.uid, group=account.gid, extra_groups=[],
        )  # fmt: skip
        with imitation:
            assert imitation.stdout is not None
            assert imitation.stdout.readline() == b"ready\n"
            with make_pg(settings={"max_connections": 20}, port=port).connect():
                found = listeners("-p", str(port), user=STRANGER)
            imitation.kill()
    proven = {one["path"]: one["owner_is_proven"] for one in found["endpoints"] if one["path"]}
    assert sorted(proven.values()) == [False, True]
    assert not proven[path]


def test_what_is_shown(make_pg: MakePg) -> None:
    support.require("root")
    pg, port = make_pg(), processes.free_port()
    arguments = docker_proxy("127.0.0.1", port)
    with (
        forwarder("docker-proxy", arguments, ("127.0.0.1", port)),
        forwarder("nginx", [], ("127.0.0.1", other := processes.free_port())),
    ):
        shown = {one["port"] for one in listeners()["endpoints"]}
        assert shown & {pg.port, port, other} == {pg.port, port}  # that one goes to port 5432
        everything = {one["port"] for one in listeners("--all")["endpoints"]}
        assert everything >= {pg.port, port, other}
        (named,) = listeners("-p", str(other))["endpoints"]
        assert (named["kind"], named["program"]) == ("forwarder", "nginx")


def test_other_network_namespaces(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations
) -> None:
    here, there = two_hosts
    with PostgresServer(installations.get(support.newest_major()), host=there) as pg:
        names = str(here.process.pid), str(pg.pid)
        found = listeners("--netns", names[0], "--netns", names[1])
        uid = user_of(pg)[0]
        keys = ("network_namespace", "family", "address", "pids", "uid", "limit_usable_slots")
        unix = [one for one in of(found, *keys) if one[1] == "unix"]
        assert [one for one in of(found, *keys) if one[1] != "unix"] == [
            [names[1], "ipv4", "192.0.2.2", [pg.pid], uid, 97]
        ]
        assert unix == [[names[1], "unix", None, [pg.pid], uid, 97]]


def test_without_processes_there_are_listeners_all_the_same(pg: PostgresServer) -> None:
    support.require("root")
    code, out, err = restricted.run(
        restricted.HIDE_PROC, "pgsock", "listeners", "--json", "-p", str(pg.port)
    )
    assert (code, err) == (0, "")
    backlog = 40 if pg.version >= 16 else 84
    keys = ("kind", "accept_queue", "backlog", "not_seen")
    reason = {"owner": "no process that can be seen from here holds it"}
    assert of(json.loads(out), *keys) == [
        [None, 0, backlog, {**reason, "drops": DEFERS}],
        [None, 0, backlog, reason],
    ]


def test_procfs_tells_less(pg: PostgresServer) -> None:
    support.require("root")
    found = listeners("-p", str(pg.port), "--source", "procfs")
    reason = {"backlog": "procfs does not tell them: --source netlink"}
    keys = ("family", "pids", "uid", "accept_queue", "backlog", "drops", "not_seen")
    uid = user_of(pg)[0]
    assert of(found, *keys) == [
        ["ipv4", [pg.pid], uid, 0, None, None, reason],
        ["unix", [pg.pid], None, None, None, None, reason],
    ]


def test_usage_errors() -> None:
    port = str(processes.free_port())
    for arguments, sentence in (
        (("--dot", "--json"), "--dot and --json are two forms of the map; drop one"),
        (("-p", port), f"nothing listens on port {port}; see --all"),
    ):
        done = support.run("pgsock", "listeners", *arguments)
        assert done == (3, "", f"pgsock: {sentence}\n")
