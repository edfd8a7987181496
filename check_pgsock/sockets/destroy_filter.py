"""The kernel's destroy events of TCP sockets: the filter packed, the datagrams parsed, pure.

An event is the inet_diag_msg of a full socket that the kernel frees, with struct tcp_info; state
is always CLOSE, uid and inode are 0 (inet_diag_handler_get_info in net/ipv4/inet_diag.c). A full
socket that TIME_WAIT replaces is freed at once; the small one left in its place has no event.

Where this end aborted (SO_LINGER 0, or a listener that closes with connections in its queue)
tcp_disconnect has set the remote port to 0, the local address too where it was not bound, and
the counters of tcp_info. The remote address stays: a listener or a socket that was never
connected has none.
"""

from struct import Struct

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.inet_diag import SHORTEST, parse_socket
from check_pgsock.sockets.netlink_dump import HEADER, SOCK_DIAG_BY_FAMILY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

    from check_pgsock.sockets.model import Socket

# 2,018 instructions of 8 bytes lie below the oldest default of net.core.optmem_max (20,480 bytes).
MOST_PORTS = 1000

_INSTRUCTION = Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k

# include/uapi/linux/bpf_common.h. An absolute load converts from network byte order, in which
# the ports are stored: they are compared as plain numbers on every machine.
_LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _JUMP, _RETURN = 0x28, 0x20, 0x15, 0x05, 0x06
_WHOLE = 0xFFFFFFFF
_LOCAL_PORT_AT, _REMOTE_PORT_AT, _REMOTE_ADDRESS_AT = 20, 22, 40  # in the netlink message


def pack_filter(ports: "tuple[int, ...]", local: bool) -> bytes:
    """The classic BPF program that passes the events of connections of `ports`.

    With `local` the local port is one of them; else the remote port is, or it is 0 (an abort by
    this end, which only its cookie can tie to a port). Sockets that never had a remote address
    do not pass. Raises ValueError for no port, or more than MOST_PORTS.
    """
    if not 0 < len(ports) <= MOST_PORTS:
        raise ValueError(f"{len(ports)} ports, not 1 to {MOST_PORTS}")
    pack = _INSTRUCTION.pack
    accept, reject = pack(_RETURN, 0, 0, _WHOLE), pack(_RETURN, 0, 0, 0)
    program = [pack(_LOAD_HALF, 0, 0, _LOCAL_PORT_AT if local else _REMOTE_PORT_AT)]
    for number, port in enumerate(ports):
        program.append(pack(_JUMP_EQUAL, 0, 1, port))
        rest = 2 * (len(ports) - number - 1)
        program.append(pack(_JUMP, 0, 0, rest + 1) if local else accept)
    if local:
        program += [reject, pack(_LOAD_HALF, 0, 0, _REMOTE_PORT_AT)]
        program += [pack(_JUMP_EQUAL, 1, 0, 0), accept]
    else:
        program += [pack(_JUMP_EQUAL, 1, 0, 0), reject]
    for word in range(4):
        program.append(pack(_LOAD_WORD, 0, 0, _REMOTE_ADDRESS_AT + 4 * word))
        program += [pack(_JUMP_EQUAL, 1, 0, 0), accept]
    return b"".join([*program, reject])


def parse_events(data: "Union[bytes, bytearray]") -> "Iterator[Socket]":
    """Yield the sockets of one datagram of destroy events, each with its tcp_info.

    Raises MalformedError for anything else.
    """
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER.size:
            raise MalformedError(f"destroy event: {end - offset} stray bytes at {offset}")
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if kind != SOCK_DIAG_BY_FAMILY:
            raise MalformedError(f"destroy event: message type {kind}")
        if length < SHORTEST or offset + length > end:
            raise MalformedError(
                f"destroy event: message of {length} bytes in {end - offset} at {offset}"
            )
        one = parse_socket(data, offset, length)
        if one.info is None or one.info.bytes_acked is None or one.info.bytes_received is None:
            raise MalformedError("destroy event: no byte counts in its tcp_info")
        yield one
        offset += (length + 3) & ~3
