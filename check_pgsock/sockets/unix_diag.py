"""NETLINK_SOCK_DIAG messages for Unix sockets: requests packed, replies parsed, nothing opened.

Authority: include/uapi/linux/unix_diag.h, net/unix/diag.c. The kernel filters states, but no
names. It leaves out sockets that no process holds: connections not accepted yet.
"""

import os
import struct
from struct import Struct

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.model import LISTEN
from check_pgsock.sockets.netlink_dump import (
    HEADER,
    SOCK_DIAG_BY_FAMILY,
    attributes,
    pack_dump_request,
)
from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional, Union

_AF_UNIX = 1
_SHOW = 0x57  # UDIAG_SHOW_NAME, _VFS, _PEER, _RQLEN and _UID
_SHOW_ICONS = 0x08
_NAME, _VFS, _PEER, _ICONS, _RQLEN, _SHUTDOWN, _UID = 0, 1, 2, 3, 4, 6, 7

# unix_diag_req: family, protocol, padding, states, inode, show, cookie (neither read in a dump)
_REQUEST = Struct("=BBHIIIII")
_MESSAGE = Struct("=BBBxIQ")  # unix_diag_msg: family, type, state, inode, cookie
_U8, _U32, _TWO_U32 = Struct("=B"), Struct("=I"), Struct("=II")
SHORTEST = HEADER.size + _MESSAGE.size


def pack_request(states: int, sequence: int) -> bytes:
    """The dump request for the sockets in these states (a mask as TCP's)."""
    body = _REQUEST.pack(_AF_UNIX, 0, 0, states, 0, _SHOW, 0, 0)
    return pack_dump_request(SOCK_DIAG_BY_FAMILY, body, sequence)


def pack_queues_request(sequence: int) -> bytes:
    """The dump request for who waits on listeners."""
    body = _REQUEST.pack(_AF_UNIX, 0, 0, 1 << LISTEN, 0, _SHOW_ICONS, 0, 0)
    return pack_dump_request(SOCK_DIAG_BY_FAMILY, body, sequence)


def parse_queues(
    data: "Union[bytes, bytearray]", run: "tuple[int, int, int]"
) -> "Iterator[tuple[int, tuple[int, ...]]]":
    """Yield the inode of each listener of one run of messages, and those of its clients' ends that
    wait, the first one first: 0 is a client's that is gone (sk_diag_dump_icons).
    """
    offset, stride, number = run
    for start in range(offset, offset + stride * number, stride):
        inode = _MESSAGE.unpack_from(data, start + HEADER.size)[3]
        for attribute, at, size in attributes(data, start + SHORTEST, start + stride):
            if attribute == _ICONS:
                yield inode, struct.unpack_from(f"={size // 4}I", data, at)


def parse_sockets(
    data: "Union[bytes, bytearray]", run: "tuple[int, int, int]"
) -> "Iterator[Union[UnixListener, UnixSocket]]":
    """Yield the sockets of one run of messages."""
    offset, stride, number = run
    for at in range(offset, offset + stride * number, stride):
        yield _parse_socket(data, at, stride)


def _parse_socket(
    data: "Union[bytes, bytearray]", offset: int, length: int
) -> "Union[UnixListener, UnixSocket]":
    family, kind, state, inode, cookie = _MESSAGE.unpack_from(data, offset + HEADER.size)
    if family != _AF_UNIX:
        raise MalformedError(f"netlink reply: a socket of family {family} among Unix sockets")
    path: Optional[bytes] = None
    file: Optional[tuple[int, int]] = None
    peer: Optional[int] = None
    shutdown: Optional[int] = None
    uid: Optional[int] = None
    queue: Optional[int] = None  # bytes received, or the accept queue
    other: Optional[int] = None  # memory of bytes sent, or the backlog
    for attribute, at, size in attributes(data, offset + SHORTEST, offset + length):
        if attribute == _NAME:
            path = bytes(data[at : at + size])
            if path[:1] != b"\0":  # of an abstract name every byte counts
                path = path.rstrip(b"\0")
        elif attribute == _VFS:
            low, device = _read(_TWO_U32, data, at, size)
            file = os.makedev(device >> 20, device & 0xFFFFF), low
        elif attribute == _PEER:
            (peer,) = _read(_U32, data, at, size)
        elif attribute == _RQLEN:
            queue, other = _read(_TWO_U32, data, at, size)
        elif attribute == _SHUTDOWN:
            (shutdown,) = _read(_U8, data, at, size)
        elif attribute == _UID:
            (uid,) = _read(_U32, data, at, size)
    if state == LISTEN:
        if path is None:
            raise MalformedError("netlink reply: a listening Unix socket without a name")
        return UnixListener(path, file, kind, inode, uid, cookie, queue, other)
    return UnixSocket(state, path, file, kind, inode, uid, cookie, peer, queue, other, shutdown)


def _read(values: Struct, data: "Union[bytes, bytearray]", at: int, size: int) -> "tuple[int, ...]":
    if size < values.size:
        raise MalformedError(f"netlink reply: an attribute of {size} bytes, not {values.size}")
    return values.unpack_from(data, at)
