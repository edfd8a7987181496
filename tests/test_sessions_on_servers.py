"""Titles, activities and ages of real sessions, read as a stranger, against pg_stat_activity."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session, WireError
from check_pgsock.sessions import ages, titles
from check_pgsock.sessions.children import parse_children
from check_pgsock.sessions.states import ACTIVE, AUTHENTICATION
from check_pgsock.sockets.model import ESTABLISHED
from check_pgsock.sockets.sources.netlink import NetlinkSource
from tests import support
from tests.conftest import Installations

# Neither root nor the servers' user: it sees of a process what everybody does.
STRANGER = "daemon"
LONG = "n" * 63
USERS = ("app", "my app", "127.0.0.1(4711)", LONG)
DATABASES = ("app", "a (b) c(1) idle", LONG)
LOCKED = "locked"  # who connects as this user waits for a password
SSL_REQUEST = struct.pack("!II", 8, 80877103)

# What checks and tools do with these modules, as the stranger.
_READER = """
import json, sys, time
from check_pgsock.sessions import activity
from check_pgsock.sessions.children import match_peers, parse_children
from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg
from check_pgsock.processes import ProcessTable
from check_pgsock.sockets.model import LISTEN
from check_pgsock.sockets.sources.netlink import NetlinkSource

port, postmaster, deadline = int(sys.argv[1]), int(sys.argv[2]), Deadline(10)
table = ProcessTable(deadline)
def read(pid):
    with open(table.path(pid, "cmdline"), "rb", 0) as file:
        return file.read()
children = [pid for pid, (_, parent) in table.commands().items() if parent == postmaster]
raws = {pid: read(pid) for pid in children}
found = NetlinkSource(deadline).sockets(Leg((port,)).query(*range(1, LISTEN), info=True))
sockets = {(one.remote_address, one.remote_port): one for one in found if one.inode}
heard = {peer for peer, one in sockets.items() if one.info.bytes_received}
told = parse_children(raws, read(postmaster), peers=heard)
now = time.time()
peers = {pid: peer for peer, pid in match_peers(told, heard).items()}
rows = []
for pid, title in told.items():
    one = sockets.get(peers.get(pid))
    rows.append({
        **title._asdict(),
        "pid": pid,
        "address": None,
        "remote_port": one and one.remote_port,
        "start": table.started(pid)[1],
        "activity": one and activity.judge_activity(one, True, title).activity,
        "by_tcp_info": one and activity.judge_activity(one, True).activity,
    })
alone = [
    activity.judge_activity(one, True).activity
    for peer, one in sockets.items() if peer not in peers.values()
]
print(json.dumps({"rows": rows, "alone": alone}))
"""


class Row(NamedTuple):
    """What the stranger knows of one child of the postmaster."""

    pid: int
    kind: str
    user: str | None
    database: str | None
    host: str | None
    port: int | None
    state: str | None
    waiting: bool | None
    text: str | None
    whole: bool
    remote_port: int | None  # of the socket that it was matched with
    start: float
    activity: str | None
    by_tcp_info: str | None  # what the socket alone says


class Backend(NamedTuple):
    """A row of pg_stat_activity."""

    pid: int
    kind: str
    user: str | None
    database: str | None
    port: int  # -1: a Unix socket
    state: str | None
    wait: str | None
    start: float


def read_as_stranger(server: PostgresServer) -> tuple[dict[int, Row], Counter[str]]:
    """What STRANGER knows of each child, and of the sockets that no child's title names."""
    support.require("system-python")
    account = accounts.account_of(STRANGER)
    done = subprocess.run(
        [support.SYSTEM_PYTHON, "-c", _READER, str(server.port), str(server.pid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=support.environment(support.ROOT if account is None else support.readable_tree()),
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    rows = [Row(*(item[name] for name in Row._fields)) for item in answer["rows"]]
    return {row.pid: row for row in rows}, Counter(answer["alone"])


def read_activity(server: PostgresServer) -> dict[int, Backend]:
    """pg_stat_activity, but for the session that asks and those that are not logged in (18)."""
    rows = server.execute(
        "select pid, backend_type, usename, datname, client_port, state, wait_event_type,"
        " extract(epoch from backend_start) from pg_stat_activity"
        " where pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')"
        " and state <> 'starting'"
    )
    found = {}
    for pid, kind, user, database, port, state, wait, start in rows:
        numbers = int(pid or 0), int(port or 0), float(start or 0)
        one = Backend(numbers[0], kind or "", user, database, numbers[1], state, wait, numbers[2])
        found[one.pid] = one
    return found


def compare(rows: dict[int, Row], backends: dict[int, Backend], *, stated: bool = True) -> None:
    """Whole titles agree with pg_stat_activity in all they can, others are nowhere wrong."""
    for pid, backend in backends.items():
        row = rows[pid]
        # Two words behind `walsender` may be a user and a database, or one user of that name.
        is_plain = " " not in f"{backend.user}{backend.database}"
        is_plain &= backend.kind == titles.CLIENT_BACKEND or not backend.database
        assert abs(row.start - backend.start) < 0.1
        assert row.user in ((backend.user,) if row.whole and is_plain else (None, backend.user))
        database: tuple[str | None, ...] = (None, backend.database)
        if row.whole and is_plain and backend.kind == titles.CLIENT_BACKEND:
            database = (backend.database, backend.database)
        assert row.database in database
        if not row.whole:
            assert row.state in (None, backend.state)
        elif stated:
            assert (row.kind, row.state) == (backend.kind, backend.state)
            assert row.waiting == (backend.wait == "Lock")
        else:
            assert (row.kind, row.state, row.waiting) == (backend.kind, None, None)
        assert row.port in ((None, backend.port) if not row.whole else (backend.port, None))
        if row.whole:
            assert (row.host == titles.LOCAL) == (backend.port == -1)
        if row.port is not None:
            assert row.remote_port == row.port


def compare_tool(
    server: PostgresServer, rows: dict[int, Row], backends: dict[int, Backend], least: int
) -> None:
    """What `pgsock connections` tells the stranger is what is true, or it says nothing; at
    `least` so many sessions over TCP it tells all of.
    """
    done = support.run(
        "pgsock", "connections", "-p", str(server.port), "--json", user=STRANGER, timeout=60
    )
    assert (done.code, done.err) == (0, "")
    by_pid = {one.port: pid for pid, one in backends.items() if one.port != -1}
    told = 0
    for found in json.loads(done.out)["connections"]:
        pid = by_pid.get(found["peer_port"], found["backend_pid"])
        if pid not in backends:
            continue
        backend, row = backends[pid], rows[pid]
        assert found["backend_pid"] in (None, pid)
        assert found["user"] in (None, backend.user)
        assert found["database"] in (None, backend.database)
        assert found["session_state"] in (None, row.text, row.state)
        if found["backend_pid"] is not None:
            assert abs(time.time() - found["age_seconds"] - backend.start) < 10
            assert not found["age_is_lower_bound"]
        if found["leg"] == "server" and found["backend_pid"] is not None:
            # The tool sees both ends, which tell more than the one.
            assert found["activity"] == row.activity or (
                (row.activity, found["activity"]) == ("unknown", clocks_tell(backend))
            )
            told += None not in (found["user"], found["database"])
    assert told >= least


def expected_activity(backend: Backend) -> str:
    """What pg_stat_activity's state is called, where the client is well."""
    if backend.state == ACTIVE:
        return "waiting" if backend.wait == "Lock" else "active"
    return (backend.state or "").replace(" (aborted)", "")


def clocks_tell(backend: Backend) -> str:
    """The same, as far as the clocks of a socket tell it."""
    expected = expected_activity(backend)
    return expected.replace("waiting", "active").replace(" in transaction", "")


class Sessions:
    """Sessions that stay, each at rest in its state, until the test ends."""

    def __init__(self, server: PostgresServer, stack: contextlib.ExitStack) -> None:
        self._server = server
        self._stack = stack
        self.pids: dict[str, int] = {}

    def open(self, sent: bytes = b"") -> socket.socket:
        """A bare connection, on which `sent` is sent."""
        address = (self._server.host, self._server.port)
        connected = self._stack.enter_context(socket.create_connection(address, timeout=10))
        connected.sendall(sent)
        return connected

    def connect(
        self, sql: str = "", user: str = "app", database: str = "app", host: str = ""
    ) -> Session:
        """A session that has run `sql`, or failed to."""
        session = Session.connect(
            host or self._server.host, self._server.port, user, database, timeout=10
        )
        self._stack.callback(session.kill)
        if sql:
            with contextlib.suppress(WireError):
                session.query(sql)
        return session

    def run(self, sql: str) -> Session:
        """A session that runs `sql` and reads no answer."""
        session = self.connect()
        session.simple_query(sql)
        return session

    def many(self, sql: str, count: int) -> None:
        """As connect(), as different users, to different databases, by different ways."""
        ways = ("127.0.0.1", "::1", str(self._server.socket_directory))
        for number in range(count):
            user, database = USERS[number % len(USERS)], DATABASES[number % len(DATABASES)]
            self.connect(sql, user, database, ways[number // 2 % len(ways)])

    def replicate(self, command: str, database: str = "") -> None:
        """A walsender that runs `command`."""
        session = Session(self.open())
        mode = {"replication": "database", "database": database} if database else {}
        session.send_startup({"user": "app", "replication": "true", **mode})
        session.wait_ready()
        session.simple_query(command)

    def authenticate(self) -> None:
        """A connection that is asked for a password."""
        session = Session(self.open())
        session.send_startup({"user": LOCKED, "database": "app"})


class Server(PostgresServer):
    """A server that is started anew for each test, with settings and a command line of its own."""

    start_line: tuple[str, ...] = ()

    def _command(self) -> list[str]:
        return list(self.start_line) or super()._command()

    def prepare(self) -> None:
        """Make what the sessions need."""
        for user in (*USERS, LOCKED):
            self.execute(f'create role "{user}" login replication')
        for database in DATABASES:
            self.execute(f'create database "{database}"')
        self.execute("create table held ()", "app")
        self.execute("grant all on held to public", "app")
        self.execute("create publication held", "app")
        self.execute("select pg_create_logical_replication_slot('held', 'pgoutput')", "app")
        path = self.data_directory / "pg_hba.conf"
        path.write_text(f"host all {LOCKED} all password\n{path.read_text()}")

    @contextlib.contextmanager
    def started(self, *start_line: str, **settings: Setting) -> Iterator[Sessions]:
        """Within it, it runs with these settings; the sessions end with it."""
        path = self.data_directory / "postgresql.conf"
        before = path.read_text()
        self.start_line = start_line
        try:
            self.configure(settings)
            self.restart()
            with contextlib.ExitStack() as stack:
                yield Sessions(self, stack)
        finally:
            path.write_text(before)


@pytest.fixture(scope="module")
def server(every_major: int, installations: Installations) -> Iterator[Server]:
    """A server of every major for the tests of this module."""
    settings: dict[str, Setting] = {
        "listen_addresses": "127.0.0.1,::1",
        "max_connections": 60,
        "wal_level": "logical",
        "autovacuum": False,
    }
    with Server(installations.get(every_major), settings=settings) as running:
        running.prepare()
        yield running


@pytest.mark.parametrize("cluster_name", ["", "15/main: x"])
def test_mixed_sessions(server: Server, cluster_name: str) -> None:
    with server.started(cluster_name=cluster_name) as sessions:
        ((position,),) = server.execute("select pg_current_wal_lsn()")
        sessions.replicate(f"START_REPLICATION PHYSICAL {position}")
        options = "(proto_version '1', publication_names 'held')"
        sessions.replicate(f"START_REPLICATION SLOT held LOGICAL 0/0 {options}", "app")
        server.execute("checkpoint")
        sessions.many("", 8)
        sessions.many("begin; select 1", 8)
        sessions.many("begin; select 1/0", 6)
        sessions.connect("begin; lock table held")
        for _ in range(3):
            sessions.run("select pg_sleep(60)")
            sessions.run("select from held")
            sessions.authenticate()
        orphan = sessions.run("select pg_sleep(60)")
        slow = sessions.run("select repeat('x', 1000) from generate_series(1, 100000)")
        for sent in (b"", b"", SSL_REQUEST, SSL_REQUEST[:3]):
            sessions.open(sent)

        def are_at_rest() -> bool:
            found = read_activity(server)
            waits = Counter(one.wait for one in found.values())
            return (waits["Lock"], waits["Timeout"], found[slow.backend_pid].wait) == (
                3, 4, "Client",
            )  # fmt: skip

        support.wait_until(are_at_rest, "the sessions at rest")
        orphan.kill()
        support.wait_until(
            lambda: read_as_stranger(server)[0][slow.backend_pid].activity == "client not reading",
            "the window closed",
        )
        rows, alone = read_as_stranger(server)
        backends = read_activity(server)
        compare_tool(server, rows, backends, least=20)
    compare(rows, backends)
    assert len(backends) == 2 + 22 + 1 + 6 + 2
    assert alone == {"no startup packet": 4}
    kinds = Counter(row.kind for row in rows.values())
    assert kinds[titles.UNTITLED] == 4
    states = Counter(row.state for row in rows.values() if row.kind == titles.CLIENT_BACKEND)
    assert states == {
        "idle": 8, "idle in transaction": 9, "idle in transaction (aborted)": 6, "active": 8,
        "authentication": 3,
    }  # fmt: skip
    faults = {orphan.backend_pid: "orphaned", slow.backend_pid: "client not reading"}
    for pid, backend in backends.items():
        if rows[pid].remote_port is not None:
            expected = faults.get(pid, expected_activity(backend))
            assert rows[pid].activity == expected
            if pid not in faults and backend.kind == titles.CLIENT_BACKEND:
                assert rows[pid].by_tcp_info in (clocks_tell(backend), "unknown")
    unknown = [row for row in rows.values() if row.state == AUTHENTICATION]
    assert {(row.user, row.activity, row.by_tcp_info) for row in unknown} == {
        (LOCKED, "unknown", "unknown")
    }


def test_titles_that_are_not_updated(server: Server) -> None:
    with server.started(update_process_title=False) as sessions:
        sessions.many("", 8)
        sessions.many("begin; select 1", 4)
        sessions.run("select pg_sleep(60)")
        rows, backends = read_as_stranger(server)[0], read_activity(server)
        compare(rows, backends, stated=False)
        assert len(backends) == 13
        compare_tool(server, rows, backends, least=5)


def test_titles_that_stand_still(server: Server) -> None:
    with server.started() as sessions:
        sessions.many("", 4)
        frozen = sessions.connect()
        server.configure({"update_process_title": False})
        server.execute("select pg_reload_conf()")
        sleeper = sessions.connect("select pg_sleep(0)")
        frozen.simple_query("select pg_sleep(60)")
        support.wait_until(
            lambda: read_activity(server)[frozen.backend_pid].state == "active", "it runs"
        )
        assert sleeper.backend_pid
        rows, backends = read_as_stranger(server)[0], read_activity(server)
        compare(rows, backends, stated=False)
        assert rows[frozen.backend_pid].activity == "active"  # its socket says so
        compare_tool(server, rows, backends, least=2)


def test_host_names(server: Server) -> None:
    with server.started(log_hostname=True) as sessions:
        sessions.many("", 12)
        rows, backends = read_as_stranger(server)[0], read_activity(server)
        compare(rows, backends)
        assert {row.host for row in rows.values() if row.port} <= {
            "localhost",
            "ip6-localhost",
            "::1",
        }
        assert sum(row.remote_port is not None for row in rows.values()) == 8
        compare_tool(server, rows, backends, least=0)


@pytest.mark.parametrize("area", [14, 50, 58, 110, 300])
def test_titles_that_are_cut(server: Server, area: int) -> None:
    """With so many bytes for arguments and environment: in the states, in names, for all."""
    with server.started(*start_line(server, area)) as sessions:
        sessions.many("", 12)
        sessions.many("begin; select 1", 12)
        sessions.many("begin; select 1/0", 4)
        sessions.run("select pg_sleep(60)")
        rows, backends = read_as_stranger(server)[0], read_activity(server)
        compare(rows, backends)
        compare_tool(server, rows, backends, least=0)
        if os.geteuid() != 0:
            return  # the area is not for everybody to read
        # What titles do not tell, descriptors do: those over the Unix socket, too.
        done = support.run("pgsock", "connections", "-p", str(server.port), "--json")
        found = {one["backend_pid"] for one in json.loads(done.out)["connections"]}
        assert found == (set(backends) if area > 40 else {None})
        assert read_area(server.pid) == area
        lines = {pid: read_line(pid) for pid in rows}
        sizes = {pid: len(titles.text_of(line)) for pid, line in lines.items()}
        told = parse_children(lines, read_line(server.pid), area)
        assert max(sizes.values()) == min(area - 2, 165)
        assert [one.whole for one in told.values()] == [n < area - 2 for n in sizes.values()]


def test_a_cut_title_is_that_of_the_only_peer_that_it_names(server: Server) -> None:
    # Room for 'postgres: app app 127.0.0.1(12345) idle in t', and no word about how much there is.
    with server.started(*start_line(server, 46)) as sessions:
        opened = [sessions.connect(sql) for sql in ("", "begin; select 1", "begin; select 1/0") * 3]
        rows, backends = read_as_stranger(server)[0], read_activity(server)
        compare(rows, backends)
        told = Counter(
            (row.user, row.database, row.remote_port == row.port, row.state, row.activity)
            for row in rows.values()
            if row.port is not None
        )
        assert told == {
            ("app", "app", True, "idle", "idle"): 3,
            ("app", "app", True, None, "idle in transaction"): 6,
        }
        assert len(opened) == len(backends)
        compare_tool(server, rows, backends, least=0)


def test_keepalive_periods(server: Server) -> None:
    """Proven from backends just started; ages by it are theirs."""
    with server.started() as sessions:
        for period in (15, 60, 0):  # 0 is the system's: 7200 s
            server.configure({"tcp_keepalives_idle": period})
            server.execute("select pg_reload_conf()")
            expected = period or system_period()
            server.execute("select pg_sleep(0.1)")
            ports = {sessions.connect().local_port: None for _ in range(3)}
            backends = {
                one.port: one for one in read_activity(server).values() if one.port in ports
            }
            query = Leg((server.port,)).query(ESTABLISHED, info=True)
            found = NetlinkSource(Deadline(5)).sockets(query)
            now = time.time()
            pairs = [
                (one, now - backends[one.remote_port].start)
                for one in found
                if one.remote_port in backends
            ]
            assert len(pairs) == 3
            assert ages.prove_period(pairs) == expected
            for one, age in pairs:
                told = ages.judge_age(one, period=expected, at_most=5)
                assert told is not None
                assert (told.known_by, told.bound) == ("keepalive timer", False)
                assert told.seconds == pytest.approx(age, abs=0.1)


def system_period() -> int:
    with open("/proc/sys/net/ipv4/tcp_keepalive_time", encoding="ascii") as stream:
        return int(stream.read())


def start_line(server: Server, area: int) -> tuple[str, ...]:
    """A command line that leaves `area` bytes for arguments and environment."""
    directory = server.data_directory.parent
    # A server is known by its name, for which the smallest area has no room.
    name = "postgres" if area > 40 else "p"
    link = directory / name
    if not link.is_symlink():
        link.symlink_to(server.binaries.path("postgres"))
    command = (f"./{name}", "-D", "./data")
    filler = area - sum(len(one) + 1 for one in command)
    environment = (f"X={'x' * (filler - 3)}",) if filler else ()
    return ("/usr/bin/env", "-i", *environment, *command)


def read_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb", 0) as stream:
        return stream.read()


def read_area(pid: int) -> int:
    """arg_start to env_end: fields 48 and 51, proc(5)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
        fields = stream.read().rpartition(")")[2].split()
    return int(fields[51 - 3]) - int(fields[48 - 3])
