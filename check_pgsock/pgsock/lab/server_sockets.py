"""The server's ends of connections, on whichever host the server is, without asking it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.hosts import Host
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.sockets.model import Query, Socket, Tally
from check_pgsock.sockets.proc_net import Table


def ends_of(server: Server, client_host: Host, ports: Collection[int]) -> list[Socket]:
    """The server's ends of what `ports` of `client_host` have to it; raises LabError."""
    client = socket.inet_aton(client_host.address)
    table, lines = _read(server)
    return [
        one
        for one in table.sockets(lines)
        if one.remote_port in ports and one.remote_address == client
    ]


def accept_queue(server: Server) -> int:
    """The connections that wait to be accepted by the server; raises LabError."""
    table, lines = _read(server)
    tally = Tally()
    table.count(lines, tally)
    return sum(listener.accept_queue for listener in tally.listeners)


def _read(server: Server) -> tuple[Table, list[bytes]]:
    # Servers of a lab listen on IPv4 only. Their own /proc has the sockets of their host.
    name = f"/proc/{server.pid}/net/tcp"
    try:
        with open(name, "rb") as stream:
            lines = stream.readlines()
    except OSError as error:
        raise LabError(f"{name} cannot be read: {error.strerror}") from None
    every_state = (1 << 32) - 1
    return Table(name, Query((server.port,), True, every_state), sys.byteorder), lines
