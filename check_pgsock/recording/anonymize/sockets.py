"""Tables of sockets with other addresses and names in them; pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from check_pgsock.recording.messages import each_message
from check_pgsock.sockets import unix_diag
from check_pgsock.sockets.netlink_dump import ATTRIBUTE, HEADER, NLMSG_DONE, attributes
from check_pgsock.sockets.proc_net_unix import entries

_AF_INET6 = 10
_SOURCE_AT = HEADER.size + 8  # inet_diag_msg: four bytes, two ports, source, target
_ADDRESS_BYTES = 16
_UNIX_DIAG_NAME = 0
_PROC_ADDRESS = re.compile(rb"\b([0-9A-F]{8}|[0-9A-F]{32})(?=:[0-9A-F]{4} )")

Map = Callable[[bytes], bytes]


def rewrite_tcp_dump(raw: bytes, address: Map) -> bytes:
    """A dump of TCP sockets with what `address` makes of each packed address."""
    found = bytearray(raw)
    for offset, _, kind in each_message(raw):
        if kind == NLMSG_DONE:
            continue
        size = 16 if raw[offset + HEADER.size] == _AF_INET6 else 4
        for at in (offset + _SOURCE_AT, offset + _SOURCE_AT + _ADDRESS_BYTES):
            found[at : at + size] = address(raw[at : at + size])
    return bytes(found)


def rewrite_tcp_file(raw: bytes, address: Map, byte_order: str) -> bytes:
    """/proc/net/tcp or tcp6 likewise, as a machine of this byte order writes them."""

    def replace(match: re.Match[bytes]) -> bytes:
        packed = _swap(bytes.fromhex(match[1].decode("ascii")), byte_order)
        return _swap(address(packed), byte_order).hex().upper().encode("ascii")

    return b"".join(
        _PROC_ADDRESS.sub(replace, line, count=2) for line in raw.splitlines(keepends=True)
    )


def _swap(packed: bytes, byte_order: str) -> bytes:
    """An address between network order and the words of 32 bits that the files are made of."""
    if byte_order == "big":
        return packed
    return b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))


def rewrite_unix_dump(raw: bytes, name: Map) -> bytes:
    """A dump of Unix sockets with what `name` makes of each name, without the NULs that end it."""
    found = []
    for offset, length, kind in each_message(raw):
        if kind == NLMSG_DONE:
            found.append(raw[offset:])
            break
        message = raw[offset + HEADER.size : offset + unix_diag.SHORTEST]
        for attribute, at, size in attributes(raw, offset + unix_diag.SHORTEST, offset + length):
            value = raw[at : at + size]
            if attribute == _UNIX_DIAG_NAME:
                value = _rename(value, name)
            message += ATTRIBUTE.pack(ATTRIBUTE.size + len(value), attribute) + value
            message += bytes(-len(message) % 4)
        head = HEADER.unpack_from(raw, offset)
        found.append(HEADER.pack(HEADER.size + len(message), *head[1:]) + message)
    return b"".join(found)


def _rename(value: bytes, name: Map) -> bytes:
    if value.startswith(b"\0"):  # of an abstract name every byte counts
        return name(value)
    bare = value.rstrip(b"\0")
    return name(bare) + bytes(len(value) - len(bare))


def rewrite_unix_file(raw: bytes, name: Map) -> bytes:
    """/proc/net/unix likewise, where `@` begins an abstract name."""
    lines = raw.split(b"\n")
    whole = [line + b"\n" for line in lines[:-1]]
    found = whole[:1]
    for match, path in entries("unix", whole):
        if path is None:
            found.append(match[0])
            continue
        path = b"@" + name(b"\x00" + path[1:])[1:] if path.startswith(b"@") else name(path)
        found.append(match[0][: match.start(6) - match.start()] + path + b"\n")
    return b"".join(found)
