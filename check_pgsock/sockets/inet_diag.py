"""NETLINK_SOCK_DIAG messages for TCP: requests packed, replies parsed, nothing opened.

Authority: include/uapi/linux/{netlink,inet_diag,tcp}.h and net/ipv4/inet_diag.c.

The request is the legacy TCPDIAG_GETSOCK: it alone returns IPv4 and IPv6 in one walk of the
kernel's table (SOCK_DIAG_BY_FAMILY refuses AF_UNSPEC with ENOENT).
"""

from struct import Struct

from check_pgsock.errors import MalformedError
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
from check_pgsock.sockets.netlink_dump import (
    ATTRIBUTE,
    HEADER,
    TCPDIAG_GETSOCK,
    attributes,
    pack_dump_request,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, Union

INET_DIAG_INFO = 2
INET_DIAG_SKMEMINFO = 7
INET_DIAG_CGROUP_ID = 21
_REQ_BYTECODE = 1
_BC_JMP, _BC_S_EQ, _BC_D_EQ = 1, 11, 12

_REQUEST = Struct("=BBBB48sII")  # inet_diag_req: family, lengths, ext, id, states, dbs
# inet_diag_msg: family state timer retrans, sport dport (network order), src dst, interface,
# cookie, expires rqueue wqueue uid inode
_MESSAGE = Struct("=BBBB2s2s16s16sIQIIIII")
_ENDS = Struct("=BBBB2s2s16s16s")
_INODE = Struct("=I")
_U32, _U64 = Struct("=I"), Struct("=Q")
# struct tcp_info, what Linux 2.4 had of it: retransmits probes backoff, unacked, last_data_sent
# last_data_recv last_ack_recv
_TCP_INFO = Struct("=2xBBB19xI16xI4xII")
_TOTAL_RETRANSMITS_AT, _BYTES_ACKED_AT, _BYTES_RECEIVED_AT = 100, 120, 128
_DROPS_AT = 32  # SK_MEMINFO_DROPS, the 9th number of INET_DIAG_SKMEMINFO
SHORTEST = HEADER.size + _MESSAGE.size
_STATE_AT = HEADER.size + 1
_INODE_AT = HEADER.size + _MESSAGE.size - 4
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
    extensions = 0
    if query.info:
        extensions |= 1 << INET_DIAG_INFO - 1
    if query.drops:
        extensions |= 1 << INET_DIAG_SKMEMINFO - 1
    body = _REQUEST.pack(0, 0, 0, extensions, bytes(48), query.states, 0)
    if query.ports:
        bytecode = pack_port_filter(query.ports, query.local)
        body += ATTRIBUTE.pack(ATTRIBUTE.size + len(bytecode), _REQ_BYTECODE) + bytecode
    return pack_dump_request(TCPDIAG_GETSOCK, body, sequence)


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
            tally.listeners.append(parse_listener(data, offset + at * stride, stride))
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
        family, state, _, _, _, _, source, target = _ENDS.unpack_from(data, at + HEADER.size)
        if state != LISTEN and accepts(_address(family, source), _address(family, target)):
            (inode,) = _INODE.unpack_from(data, at + _INODE_AT)
            tally.add(state, inode)


def parse_sockets(
    data: "Union[bytes, bytearray]",
    run: "tuple[int, int, int]",
    info: bool = True,
    cgroup: bool = False,
) -> "Iterator[Socket]":
    """Yield the sockets of one run of messages, but its listeners."""
    offset, stride, number = run
    for at in range(offset, offset + stride * number, stride):
        if data[at + _STATE_AT] != LISTEN:
            yield parse_socket(data, at, stride, info, cgroup)


def accepted_sockets(
    data: "Union[bytes, bytearray]", run: "tuple[int, int, int]", query: Query
) -> "Iterator[Socket]":
    """Yield what parse_sockets() does of `query`, where its addresses are accepted."""
    for one in parse_sockets(data, run, query.info, query.cgroup):
        if query.accepts is None or query.accepts(one.local_address, one.remote_address):
            yield one


def parse_socket(
    data: "Union[bytes, bytearray]",
    offset: int,
    length: int,
    info: bool = True,
    cgroup: bool = False,
) -> Socket:
    """One inet_diag_msg with its netlink header at `offset`, `length` bytes with attributes.

    Of these `info` and `cgroup` say which to read, where they are there.
    """
    (
        family, state, timer, retransmits, sport, dport, source, target, _interface,
        cookie, expires, receive_queue, send_queue, uid, inode,
    ) = _MESSAGE.unpack_from(data, offset + HEADER.size)  # fmt: skip
    if state >= len(STATE_NAMES):
        raise MalformedError(f"netlink reply: unknown socket state {state}")
    tcp_info = cgroup_id = None
    if info or cgroup:
        for kind, at, size in attributes(data, offset + SHORTEST, offset + length):
            if kind == INET_DIAG_INFO and info:
                tcp_info = _parse_tcp_info(data, at, size)
            elif kind == INET_DIAG_CGROUP_ID and cgroup:
                cgroup_id = _number(_U64, data, at, size)
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
        tcp_info,
        cgroup_id,
    )


def parse_listener(data: "Union[bytes, bytearray]", offset: int, length: int) -> Listener:
    """One inet_diag_msg in state LISTEN: its queues are the accept queue and its limit."""
    (
        family, _state, _timer, _retransmits, sport, _dport, source, _target, _interface,
        cookie, _expires, accept_queue, backlog, uid, inode,
    ) = _MESSAGE.unpack_from(data, offset + HEADER.size)  # fmt: skip
    drops = cgroup = None
    for kind, at, size in attributes(data, offset + SHORTEST, offset + length):
        if kind == INET_DIAG_SKMEMINFO and size > _DROPS_AT:  # older kernels do not tell them
            drops = _number(_U32, data, at + _DROPS_AT, size - _DROPS_AT)
        elif kind == INET_DIAG_CGROUP_ID:
            cgroup = _number(_U64, data, at, size)
    return Listener(
        _address(family, source), int.from_bytes(sport, "big"), uid, inode, cookie,
        accept_queue, backlog, drops, cgroup,
    )  # fmt: skip


def _parse_tcp_info(data: "Union[bytes, bytearray]", at: int, size: int) -> TcpInfo:
    """A struct tcp_info; the shorter one of an older kernel leaves the fields it lacks None."""
    if size < _TCP_INFO.size:
        raise MalformedError(f"netlink reply: tcp_info of {size} bytes")
    retransmits, probes, backoff, unacked, sent, received, acknowledged = _TCP_INFO.unpack_from(
        data, at
    )
    return TcpInfo(
        sent,
        received,
        _U64.unpack_from(data, at + _BYTES_ACKED_AT)[0] if size >= 128 else None,
        _U64.unpack_from(data, at + _BYTES_RECEIVED_AT)[0] if size >= 136 else None,
        acknowledged,
        retransmits,
        probes,
        backoff,
        unacked,
        _U32.unpack_from(data, at + _TOTAL_RETRANSMITS_AT)[0] if size >= 104 else None,
    )


def _number(kind: Struct, data: "Union[bytes, bytearray]", at: int, size: int) -> int:
    if size < kind.size:
        raise MalformedError(f"netlink reply: a number of {size} bytes, not {kind.size}")
    number: int = kind.unpack_from(data, at)[0]
    return number


def _address(family: int, packed: bytes) -> bytes:
    return fold_address(packed) if family == _AF_INET6 else packed[:4]
