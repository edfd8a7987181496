"""The endpoints of this host: who listens for PostgreSQL clients, over TCP and Unix sockets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock.errors import SourceError
from check_pgsock.legs import format_endpoint
from check_pgsock.servers.owners import Owner, Owners
from check_pgsock.servers.programs import FORWARDER, WELL_KNOWN_PORTS
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.unix_sockets import SEQPACKET, STREAM, UnixListener
from check_pgsock.text import clean

if TYPE_CHECKING:
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.view import View

# The name that PostgreSQL and its poolers give their sockets (UNIXSOCK_PATH in libpq/pqcomm.h).
_SOCKET_NAME = re.compile(r"(.*)/\.s\.PGSQL\.(\d{1,5})", re.DOTALL)
_PORT_AT_END = re.compile(r":(\d{1,5})$")


class Endpoint:
    """A listener of one place, and whose it is.

    `owner` is None where nothing tells. `path` is None for TCP and as text, an abstract name with
    `@`; `address` is None for a Unix socket; `port` is None where a socket's name does not say.
    """

    __slots__ = ("address", "directory", "listener", "owner", "path", "port", "reader")

    def __init__(self, reader: SocketReader, listener: Listener | UnixListener) -> None:
        self.reader = reader
        self.listener = listener
        self.owner: Owner | None = None
        self.address: bytes | None = None
        self.port: int | None = None
        self.path: str | None = None
        self.directory: str | None = None
        if isinstance(listener, Listener):
            self.address, self.port = listener.address, listener.port
            return
        self.path = listener.path.replace(b"\0", b"@").decode("utf-8", "surrogateescape")
        match = _SOCKET_NAME.fullmatch(self.path)
        if match is not None:
            self.directory, self.port = match[1], int(match[2])

    @property
    def name(self) -> str:
        """`127.0.0.1:5432`, `[::1]:5432`, or the path; fit to print."""
        if self.address is None:
            return clean(self.path or "", 108)
        return format_endpoint(self.address, self.port)

    @property
    def label(self) -> str:
        """The name, which several network namespaces may have, with that of its own."""
        namespace = self.reader.namespace
        return self.name if namespace is None else f"{self.name} in {clean(namespace.name)}"

    @property
    def family(self) -> str:
        """ipv4, ipv6 or unix."""
        if self.address is None:
            return "unix"
        return "ipv4" if len(self.address) == 4 else "ipv6"

    @property
    def is_proven(self) -> bool:
        """Whether it is known for certain whose it is."""
        return self.owner is not None and self.owner.proven


class Found(NamedTuple):
    """The endpoints found; whether there are processes whose descriptors may not be read, so that
    one of them may hold what has no owner; how many programs there are of each user and kind
    (see programs.py), whatever they listen on; and what could not be read at all.
    """

    endpoints: list[Endpoint]
    refused: bool
    programs: Mapping[tuple[int, str], int]
    notes: list[str]


def find_endpoints(view: View, ports: Collection[int], everything: bool = False) -> Found:
    """The listeners of PostgreSQL servers and poolers, and what else listens where their clients
    expect one: on `ports`, or else on those that are well known. `everything`: all listeners.

    Raises SourceError.
    """
    found, notes = _read_listeners(view)
    if ports:
        found = [one for one in found if one.port in ports]
    named = {one.port for one in found if one.directory is not None and one.port is not None}
    expected = set(ports) or WELL_KNOWN_PORTS | named
    owners = Owners(view, found)
    owners.find(expected)
    chosen = [one for one in found if everything or _is_wanted(one, expected)]
    owners.find_strangers([one for one in chosen if not one.is_proven])
    return Found(chosen, owners.refused, owners.count_programs(), notes)


def _read_listeners(view: View) -> tuple[list[Endpoint], list[str]]:
    found: list[Endpoint] = []
    notes = []
    for reader in view.reader.each:
        found += [Endpoint(reader, one) for one in reader.listeners(drops=True)]
        try:
            unix = reader.unix_listeners()
        except SourceError as error:
            notes.append(f"Unix sockets are not shown: {error}")
            continue
        found += [Endpoint(reader, one) for one in unix if one.type in (STREAM, SEQPACKET)]
    found.sort(key=lambda one: (one.port is None, one.port or 0, one.address is None, one.name))
    return found, notes


def _is_wanted(one: Endpoint, expected: Collection[int]) -> bool:
    if one.port in expected:
        return True
    if one.owner is None:
        return False
    if one.owner.kind != FORWARDER:
        return True
    target = _PORT_AT_END.search(one.owner.target or "")
    return target is not None and int(target[1]) in WELL_KNOWN_PORTS
