"""Destroy events: what the filter passes and what is lost, on real sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.processes import free_port
from check_pgsock.sockets.events import DestroyEvents
from tests import support
from tests.watching import Check, abort, counts, listening

SETTLED = 0.2  # seconds
WINDOW = ("--window", "1", "-v")


def test_abort_by_this_end() -> None:
    support.require("system-python")
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        address = ("127.0.0.1", port)
        early = [socket.create_connection(address) for _ in range(3)]
        accepted = [server.accept()[0] for _ in early]
        args = ("-p", str(port), *WINDOW)
        with Check(*args, "--leg", "client") as client, Check(*args) as check:
            late = [socket.create_connection(address) for _ in range(3)]
            accepted += [server.accept()[0] for _ in late]
            for connection in early:
                abort(connection)
            # The first of these is of an unknown port; then the others are looked at.
            for connection in late:
                abort(connection)
                time.sleep(0.1)
            for connection in accepted:
                connection.close()
        assert counts(client.result()) == {
            "closed": 5, "opened": 2, "probes": 0, "lost": 0, "failed": 0,
        }  # fmt: skip
        assert counts(check.result()) == {"closed": 6, "opened": 3, "probes": 6, "lost": 0}
        with Check(*args) as check:
            late = [socket.create_connection(address) for _ in range(3)]
            for _ in late:
                abort(server.accept()[0])
            for connection in late:
                connection.close()
        assert counts(check.result()) == {"closed": 3, "opened": 3, "probes": 0, "lost": 0}


def test_both_families_of_one_listener_and_filters() -> None:
    with listening(socket.AF_INET6, "::") as port:
        filters: list[tuple[str, ...]] = [
            (), ("--peer", "127.0.0.2"), ("--exclude-peer", "127.0.0.0/8"), ("--address", "::1"),
        ]  # fmt: skip
        args = ("-p", str(port), "--window", "2", "-v")
        with contextlib.ExitStack() as stack:
            checks = [stack.enter_context(Check(*args, *one)) for one in filters]
            for here, there, count in (
                ("127.0.0.1", "127.0.0.1", 2), ("127.0.0.2", "127.0.0.1", 3), ("::1", "::1", 4),
            ):  # fmt: skip
                for _ in range(count):
                    with socket.create_connection((there, port), 5, (here, 0)) as connection:
                        connection.sendall(b"data")
                        connection.recv(100)
        found = [counts(check.result()) for check in checks]
    assert [(one["closed"], one["opened"]) for one in found] == [(9, 9), (3, 3), (4, 4), (4, 4)]
    assert checks[0].result().out.splitlines()[1:4] == [
        "peer ::1: 4 closed",
        "peer 127.0.0.2: 3 closed",
        "peer 127.0.0.1: 2 closed",
    ]


def test_many_ports() -> None:
    with listening(socket.AF_INET, "127.0.0.1") as port:
        ports = [*range(1, 1000), port]
        args = [word for one in ports for word in ("-p", str(one))]
        with Check(*args, "--leg", "client", "--window", "1", "-v") as check:
            for _ in range(5):
                socket.create_connection(("127.0.0.1", port)).close()
    assert counts(check.result())["closed"] == 5


def test_events_are_lost_by_count() -> None:
    deadline = Deadline(8)
    with (
        listening(socket.AF_INET, "127.0.0.1") as port,
        DestroyEvents((port,), False, deadline, buffer=20_000) as events,
    ):
        for _ in range(200):
            socket.create_connection(("127.0.0.1", port)).close()
        support.wait_until(lambda: events.lost() > 0, "events are lost")
        time.sleep(SETTLED)
        lost = events.lost()
        received = sum(1 for _ in events.receive(0.0))
        assert 0 < received < 200
        assert received + lost == 200
        socket.create_connection(("127.0.0.1", port)).close()
        assert sum(1 for _ in events.receive(time.monotonic() + SETTLED)) == 1
        assert events.describe().startswith(
            f"destroy events: {received + 1} received, {lost} lost, receive buffer "
        )


@pytest.mark.prove
def test_lost_events_are_counted_as_closed() -> None:
    number = 12_000
    with listening(socket.AF_INET, "127.0.0.1", answer=False) as port:
        args = ("-p", str(port), "--window", "7", "-t", "20", "-v")
        with Check(*args) as check:
            os.kill(check.process.pid, signal.SIGSTOP)
            for _ in range(number):
                abort(socket.create_connection(("127.0.0.1", port)))
            time.sleep(SETTLED)
            os.kill(check.process.pid, signal.SIGCONT)
    done = check.result()
    found = counts(done)
    assert (found["closed"], found["opened"]) == (number, number)
    assert found["lost"] > 0
    assert done.out.splitlines()[1] == (
        f"{found['lost']} events did not fit into the receive buffer: counted as closed; "
        "net.core.rmem_max or CAP_NET_ADMIN allows a larger one"
    )
    assert done.code == 2
