"""--socket in every check, on PostgreSQL, PgBouncer and plain listeners: whole output and exit
code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Union

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import LOCAL, Host, NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.reader import SocketReader
from tests import restricted, support
from tests.conftest import MakePg
from tests.details import DETAILS, PATH
from tests.support import Completed
from tests.watching import Check, counts, masked

Server = Union[PostgresServer, PgBouncerServer]
# Another unprivileged user than the servers': it may read none of their files.
STRANGER = "daemon"
OWN_UID = f"uid {os.geteuid()} ({pwd.getpwuid(os.geteuid()).pw_name})"
OWN_PROCESS = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
BY_NAME = (
    "procfs does not tell apart a socket file and an earlier one of the same name: sessions that "
    "an earlier server accepted are counted too\n"
)
SELECTED = (
    "only the connections selected are counted, against all slots of the server: others take "
    "slots, too\n"
)
ELSEWHERE = "sessions of clients in other network namespaces would not be counted: see --netns"
SNAPSHOTS = (
    "a lower bound, from snapshots: connections opened and closed between two of them are not "
    "seen (no event tells the end of a session over a Unix socket)"
)


def path_of(server: Server) -> str:
    """The path of a server's Unix socket."""
    return f"{server.socket_directory}/.s.PGSQL.{server.port}"


def sessions_of(path: str) -> int:
    """How many sessions over a socket there are, whether or not their client is there."""
    return len(SocketReader("netlink", None, Deadline(5)).unix_sockets(path).sessions)


class Connect(Protocol):
    """How clients is called."""

    def __call__(self, server: Server, count: int, on: Host = LOCAL) -> list[Session]: ...


@pytest.fixture
def clients(used_poolers: list[PgBouncerServer]) -> Iterator[Connect]:
    """Open clients(server, count) over its Unix socket; after the test all are gone."""
    opened: list[tuple[Server, Session]] = []

    def connect(server: Server, count: int, on: Host = LOCAL) -> list[Session]:
        if isinstance(server, PgBouncerServer) and server not in used_poolers:
            used_poolers.append(server)
        new = []
        for _ in range(count):
            with on.entered():
                new.append(Session.connect(str(server.socket_directory), server.port))
            opened.append((server, new[-1]))
        return new

    yield connect
    for server, session in opened:
        session.close()
        if isinstance(server, PostgresServer):
            server.terminate([session.backend_pid])
    for path in {path_of(server) for server, _ in opened}:
        gone = functools.partial(lambda path: not sessions_of(path), path)
        support.wait_until(gone, f"the sessions over {path} closed")


class Listener:
    """A Unix socket that accepts when it is told to; `path` names it."""

    def __init__(self, stack: contextlib.ExitStack, path: str, backlog: int = 8) -> None:
        self._stack = stack
        self.path = path
        self.socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.socket.bind(path.replace("@", "\0", 1) if path.startswith("@") else path)
        self.socket.listen(backlog)
        if not path.startswith("@"):
            os.chmod(path, 0o777)

    def connect(self) -> socket.socket:
        """The client's end of a new connection, not accepted yet."""
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(self.socket.getsockname())
        return client

    def accept(self) -> socket.socket:
        """The server's end of the next connection."""
        return self._stack.enter_context(self.socket.accept()[0])


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listener that everybody can reach."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(fresh_directory("pgsock-u-"))
        directory.chmod(0o755)
        yield Listener(stack, f"{directory}/s")


def line(
    state: str,
    established: int,
    limit: int,
    where: str,
    extra: str = "",
    close_wait: int | None = 0,
    waiting: int = 0,
    syn_recv: str = "",
    slots: bool = False,
) -> str:
    """The whole first line of saturation at its default thresholds; with `slots` each connection
    has a slot of a server that is proven.
    """
    share = 100 * established / limit
    bounds = f"{limit * 8 // 10};{limit * 9 // 10};0;{limit} "
    used = f"slots_used={established};{bounds}" if slots else ""
    gone = "" if close_wait is None else f"close_wait={close_wait};;;0 "
    return (
        f"PGSOCK_SATURATION {state} - {established} of {limit} connections ({share:.0f} %) {where}"
        f"{extra} | established={established};{bounds}{used}"
        f"limit={limit};;;0 utilization={share:.1f}%;;;0 free={max(limit - established, 0)};;;0;"
        f"{limit} {gone}{syn_recv}not_accepted={waiting};;;0\n"
    )


OTHERS = "TCP and other Unix sockets"
UNCOUNTED = support.uncounted(
    "which server owns its listener is seen by root and the server's user alone", OTHERS
)


def unknown(check: str, sentence: str) -> tuple[int, str, str]:
    """The whole of a run that measured nothing."""
    return 3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}\n", ""


def who(established: int) -> str:
    """Who holds connections that this process holds, for root."""
    return f"{OWN_UID}: {established} established\n{OWN_PROCESS}: {established} established\n"


# Saturation.


def test_ok_warning_critical_and_back(pg: PostgresServer, clients: Connect) -> None:
    path = path_of(pg)
    where = f"on socket {path}"
    opened = clients(pg, 5)
    done = support.run("saturation", "--socket", path)
    assert done == (0, line("OK", 5, 17, where, slots=True), "")
    opened += clients(pg, 9)
    done = support.run("saturation", "--socket", path)
    extra = " (established outside range 0:13; slots_used outside range 0:13)"
    assert done == (1, line("WARNING", 14, 17, where, extra, slots=True) + who(14), "")
    opened += clients(pg, 2)
    done = support.run("saturation", "--socket", path)
    extra = " (established outside range 0:15; slots_used outside range 0:15)"
    assert done == (2, line("CRITICAL", 16, 17, where, extra, slots=True) + who(16), "")
    for session in opened[5:]:
        session.close()
    support.wait_until(lambda: sessions_of(path) == 5, "closed")
    done = support.run("saturation", "--socket", path)
    assert done == (0, line("OK", 5, 17, where, slots=True), "")


def test_the_limit_is_read_by_root_and_the_servers_user_alone(
    pg: PostgresServer, clients: Connect
) -> None:
    support.require("root")
    path = path_of(pg)
    clients(pg, 2)
    for user, programs in ((None, f"{OWN_PROCESS}: 2 established\n"), ("nobody", "")):
        done = support.run("saturation", "--socket", path, "-v", user=user)
        assert done == (
            0,
            line("OK", 2, 17, f"on socket {path}", slots=True) + f"{OWN_UID}: 2 established\n"
            f"{programs}{ELSEWHERE}\n"
            "limit: 17 usable of max_connections 20, read from pg_control; whose server it is: it "
            f"holds the listener (process {pg.pid})\n",
            "",
        )
    done = support.run("saturation", "--socket", path, user=STRANGER)
    assert done == unknown(
        "saturation",
        f"the limit of socket {path} cannot be read: which server owns its listener is seen by "
        "root and the server's user alone; name the usable slots with --limit N",
    )
    done = support.run("saturation", "--socket", path, "--limit", "4", user=STRANGER)
    assert done == (0, line("OK", 2, 4, f"on socket {path}") + UNCOUNTED, "")


def test_the_backlog_of_a_unix_socket_confirms_a_limit(make_pg: MakePg) -> None:
    """As that of a TCP socket: the same goes to listen(2). pg_control of a standby is no proof."""
    support.require("root")
    server = make_pg(major=15, settings={"max_connections": 40, "max_wal_senders": 4})
    standby = server.data_directory / "global" / "pg_control"
    raw = bytearray(standby.read_bytes())
    raw[16:20] = (3).to_bytes(4, "little")  # DB_SHUTDOWNED_IN_RECOVERY, say
    standby.write_bytes(raw)
    path = path_of(server)
    with server.administrator():
        done = support.run("saturation", "--socket", path, "-v")
    assert (done.code, done.out.splitlines()[-1]) == (
        0,
        "limit: 37 usable of max_connections 40, read from postgres -C, confirmed by the backlog; "
        f"whose server it is: it holds the listener (process {server.pid})",
    )


def test_the_limit_of_a_pooler_is_read_by_root_and_its_user_alone(
    pgbouncer: PgBouncerServer, clients: Connect
) -> None:
    support.require("root")
    path = path_of(pgbouncer)
    clients(pgbouncer, 3)
    for user in (None, "nobody"):
        done = support.run("saturation", "--socket", path, user=user)
        assert done == (0, line("OK", 3, 100, f"on socket {path}") + SELECTED, "")
    done = support.run("saturation", "--socket", path, user=STRANGER)
    assert done == unknown(
        "saturation",
        f"the limit of socket {path} cannot be read: its owner is probably process {pgbouncer.pid} "
        "(pgbouncer), whose max_client_conn root and its own user alone may read (run the check as "
        "one of them); name the usable slots with --limit N",
    )
    done = support.run("saturation", "--socket", path, "--limit", "3", "-c", "2")
    extra = " (established outside range 0:2)"
    expected = line("CRITICAL", 3, 3, f"on socket {path}", extra)
    assert done == (2, expected + who(3), "")


def test_several_endpoints_are_one_pool(
    pg: PostgresServer, pgbouncer: PgBouncerServer, clients: Connect
) -> None:
    path, pooled = path_of(pg), path_of(pgbouncer)
    clients(pg, 2)
    clients(pgbouncer, 3)
    on_port = support.tcp_states(pg.port)["ESTABLISHED"]
    syn_recv = "syn_recv=0;;;0 "
    with fresh_directory("pgsock-link-") as directory:
        directory.chmod(0o755)
        link = f"{directory}/link"
        os.symlink(pg.socket_directory, link)
        pools: list[tuple[tuple[str, ...], int, str, str]] = [
            (("--socket", pooled), 5, f"on sockets {path}, {pooled}", ""),
            (("-p", str(pg.port)), 2 + on_port, f"on port {pg.port} and socket {path}", syn_recv),
            (("--socket", path), 2, f"on socket {path}", ""),
            # Another way to the same socket adds nothing.
            (
                ("--socket", f"{link}/.s.PGSQL.{pg.port}"),
                2,
                f"on sockets {path}, {link}/.s.PGSQL.{pg.port}",
                "",
            ),
        ]
        for arguments, count, where, extra in pools:
            done = support.run(
                "saturation", "--socket", path, *arguments, "--limit", "50", user=STRANGER
            )
            # A port's titles prove to everybody whose Unix socket was made with it, too.
            slots = "-p" in arguments
            expected = line("OK", count, 50, where, syn_recv=extra, slots=slots)
            assert done == (0, expected + ("" if slots else UNCOUNTED), "")
    done = support.run("saturation", "--socket", path, "--socket", pooled)
    assert done == unknown(
        "saturation",
        f"the limit of socket {path} and socket {pooled} cannot be read: no PostgreSQL server that "
        "may be seen from here owns its listener; name the usable slots with --limit N",
    )


def test_a_port_and_a_socket_of_one_server_have_its_limit(
    pg: PostgresServer, pgbouncer: PgBouncerServer, clients: Connect
) -> None:
    support.require("root")
    path = path_of(pg)
    clients(pg, 2)
    with pg.connect(), pg.connect():
        pool = ("-p", str(pg.port), "--socket", path)
        where = f"on port {pg.port} and socket {path}"
        expected = (0, line("OK", 4, 17, where, syn_recv="syn_recv=0;;;0 ", slots=True), "")
        for user in (None, "nobody"):
            assert support.run("saturation", *pool, user=user) == expected
        # The pooler's socket is none of the server's.
        pool = ("-p", str(pg.port), "--socket", path_of(pgbouncer))
        assert support.run("saturation", *pool) == unknown(
            "saturation",
            f"the limit of port {pg.port} and socket {path_of(pgbouncer)} cannot be read: that all "
            "of them are one server's cannot be proven here; name the usable slots with --limit N",
        )


def test_who_is_on_a_pool_of_both_kinds(pg: PostgresServer, clients: Connect) -> None:
    clients(pg, 2)
    with pg.connect():
        arguments = ("-p", str(pg.port), "--socket", path_of(pg), "--limit", "3")
        done = support.run("saturation", *arguments)
    first, *rest = done.out.splitlines()
    where = f"on port {pg.port} and socket {path_of(pg)}"
    extra = " (established outside range 0:2; slots_used outside range 0:2)"
    expected = line("CRITICAL", 3, 3, where, extra, syn_recv="syn_recv=0;;;0 ", slots=True)
    assert (done.code, f"{first}\n") == (2, expected)
    assert rest[0] == "peer 127.0.0.1: 1 established"
    assert rest[-2:] == who(2).splitlines()


def test_clients_that_are_gone_are_not_established(pg: PostgresServer, clients: Connect) -> None:
    path = path_of(pg)
    clients(pg, 2)
    orphan(pg, clients, 1)
    limit = ("--socket", path, "--limit", "10")
    where = f"on socket {path}"
    done = support.run("saturation", *limit, user=STRANGER)
    assert done == (0, line("OK", 2, 10, where, close_wait=1) + UNCOUNTED, "")
    # procfs does not tell: no label, and no zero.
    done = support.run("saturation", *limit, "--source", "procfs", "-vv", user=STRANGER)
    head, took = done.out[: done.out.index("took ")], done.out[done.out.index("took ") :]
    assert (done.code, done.err) == (0, "")
    assert head == (
        line("OK", 3, 10, where, close_wait=None) + BY_NAME
        + support.uncounted("no PostgreSQL server that may be seen from here owns its listener",
                            OTHERS)
        + f"users not known: 3 established\n{ELSEWHERE}\n"
        "limit: 10 usable, given by --limit\nsource: procfs (/proc/net)\n"
        f"listener {path}: procfs tells neither its accept queue nor its backlog\n"
    )  # fmt: skip
    assert took.endswith(" of 8 s\n")


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_connections_that_wait_to_be_accepted(listener: Listener, source: str) -> None:
    for _ in range(5):
        listener.connect()
    listener.accept()
    arguments = ("--socket", listener.path, "--limit", "4", "--source", source, "-vv")
    done = support.run("saturation", *arguments, user=STRANGER)
    extra = " (established outside range 0:3)"
    by_netlink = source == "netlink"
    gone = 0 if by_netlink else None
    expected = line("CRITICAL", 5, 4, f"on socket {listener.path}", extra, gone, 4)
    lines = done.out.splitlines(keepends=True)
    assert (done.code, done.err, lines[0]) == (2, "", expected)
    told = (
        f"uid {os.geteuid()}, accept queue 4, backlog 8"
        if by_netlink
        else "procfs tells neither its accept queue nor its backlog"
    )
    assert f"listener {listener.path}: {told}\n" in lines
    # Who waits has no accepted end: only the one that has is told.
    assert (f"{OWN_UID}: 1 established\n" in lines) is by_netlink


def test_many_users_and_processes_are_cut(listener: Listener) -> None:
    """As root: at most half of the lines are users, the rest processes."""
    support.require("root")
    with contextlib.ExitStack() as stack:
        for number in range(12):
            pid = fork_client(listener.path, 12000 + number)
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, 9)
            listener.accept()
        done = support.run("saturation", "--socket", listener.path, "--limit", "12")
    rest = done.out.splitlines()[1:]
    assert rest[:5] == [
        *(f"uid {12000 + number}: 1 established" for number in range(4)),
        "8 more users: 8 established",
    ]
    assert len(rest) == 10
    assert all(each.startswith("process ") for each in rest[5:9])
    assert rest[9] == "8 more processes: 8 established"


def fork_client(path: str, uid: int) -> int:
    """A process of this user that is connected to a Unix socket until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            time.sleep(60)
    finally:
        os._exit(1)


def test_an_abstract_name() -> None:
    name = f"@pgsock-{os.getpid()}/.s.PGSQL.5432"
    with contextlib.ExitStack() as stack:
        listener = Listener(stack, name)
        listener.connect()
        listener.accept()
        done = support.run("saturation", "--socket", name, "--limit", "5", user=STRANGER)
    assert done == (0, line("OK", 1, 5, f"on socket {name}"), "")


# What is not there.


def each_check(*arguments: str, user: str | None = None) -> list[tuple[str, Completed]]:
    """The checks, each run with these arguments."""
    return [
        (check, support.run(check, *arguments, user=user))
        for check in ("saturation", "close_wait", "thrashing")
    ]


def test_nothing_listens(listener: Listener) -> None:
    directory = Path(listener.path).parent
    hint = (
        "; is the server down or the socket another (--socket)? --no-listener decides what this "
        "means"
    )
    gone = f"{directory}/gone"
    for check, done in each_check("--socket", gone):
        sentence = f"nothing listens on socket {gone} (No such file or directory)"
        assert done == unknown(check, sentence + hint)
    listener.socket.close()
    for check, done in each_check("--socket", listener.path):
        assert done == unknown(check, f"nothing listens on socket {listener.path}{hint}")
    private = directory / "private"
    private.mkdir()
    private.chmod(0o700)
    if os.geteuid() == 0:
        for check, done in each_check("--socket", f"{private}/s", user=STRANGER):
            sentence = f"nothing listens on socket {private}/s (Permission denied)"
            assert done == unknown(check, sentence + hint)
    done = support.run("close_wait", "--socket", gone, "--no-listener", "critical")
    reason = f" (nothing listens on socket {gone} (No such file or directory))"
    assert done == (
        2,
        f"PGSOCK_CLOSE_WAIT CRITICAL - 0 connections whose client is gone on socket {gone}{reason} "
        "| close_wait=0;5;20;0 established=0;;;0 orphans=0;;;0\n",
        "",
    )


def test_what_is_missing_of_a_pool(listener: Listener) -> None:
    done = support.run("close_wait", "-p", "1", "--socket", f"{listener.path}s")
    assert done == unknown(
        "close_wait",
        f"nothing listens on port 1; nothing listens on socket {listener.path}s (No such file or "
        "directory); is the server down or the port another (--port)? --no-listener decides what "
        "this means",
    )


def test_what_is_no_socket(listener: Listener) -> None:
    directory = Path(listener.path).parent
    (directory / "file").touch()
    for check, done in each_check("--socket", str(directory)):
        assert done == unknown(
            check,
            f"{directory} is a directory; name the socket in it, such as {directory}/.s.PGSQL.5432",
        )
    for check, done in each_check("--socket", f"{directory}/file"):
        assert done == unknown(check, f"{directory}/file is not a socket")


@pytest.mark.parametrize("text", ["", "s", "./s", "@"])
def test_what_is_no_path(text: str) -> None:
    for check, done in each_check(f"--socket={text}"):
        assert done == unknown(
            check,
            f"argument --socket: '{text}' is neither the absolute path of a Unix socket nor @NAME "
            f"of an abstract one; see check_pgsock_{check} --help",
        )


@pytest.mark.parametrize("port", [(), ("-p", "5432")])
def test_what_contradicts_it(port: tuple[str, ...]) -> None:
    for option, value in (
        ("--address", "127.0.0.1"),
        ("--peer", "10.0.0.0/8"),
        ("--exclude-peer", "10.0.0.0/8"),
    ):
        for check, done in each_check("--socket", "/s", option, value, *port):
            assert done == unknown(
                check,
                f"{option} selects by an address, which connections over a Unix socket have not; "
                "drop it, or give --socket a service of its own",
            )
    for check, done in each_check("--socket", "/s", "--leg", "client", *port):
        assert done == unknown(
            check,
            "--socket is looked at on the server leg alone: the connecting end of a Unix socket "
            "has no name; drop --leg client or --socket",
        )
    done = support.run("thrashing", "--socket", "/s", "--ignore-probes", *port)
    assert done == unknown(
        "thrashing",
        "--ignore-probes does not go with --socket: which sessions over a Unix socket had no data "
        "cannot be told; drop one",
    )
    if not port:
        done = support.run("thrashing", "--socket", "/s", "--time-wait-critical", "80")
        assert done == unknown(
            "thrashing",
            "Unix sockets have no TIME_WAIT; drop --time-wait-warning and --time-wait-critical",
        )


# Clients that are gone.


def orphan(pg: PostgresServer, clients: Connect, count: int) -> list[Session]:
    """Kill `count` clients under a running statement."""
    opened = clients(pg, count)
    for session in opened:
        session.simple_query("select pg_sleep(60)")
    for session in opened:
        session.kill()
    return opened


def close_wait_line(state: str, gone: int, established: int, path: str, extra: str = "") -> str:
    """The whole first line of close_wait, judged at 1 and 3."""
    noun = "connection" if gone == 1 else "connections"
    stay = ", unchanged for 0.2 s" if extra else ""
    return (
        f"PGSOCK_CLOSE_WAIT {state} - {gone} {noun} whose client is gone{stay} on socket {path}"
        f"{extra} | close_wait={gone};1;3;0 established={established};;;0 orphans={gone};;;0\n"
    )


def test_clients_that_are_gone(pg: PostgresServer, clients: Connect) -> None:
    path = path_of(pg)
    arguments = ("--socket", path, "-w", "1", "-c", "3", "--settle", "0.2")
    clients(pg, 2)
    orphans = orphan(pg, clients, 1)
    done = support.run("close_wait", *arguments, user=STRANGER)
    assert done == (0, close_wait_line("OK", 1, 2, path), "")
    orphans += orphan(pg, clients, 1)
    done = support.run("close_wait", *arguments, user=STRANGER)
    reason = " (close_wait outside range 0:1)"
    owner = pwd.getpwuid(os.stat(path).st_uid)
    held = f"server's uid {owner.pw_uid} ({owner.pw_name}): 2 whose client is gone\n"
    advice = (
        "at fault is the program that accepted them (which one is not seen from here), unless it "
        "is a PostgreSQL server: its backends work on until their statements end, "
        "client_connection_check_interval lets them notice\n"
    )
    if os.geteuid() == 0:
        expected = close_wait_line("WARNING", 2, 2, path, reason) + held + advice
        assert done == (1, expected, "")
    orphans += orphan(pg, clients, 2)
    done = support.run("close_wait", *arguments)
    reason = " (close_wait outside range 0:3)"
    held = "".join(
        f"process {pid}: user postgres on postgres over a Unix socket runs SELECT, its client "
        "gone\n"
        for pid in sorted(session.backend_pid for session in orphans)
    )
    advice = (
        "each holds a slot until its statement ends: pg_terminate_backend(PID) ends it, "
        "client_connection_check_interval lets the server notice by itself; at fault: the clients "
        "on this host, gone under a statement\n"
    )
    assert done == (2, close_wait_line("CRITICAL", 4, 2, path, reason) + held + advice, "")
    pg.terminate([session.backend_pid for session in orphans])
    support.wait_until(lambda: sessions_of(path) == 2, "ended")
    done = support.run("close_wait", *arguments, user=STRANGER)
    assert done == (0, close_wait_line("OK", 0, 2, path), "")


def test_clients_that_have_been_gone_for_long(pg: PostgresServer, clients: Connect) -> None:
    """The kernel does not date it: what the runs before saw does."""
    path = path_of(pg)
    (session,) = orphan(pg, clients, 1)
    named = ("--socket", path, "--user", "postgres", "-w", "0", "-c", "3", "--settle", "0.1")
    with fresh_directory("pgsock-state-") as directory:
        arguments = (*named, "--state-dir", str(directory), "--min-age")
        done = support.run("close_wait", *arguments, "600")
        assert done == (
            0,
            "PGSOCK_CLOSE_WAIT OK - 0 connections whose client is gone for 600 s or more on socket "
            f"{path} of user postgres | close_wait=0;0;3;0 established=0;;;0 orphans=0;;;0 "
            "younger=1;;;0 oldest=0s;;;0\nnot counted: 1 connection for less than 600 s\n",
            "",
        )
        time.sleep(0.5)
        done = support.run("close_wait", *arguments, "0.5")
    first, told, _ = done.out.splitlines()
    assert (done.code, first.rpartition(" ")[0]) == (
        1,
        "PGSOCK_CLOSE_WAIT WARNING - 1 connection whose client is gone for 0.5 s or more, "
        f"unchanged for 0.1 s on socket {path} of user postgres (close_wait outside range 0:0) | "
        "close_wait=1;0;3;0 established=0;;;0 orphans=1;;;0 younger=0;;;0",
    )
    assert re.fullmatch(
        f"process {session.backend_pid}: user postgres on postgres over a Unix socket runs SELECT, "
        r"its client gone for at least \d+\.\d s",
        told,
    )
    # A stranger sees no user of it.
    if os.geteuid() == 0:
        done = support.run("close_wait", *named, user=STRANGER)
        assert done == unknown(
            "close_wait",
            "user and database are known of none of 1 connection, by which to select them: drop "
            "--user and --database, or see the README on who may know them",
        )
    done = support.run("close_wait", *named, "--min-age", "9", user=STRANGER)
    assert done == unknown(
        "close_wait",
        "Unix sockets do not tell for how long a peer has been gone, and to see it from run to run "
        "there is no directory to keep it in: make /var/lib/check_pgsock, owned by the user that "
        "runs the check, or name one with --state-dir",
    )


def test_a_client_that_only_sends_no_more_is_there(listener: Listener) -> None:
    client = listener.connect()
    listener.accept()
    client.shutdown(socket.SHUT_WR)
    done = support.run("close_wait", "--socket", listener.path, "-w", "1", "-c", "3")
    assert done == (0, close_wait_line("OK", 0, 1, listener.path), "")


def test_sessions_that_are_just_being_closed_are_not_counted(listener: Listener) -> None:
    """A server that closes 0.1 s late: some sessions are always without client, none stays."""
    stop = threading.Event()

    def close_late() -> None:
        late: list[tuple[float, socket.socket]] = []
        listener.socket.settimeout(0.01)
        while not stop.is_set():
            with contextlib.suppress(socket.timeout):
                late.append((time.monotonic() + 0.1, listener.socket.accept()[0]))
            while late and late[0][0] < time.monotonic():
                late.pop(0)[1].close()
        for _, one in late:
            one.close()

    def connect() -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listener.path)
            time.sleep(0.01)

    threads = [threading.Thread(target=target) for target in (close_late, connect)]
    for thread in threads:
        thread.start()
    try:
        support.wait_until(lambda: sessions_of(listener.path) > 2, "passing")
        done = support.run(
            "close_wait", "--socket", listener.path, "-w", "0", "-c", "0", "--settle", "0.5", "-v"
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    first, *rest = done.out.splitlines()
    start = f"PGSOCK_CLOSE_WAIT OK - 0 connections whose client is gone on socket {listener.path} |"
    assert (done.code, first[: len(start)]) == (0, start)
    assert "looked twice" in rest


def test_procfs_does_not_tell_who_is_gone(listener: Listener) -> None:
    sentence = (
        "procfs does not tell which sessions over a Unix socket have lost their client: --socket "
        "needs netlink here"
    )
    for extra in ((), ("-p", "5432")):
        done = support.run(
            "close_wait", "--socket", listener.path, "--source", "procfs", *extra, user=STRANGER
        )
        assert done == unknown("close_wait", sentence)
    code, out, err = restricted.run(
        restricted.DENY_NETLINK, "close_wait", "--socket", listener.path
    )
    refusal = "the netlink socket dump failed: Permission denied"
    expected = unknown("close_wait", f"{sentence}, which did not answer: {refusal}")
    assert (code, out, err) == expected


# Sessions that come and go.


def test_sessions_opened_and_closed(pg: PostgresServer, clients: Connect) -> None:
    path = path_of(pg)
    staying = clients(pg, 6)
    with Check("--socket", path, "--window", "3", "-v", "-w", "1", events=False) as check:
        for session in staying[:4]:
            session.close()
        clients(pg, 2)
    done = check.result()
    assert masked(done) == [
        f"PGSOCK_THRASHING WARNING - at least 4/s connections closed per second (2/s opened) on "
        f"socket {path} (closed_rate outside range 0:1) | closed_rate=4/s;1;50;0 "
        "opened_rate=2/s;;;0 cycle_rate=2/s;;;0 established=4;;;0",
        SNAPSHOTS,
        f"{OWN_UID}: 4 closed",
        "counted in T s: 4 closed, 2 opened",
        ELSEWHERE,
    ]
    assert (done.code, done.err) == (1, "")


def test_cycles_are_a_lower_bound(listener: Listener) -> None:
    """Sessions that last longer than the pause between two looks are all seen, others may not."""
    arguments = ("--socket", listener.path, "--window", "2.5", "-v", "-w", "100")
    with Check(*arguments, events=False) as check:
        for _ in range(3):
            with listener.connect(), listener.accept():
                time.sleep(0.3)
        for _ in range(50):
            with listener.connect(), listener.accept():
                pass
    found = counts(check.result())
    assert 3 <= found["closed"] == found["opened"] < 50


def test_by_procfs(listener: Listener) -> None:
    """As well; but it tells no users."""
    clients = [listener.connect() for _ in range(3)]
    accepted = [listener.accept() for _ in clients]
    arguments = ("--socket", listener.path, "--window", "2", "-v", "--source", "procfs")
    with Check(*arguments, events=False) as check:
        for one in (*clients[:2], *accepted[:2]):
            one.close()
    done = check.result()
    assert masked(done) == [
        "PGSOCK_THRASHING OK - at least 2/s connections closed per second (0/s opened) on socket "
        f"{listener.path} | closed_rate=2/s;10;50;0 opened_rate=0/s;;;0 cycle_rate=0/s;;;0 "
        "established=1;;;0",
        SNAPSHOTS,
        BY_NAME.rstrip("\n"),
        "users not known: 2 closed",
        "counted in T s: 2 closed, 0 opened",
        ELSEWHERE,
    ]
    assert (done.code, done.err) == (0, "")


def test_a_pool_of_both_kinds_is_watched_at_once(pg: PostgresServer, clients: Connect) -> None:
    """TCP by events, exactly, however short; what Unix sockets cannot tell has no label."""
    path = path_of(pg)
    staying = clients(pg, 3)
    arguments = ("-p", str(pg.port), "--socket", path, "--window", "2", "-v", "-w", "100")
    with Check(*arguments) as check:
        for _ in range(10):
            pg.connect().close()
        for session in staying[:2]:
            session.close()
    done = check.result()
    lines = masked(done, time_wait=False)
    assert lines[:3] == [
        "PGSOCK_THRASHING OK - at least 12/s connections closed per second (10/s opened) on port "
        f"{pg.port} and socket {path} | closed_rate=12/s;100;50;0 opened_rate=10/s;;;0 "
        "cycle_rate=10/s;;;0 established=1;;;0 time_wait=N;;;0",
        SNAPSHOTS,
        "peer 127.0.0.1: 10 closed",
    ]
    assert lines[3:] == [
        f"{OWN_UID}: 2 closed",
        "counted in T s: 12 closed, 10 opened",
        ELSEWHERE,
    ]
    assert (done.code, done.err) == (0, "")


# Clients in other network namespaces.


def test_clients_in_other_network_namespaces(
    make_pg: MakePg, clients: Connect, two_hosts: tuple[NamespaceHost, NamespaceHost]
) -> None:
    there, _ = two_hosts
    pg = make_pg(user="games")  # no other server's: it is the user's sessions that are counted
    path = path_of(pg)
    where = f"on socket {path}"
    arguments = ("--socket", path, "--limit", "10")
    clients(pg, 2)
    away = clients(pg, 3, there)
    note = (
        "not counted: at least 3 sessions over Unix sockets of the server, of clients in other "
        "network namespaces (--netns adds them)\n"
    )
    done = support.run("saturation", *arguments)
    slots = (
        line("OK", 2, 10, where)
        .replace(f"2 of 10 connections (20 %) {where}", "5 of 10 connection slots used (50 %), 2 "
                 f"connections {where}")
        .replace(" limit=10;;;0 utilization=20.0%;;;0 free=8;", " slots_used=5;8;9;0;10 "
                 "limit=10;;;0 utilization=50.0%;;;0 free=5;")
    )  # fmt: skip
    assert done == (0, slots + note, "")
    done = support.run("close_wait", "--socket", path, "-w", "1", "-c", "3")
    assert done == (0, close_wait_line("OK", 0, 2, path) + note, "")
    done = support.run("thrashing", "--socket", path, "--window", "0.3")
    assert (done.code, done.out.splitlines()[1:]) == (0, [SNAPSHOTS, note.rstrip("\n")])
    # Nobody sees whose sessions they are, and there may be more of the same user.
    done = support.run("saturation", *arguments, user=STRANGER)
    number = re.sub(
        r".*\nnot counted: at least (\d+) sessions .*", r"\1", done.out, flags=re.DOTALL
    )
    note = note.replace(" 3 ", f" {number} ").replace("server", "server, or of another of its user")
    assert done == (0, line("OK", 2, 10, where) + note + UNCOUNTED, "")
    assert int(number) >= 3
    both = ("--netns", "self", "--netns", str(there.process.pid))
    several = support.uncounted(
        "several network namespaces may have several servers",
        OTHERS,
        "give each network namespace a service of its own",
    )
    expected = line("OK", 5, 10, where) + several
    assert support.run("saturation", *arguments, *both) == (0, expected, "")
    # Nobody may enter it: its procfs does not tell files apart, nor who is gone.
    done = support.run("saturation", *arguments, *both, user=STRANGER)
    assert done == (0, line("OK", 5, 10, where, close_wait=None) + BY_NAME + several, "")
    # From there alone the listener is not seen.
    done = support.run("saturation", *arguments, "--netns", str(there.process.pid))
    assert done == unknown(
        "saturation",
        f"nothing listens on socket {path}; 3 sessions over it: the listener has ended, or another "
        "network namespace has it; is the server down or the socket another (--socket)? "
        "--no-listener decides what this means",
    )
    # Those of the namespace are watched, too.
    away[0].kill()
    away[1].simple_query("select pg_sleep(60)")
    away[1].kill()
    support.wait_until(lambda: not Path(f"/proc/{away[0].backend_pid}").exists(), "ended")
    done = support.run("close_wait", "--socket", path, *both, "-w", "1", "-c", "3")
    assert done == (0, close_wait_line("OK", 1, 3, path), "")
    with Check("--socket", path, *both, "--window", "2", "-v", events=False) as check:
        away[2].close()
    done = check.result()
    assert counts(done) == {"closed": 1, "opened": 0}
    assert "users not known: 1 closed" in done.out.splitlines()  # by procfs, for nobody


def test_connections_of_other_namespaces_wait_in_the_same_queue(
    listener: Listener, two_hosts: tuple[NamespaceHost, NamespaceHost]
) -> None:
    there, _ = two_hosts
    listener.connect()
    with there.entered():
        listener.connect()
        listener.connect()
    arguments = ("--socket", listener.path, "--limit", "10")
    waiting = (
        "3 connections of these not accepted yet: check_pgsock_accept_queue tells whether they "
        "stay so\n"
    )
    first = line("OK", 3, 10, f"on socket {listener.path}", waiting=3)
    assert support.run("saturation", *arguments) == (0, first + waiting, "")
    both = ("--netns", "self", "--netns", str(there.process.pid))
    done = support.run("saturation", *arguments, *both)
    assert (done.code, done.out.startswith(first), done.out.endswith(waiting)) == (0, True, True)
    # By netlink here and by procfs there, those there are not counted twice.
    done = support.run("saturation", *arguments, *both, user=STRANGER)
    assert done.out.startswith("PGSOCK_SATURATION OK - 3 of 10 connections (30 %) ")


# A saved moment.


def test_a_saved_moment() -> None:
    saved = ("--proc-root", str(DETAILS), "--socket", PATH.decode())
    done = support.run("saturation", *saved, "--limit", "20")
    where = f"on socket {PATH.decode()}"
    expected = line("OK", 5, 20, where, close_wait=None, waiting=1)
    note = support.uncounted(
        "a saved moment holds no processes",
        OTHERS,
        "pgsock record, as root or as the server's user, saves what is needed",
    )
    waiting = (
        "1 connection of these not accepted yet: check_pgsock_accept_queue tells whether they "
        "stay so\n"
    )
    assert done == (0, expected + BY_NAME + note + waiting, "")
    assert support.run("saturation", *saved) == unknown(
        "saturation",
        f"the limit of socket {PATH.decode()} is not in a saved moment; name it with --limit N",
    )
    assert support.run("close_wait", *saved) == unknown(
        "close_wait",
        "procfs does not tell which sessions over a Unix socket have lost their client: --socket "
        "needs netlink here",
    )
