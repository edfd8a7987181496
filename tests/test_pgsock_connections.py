"""`pgsock connections` on real servers, as root and as a stranger, against pg_stat_activity."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sessions.connections import KEYS
from tests import restricted, support
from tests.conftest import MakePg, OpenSessions
from tests.proving import Proof

# Neither root nor the servers' user.
STRANGER = "daemon"
LOCKED = "locked"  # who connects as this user waits for a password
Row = dict[str, Any]


def connections(*arguments: object, user: str | None = STRANGER) -> list[Row]:
    """What the tool tells of each connection."""
    return report(*arguments, user=user)["connections"]  # type: ignore[no-any-return]


def report(*arguments: object, user: str | None = STRANGER) -> Row:
    """The JSON of the tool."""
    done = support.run("pgsock", "connections", *map(str, arguments), "--json", user=user)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


class Backend(NamedTuple):
    """A row of pg_stat_activity; the times are seconds since 1970."""

    pid: int
    user: str | None
    database: str | None
    address: str | None
    port: int  # -1: a Unix socket
    state: str | None
    wait: str | None
    start: float
    change: float


def read_activity(server: PostgresServer) -> dict[int, Backend]:
    """Client backends by process id, but for the one that asks and those not logged in."""
    rows = server.execute(
        "select pid, usename, datname, host(client_addr), client_port, state,"
        " wait_event_type || ':' || wait_event, extract(epoch from backend_start),"
        " extract(epoch from coalesce(state_change, backend_start)) from pg_stat_activity"
        " where pid <> pg_backend_pid() and backend_type = 'client backend'"
        " and state <> 'starting'"
    )
    return {
        int(pid or 0): Backend(
            int(pid or 0), user, database, address, int(port or 0), state, wait,
            float(start or 0), float(change or 0),
        )
        for pid, user, database, address, port, state, wait, start, change in rows
    }  # fmt: skip


def expected_activity(backend: Backend, orphans: set[int]) -> str:
    """What pg_stat_activity's state is called here."""
    if backend.pid in orphans:
        return "orphaned"
    if backend.wait == "Client:ClientWrite":
        return "client not reading"
    if backend.state == "active":
        return "waiting" if (backend.wait or "").startswith("Lock:") else "active"
    return (backend.state or "").replace(" (aborted)", "")


class Mixture:
    """Sessions of every kind on one server, each at rest in its state, until `stack` ends."""

    def __init__(self, server: PostgresServer, stack: contextlib.ExitStack) -> None:
        self._server = server
        self._stack = stack
        self.orphans: set[int] = set()
        self.bare: set[int] = set()  # local ports of clients that asked for no session
        server.execute("create table if not exists locked_up (n int)")
        holder = self._session()
        holder.query("begin")
        holder.query("lock table locked_up in access exclusive mode")
        self._kinds: list[Callable[[], None]] = [
            self._idle, self._in_transaction, self._aborted, self._active, self._waiting,
            self._slow_reader, self._orphan, self._just_connected, self._unfinished,
        ]  # fmt: skip

    def open(self, count: int, keepidle: int) -> None:
        """Open `count` of them; every second client has this keepalive period of its own."""
        for number in range(count):
            before = self._server.port
            assert before
            self._keepidle = keepidle if number % 2 else 0
            self._kinds[number % len(self._kinds)]()

    def _session(self) -> Session:
        session = self._server.connect("postgres", "postgres")
        self._stack.callback(session.close)
        return session

    def _opened(self) -> Session:
        session = self._session()
        if self._keepidle:
            session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            session.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._keepidle)
        return session

    def _idle(self) -> None:
        self._opened()

    def _in_transaction(self) -> None:
        self._opened().query("begin")

    def _aborted(self) -> None:
        session = self._opened()
        session.query("begin")
        with contextlib.suppress(Exception):
            session.query("select 1/0")

    def _active(self) -> None:
        self._opened().simple_query("select pg_sleep(3600)")

    def _waiting(self) -> None:
        self._opened().simple_query("select * from locked_up")

    def _slow_reader(self) -> None:
        self._opened().simple_query("select repeat('x', 1000) from generate_series(1, 1000000)")

    def _orphan(self) -> None:
        session = self._opened()
        session.simple_query("select pg_sleep(3600)")
        pid = session.backend_pid
        self.orphans.add(pid)
        busy = f"select 1 from pg_stat_activity where pid = {pid} and query like '%3600%'"
        support.wait_until(lambda: bool(self._server.execute(busy)), "the statement runs")
        session.socket.close()

    def _just_connected(self) -> None:
        one = socket.create_connection((self._server.host, self._server.port))
        self._stack.callback(one.close)
        self.bare.add(one.getsockname()[1])

    def _unfinished(self) -> None:
        one = socket.create_connection((self._server.host, self._server.port))
        self._stack.callback(one.close)
        names = f"user\0{LOCKED}\0database\0postgres\0\0".encode()
        one.sendall(struct.pack("!II", len(names) + 8, 196608) + names)


@contextlib.contextmanager
def mixed_sessions(server: PostgresServer, count: int, keepidle: int) -> Iterator[Mixture]:
    """`count` sessions of every kind; afterwards none is left at work."""
    with contextlib.ExitStack() as stack:
        mixture = Mixture(server, stack)
        stack.callback(lambda: server.terminate(list(read_activity(server))))
        mixture.open(count, keepidle)
        yield mixture


def compare(
    found: Row, before: dict[int, Backend], after: dict[int, Backend], orphans: set[int]
) -> tuple[Counter[str], float]:
    """Hold each session of pg_stat_activity that is in `before` and `after` against its row; how
    many agreed in what, and the largest difference of ages in seconds.
    """
    by_port = {row["peer_port"]: row for row in found["connections"]}
    counts: Counter[str] = Counter()
    furthest = 0.0
    for pid, backend in before.items():
        if backend.port < 0 or pid not in after:
            continue
        row = by_port[backend.port]
        assert (row["user"], row["database"], row["peer_address"], row["backend_pid"]) == (
            backend.user, backend.database, backend.address, pid,
        ), (row, backend)  # fmt: skip
        counts["user, database, peer"] += 1
        assert (row["age_known_by"], row["age_is_lower_bound"]) == ("backend start", False)
        furthest = max(furthest, abs(found["read_at"] - row["age_seconds"] - backend.start))
        later = after[pid]
        if (backend.state, backend.wait, backend.change) != (later.state, later.wait, later.change):
            counts["changed in between"] += 1
            continue
        wanted = expected_activity(backend, orphans)
        assert row["activity"] == wanted, (row, backend)
        counts[wanted] += 1
    return counts, furthest


@pytest.mark.parametrize(
    ("count", "keepidle"),
    [
        pytest.param(45, 60, id="45 sessions"),
        *(
            pytest.param(500, keepidle, id=f"500 sessions-{keepidle}", marks=pytest.mark.prove)
            for keepidle in (15, 60, 7200)
        ),
    ],
)
def test_a_stranger_knows_what_pg_stat_activity_knows(
    make_pg: MakePg, every_major: int, count: int, keepidle: int, proof: Proof
) -> None:
    server = make_pg(
        major=every_major,
        settings={
            "max_connections": count + 20,
            "tcp_keepalives_idle": keepidle,
            "authentication_timeout": "600s",
        },
        hba=[f"host all {LOCKED} 127.0.0.1/32 scram-sha-256"],
    )
    server.execute(f"create role {LOCKED} login password 'x'")
    with mixed_sessions(server, count, keepidle) as mixture:
        time.sleep(1.0)  # every socket is at rest, and clearly so
        before = read_activity(server)
        found = report("-p", server.port)
        after = read_activity(server)
        counts, furthest = compare(found, before, after, mixture.orphans)
        rows = found["connections"]
        bare = [row for row in rows if row["peer_port"] in mixture.bare]
        assert {row["activity"] for row in bare} == {"no startup packet"}
        client = connections("-p", server.port, "--leg", "client")
        own = compare_ages(client, before, found_at=time.time())
    kinds = {"idle", "idle in transaction", "active", "waiting", "client not reading", "orphaned"}
    assert kinds <= set(counts)
    proof(
        f"connections against pg_stat_activity, PostgreSQL {every_major}, {count} sessions, "
        f"keepidle {keepidle}",
        f"user, database, peer {counts['user, database, peer']} of "
        f"{counts['user, database, peer']}; states all but {counts['changed in between']} that "
        f"changed; ages within {furthest:.3f} s (client leg {own:.3f} s)",
        goal="age within 0.1 s",
        met=furthest <= 0.1,
    )


def compare_ages(rows: list[Row], before: dict[int, Backend], found_at: float) -> float:
    """The largest difference of ages on the client leg that claim to be exact; no bound is above
    the truth.
    """
    starts = {backend.port: backend.start for backend in before.values()}
    furthest = 0.0
    for row in rows:
        start = starts.get(row["local_port"])
        if start is None or row["age_seconds"] is None:
            continue
        truth = found_at - start
        assert row["age_seconds"] <= truth + 0.5
        if not row["age_is_lower_bound"]:
            furthest = max(furthest, truth - row["age_seconds"])
    assert furthest < 1.0
    return furthest


@pytest.mark.parametrize("user", [None, STRANGER])
def test_all_of_an_idle_session(
    pg: PostgresServer, sessions: OpenSessions, user: str | None
) -> None:
    support.readable_tree()  # the first run of a stranger makes it: not while a session ages
    (session,) = sessions(pg)
    session.query("select 1")
    time.sleep(0.1)
    (row,) = connections("-p", pg.port, user=user)
    assert list(row) == list(KEYS)
    sees = user is None
    assert row.pop("age_seconds") == pytest.approx(0.5, abs=0.5)
    assert row.pop("idle_seconds") == pytest.approx(0.3, abs=0.3)
    assert row.pop("backend_cpu_seconds") >= 0
    assert row.pop("received_bytes") > 20
    assert row.pop("sent_bytes") > 200
    for key in ("uid", "cgroup", "inode"):
        assert row.pop(key) is not None
    assert row == {
        "leg": "server",
        "namespace": None,
        "state": "ESTABLISHED",
        "local_address": "127.0.0.1",
        "local_port": pg.port,
        "peer_address": "127.0.0.1",
        "peer_port": session.local_port,
        "user": "postgres",
        "database": "postgres",
        "session_state": "idle",
        "activity": "idle",
        "activity_known_by": "title",
        "age_known_by": "backend start",
        "age_is_lower_bound": False,
        "backend_pid": session.backend_pid,
        "backend_type": "client backend",
        "parallel_workers": 0,
        "pid": session.backend_pid,
        "process": "postgres",
        "peer_uid": os.geteuid(),
        "peer_pid": os.getpid() if sees else None,
        "peer_process": support.own_command() if sees else None,
        "receive_queue_bytes": 0,
        "send_queue_bytes": 0,
        "retransmits": 0,
        "total_retransmits": 0,
    }


def test_groups_filters_order(pg: PostgresServer, sessions: OpenSessions) -> None:
    opened = sessions(pg)
    time.sleep(0.05)  # the start of a process is told in steps of 10 ms
    opened += sessions(pg, 2)
    opened[0].query("begin")
    arguments = ("-p", pg.port)
    groups = report(*arguments, "--by", "user,activity")["groups"]
    assert [(one["by"], one["count"], one["activities"]) for one in groups] == [
        ({"user": "postgres", "activity": "idle"}, 2, {"idle": 2}),
        ({"user": "postgres", "activity": "idle in transaction"}, 1, {"idle in transaction": 1}),
    ]
    pid = opened[0].backend_pid
    for conditions in (
        ["--activity", "idle in transaction"],
        ["--where", "activity=idle in*", "--user", "postgres"],
        ["--where", f"backend_pid={pid}"],
        ["--where", "activity!=idle", "--where", "age_seconds<1000"],
        ["--where", f"backend_pid>={pid}", "--where", f"backend_pid<={pid}"],
    ):
        assert [row["backend_pid"] for row in connections(*arguments, *conditions)] == [pid]
    for conditions in (["--user", "post*"], ["--where", "age_seconds<0"], ["--database", ""]):
        assert connections(*arguments, *conditions) == []
    assert len(connections(*arguments, "--where", "namespace=")) == 3
    (oldest,) = connections(*arguments, "--sort", "age", "--top", "1")
    assert oldest["backend_pid"] == pid


@pytest.mark.parametrize("over_unix", [False, True], ids=["TCP", "Unix"])
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_both_legs_of_a_pooler(
    make_pg: MakePg, every_major: int, pool_mode: str, over_unix: bool
) -> None:
    """Three clients, two of them in a transaction: in transaction mode two connections serve."""
    support.require("pgbouncer")
    pg = make_pg(major=every_major)
    place = str(pg.socket_directory) if over_unix else pg.host
    pooler = PgBouncerServer(
        pg, pool_mode=pool_mode, databases={"*": f"host={place} port={pg.port}"}
    )
    with pooler, contextlib.ExitStack() as stack:
        front = str(pooler.socket_directory) if over_unix else pooler.host
        clients = [
            stack.enter_context(contextlib.closing(Session.connect(front, pooler.port)))
            for _ in range(3)
        ]
        for client in clients:
            client.query("select 1")
        for client in clients[:2]:
            client.query("begin")
        time.sleep(0.05)
        used = 3 if pool_mode == "session" else 2
        for user in (None, STRANGER):
            compare_legs(pg, pooler, over_unix, used, user)


def compare_legs(
    pg: PostgresServer, pooler: PgBouncerServer, over_unix: bool, used: int, user: str | None
) -> None:
    """What `user` knows of three clients, and of the `used` connections that serve them."""
    to_pooler = f"--socket={pooler.socket_directory}/.s.PGSQL.{pooler.port}"
    to_server = f"--socket={pg.socket_directory}/.s.PGSQL.{pg.port}"
    if not over_unix:
        to_pooler, to_server = f"-p{pooler.port}", f"-p{pg.port}"
    fronts, backs = connections(to_pooler, user=user), connections(to_server, user=user)
    sees = user is None
    assert [row["leg"] for row in fronts] == ["unix" if over_unix else "server"] * 3
    assert {row["peer_pid"] for row in fronts} == {os.getpid() if sees else None}
    assert {row["process"] for row in fronts} == {"pgbouncer" if sees else None}
    assert {row["user"] for row in fronts} == {None}
    assert {row["peer_uid"] for row in fronts} == {os.geteuid()}
    assert len(backs) == used
    assert {row["peer_pid"] for row in backs} == {pooler.pid if sees else None}
    if sees or not over_unix:
        counts = Counter(row["activity"] for row in backs)
        assert counts == {"idle in transaction": 2, **({"idle": 1} if used == 3 else {})}
        assert {row["database"] for row in backs} == {"postgres"}
    else:  # descriptors alone tell which title is whose
        assert {row["activity"] for row in backs} == {"unknown"}


def test_the_side_of_a_pooler_towards_its_server(
    pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    (session,) = sessions(pgbouncer)
    session.query("begin")
    time.sleep(0.05)
    (back,) = connections("-p", pg.port, "--leg", "client")
    (backend,) = connections("-p", pg.port)
    assert back["activity"] == backend["activity"] == "idle in transaction"
    assert back["backend_pid"] == backend["backend_pid"]
    assert (back["local_port"], back["peer_port"]) == (backend["peer_port"], pg.port)
    assert back["received_bytes"] == backend["sent_bytes"]
    assert back["sent_bytes"] == backend["received_bytes"]
    support.require("root")  # who may read descriptors knows the program
    (back,) = connections("-p", pg.port, "--leg", "client", user=None)
    assert (back["process"], back["pid"]) == ("pgbouncer", pgbouncer.pid)


def test_sessions_over_unix_sockets_are_among_them(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    (session,) = sessions(pg)
    with contextlib.closing(pg.administrator()) as local:
        rows = connections("-p", pg.port)
        assert {row["backend_pid"] for row in rows} == {session.backend_pid, local.backend_pid}
        (row,) = [row for row in rows if row["leg"] == "unix"]
        assert (row["peer_address"], row["activity"], row["state"]) == ("[local]", "idle", None)
        assert row["user"] == "postgres"
        assert len(connections("-p", pg.port, "--no-unix")) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--where", "nonsense"), "argument --where: 'nonsense' is no condition such as user=app"),
        (("--where", "colour=red"), "argument --where: 'colour' is no key of a connection; they"),
        (("--where", "user>5"), "argument --where: user is no number: 'user>5' cannot be told"),
        (("--activity", "nope"), "argument --activity: invalid choice: 'nope' (choose from"),
        (("--where", "age>old"), "argument --where: 'old' is no number"),
        (("--by", "user,colour"), "argument --by: 'colour' is no key of a connection; they are"),
        (("--sort", ""), "argument --sort: '' is no key of a connection"),
        (("-p", "1"), "nothing listens on port 1; name another (--port), or the side that"),
    ],
)
def test_what_cannot_be_asked(arguments: tuple[str, ...], sentence: str) -> None:
    done = support.run("pgsock", "connections", *arguments, user=STRANGER)
    assert (done.code, done.out) == (3, "")
    assert len(done.err.splitlines()) == 1
    assert sentence in done.err


def test_the_table(pg: PostgresServer, sessions: OpenSessions) -> None:
    opened = sessions(pg, 2)
    opened[0].query("begin")
    time.sleep(0.05)
    done = support.run("pgsock", "connections", "-p", str(pg.port), user=STRANGER)
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert (done.code, done.err, len(lines)) == (0, "", 4)
    assert lines[0].split("  ")[0] == "peer"
    words = " ".join(lines[0].split())
    assert words == (
        "peer state user database backend activity session state idle age received sent"
    )
    assert lines[3] == "2 connections"
    one = next(line for line in lines if f" {opened[0].backend_pid} " in line)
    assert "  idle in transaction  idle in transaction  " in one


@contextlib.contextmanager
def titled(title: str, user: str) -> Iterator[None]:
    """A process of `user` that is called postgres and has this title."""
    account = accounts.account_of(user)
    code = (
        "import ctypes, os, sys, time;"
        "ctypes.CDLL(None).prctl(15, b'postgres', 0, 0, 0);"
        "print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [title, "-c", code],
        executable=support.SYSTEM_PYTHON,
        stdout=subprocess.PIPE,
        user=None if account is None else account.uid,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def test_a_foreign_process_with_a_backends_title_is_not_believed(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    support.require("system-python")
    server = make_pg()
    (session,) = sessions(server)
    title = f"postgres: evil evil 127.0.0.1({session.local_port}) idle in transaction"
    for user in (STRANGER, "nobody"):  # the server's own user is nobody
        with titled(title, user):
            for reader in (STRANGER, None):
                (row,) = connections("-p", server.port, user=reader)
                assert (row["user"], row["backend_pid"], row["activity"]) == (
                    "postgres", session.backend_pid, "idle",
                )  # fmt: skip


@pytest.mark.parametrize("user", [None, STRANGER])
def test_two_clusters_on_one_port(
    make_pg: MakePg, every_major: int, sessions: OpenSessions, user: str | None
) -> None:
    """At different addresses, with clients of the same local port on both."""
    first = make_pg(major=every_major)
    make_pg(major=every_major, port=first.port, settings={"listen_addresses": "127.0.0.2"})
    sessions(first, 2)
    with contextlib.ExitStack() as stack:
        pids: dict[str, set[int]] = {"127.0.0.1": set(), "127.0.0.2": set()}
        # Several: a client's port that has been used towards another server proves nothing.
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2"):
            one = stack.enter_context(Session.connect(host, first.port))
            one.query("begin" if host == "127.0.0.2" else "select 1")
            pids[host].add(one.backend_pid)
        rows = connections("-p", first.port, user=user)
        of_second = [row for row in rows if row["local_address"] == "127.0.0.2"]
        assert len(rows) == 6
        assert {row["backend_pid"] for row in of_second} == pids["127.0.0.2"]
        assert {row["activity"] for row in of_second} == {"idle in transaction"}
        assert pids["127.0.0.1"] <= {row["backend_pid"] for row in rows}
        rows = connections("-p", first.port, "--address", "127.0.0.2", user=user)
        assert {row["backend_pid"] for row in rows} == pids["127.0.0.2"]


def test_with_hidepid_what_the_sockets_say_is_left(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    support.require("root")
    support.require("system-python")
    (session,) = sessions(pg)
    time.sleep(0.05)
    code = restricted.HIDE_OTHERS + support.command("pgsock")[2]
    arguments = ("connections", "-p", str(pg.port), "--json")
    done = restricted.run_code(code, *arguments, gives_up_root=True)
    assert (done[0], done[2]) == (0, "")
    (row,) = json.loads(done[1])["connections"]
    assert (row["peer_port"], row["user"], row["backend_pid"], row["session_state"]) == (
        session.local_port, None, None, None,
    )  # fmt: skip
    assert row["activity"] in ("idle", "unknown")
    assert row["age_known_by"] != "backend start"


def with_capabilities(port: int, *names: str) -> Row:
    """The one connection, as a stranger with these capabilities and no others."""
    account = accounts.account_of(STRANGER)
    assert account is not None
    wanted = ",".join(f"+{name}" for name in names)
    granted = [f"--inh-caps={wanted}", f"--ambient-caps={wanted}"] if names else []
    done = subprocess.run(
        [
            "setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups",
            *granted,
            *support.command("pgsock", "connections", "-p", str(port), "--json",
                             python=support.SYSTEM_PYTHON),
        ],
        env=support.environment(support.readable_tree()),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)["connections"]
    assert isinstance(row, dict)
    return row


def test_which_privilege_adds_what(make_pg: MakePg, sessions: OpenSessions) -> None:
    """With log_hostname titles name no address, and where the server's user runs something else
    they prove nothing: descriptors tell the backend.
    """
    support.require("root")
    support.require("system-python")
    server = make_pg(settings={"log_hostname": True})
    (session,) = sessions(server)
    with titled("something else", "nobody"):
        for row in (
            connections("-p", server.port, user=None)[0],
            connections("-p", server.port, user="nobody")[0],  # the server's own user
            with_capabilities(server.port, "sys_ptrace", "dac_read_search"),
        ):
            assert (row["backend_pid"], row["user"]) == (session.backend_pid, "postgres")
        for names in ((), ("sys_ptrace",), ("dac_read_search",)):
            row = with_capabilities(server.port, *names)
            assert (row["backend_pid"], row["user"], row["pid"]) == (None, None, None)


@pytest.mark.parametrize("user", [None, STRANGER])
def test_sessions_over_a_socket_file(pg: PostgresServer, user: str | None) -> None:
    path = f"{pg.socket_directory}/.s.PGSQL.{pg.port}"
    with contextlib.closing(pg.administrator()) as session:
        session.query("begin")
        (row,) = connections("--socket", path, user=user)
        assert (row["leg"], row["peer_address"], row["state"]) == ("unix", "[local]", "ESTABLISHED")
        assert row["peer_uid"] == os.geteuid()
        expected: tuple[object, ...] = (None,) * 6
        if user is None:
            command = support.own_command()
            expected = (
                "postgres", "postgres", "idle in transaction", session.backend_pid, os.getpid(),
                command,
            )  # fmt: skip
        keys = "user", "database", "session_state", "backend_pid", "peer_pid", "peer_process"
        assert tuple(row[key] for key in keys) == expected
        assert row["activity"] == ("idle in transaction" if user is None else "unknown")
