"""check_pgsock_close_wait against real servers: whole output and exit code, in all four states."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time

import pytest

from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.moment import MOMENT

STRANGER = "daemon"


def line(
    state: str, close_wait: int, established: int, where: str, extra: str = "", bounds: str = "5;20"
) -> str:
    """The whole first line."""
    noun = "connection" if close_wait == 1 else "connections"
    return (
        f"PGSOCK_CLOSE_WAIT {state} - {close_wait} {noun} in CLOSE_WAIT{extra} | "
        f"close_wait={close_wait};{bounds};0 established={established};;;0\n"
    ).replace("in CLOSE_WAIT", f"in CLOSE_WAIT{where}")


def orphan(pg: PostgresServer, sessions: OpenSessions, count: int) -> None:
    """Kill `count` clients under a running statement."""
    opened = sessions(pg, count)
    for session in opened:
        session.simple_query("select pg_sleep(60)")
    ports = {session.local_port for session in opened}
    for session in opened:
        session.kill()
    support.wait_until(
        lambda: support.tcp_states(pg.port, ports)["CLOSE_WAIT"] == count, "orphaned"
    )


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_orphans_raise_warning_and_critical_as_a_stranger(
    pg: PostgresServer, sessions: OpenSessions, source: str
) -> None:
    arguments = ("-p", str(pg.port), "-w", "1", "-c", "3", "--source", source, "--settle", "0.2")
    sessions(pg, 2)
    done = support.run("close_wait", *arguments, user=STRANGER)
    where = f" on port {pg.port}"
    assert done == (0, line("OK", 0, 2, where, bounds="1;3"), "")
    orphan(pg, sessions, 2)
    done = support.run("close_wait", *arguments, user=STRANGER)
    stay = f", unchanged for 0.2 s on port {pg.port}"
    reason = " (close_wait outside range 0:1)"
    expected = line("WARNING", 2, 2, stay, reason, "1;3") + support.who(
        2, "in CLOSE_WAIT", activity=None
    )
    assert done == (1, expected, "")
    orphan(pg, sessions, 2)
    done = support.run("close_wait", *arguments, user=STRANGER)
    reason = " (close_wait outside range 0:3)"
    expected = line("CRITICAL", 4, 2, stay, reason, "1;3") + support.who(
        4, "in CLOSE_WAIT", activity=None
    )
    assert done == (2, expected, "")


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
    assert support.run("close_wait", *arguments, user=STRANGER).code == 1
    support.wait_until(lambda: not support.tcp_states(server.port, [port]), "ended", 10)
    done = support.run("close_wait", *arguments, user=STRANGER)
    assert done == (0, line("OK", 0, 0, f" on port {server.port}", bounds="0;20"), "")


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
        done = support.run("close_wait", *arguments, "--leg", "client", user=STRANGER)
        stay = f", unchanged for 0.1 s to port {port}"
        reason = " (close_wait outside range 0:2)"
        expected = line("WARNING", 3, 0, stay, reason, "2;20")
        assert done == (1, expected + "peer 127.0.0.1: 3 in CLOSE_WAIT\n", "")
        done = support.run("close_wait", *arguments, user=STRANGER)
        assert done == (0, line("OK", 0, 0, f" on port {port}", bounds="2;20"), "")
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
    assert done == (
        1,
        line("WARNING", 1, 3, " on port 5432", " (close_wait outside range 0:0)", "0;20")
        + "a saved moment, judged as it is: which of them stay cannot be told\n"
        "peer 127.0.0.1: 1 in CLOSE_WAIT\n",
        "",
    )
    done = support.run("close_wait", "--proc-root", str(MOMENT))
    assert done == (
        0, line("OK", 1, 3, " on port 5432") + "a saved moment, judged as it is\n", "",
    )  # fmt: skip


def test_the_second_look_must_fit_into_the_deadline() -> None:
    done = support.run("close_wait", "--settle", "3", "-t", "3")
    assert done == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - --settle 3 is not below --timeout 3; lower the one or raise "
        "the other\n",
        "",
    )
