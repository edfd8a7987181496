"""Netlink dumps: requests packed, replies walked message by message; nothing opened.

Authority: include/uapi/linux/netlink.h, and netlink_dump in net/netlink/af_netlink.c.
"""

import errno
import os
from struct import Struct

from check_pgsock.errors import MalformedError, SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

    Runs = Iterator[tuple[int, int, int]]  # offset, stride and number of each

TCPDIAG_GETSOCK = 18
SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_NLM_F_DUMP_INTR = 0x10
_NLMSG_NOOP, _NLMSG_ERROR, NLMSG_DONE = 1, 2, 3

HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
ATTRIBUTE = Struct("=HH")  # nlattr: length with these 4 bytes, type
_ERRNO = Struct("=i")


def pack_dump_request(kind: int, body: bytes, sequence: int) -> bytes:
    """The netlink message that asks for a dump."""
    return HEADER.pack(HEADER.size + len(body), kind, _NLM_F_REQUEST_DUMP, sequence, 0) + body


class Dump:
    """The progress of one dump: fed datagrams until `done`; `interrupted` is the kernel's word
    that the table changed under the walk and the answer is inconsistent.

    `shortest` is the length of a socket message without attributes, header included.
    """

    __slots__ = ("_shortest", "done", "interrupted", "sequence")

    def __init__(self, sequence: int, shortest: int) -> None:
        self.sequence = sequence
        self._shortest = shortest
        self.done = False
        self.interrupted = False

    def runs(self, data: "Union[bytes, bytearray]") -> "Runs":
        """Yield (offset, stride, number) of each run of equally headed socket messages in `data`.

        Raises SourceError for NLMSG_ERROR and for an errno inside NLMSG_DONE, MalformedError for
        bytes that are no netlink messages.
        """
        offset, end = 0, len(data)
        while offset < end:
            if end - offset < HEADER.size:
                raise MalformedError(f"netlink reply: {end - offset} stray bytes at {offset}")
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size or offset + length > end:
                raise MalformedError(f"netlink reply: bad message length {length} at {offset}")
            if sequence != self.sequence:
                raise MalformedError(f"netlink reply: sequence {sequence}, not {self.sequence}")
            if flags & _NLM_F_DUMP_INTR:
                self.interrupted = True
            if kind in (TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY):
                if length < self._shortest or length % 4:
                    raise MalformedError(f"netlink reply: bad socket message length {length}")
                number = _run_length(data, offset, length)
                yield offset, length, number
                offset += length * number
                continue
            if kind == NLMSG_DONE:
                _raise_errno(data, offset, length, "ended with")
                self.done = True
                return
            if kind == _NLMSG_ERROR:
                _raise_errno(data, offset, length, "was refused with")
                raise MalformedError("netlink reply: an acknowledgement where sockets belong")
            if kind != _NLMSG_NOOP:
                raise MalformedError(f"netlink reply: unknown message type {kind}")
            offset += (length + 3) & ~3


def attributes(
    data: "Union[bytes, bytearray]", at: int, end: int
) -> "Iterator[tuple[int, int, int]]":
    """Yield (type, offset, size) of the value of each attribute between `at` and `end`."""
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            raise MalformedError(f"netlink reply: bad attribute length {length}")
        yield kind, at + 4, length - 4
        at += (length + 3) & ~3


def _raise_errno(data: "Union[bytes, bytearray]", offset: int, length: int, how: str) -> None:
    if length < HEADER.size + _ERRNO.size:
        return
    (code,) = _ERRNO.unpack_from(data, offset + HEADER.size)
    if code:
        name = errno.errorcode.get(-code, str(-code))
        raise SourceError(f"the netlink socket dump {how} {name} ({os.strerror(abs(code))})")


def _run_length(data: "Union[bytes, bytearray]", offset: int, stride: int) -> int:
    """How many messages with the header of the one at `offset` follow each other, itself included.

    Message k lies at offset + k * stride if all before it are `stride` long: slices with that
    stride compare a byte of all headers at once.
    """
    number = (len(data) - offset) // stride
    end = offset + number * stride
    for at in range(offset, offset + 8):  # length, type and flags
        column = data[at:end:stride]
        same = len(column) - len(column.lstrip(column[:1]))
        if same < number:
            number = same
            end = offset + number * stride
    return number
