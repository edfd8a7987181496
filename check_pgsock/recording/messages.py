"""Whole netlink dumps as one string of bytes: cut into messages, cleared of secrets; pure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.inet_diag import INET_DIAG_CGROUP_ID, SHORTEST
from check_pgsock.sockets.netlink_dump import HEADER, NLMSG_DONE, attributes
from check_pgsock.sockets.sources import TCP_DUMP, UNIX_DUMP

DUMPS = (TCP_DUMP, UNIX_DUMP)

_PIECE = 1 << 16  # as much as a datagram holds: Dump.runs() is slow on more
_INET_DIAG_MD5SIG = 14  # struct tcp_diag_md5sig: addresses, and the keys as they are


def each_message(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, length, type) of each message; raises MalformedError."""
    offset, end = 0, len(raw)
    while offset < end:
        if end - offset < HEADER.size:
            raise MalformedError(f"{end - offset} stray bytes at {offset}")
        length, kind, *_ = HEADER.unpack_from(raw, offset)
        if length < HEADER.size or offset + length > end:
            raise MalformedError(f"bad message length {length} at {offset}")
        yield offset, length, kind
        offset += (length + 3) & ~3


def sequence_of(raw: bytes) -> int:
    """The sequence number of a dump, which all its messages share; raises MalformedError."""
    if len(raw) < HEADER.size:
        raise MalformedError(f"a dump of {len(raw)} bytes")
    sequence: int = HEADER.unpack_from(raw)[3]
    return sequence


def datagrams(raw: bytes) -> Iterator[bytes]:
    """Yield a dump in pieces of whole messages; raises MalformedError."""
    start = 0
    for offset, length, _ in each_message(raw):
        if offset + length - start > _PIECE and offset > start:
            yield raw[start:offset]
            start = offset
    yield raw[start:]


def count_sockets(tables: Mapping[str, bytes], *names: str) -> int | None:
    """How many sockets those of `tables` hold that are of these names; None where none is there."""
    found = [
        sum(kind != NLMSG_DONE for *_, kind in each_message(raw))
        if name in DUMPS
        else max(raw.count(b"\n") - 1, 0)  # without the header
        for name, raw in tables.items()
        if name in names
    ]
    return sum(found) if found else None


def clear_keys(raw: bytes) -> bytes:
    """A dump of TCP sockets with zeros for the TCP-MD5 keys, which the kernel shows to
    CAP_NET_ADMIN, and for the addresses that they are for.
    """
    found = bytearray(raw)
    for at, size in _each_attribute(raw, _INET_DIAG_MD5SIG):
        found[at : at + size] = bytes(size)
    return bytes(found)


def find_cgroups(raw: bytes) -> set[int]:
    """The numbers of the cgroups in a dump of TCP sockets."""
    return {
        int.from_bytes(raw[at : at + size], sys.byteorder)
        for at, size in _each_attribute(raw, INET_DIAG_CGROUP_ID)
    }


def _each_attribute(raw: bytes, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield offset and size of the value of each attribute of one type, in TCP's messages."""
    for offset, length, _ in each_message(raw):
        for kind, at, size in attributes(raw, offset + SHORTEST, offset + length):
            if kind == wanted:
                yield at, size
