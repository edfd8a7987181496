"""Whose a port is, proven by a stranger while sessions and processes come and go."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.proc_files import LiveProc
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.ownership import prove_owner
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.view import View
from tests import support
from tests.conftest import MakePg
from tests.made_up_proc import FIRST_PID, Fake, make_children, make_kthreadd, make_proc, set_age

STRANGER = "daemon"
BY_TITLES = "the titles of its backends name connections of the port"
BY_UID = "it is the only one with the listener's uid"
UNPROVEN = "which PostgreSQL server owns its listener cannot be proven from here"
PORT, UID = 5432, 26
POSTMASTER, BACKEND, OTHER = range(FIRST_PID, FIRST_PID + 3)
FAKES: list[Fake] = [
    ("postgres", UID, ["-D", "/data"]),
    ("postgres", UID, ["postgres: checkpointer "]),
    ("sh", UID, ["-c", "cp"]),
]


def leave_time_wait() -> int:
    """The port that a client had whose server closed first, and so has the connection still."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = listener.getsockname()
        with socket.create_connection(at) as client:
            accepted, (_, port) = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
    waits = {"TIME_WAIT": 1}
    support.wait_until(lambda: support.tcp_states(at[1], [port]) == waits, "TIME_WAIT")
    return int(port)


@contextlib.contextmanager
def session_from(port: int, server: PostgresServer) -> Iterator[None]:
    """A session whose client's port is this."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
        one.connect((server.host, server.port))
        session = Session(one)
        session.send_startup({"user": "postgres", "database": "postgres"})
        session.wait_ready()
        yield


def is_proven_by_titles(server: PostgresServer) -> bool:
    done = support.run("saturation", "-p", str(server.port), "-v", user=STRANGER)
    return f"whose server it is: {BY_TITLES} (process {server.pid})\n" in done.out


def test_what_the_clients_port_was_used_for_before_says_nothing(make_pg: MakePg) -> None:
    """A server that closes first keeps each connection in TIME_WAIT for a minute: with hundreds of
    these one of a few clients often has a port of such a one.
    """
    server = make_pg(arguments=("-c", "max_connections=50"))
    with session_from(leave_time_wait(), server):
        assert is_proven_by_titles(server)


def test_what_another_users_program_accepted_says_nothing(make_pg: MakePg) -> None:
    """No backend holds it: the kernel tells the user of each connection."""
    support.require("root")
    server = make_pg(arguments=("-c", "max_connections=50"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", 0))
        client.connect(listener.getsockname())
        accepted, (_, port) = listener.accept()
        with accepted, session_from(port, server):
            assert is_proven_by_titles(server)


class Ending(LiveProc):
    """Processes of which one ends when it has been looked at twice, as `looks` are taken."""

    __slots__ = ("ends", "looks")

    def __init__(self, root: Path, ends: bool) -> None:
        super().__init__(str(root))
        self.ends = ends
        self.looks = 0

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        content = super().read(*parts)
        if parts == (str(OTHER), "stat"):
            self.looks += 1
            if self.ends and self.looks == 2:
                shutil.rmtree(Path(self.root, parts[0]))
        return content


def look(root: Path, age: float, ends: bool) -> tuple[str, int, float]:
    """The proof of the made-up server beside another process of its user, or why there is none;
    how many times that process was read, and how many seconds it took.
    """
    make_proc(root, UID, FAKES, PORT)
    make_kthreadd(root)
    make_children(root, POSTMASTER, BACKEND)
    set_age(root, OTHER, age)
    (root / "1").mkdir()
    (root / "net").symlink_to("1/net")  # a live one
    shutil.copytree(root / str(POSTMASTER) / "net", root / "1" / "net")
    deadline = Deadline(5)
    reader = SocketReader("auto", str(root), deadline)
    files = Ending(root, ends)
    listeners = reader.listeners(PORT)
    began = time.monotonic()
    try:
        cluster, proof = prove_owner(
            View(reader, files, deadline), reader, PORT, listeners, listeners, list
        )
        assert cluster.postmaster.pid == POSTMASTER
    except LimitUnknown as error:
        proof = error.why
    return proof, files.looks, time.monotonic() - began


def test_a_process_that_ends_is_waited_for(tmp_path: Path) -> None:
    """An archive_command of its server, for instance."""
    proof, _, seconds = look(tmp_path, 0.0, True)
    assert (proof, seconds < 1) == (BY_UID, True)


@pytest.mark.parametrize(("age", "looks", "least"), [(0.0, 3, 0.2), (60.0, 1, 0.0)])
def test_a_process_that_stays_is_not_waited_for_long(
    tmp_path: Path, age: float, looks: int, least: float
) -> None:
    proof, read, seconds = look(tmp_path, age, False)
    assert (proof, read) == (UNPROVEN, 2 * looks)  # by its name, and for its age
    assert least <= seconds < least + 1
