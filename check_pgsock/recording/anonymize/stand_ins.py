"""Stand-ins for names and addresses: the first address is 10.0.0.1, the first user `user1`."""

from __future__ import annotations

import re

from check_pgsock.sockets.model import fold_address

_LOOPBACK6 = bytes(15) + b"\x01"
# A PostgreSQL server's socket, or a pooler's: its name tells the port.
_POSTGRESQL_SOCKET = re.compile(rb"\.s\.PGSQL\.\d{1,5}")


class StandIns:
    """Gives stand-ins, and remembers what for."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}
        self._addresses: dict[bytes, bytes] = {}
        self._real: set[bytes] = set()

    def name(self, kind: str, name: str) -> str:
        """The stand-in for a name: `kind` and a number."""
        if (kind, name) not in self._names:
            self._names[kind, name] = f"{kind}{self._next(kind)}"
        return self._names[kind, name]

    def learn(self, packed: bytes) -> bytes:
        """The address itself, which is henceforth no other's stand-in."""
        self._real.add(fold_address(packed))
        return packed

    def address(self, packed: bytes) -> bytes:
        """The stand-in for a packed address, of the same length; an IPv4-mapped one stays so."""
        folded = fold_address(packed)
        if is_telling_nothing(folded):
            return packed
        found = self._addresses.get(folded)
        while found is None or (folded not in self._addresses and found in self._real):
            found = self._invent(len(folded))
        self._addresses[folded] = found
        return packed[: len(packed) - len(folded)] + found

    def _invent(self, length: int) -> bytes:
        number = self._next(f"address of {length} bytes")
        if length == 4:
            return b"\x0a" + number.to_bytes(3, "big")
        return b"\xfd" + number.to_bytes(15, "big")

    def directory(self, path: str) -> str:
        """The stand-in for a directory, or any other path."""
        path = path.rstrip("/")
        return path and f"/{self.name('directory', path)}"

    def cgroup(self, path: str) -> str:
        """The stand-in for a cgroup's path."""
        return path if path in ("", "/") else f"/{self.name('cgroup', path)}"

    def socket(self, name: bytes) -> bytes:
        """The stand-in for a Unix socket's name; an abstract one begins with NUL.

        What a PostgreSQL socket is called stays, the directory that it lies in does not.
        """
        abstract = name[:1] if name.startswith(b"\0") else b""
        directory, slash, base = name[len(abstract) :].rpartition(b"/")
        if _POSTGRESQL_SOCKET.fullmatch(base) is None and base:
            base = self.name("socket", _text(base)).encode()
        return abstract + self.directory(_text(directory)).encode() + slash + base

    def _next(self, kind: str) -> int:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind]


def is_telling_nothing(folded: bytes) -> bool:
    """Whether an address is nobody's in particular: wildcard, loopback, link-local."""
    if len(folded) == 4:
        return folded == bytes(4) or folded[0] == 127 or folded[:2] == b"\xa9\xfe"
    return folded in (bytes(16), _LOOPBACK6) or (folded[0] == 0xFE and folded[1] & 0xC0 == 0x80)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
