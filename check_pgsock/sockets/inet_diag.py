"""NETLINK_SOCK_DIAG messages for TCP: requests packed, replies parsed, nothing opened.

Authority: include/uapi/linux/{netlink,inet_diag,tcp}.h and net/ipv4/inet_diag.c.

The request is the legacy TCPDIAG_GETSOCK: it alone returns IPv4 and IPv6 in one walk of the
kernel's table (SOCK_DIAG_BY_FAMILY refuses AF_UNSPEC with ENOENT).
"""

import errno
import os
from struct import Struct

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.sockets.model import (
    ESTABLISHED,
    LISTEN,
    STATE_NAMES,
    Listener,
    Query,
    Socket,
    Tally,
    TcpInfo,
    fold_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, Union

TCPDIAG_GETSOCK = 18
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_INFO = 2
_NLM_F_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_NLM_F_DUMP_INTR = 0x10
_NLMSG_NOOP, _NLMSG_ERROR, _NLMSG_DONE = 1, 2, 3
_REQ_BYTECODE = 1
_BC_JMP, _BC_S_EQ, _BC_D_EQ = 1, 11, 12

_HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_REQUEST = Struct("=BBBB48sII")  # inet_diag_req: family, lengths, ext, id, states, dbs
# inet_diag_msg: family state timer retrans, sport dport (network order), src dst, interface,
# cookie, expires rqueue wqueue uid inode
_MESSAGE = Struct("=BBBB2s2s16s16sIQIIIII")
_ENDS = Struct("=BBBB2s2s16s16s")
_INODE = Struct("=I")
_ATTRIBUTE = Struct("=HH")
_ERRNO = Struct("=i")
_TCP_INFO_TIMES = Struct("=IIII")  # last_data_sent last_ack_sent last_data_recv last_ack_recv
_U64 = Struct("=Q")
_MESSAGE_MIN = _HEADER.size + _MESSAGE.size
_STATE_AT = _HEADER.size + 1
_INODE_AT = _HEADER.size + _MESSAGE.size - 4
_ZERO_IF_ESTABLISHED = bytes(0 if state == ESTABLISHED else 1 for state in range(256))
_AF_INET6 = 10


def pack_port_filter(ports: "tuple[int, ...]", local: bool) -> bytes:
    """The bytecode that accepts sockets whose local (or remote) port is one of `ports`.

    A comparison takes two 4-byte operations; its port lies in the `no` of the second. A jump to
    the end accepts, one 4 bytes beyond rejects (inet_diag_bc_run). Between two comparisons
    stands a jump, since `yes` is one byte and could not reach over many ports.
    """
    code = _BC_S_EQ if local else _BC_D_EQ
    parts: list[bytes] = []
    end = 12 * len(ports) - 4
    for number, port in enumerate(ports):
        last = number == len(ports) - 1
        parts.append(Struct("=BBHBBH").pack(code, 8, 12, 0, 0, port))
        if not last:
            parts.append(Struct("=BBH").pack(_BC_JMP, 4, end - 12 * number - 8))
    return b"".join(parts)


def pack_request(query: Query, sequence: int) -> bytes:
    """The dump request for `query`: states and ports are left for the kernel to filter."""
    extensions = 1 << INET_DIAG_INFO - 1 if query.info else 0
    body = _REQUEST.pack(0, 0, 0, extensions, bytes(48), query.states, 0)
    if query.ports:
        bytecode = pack_port_filter(query.ports, query.local)
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(bytecode), _REQ_BYTECODE) + bytecode
    header = _HEADER.pack(
        _HEADER.size + len(body), TCPDIAG_GETSOCK, _NLM_F_REQUEST_DUMP, sequence, 0
    )
    return header + body


class Dump:
    """The progress of one dump: fed datagrams until `done`; `interrupted` is the kernel's word
    that the table changed under the walk and the answer is inconsistent.
    """

    __slots__ = ("done", "interrupted", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.done = False
        self.interrupted = False

    def runs(self, data: "Union[bytes, bytearray]") -> "Iterator[tuple[int, int, int]]":
        """Yield (offset, stride, number) of each run of equally headed socket messages in `data`.

        Raises SourceError for NLMSG_ERROR and for an errno inside NLMSG_DONE, MalformedError for
        bytes that are no netlink messages.
        """
        offset, end = 0, len(data)
        while offset < end:
            if end - offset < _HEADER.size:
                raise MalformedError(f"netlink reply: {end - offset} stray bytes at {offset}")
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size or offset + length > end:
                raise MalformedError(f"netlink reply: bad message length {length} at {offset}")
            if sequence != self.sequence:
                raise MalformedError(f"netlink reply: sequence {sequence}, not {self.sequence}")
            if flags & _NLM_F_DUMP_INTR:
                self.interrupted = True
            if kind in (TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY):
                if length < _MESSAGE_MIN or length % 4:
                    raise MalformedError(f"netlink reply: bad socket message length {length}")
                number = _run_length(data, offset, length)
                yield offset, length, number
                offset += length * number
                continue
            if kind == _NLMSG_DONE:
                _raise_errno(data, offset, length, "ended with")
                self.done = True
                return
            if kind == _NLMSG_ERROR:
                _raise_errno(data, offset, length, "was refused with")
                raise MalformedError("netlink reply: an acknowledgement where sockets belong")
            if kind != _NLMSG_NOOP:
                raise MalformedError(f"netlink reply: unknown message type {kind}")
            offset += (length + 3) & ~3


def _raise_errno(data: "Union[bytes, bytearray]", offset: int, length: int, how: str) -> None:
    if length < _HEADER.size + _ERRNO.size:
        return
    (code,) = _ERRNO.unpack_from(data, offset + _HEADER.size)
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


def count_sockets(
    data: "Union[bytes, bytearray]",
    run: "tuple[int, int, int]",
    tally: Tally,
    accepts: "Optional[Callable[[bytes, bytes], bool]]" = None,
) -> None:
    """Add one run of messages to `tally`, without an object per socket."""
    offset, stride, number = run
    end = offset + stride * number
    states = bytes(data[offset + _STATE_AT : end : stride])
    found = set(states)
    if max(found) >= len(STATE_NAMES):
        raise MalformedError(f"netlink reply: unknown socket state {max(found)}")
    if LISTEN in found:
        at = states.find(LISTEN)
        while at >= 0:
            tally.listeners.append(parse_listener(data, offset + at * stride))
            at = states.find(LISTEN, at + 1)
    if accepts is not None:
        _count_accepted(data, run, tally, accepts)
        return
    for state in found:
        if state != LISTEN:
            tally.states[state] += states.count(state)
    if ESTABLISHED in found:
        # A column of zero bytes is an ESTABLISHED socket with inode 0.
        union = int.from_bytes(states.translate(_ZERO_IF_ESTABLISHED), "big")
        for at in range(offset + _INODE_AT, offset + _INODE_AT + 4):
            union |= int.from_bytes(data[at:end:stride], "big")
        tally.not_accepted += union.to_bytes(number, "big").count(0)


def _count_accepted(
    data: "Union[bytes, bytearray]",
    run: "tuple[int, int, int]",
    tally: Tally,
    accepts: "Callable[[bytes, bytes], bool]",
) -> None:
    offset, stride, number = run
    for at in range(offset, offset + stride * number, stride):
        family, state, _, _, _, _, source, target = _ENDS.unpack_from(data, at + _HEADER.size)
        if state != LISTEN and accepts(_address(family, source), _address(family, target)):
            (inode,) = _INODE.unpack_from(data, at + _INODE_AT)
            tally.add(state, inode)


def parse_sockets(
    data: "Union[bytes, bytearray]", run: "tuple[int, int, int]"
) -> "Iterator[Socket]":
    """Yield the sockets of one run of messages, but its listeners."""
    offset, stride, number = run
    for at in range(offset, offset + stride * number, stride):
        if data[at + _STATE_AT] != LISTEN:
            yield parse_socket(data, at, stride)


def parse_socket(data: "Union[bytes, bytearray]", offset: int, length: int) -> Socket:
    """One inet_diag_msg with its netlink header at `offset`, `length` bytes with attributes."""
    (
        family, state, timer, retransmits, sport, dport, source, target, _interface,
        cookie, expires, receive_queue, send_queue, uid, inode,
    ) = _MESSAGE.unpack_from(data, offset + _HEADER.size)  # fmt: skip
    if state >= len(STATE_NAMES):
        raise MalformedError(f"netlink reply: unknown socket state {state}")
    return Socket(
        state,
        _address(family, source),
        int.from_bytes(sport, "big"),
        _address(family, target),
        int.from_bytes(dport, "big"),
        uid,
        inode,
        cookie,
        timer,
        expires if expires < 1 << 31 else 0,  # a timer that is due wraps below zero
        retransmits,
        receive_queue,
        send_queue,
        parse_tcp_info(data, offset, length),
    )


def parse_listener(data: "Union[bytes, bytearray]", offset: int) -> Listener:
    """One inet_diag_msg in state LISTEN: its queues are the accept queue and its limit."""
    (
        family, _state, _timer, _retransmits, sport, _dport, source, _target, _interface,
        cookie, _expires, accept_queue, backlog, uid, inode,
    ) = _MESSAGE.unpack_from(data, offset + _HEADER.size)  # fmt: skip
    return Listener(
        _address(family, source), int.from_bytes(sport, "big"), uid, inode, cookie,
        accept_queue, backlog,
    )  # fmt: skip


def parse_tcp_info(
    data: "Union[bytes, bytearray]", offset: int, length: int
) -> "Optional[TcpInfo]":
    """The INET_DIAG_INFO attribute of a message, or None; a shorter struct of an older kernel
    leaves the fields it lacks None.
    """
    at, end = offset + _MESSAGE_MIN, offset + length
    while at + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size or at + size > end:
            raise MalformedError(f"netlink reply: bad attribute length {size}")
        if kind == INET_DIAG_INFO:
            # struct tcp_info: last_data_sent at 44, bytes_acked at 120, bytes_received at 128
            start, room = at + _ATTRIBUTE.size, size - _ATTRIBUTE.size
            if room < 60:
                raise MalformedError(f"netlink reply: tcp_info of {room} bytes")
            sent, _, received, _ = _TCP_INFO_TIMES.unpack_from(data, start + 44)
            return TcpInfo(
                sent,
                received,
                _U64.unpack_from(data, start + 120)[0] if room >= 128 else None,
                _U64.unpack_from(data, start + 128)[0] if room >= 136 else None,
            )
        at += (size + 3) & ~3
    return None


def _address(family: int, packed: bytes) -> bytes:
    return fold_address(packed) if family == _AF_INET6 else packed[:4]
