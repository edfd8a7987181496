"""Listeners whose owner only their cgroup proves: real servers of one user, each in its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.processes import ProcessTable
from check_pgsock.servers.cgroup_proof import is_alone, mount_points, parse_path
from check_pgsock.sockets.reader import SocketReader
from tests import support
from tests.cgroups import cgroups, enter, inside
from tests.conftest import Installations

STRANGER = "daemon"
ALONE = "it is alone in the listener's cgroup"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"1:cpu:/a\n0::/system.slice/db@15.service\n", "/system.slice/db@15.service"),
        (b"0::/a b\n", "/a b"),
        (b"0::/\n", None),  # everything that has no other, or all of a container
        (b"0::/../other\n", None),  # outside of the cgroup namespace
        (b"0::/a (deleted)\n", None),
        (b"1:cpu:/a\n", None),
        (b"", None),
    ],
)
def test_paths(raw: bytes, path: str | None) -> None:
    assert parse_path(raw) == path


def test_where_cgroups_are_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup2 /mnt/a\\040b cgroup2 rw 0 0\n"
    )
    assert mount_points(str(mounts)) == ["/sys/fs/cgroup/unified", "/mnt/a b"]
    assert mount_points(str(tmp_path / "none")) == []


class Pair:
    """Two servers of one user, each in a cgroup of its own."""

    def __init__(self, each: list[PostgresServer], units: list[Path]) -> None:
        self.each = each
        self.units = units

    def is_alone(self) -> bool:
        """Whether the first is, in that of its listener."""
        server = self.each[0]
        (one,) = SocketReader("netlink", None, Deadline(5)).listeners(server.port)
        assert one.cgroup is not None
        return is_alone(ProcessTable(Deadline(5)), server.pid, one.cgroup)


@pytest.fixture(scope="module")
def pair(installations: Installations) -> Iterator[Pair]:
    """No title names a connection to either of them."""
    binaries = installations.get(support.newest_major())
    name = f"pgsock-proof-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        units = stack.enter_context(cgroups(f"{name}@1.service", f"{name}@2.service"))
        servers = []
        for unit in units:
            server = PostgresServer(binaries, arguments=("-c", "max_connections=20"))
            with inside(unit):
                servers.append(stack.enter_context(server))
        yield Pair(servers, units)


@pytest.fixture
def state() -> Iterator[str]:
    """A directory that the stranger may keep samples in."""
    with fresh_directory("pgsock-state-") as directory:
        accounts.own(directory, accounts.account_of(STRANGER))
        yield str(directory)


@contextlib.contextmanager
def sleeping() -> Iterator[int]:
    """A process that sleeps."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_slots_of_a_server_without_tcp_clients(pair: Pair) -> None:
    server = pair.each[0]
    with server.administrator(), server.administrator():
        done = support.run(
            "saturation", "-p", str(server.port), "--limit", "auto", "-v", user=STRANGER
        )
    assert done.code == 0
    first, *lines = done.out.splitlines()
    assert first == (
        "PGSOCK_SATURATION OK - 2 of 17 connection slots used (12 %), 0 connections on port "
        f"{server.port} | established=0;13;15;0;17 slots_used=2;13;15;0;17 limit=17;;;0 "
        "utilization=11.8%;;;0 free=15;;;0;17 close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0"
    )
    assert any(f"{ALONE} (process {server.pid})" in line for line in lines)


def test_drops_of_a_server_that_never_had_a_tcp_client(pair: Pair, state: str) -> None:
    """Its queue is full, and it does not run."""
    server = pair.each[1]
    arguments = ("-p", str(server.port), "--state-dir", state, "--settle", "0.2")
    support.run("accept_queue", *arguments, user=STRANGER)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect((server.host, server.port))
            done = support.run("accept_queue", *arguments, user=STRANGER)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert done.code == 2
    assert "; listen_drops_rate outside range 0:0) | " in done.out
    assert f"; process {server.pid} (postgres), stopped by a signal\n" in done.out
    assert "not judged" not in done.out


def test_what_else_is_in_the_cgroup_or_below_it_leaves_it_unproven(pair: Pair) -> None:
    assert pair.is_alone()
    with sleeping() as pid:
        enter(pair.units[0], pid)
        assert not pair.is_alone()
    assert pair.is_alone()
    below = pair.units[0] / "below"
    below.mkdir()
    try:
        assert pair.is_alone()
        with sleeping() as pid:
            enter(below, pid)
            assert not pair.is_alone()
    finally:
        below.rmdir()


def test_a_postmaster_that_was_moved_made_its_listener_elsewhere(pair: Pair) -> None:
    server = pair.each[0]
    try:
        for pid in server.process_ids():
            enter(pair.units[1], pid)
        assert not pair.is_alone()
    finally:
        for pid in server.process_ids():
            enter(pair.units[0], pid)
    assert pair.is_alone()


def test_a_second_port_in_the_cgroup_leaves_it_unproven(pair: Pair) -> None:
    """One of them is not the postmaster's: nor may the other be."""
    server = pair.each[0]
    with inside(pair.units[0]):
        other = socket.create_server(("127.0.0.1", 0))
    with other:
        done = support.run("saturation", "-p", str(server.port), "--limit", "auto", user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_SATURATION UNKNOWN - the limit of port {server.port} cannot be read: which "
        "PostgreSQL server owns its listener cannot be proven from here; name the usable slots "
        "with --limit N\n",
        "",
    )
