"""Legs across two hosts: what the client's host can and cannot know of the server."""

from __future__ import annotations

from tests.namespaces import two_hosts

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


def test_the_limit_of_a_server_elsewhere_is_never_a_local_ones() -> None:
    with two_hosts() as (client, server), server.python(SERVE), client.python(CONNECT):
        unknown = (
            3,
            "PGSOCK_SATURATION UNKNOWN - the limit of port 5432 cannot be read: the server of "
            "this client leg is not on this host; name the usable slots (or this host's share of "
            "them) with --limit N\n",
            "",
        )
        assert client.run("saturation", "--leg", "client") == unknown
        with client.python(SERVE):  # another server, on the client's own host
            assert client.run("saturation", "--leg", "client") == unknown
            done = client.run("saturation", "--limit", "20")
            assert (done.code, done.out.split(" (")[0]) == (
                0, "PGSOCK_SATURATION OK - 0 of 20 connections",
            )  # fmt: skip
        for arguments, where in (
            ((), "to port 5432"),
            (("--peer", "192.0.2.2"), "to port 5432 with 192.0.2.2"),
            (("--address", "192.0.2.1"), "to port 5432 from 192.0.2.1"),
        ):
            done = client.run("saturation", "--leg", "client", "--limit", "20", *arguments)
            assert done.code == 0
            assert done.out.startswith(
                f"PGSOCK_SATURATION OK - 6 of 20 connections (30 %) {where} | established=6;16;18;"
            )
        done = client.run("saturation", "--leg", "client", "--limit", "20", "--peer", "192.0.2.9")
        assert done.out.startswith("PGSOCK_SATURATION OK - 0 of 20 connections (0 %) ")
        done = server.run("saturation", "--limit", "7", "--peer", "192.0.2.0/24")
        assert done == (
            1,
            "PGSOCK_SATURATION WARNING - 6 of 7 connections (86 %) on port 5432 with 192.0.2.0/24 "
            "(established outside range 0:5) | established=6;5;6;0;7 limit=7;;;0 "
            "utilization=85.7%;;;0 free=1;;;0;7 close_wait=0;;;0 syn_recv=0;;;0 "
            "not_accepted=0;;;0\npeer 192.0.2.1: 6 established\n",
            "",
        )
