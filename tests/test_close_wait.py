"""check_pgsock_close_wait against real servers: whole output and exit code, in all four states."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import LOCAL, Host, NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.model import CLOSE_WAIT, Query, Socket
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.store import FILE_NAME
from check_pgsock.unclosed import closed_for
from tests import support
from tests.conftest import Installations, MakePg, OpenSessions
from tests.moment import MOMENT
from tests.support import Completed
from tests.test_thrashing import make_certificate

STRANGER = "daemon"
TICK = 0.02  # seconds; a tick of the kernel is 1 to 10 ms
ADVICE = (
    "each holds a slot until its statement ends: pg_terminate_backend(PID) ends it, "
    "client_connection_check_interval lets the server notice by itself; at fault: the clients on "
    "127.0.0.1, gone under a statement"
)
ADVICE_ON_ONE = ADVICE.replace("each holds a slot", "it holds its slot").replace(
    "clients", "client"
)
FROM_SAVED = (
    "at fault is the program that accepted them (which one is not seen from here), unless it is a "
    "PostgreSQL server: its backends work on until their statements end, "
    "client_connection_check_interval lets them notice"
)


def line(
    state: str,
    close_wait: int,
    established: int,
    where: str,
    extra: str = "",
    bounds: str = "5;20",
    *,
    not_accepted: int | None = 0,
    younger: int | None = None,
    dated: bool = True,
    condition: str = "in CLOSE_WAIT",
) -> str:
    """The whole first line of a server leg (`not_accepted` None: without such a label), masked;
    `dated` tells that the source, or the store, knows for how long.
    """
    noun = "connection" if close_wait == 1 else "connections"
    values = f"close_wait={close_wait};{bounds};0 established={established};;;0"
    values += f" orphans={close_wait - (not_accepted or 0)};;;0"
    if not_accepted is not None:
        values += f" not_accepted={not_accepted};;;0"
    return (
        f"PGSOCK_CLOSE_WAIT {state} - {close_wait} {noun} {condition}{where}{extra} | {values}"
        f"{_ages(younger, dated)}\n"
    )


def client_line(
    state: str, close_wait: int, where: str, extra: str = "", bounds: str = "5;20", *,
    younger: int | None = None, dated: bool = True, condition: str = "in CLOSE_WAIT",
) -> str:  # fmt: skip
    """The same of a client leg, with nothing else on it."""
    noun = "connection" if close_wait == 1 else "connections"
    return (
        f"PGSOCK_CLOSE_WAIT {state} - {close_wait} {noun} {condition}{where}{extra} | "
        f"close_wait={close_wait};{bounds};0 established=0;;;0{_ages(younger, dated)}\n"
    )


def _ages(younger: int | None, dated: bool) -> str:
    text = "" if younger is None else f" younger={younger};;;0"
    return f"{text} oldest=#s;;;0" if dated else text


def run(*arguments: str, user: str | None = STRANGER) -> Completed:
    """Run the check; what is measured in seconds is masked."""
    done = support.run("close_wait", *arguments, user=user)
    text = re.sub(r"oldest=\d+s", "oldest=#s", done.out)
    return Completed(done.code, re.sub(r"at least \d+(\.\d+)? s", "at least #", text), done.err)


def ordered(done: Completed) -> tuple[int, list[str], str]:
    """The first line and the others by name: who has been gone longer is a matter of ticks."""
    first, *rest = done.out.splitlines(keepends=True)
    return done.code, [first, *sorted(rest)], done.err


def lines_on(
    opened: list[Session], runs: str = "SELECT", user: str = "postgres",
    database: str = "postgres", *, dated: bool = True,
) -> list[str]:  # fmt: skip
    """The lines on the backends of these sessions."""
    gone = " for at least #" if dated else ""
    return [
        f"process {one.backend_pid}: user {user} on {database} from 127.0.0.1 runs {runs}, its "
        f"client gone{gone}\n"
        for one in opened
    ]


def orphan(
    pg: PostgresServer,
    sessions: OpenSessions,
    count: int,
    user: str = "postgres",
    database: str = "postgres",
) -> list[Session]:
    """Kill `count` clients under a running statement."""
    opened = sessions(pg, count, user=user, database=database)
    for session in opened:
        session.simple_query("select pg_sleep(60)")
    ports = {session.local_port for session in opened}
    for session in opened:
        session.kill()
    support.wait_until(
        lambda: support.tcp_states(pg.port, ports)["CLOSE_WAIT"] == count, "orphaned"
    )
    return opened


@pytest.fixture
def state() -> Iterator[tuple[str, str]]:
    """The options that name a state directory of the check's user."""
    with fresh_directory("pgsock-state-") as directory:
        accounts.own(directory, accounts.account_of(STRANGER))
        yield "--state-dir", str(directory)


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_orphans_raise_warning_and_critical_as_a_stranger(
    pg: PostgresServer, sessions: OpenSessions, source: str
) -> None:
    arguments = ("-p", str(pg.port), "-w", "1", "-c", "3", "--source", source, "--settle", "0.2")
    dated = source == "netlink"
    sessions(pg, 2)
    where = f" on port {pg.port}"
    assert run(*arguments) == (0, line("OK", 0, 2, where, bounds="1;3", dated=dated), "")
    opened = orphan(pg, sessions, 2)
    stay = f", unchanged for 0.2 s on port {pg.port}"
    reason = " (close_wait outside range 0:1)"
    first = line("WARNING", 2, 2, stay, reason, "1;3", dated=dated)
    rest = sorted([*lines_on(opened, dated=dated), f"{ADVICE}\n"])
    assert ordered(run(*arguments)) == (1, [first, *rest], "")
    opened += orphan(pg, sessions, 2)
    reason = " (close_wait outside range 0:3)"
    first = line("CRITICAL", 4, 2, stay, reason, "1;3", dated=dated)
    rest = sorted([*lines_on(opened, dated=dated), f"{ADVICE}\n"])
    assert ordered(run(*arguments)) == (2, [first, *rest], "")


def test_ok_again_when_the_statement_ends(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg()
    (session,) = sessions(server)
    session.simple_query("select pg_sleep(2)")
    port = session.local_port
    session.kill()
    support.wait_until(
        lambda: support.tcp_states(server.port, [port])["CLOSE_WAIT"] == 1, "orphaned"
    )
    arguments = ("-p", str(server.port), "-w", "0", "--settle", "0.1")
    assert run(*arguments).code == 1
    support.wait_until(lambda: not support.tcp_states(server.port, [port]), "ended", 10)
    expected = line("OK", 0, 0, f" on port {server.port}", bounds="0;20")
    assert run(*arguments) == (0, expected, "")


def client_advice(program: str, looks: str) -> str:
    """Whose fault it is on a client leg."""
    return (
        f"at fault: the program on this host{program}, which has not closed what the server closed "
        f"({looks}): let its pool validate connections, or limit their idle time\n"
    )


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_the_client_leg_holds_what_an_application_never_closed(source: str) -> None:
    support.require("system-python")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for _ in clients:
            listener.accept()[0].close()
        for client in clients:
            own = client.getsockname()[1]
            closed = functools.partial(lambda own: "CLOSE_WAIT" in support.tcp_states(own), own)
            support.wait_until(closed, "closed by the server")
        arguments = ("-p", str(port), "-w", "2", "--source", source, "--settle", "0.1")
        stay = f", unchanged for 0.1 s to port {port}"
        reason = " (close_wait outside range 0:2)"
        dated = source == "netlink"
        expected = client_line("WARNING", 3, stay, reason, "2;20", dated=dated)
        expected += "peer 127.0.0.1: 3 in CLOSE_WAIT\n"
        expected += "the longest for at least #\n" if dated else ""
        expected += client_advice("", "3 not looked at since")
        assert run(*arguments, "--leg", "client") == (1, expected, "")
        expected = line("OK", 0, 0, f" on port {port}", bounds="2;20", dated=dated)
        assert run(*arguments) == (0, expected, "")
        for client in clients:
            client.close()


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_sockets_that_only_pass_through_close_wait_are_not_counted(source: str) -> None:
    """A server that closes 0.1 s late: some sockets are always in CLOSE_WAIT, none stays."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        port = listener.getsockname()[1]
        stop = threading.Event()

        def close_late() -> None:
            late: list[tuple[float, socket.socket]] = []
            listener.settimeout(0.01)
            while not stop.is_set():
                with contextlib.suppress(socket.timeout):
                    late.append((time.monotonic() + 0.1, listener.accept()[0]))
                while late and late[0][0] < time.monotonic():
                    late.pop(0)[1].close()
            for _, one in late:
                one.close()

        def connect() -> None:
            while not stop.is_set():
                socket.create_connection(("127.0.0.1", port)).close()
                time.sleep(0.01)

        threads = [threading.Thread(target=target) for target in (close_late, connect)]
        for thread in threads:
            thread.start()
        try:
            support.wait_until(lambda: support.tcp_states(port)["CLOSE_WAIT"] > 2, "passing")
            done = support.run(
                "close_wait", "-p", str(port), "-w", "0", "-c", "0", "--source", source,
                "--settle", "0.5", "-v",
            )  # fmt: skip
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    first, *rest = done.out.splitlines()
    assert done.code == 0
    assert first.startswith(
        f"PGSOCK_CLOSE_WAIT OK - 0 connections in CLOSE_WAIT on port {port} | close_wait=0;0;0;0 "
    )
    assert rest[-1] == "looked twice"


def test_a_saved_moment_is_judged_as_it_is_and_says_so() -> None:
    done = support.run("close_wait", "--proc-root", str(MOMENT), "-w", "0", "--settle", "5")
    reason = " (close_wait outside range 0:0)"
    assert done == (
        1,
        line("WARNING", 1, 3, " on port 5432", reason, "0;20", dated=False)
        + "a saved moment, judged as it is: which of them stay cannot be told\n"
        f"peer 127.0.0.1: 1 in CLOSE_WAIT\n{FROM_SAVED}\n",
        "",
    )
    done = support.run("close_wait", "--proc-root", str(MOMENT))
    expected = line("OK", 1, 3, " on port 5432", dated=False)
    assert done == (0, expected + "a saved moment, judged as it is\n", "")


def test_the_second_look_must_fit_into_the_deadline() -> None:
    done = support.run("close_wait", "--settle", "3", "-t", "3")
    assert done == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - --settle 3 is not below --timeout 3; lower the one or raise "
        "the other\n",
        "",
    )


@pytest.mark.parametrize("major", [15, 18])
def test_thirty_orphans_are_named(make_pg: MakePg, sessions: OpenSessions, major: int) -> None:
    """One of them waits for a lock; as root and as a stranger."""
    server = make_pg(settings={"max_connections": 50}, major=major)
    server.execute("create role app login; create table t ()")
    server.execute("create database shop")
    with server.administrator() as locking:
        locking.query("begin; lock table t")
        (waiting,) = sessions(server)
        waiting.simple_query("select * from t")
        title = Path(f"/proc/{waiting.backend_pid}/cmdline")
        support.wait_until(lambda: b"SELECT waiting" in title.read_bytes(), "the lock waited for")
        waiting.kill()
        time.sleep(0.2)  # gone longest, and by far
        opened = orphan(server, sessions, 19, "app", "shop")
        time.sleep(0.1)
        orphan(server, sessions, 10)
        where = f", unchanged for 0.1 s on port {server.port}"
        reason = " (close_wait outside range 0:20)"
        for user in (STRANGER, None):
            done = run("-p", str(server.port), "--settle", "0.1", user=user)
            first, head, *named, more, advice = done.out.splitlines(keepends=True)
            assert (done.code, first) == (2, line("CRITICAL", 30, 0, where, reason))
            assert head == lines_on([waiting], "SELECT waiting")[0]
            assert len(named) == 7
            assert set(named) < set(lines_on(opened, user="app", database="shop"))
            assert more == (
                "22 more backends: users app (12), postgres (10); databases shop (12), "
                "postgres (10); peer 127.0.0.1\n"
            )
            assert advice == f"{ADVICE}\n"


def test_those_of_a_user_or_a_database(pg: PostgresServer, sessions: OpenSessions) -> None:
    pg.execute("create role app login")
    try:
        mine = orphan(pg, sessions, 2, "app")
        others = orphan(pg, sessions, 3)
        arguments = ("-p", str(pg.port), "-w", "1", "--settle", "0.1")
        stay = f", unchanged for 0.1 s on port {pg.port}"
        reason = " (close_wait outside range 0:1)"
        for options, chosen, which in (
            (("--user", "app"), mine, "of user app"),
            (("--exclude-user", "app"), others, "of all users but app"),
            (("--database", "postgres", "--exclude-user", "x"), [*mine, *others],
             "of all users but x on database postgres"),
        ):  # fmt: skip
            first = line("WARNING", len(chosen), 0, f"{stay} {which}", reason, "1;20")
            rest = [
                each
                for one in chosen
                for each in lines_on([one], user="app" if one in mine else "postgres")
            ]
            expected = [first, *sorted([*rest, f"{ADVICE}\n"])]
            assert ordered(run(*arguments, *options)) == (1, expected, "")
        nobodys = line("OK", 0, 0, f" on port {pg.port} of user nobody", bounds="1;20")
        assert run(*arguments, "--user", "nobody") == (0, nobodys, "")
        # Who knows no title knows no user.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()):
                pass
            with listener.accept()[0]:
                done = run("-p", str(listener.getsockname()[1]), "--user", "app")
        assert (done.code, done.out) == (
            3,
            "PGSOCK_CLOSE_WAIT UNKNOWN - user and database are known of none of 1 connection, by "
            "which to select them: drop --user and --database, or see the README on who may know "
            "them\n",
        )
    finally:
        pg.execute("drop role app")


def test_clients_of_a_stopped_postmaster_that_gave_up(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg()
    (held,) = orphan(server, sessions, 1)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for _ in range(6):
            socket.create_connection((server.host, server.port)).close()
        arguments = ("-p", str(server.port), "--settle", "0.1")
        support.wait_until(lambda: support.tcp_states(server.port)["CLOSE_WAIT"] == 7, "given up")
        stay = f", unchanged for 0.1 s on port {server.port}"
        reason = " (close_wait outside range 0:5)"
        advice = (
            "6 connections not accepted: the server is stopped or starved, and its clients have "
            "given up\n"
        )
        expected = line("WARNING", 7, 0, stay, reason, not_accepted=6)
        expected += lines_on([held])[0] + "peer 127.0.0.1: 6 in CLOSE_WAIT\n"
        expected += "activity: 6 not accepted\nthe longest for at least #\n"
        assert run(*arguments) == (1, f"{expected}{ADVICE_ON_ONE}\n{advice}", "")
        left_out = "not counted: 6 connections that the server has not accepted\n"
        where = f" on port {server.port}"
        held_by = "in CLOSE_WAIT, held by a process"
        expected = line("OK", 1, 0, where, not_accepted=None, condition=held_by) + left_out
        assert run(*arguments, "--only-orphans") == (0, expected, "")
        expected += lines_on([held])[0] + f"{ADVICE_ON_ONE}\nlooked once\n"
        assert run(*arguments, "--only-orphans", "-v") == (0, expected, "")
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_an_application_that_does_not_read(pg: PostgresServer, sessions: OpenSessions) -> None:
    """After pg_terminate_backend: what the server said last is unread."""
    support.require("root")
    opened = sessions(pg, 2)
    pg.terminate([session.backend_pid for session in opened])
    for session in opened:
        own = session.local_port
        closed = functools.partial(lambda own: "CLOSE_WAIT" in support.tcp_states(own), own)
        support.wait_until(closed, "closed by the server")
    opened[0].is_lost()  # it looks, and does not close
    arguments = ("-p", str(pg.port), "--leg", "client", "-w", "1", "--settle", "0.1")
    reason = " (close_wait outside range 0:1)"
    stay = f", unchanged for 0.1 s to port {pg.port}"
    expected = client_line("WARNING", 2, stay, reason, "1;20")
    name = support.own_command()
    expected += f"peer 127.0.0.1: 2 in CLOSE_WAIT\nprocess {name}: 2 in CLOSE_WAIT\n"
    expected += "the longest for at least #\n"
    looks = "1 with unread bytes, 1 read to the end, and leaked"
    assert run(*arguments, user=None) == (1, expected + client_advice(f" ({name})", looks), "")


def test_a_pooler_that_is_stopped(pgbouncer: PgBouncerServer, sessions: OpenSessions) -> None:
    support.require("root")
    (session,) = sessions(pgbouncer)
    assert pgbouncer.pid is not None
    os.kill(pgbouncer.pid, signal.SIGSTOP)
    try:
        port = session.local_port
        session.kill()
        support.wait_until(
            lambda: support.tcp_states(pgbouncer.port, [port])["CLOSE_WAIT"] == 1, "gone"
        )
        done = run("-p", str(pgbouncer.port), "-v", user=None)
    finally:
        os.kill(pgbouncer.pid, signal.SIGCONT)
    assert done.out.splitlines(keepends=True)[1:-1] == [
        "peer 127.0.0.1: 1 in CLOSE_WAIT\n",
        "the longest for at least #\n",
        "at fault: the pooler on this host (pgbouncer), which has not closed what its clients "
        "closed: stopped, starved or stuck\n",
    ]


# --min-age.


@contextlib.contextmanager
def unclosed_clients(count: int = 3) -> Iterator[int]:
    """A port that as many connections of this host lead to, closed by the server alone."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for _ in range(count):
            client = socket.create_connection(listener.getsockname())
            stack.enter_context(client)
            listener.accept()[0].close()
            own = client.getsockname()[1]
            closed = functools.partial(lambda own: "CLOSE_WAIT" in support.tcp_states(own), own)
            support.wait_until(closed, "closed by the server")
        yield listener.getsockname()[1]


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_the_young_are_not_counted(source: str, state: tuple[str, str]) -> None:
    """By what the kernel tells, or by what the runs before saw."""
    with unclosed_clients() as port:
        arguments = (
            "-p", str(port), "--leg", "client", "-w", "2", "--settle", "0.1", "--source", source,
            *state, "--min-age",
        )  # fmt: skip
        for least in ("600", "2592000"):  # another age is no other service
            expected = client_line(
                "OK", 0, f" to port {port}", bounds="2;20", younger=3,
                condition=f"in CLOSE_WAIT for {float(least):g} s or more",
            )  # fmt: skip
            young = f"not counted: 3 connections for less than {float(least):g} s\n"
            assert run(*arguments, least) == (0, expected + young, "")
        time.sleep(0.5)
        where = f", unchanged for 0.1 s to port {port}"
        expected = client_line(
            "WARNING", 3, where, " (close_wait outside range 0:2)", "2;20", younger=0,
            condition="in CLOSE_WAIT for 0.5 s or more",
        )  # fmt: skip
        expected += "peer 127.0.0.1: 3 in CLOSE_WAIT\nthe longest for at least #\n"
        expected += client_advice("", "3 not looked at since")
        assert run(*arguments, "0.5") == (1, expected, "")


def test_what_the_runs_saw_is_more_than_what_the_kernel_tells(state: tuple[str, str]) -> None:
    """A client that has only shut down its sending half answers: the kernel dates its answers."""
    stop = threading.Event()

    def send(one: socket.socket) -> None:
        while not stop.wait(0.05):
            one.sendall(b"answered by an ACK")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as one:
            client.shutdown(socket.SHUT_WR)
            support.wait_until(lambda: support.tcp_states(port)["CLOSE_WAIT"] == 1, "shut down")
            arguments = ("-p", str(port), "-w", "0", "--settle", "0.1", "--min-age")
            assert run(*arguments, "600", *state).code == 0
            thread = threading.Thread(target=send, args=(one,))
            thread.start()
            try:
                time.sleep(1)
                assert run(*arguments, "1", *state).code == 1
                without = run(*arguments, "1")
            finally:
                stop.set()
                thread.join()
            assert without.code == 0
            assert "younger=1;;;0 " in without.out


def test_by_procfs_without_a_directory() -> None:
    with unclosed_clients(1) as port:
        done = run("-p", str(port), "--leg", "client", "--min-age", "9", "--source", "procfs")
    assert done == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - procfs does not tell for how long a peer has been gone, and "
        "to see it from run to run there is no directory to keep it in: make "
        "/var/lib/check_pgsock, owned by the user that runs the check, or name one with "
        "--state-dir\n",
        "",
    )


def test_runs_at_once_lose_nothing(state: tuple[str, str]) -> None:
    with unclosed_clients() as port:
        arguments = (
            "-p", str(port), "--leg", "client", "--source", "procfs", "--min-age", "0.5", *state,
        )  # fmt: skip
        assert run(*arguments).code == 0
        time.sleep(0.5)
        expected = client_line(
            "OK", 3, f" to port {port}", younger=0, condition="in CLOSE_WAIT for 0.5 s or more"
        )
        done: list[Completed] = []
        threads = [threading.Thread(target=lambda: done.append(run(*arguments))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [(0, expected, "")] * 4
    with contextlib.closing(sqlite3.connect(f"{state[1]}/{FILE_NAME}")) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_saved_moment_of_procfs_tells_no_age() -> None:
    done = run("--proc-root", str(MOMENT), "--min-age", "9")
    assert done == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - this saved moment does not tell for how long a peer has been "
        "gone: --min-age needs a recording by netlink of TCP connections, or an earlier moment in "
        "it\n",
        "",
    )


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_of_a_recording_the_kernel_tells_or_an_earlier_moment(source: str) -> None:
    with unclosed_clients() as port, fresh_directory("pgsock-record-") as directory:
        path = directory / "two.zip"
        moments = ("--for", "0.4", "--interval", "0.4", "--source", source)
        assert support.run("pgsock", "record", str(path), *moments).code == 0
        arguments = ("-p", str(port), "--leg", "client", "--source", str(path), "--min-age")
        done = run(*arguments, "0.4", user=None)
        assert (done.code, done.out.splitlines()[0]) == (
            0,
            f"PGSOCK_CLOSE_WAIT OK - 3 connections in CLOSE_WAIT for 0.4 s or more to port {port} "
            "| close_wait=3;5;20;0 established=0;;;0 younger=0;;;0",
        )
        done = run(*arguments, "60", user=None)
        assert done.code == (0 if source == "netlink" else 3)


def test_a_recording_names_them(pg: PostgresServer, sessions: OpenSessions) -> None:
    """Made by anybody, while there are no other connections than theirs."""
    opened = orphan(pg, sessions, 2)
    with fresh_directory("pgsock-record-") as directory:
        directory.chmod(0o777)
        path = str(directory / "one.zip")
        assert support.run("pgsock", "record", path, user=STRANGER).code == 0
        done = run("-p", str(pg.port), "-w", "0", "--source", path)
    assert sorted(done.out.splitlines(keepends=True)[-3:-1]) == sorted(lines_on(opened))
    assert (done.code, done.out.splitlines()[-1]) == (1, ADVICE)


@pytest.mark.parametrize("text", ["0", "-1", "x", "2592001"])
def test_what_is_no_age(text: str) -> None:
    done = run(f"--min-age={text}")
    sentence = "is no number" if text == "x" else "is no time in seconds, above 0, at most 2592000"
    assert done == (
        3,
        f"PGSOCK_CLOSE_WAIT UNKNOWN - argument --min-age: '{text}' {sentence}; see "
        "check_pgsock_close_wait --help\n",
        "",
    )


# Since when, as the kernel tells it.


def in_close_wait(server: PostgresServer, client_port: int, on: Host = LOCAL) -> Socket:
    """The server's socket of this client, in CLOSE_WAIT."""
    with on.entered():
        reader = SocketReader("netlink", None, Deadline(5))
        every = reader.sockets(Query((server.port,), True, 1 << CLOSE_WAIT, info=True))
    (found,) = (one for one in every if one.remote_port == client_port)
    return found


class Gone(NamedTuple):
    """What closed_for() said, and between which times it was asked, since the client's kill."""

    least: float
    told: float
    most: float

    def is_exact(self) -> bool:
        """Whether it said so, to a tick of the kernel's clock."""
        return self.least - TICK <= self.told <= self.most + TICK


def gone_after(server: PostgresServer, session: Session, seconds: float, on: Host = LOCAL) -> Gone:
    """Kill the client of a session under a statement, and ask so many seconds later."""
    session.simple_query("select pg_sleep(60)")
    client_port = session.local_port
    time.sleep(0.5)
    before = time.monotonic()
    session.kill()
    after = time.monotonic()
    time.sleep(seconds)
    least = time.monotonic() - after
    told = closed_for(in_close_wait(server, client_port, on))
    most = time.monotonic() - before
    assert told is not None
    server.terminate([session.backend_pid])
    return Gone(least, told, most)


def test_the_last_acknowledgement_is_that_of_the_fin(make_pg: MakePg) -> None:
    """With TLS and without."""
    with fresh_directory("pgsock-tls-") as directory:
        key, certificate = make_certificate(directory)
        settings: dict[str, Setting] = {
            "ssl": True, "ssl_key_file": str(key), "ssl_cert_file": str(certificate),
        }  # fmt: skip
        server = make_pg(settings=settings, major=15)  # the wheel's is built without TLS
        for tls in (True, False):
            session = Session.connect(server.host, server.port, tls=tls)
            assert gone_after(server, session, 0.5).is_exact()


def test_a_backend_that_still_sends_is_reset(pg: PostgresServer) -> None:
    """So nothing that the peer does after its FIN is taken for the FIN."""
    with pg.connect() as session:
        session.simple_query("select pg_sleep(0.3); select repeat('x', 100000)")
        port = session.local_port
        session.kill()
        support.wait_until(
            lambda: support.tcp_states(pg.port, [port])["CLOSE_WAIT"] == 1, "orphaned"
        )
        support.wait_until(lambda: not support.tcp_states(pg.port, [port]), "reset", 2)


def test_answers_to_probes_make_it_a_lower_bound(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations
) -> None:
    """For as long as the other host's kernel knows the connection; without probes it is exact."""
    there, here = two_hosts
    hba = [f"host all all {there.address}/32 trust"]
    with PostgresServer(installations.get(support.newest_major()), hba=hba, host=here) as server:
        for idle in (0, 1):  # 0: the system's, two hours
            with there.entered():
                session = Session.connect(server.host, server.port)
            session.query(f"set tcp_keepalives_idle = {idle}")
            found = gone_after(server, session, 0.5 + idle, here)
            assert found.is_exact() is not bool(idle)
            assert found.told <= found.most + TICK
