"""What both socket sources yield: sockets, listeners, tallies, and the question they answer.

State numbers are the kernel's (include/net/tcp_states.h); /proc/net/tcp prints the same ones.
"""

from collections import namedtuple

TYPE_CHECKING = False  # typing costs a check 3 ms of start-up; type checkers know this idiom
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NamedTuple, Optional

STATE_NAMES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
ESTABLISHED = 1
SYN_SENT = 2
SYN_RECV = 3
FIN_WAIT1 = 4
FIN_WAIT2 = 5
TIME_WAIT = 6
CLOSE = 7
CLOSE_WAIT = 8
LAST_ACK = 9
LISTEN = 10
CLOSING = 11
NEW_SYN_RECV = 12

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


def state_mask(*states: int) -> int:
    """The bit mask of states, as idiag_states in struct inet_diag_req_v2 wants it.

    A half-open connection is a request socket in state NEW_SYN_RECV since Linux 4.1, reported as
    SYN_RECV: whoever asks for the one wants the other.
    """
    mask = 0
    for state in states:
        mask |= 1 << state
    return mask | 1 << NEW_SYN_RECV if SYN_RECV in states else mask


def fold_address(packed: bytes) -> bytes:
    """Fold an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) into its 4 bytes; leave all others."""
    return packed[12:] if packed.startswith(_MAPPED_PREFIX) and len(packed) == 16 else packed


if TYPE_CHECKING:

    class Socket(NamedTuple):
        """One TCP socket that is not a listener. Absent is None, never 0."""

        state: int
        local_address: bytes  # 4 or 16 bytes, network order, IPv4-mapped folded into IPv4
        local_port: int
        remote_address: bytes
        remote_port: int
        uid: int
        inode: int  # 0: no process holds it (not accepted yet, or already closed)
        cookie: "Optional[int]"  # the kernel's identity of the socket; None under procfs
        timer: int  # 0 off, 1 retransmit, 2 keepalive, 3 TIME_WAIT, 4 persist
        expires_ms: int  # until the timer fires; procfs rounds to 10 ms
        retransmits: int  # of the running timer: retransmits, or unanswered probes
        receive_queue: int  # bytes
        send_queue: int  # bytes
        info: "Optional[TcpInfo]"  # only where the query asked for it
        cgroup: "Optional[int]" = None  # likewise: the inode of its cgroup v2 directory

    class Listener(NamedTuple):
        """One listening TCP socket."""

        address: bytes
        port: int
        uid: int
        inode: int
        cookie: "Optional[int]"
        accept_queue: int  # connections that wait to be accepted
        backlog: "Optional[int]"  # the limit of the accept queue; None under procfs
        # SYNs and handshakes refused; only where asked for. With TCP_DEFER_ACCEPT, as PgBouncer has
        # it, the kernel adds each bare ACK that it ignores: one or more of every connection.
        drops: "Optional[int]" = None
        cgroup: "Optional[int]" = None  # inode of the cgroup v2 directory it was made in

    class TcpInfo(NamedTuple):
        """The fields of struct tcp_info (include/uapi/linux/tcp.h) that the suite reads."""

        last_data_sent_ms: int  # a retransmit counts
        last_data_received_ms: int
        bytes_acked: "Optional[int]"  # None where an older kernel's struct ends before it
        bytes_received: "Optional[int]"
        last_ack_received_ms: int = 0  # the last sign of life: keepalives and window probes too
        retransmits: int = 0  # of the oldest packet not acknowledged, whatever timer runs
        probes: int = 0  # keepalive or window probes in a row that had no answer
        backoff: int = 0  # doublings of the timer's period, window probes that had one included
        unacked: int = 0  # packets in flight; 0 with a send queue: the peer's window is closed
        total_retransmits: "Optional[int]" = None  # since the connection was made

    class Query(NamedTuple):
        """What to ask a source for: sockets of these ports on one end, in these states.

        `accepts` is handed each socket's folded local and remote address; listeners are never
        asked about. With `ports` empty every port is meant.
        """

        ports: "tuple[int, ...]"
        local: bool  # True: the local port is one of `ports`; False: the remote port is
        states: int
        accepts: "Optional[Callable[[bytes, bytes], bool]]" = None
        info: bool = False  # read struct tcp_info too
        drops: bool = False  # read what listeners dropped too
        cgroup: bool = False  # read the cgroup of sockets too, listeners always tell theirs

else:
    Socket = namedtuple(
        "Socket",
        "state local_address local_port remote_address remote_port uid inode cookie timer "
        "expires_ms retransmits receive_queue send_queue info cgroup",
        defaults=(None,),
    )
    Listener = namedtuple(
        "Listener",
        "address port uid inode cookie accept_queue backlog drops cgroup",
        defaults=(None, None),
    )
    TcpInfo = namedtuple(
        "TcpInfo",
        "last_data_sent_ms last_data_received_ms bytes_acked bytes_received "
        "last_ack_received_ms retransmits probes backoff unacked total_retransmits",
        defaults=(0, 0, 0, 0, 0, None),
    )
    Query = namedtuple(
        "Query",
        "ports local states accepts info drops cgroup",
        defaults=(None, False, False, False),
    )


class Tally:
    """Sockets counted, not kept: by state, those no process holds yet, and the listeners."""

    __slots__ = ("listeners", "not_accepted", "states")

    def __init__(self) -> None:
        self.states = [0] * len(STATE_NAMES)
        self.not_accepted = 0  # ESTABLISHED with inode 0: in the accept queue
        self.listeners: list[Listener] = []

    def count(self, state: int) -> int:
        """The number of sockets in `state`; half-open connections count as SYN_RECV."""
        if state == SYN_RECV:
            return self.states[SYN_RECV] + self.states[NEW_SYN_RECV]
        return self.states[state]

    def add(self, state: int, inode: int) -> None:
        """Count one socket."""
        self.states[state] += 1
        if state == ESTABLISHED and not inode:
            self.not_accepted += 1
