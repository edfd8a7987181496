"""Legs: which end of the pool's connections is looked at; pure.

The server leg holds the sockets whose local port is the endpoint's, the client leg those whose
remote port is. Where both ends of a connection are on one host (loopback, a local pooler) each
end belongs to one leg, so nothing is counted twice.
"""

import socket

from check_pgsock.sockets.model import Listener, Query, state_mask
from check_pgsock.text import say_top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Callable, Optional, Protocol

    class HasRemote(Protocol):
        """A socket, or the end of one."""

        @property
        def remote_address(self) -> bytes: ...

    class Peers(Protocol):
        """Remote addresses by a name: a network, or a host."""

        text: str

        def __contains__(self, packed: bytes, /) -> bool: ...


WILDCARDS = (bytes(4), bytes(16))


class Network:
    """A CIDR block: packed network address (folded) and the bits that count; `host_bits` do not."""

    __slots__ = ("_length", "_prefix", "host_bits", "text")

    def __init__(self, packed: bytes, prefix_length: int, text: str) -> None:
        self.text = text
        self._length = len(packed)
        self.host_bits = len(packed) * 8 - prefix_length
        self._prefix = int.from_bytes(packed, "big") >> self.host_bits

    def __contains__(self, packed: bytes) -> bool:
        return (
            len(packed) == self._length
            and int.from_bytes(packed, "big") >> self.host_bits == self._prefix
        )


class Leg:
    """One end of the connections of one endpoint (or several that form one pool).

    An endpoint is a port, or the path of a Unix socket: with `paths`, `ports` may be empty, and
    then there is nothing to query.
    """

    __slots__ = ("address", "excluded_peers", "paths", "peers", "ports", "server")

    def __init__(
        self,
        ports: "tuple[int, ...]",
        server: bool = True,
        address: "Optional[bytes]" = None,
        peers: "tuple[Peers, ...]" = (),
        excluded_peers: "tuple[Peers, ...]" = (),
        paths: "tuple[str, ...]" = (),
    ) -> None:
        self.ports = ports
        self.server = server
        self.address = address
        self.peers = peers
        self.excluded_peers = excluded_peers
        self.paths = paths

    @property
    def filter(self) -> "Optional[Callable[[bytes, bytes], bool]]":
        """What decides by (local address, remote address); None where every socket counts."""
        if self.address is None and not self.peers and not self.excluded_peers:
            return None
        return self._accepts

    def _accepts(self, local: bytes, remote: bytes) -> bool:
        if self.address is not None and local != self.address:
            return False
        if self.peers and not any(remote in one for one in self.peers):
            return False
        return not any(remote in one for one in self.excluded_peers)

    def query(self, *states: int, info: bool = False) -> Query:
        """The query for this leg's sockets in `states`."""
        return Query(self.ports, self.server, state_mask(*states), self.filter, info)

    def listeners(self, found: "list[Listener]") -> "list[Listener]":
        """Those of the listeners `found` that accept this leg's connections.

        Peers filter no listener; an address chooses those that take connections to it.
        """
        chosen = [one for one in found if one.port in self.ports]
        if self.server and self.address is not None:
            at = self.address
            return [
                one
                for port in self.ports
                for one in listeners_at(at, [each for each in chosen if each.port == port])
            ]
        return chosen

    def missing_ports(self, found: "list[Listener]") -> "list[int]":
        """The ports that none of the listeners `found` accepts this leg's connections on."""
        listened = {one.port for one in self.listeners(found)}
        return [port for port in self.ports if port not in listened]

    def describe(self) -> str:
        """The leg in words, as status lines name it: `on port 5432`, `to port 5432`."""
        endpoints = [
            f"{word if len(names) == 1 else word + 's'} {', '.join(map(str, names))}"
            for word, names in (("port", self.ports), ("socket", self.paths))
            if names
        ]
        text = f"{'on' if self.server else 'to'} {' and '.join(endpoints)}"
        if self.address is not None:
            text += f" {'at' if self.server else 'from'} {format_address(self.address)}"
        if self.peers:
            text += f" with {', '.join(one.text for one in self.peers)}"
        if self.excluded_peers:
            text += f" without {', '.join(one.text for one in self.excluded_peers)}"
        return text


def listeners_at(address: bytes, found: "list[Listener]") -> "list[Listener]":
    """Those of the listeners `found` on one port that take connections to a local address: bound
    to that very address, else to the wildcard of its family, else for IPv4 to that of IPv6.
    """
    for bound in (address, bytes(len(address)), bytes(16)):
        chosen = [one for one in found if one.address == bound]
        if chosen:
            return chosen
    return []


def accepting(address: bytes, found: "list[Listener]") -> "Optional[Listener]":
    """The one of the listeners `found` on one port that takes connections to a local address; None
    where several may.
    """
    takers = listeners_at(address, found)
    return takers[0] if len(takers) == 1 else None


def format_address(packed: bytes) -> str:
    """The address in its usual spelling (RFC 5952 for IPv6)."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def format_endpoint(address: bytes, port: "Optional[int]") -> str:
    """`127.0.0.1:5432`, `[::1]:5432`"""
    text = format_address(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def top_peers(sockets: "Iterable[HasRemote]", noun: str, most: int = 10) -> "list[str]":
    """Lines that say which remote addresses hold most of `sockets`; at most `most` lines."""
    counts: dict[bytes, int] = {}
    for one in sockets:
        counts[one.remote_address] = counts.get(one.remote_address, 0) + 1
    return say_top(counts, lambda peer: f"peer {format_address(peer)}", "peers", noun, most)
