"""Legs across two hosts: what the client's host can and cannot know of the server."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from check_pgsock.pgsock.lab.hosts import NamespaceHost
from tests import support

SERVE = """
import socket
listener = socket.create_server(("", 5432))
print("ready", flush=True)
kept = []
while True:
    kept.append(listener.accept())
"""
CONNECT = """
import socket, time
kept = [socket.create_connection(("192.0.2.2", 5432)) for _ in range(6)]
print("ready", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def python(host: NamespaceHost, code: str) -> Iterator[None]:
    """Run Python code on a host that prints a line when it is ready, until the end."""
    process = subprocess.Popen(
        host.command([sys.executable, "-c", code]),
        stdout=subprocess.PIPE,
        cwd=tempfile.gettempdir(),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_the_limit_of_a_server_elsewhere_is_never_a_local_ones(
    two_hosts: tuple[NamespaceHost, NamespaceHost],
) -> None:
    client, server = two_hosts
    run_on_client = functools.partial(support.run, on=client)
    with python(server, SERVE), python(client, CONNECT):
        unknown = (
            3,
            "PGSOCK_SATURATION UNKNOWN - the limit of port 5432 cannot be read: the server of "
            "this client leg is not on this host; name the usable slots (or this host's share of "
            "them) with --limit N\n",
            "",
        )
        assert run_on_client("saturation", "--leg", "client") == unknown
        with python(client, SERVE):  # another server, on the client's own host
            assert run_on_client("saturation", "--leg", "client") == unknown
            done = run_on_client("saturation", "--limit", "20")
            assert (done.code, done.out.split(" (")[0]) == (
                0, "PGSOCK_SATURATION OK - 0 of 20 connections",
            )  # fmt: skip
        leg = ("--leg", "client", "--limit", "20")
        for arguments, where in (
            ((), "to port 5432"),
            (("--peer", "192.0.2.2"), "to port 5432 with 192.0.2.2"),
            (("--address", "192.0.2.1"), "to port 5432 from 192.0.2.1"),
        ):
            done = run_on_client("saturation", *leg, *arguments)
            assert done.code == 0
            assert done.out.startswith(
                f"PGSOCK_SATURATION OK - 6 of 20 connections (30 %) {where} | established=6;16;18;"
            )
        done = run_on_client("saturation", *leg, "--peer", "192.0.2.9")
        assert done.out.startswith("PGSOCK_SATURATION OK - 0 of 20 connections (0 %) ")
        done = support.run("saturation", "--limit", "7", "--peer", "192.0.2.0/24", on=server)
        assert done == (
            1,
            "PGSOCK_SATURATION WARNING - 6 of 7 connections (86 %) on port 5432 with 192.0.2.0/24 "
            "(established outside range 0:5) | established=6;5;6;0;7 limit=7;;;0 "
            "utilization=85.7%;;;0 free=1;;;0;7 close_wait=0;;;0 syn_recv=0;;;0 "
            "not_accepted=0;;;0\n"
            + support.who(6, peer="192.0.2.1", user=None, activity="no startup packet"),
            "",
        )
