"""What a connection is doing, from its socket and its backend's title: pure.

tcp_info's times are in jiffies of one clock, read at one moment: where two differ, by however
little, the order of the events is certain; where they are equal it is not. Authority:
tcp_event_data_sent (net/ipv4/tcp_output.c, retransmits included), tcp_event_data_recv
(net/ipv4/tcp_input.c, neither keepalives nor a bare FIN), tcp_get_info (net/ipv4/tcp.c).
"""

from collections import namedtuple

from check_pgsock.sessions.states import (
    ABORTED,
    ACTIVE,
    AUTHENTICATION,
    FASTPATH,
    IDLE,
    IDLE_IN_TRANSACTION,
    INITIALIZING,
    STARTUP,
)
from check_pgsock.sessions.titles import CLIENT_BACKEND, UNTITLED, Title
from check_pgsock.sockets.model import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    LAST_ACK,
    Socket,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple, Optional

# ACTIVE, IDLE and IDLE_IN_TRANSACTION are pg_stat_activity's; a tcp_info alone cannot tell IDLE
# from IDLE_IN_TRANSACTION, nor WAITING from ACTIVE: it says IDLE and ACTIVE.
WAITING = "waiting"  # active, and held up by a lock or a synchronous standby
NOT_ACCEPTED = "not accepted"  # complete in the kernel; no process has it yet
NO_STARTUP_PACKET = "no startup packet"  # accepted, but nobody asked for a session: holds no slot
ORPHANED = "orphaned"  # the client is gone, its backend (or the pooler) still holds this end
CLOSED_BY_SERVER = "closed by server"  # the client's process still holds this end
SUSPECTED_DEAD_PEER = "suspected dead peer"  # it does not acknowledge
CLIENT_NOT_READING = "client not reading"  # its receive window is closed, and more is to be sent
KERNEL_ORPHAN = "kernel orphan"  # no process has it any more; the kernel is closing it
UNKNOWN = "unknown"
ACTIVITIES = (
    ACTIVE,
    IDLE,
    IDLE_IN_TRANSACTION,
    WAITING,
    NOT_ACCEPTED,
    NO_STARTUP_PACKET,
    ORPHANED,
    CLOSED_BY_SERVER,
    SUSPECTED_DEAD_PEER,
    CLIENT_NOT_READING,
    KERNEL_ORPHAN,
    UNKNOWN,
)

# How an activity is known.
BY_SOCKET, BY_TITLE, BY_TCP_INFO = "socket", "title", "tcp_info"

_RETRANSMIT, _KEEPALIVE, _PERSIST = 1, 2, 4  # idiag_timer
# How many retransmits or probes without an answer make a peer suspect, by timer. A probe counts
# from when it is sent; those of a closed window are frequent, and one is always on its way.
_UNANSWERED = {_RETRANSMIT: 3, _KEEPALIVE: 1, _PERSIST: 2}
# The shortest startup packet: length, version, "user", a name of one byte, their ends. Requests
# for TLS or GSSAPI encryption have 8 bytes, are answered with one, and may both be tried.
_STARTUP_BYTES = 16
# What a server writes up to its first ReadyForQuery is longer: 381 bytes and more (PostgreSQL 14 to
# 18, PgBouncer 1.18); what it writes before the password, without TLS, is shorter (SCRAM: 140).
_WELCOME_BYTES = 200
_BEFORE_SESSION = (AUTHENTICATION, STARTUP, INITIALIZING)
# What is not answered is acknowledged by itself, within this (TCP_DELACK_MAX: 0.2 s); the answer to
# a keepalive comes later, a second after the last data at the soonest.
_DELAYED_ACK_MS = 500
# Title and socket may be read while a session goes from one state to another, but not for longer.
_CONTRADICTION_MS = 1000

if TYPE_CHECKING:

    class Activity(NamedTuple):
        """One of ACTIVITIES, for how long nothing has been exchanged, and how it is known.

        `idle_seconds` is None where it says nothing (a session that works) or is not known. Of a
        peer that may be dead, or does not read, it is the time since its last word; of one that is
        unknown, the time for which it has been idle or at one statement.
        """

        activity: str
        idle_seconds: "Optional[float]"
        known_by: str

else:
    Activity = namedtuple("Activity", "activity idle_seconds known_by")


class _Flow:
    """The tcp_info of a server's or a client's end, in terms of requests and responses."""

    __slots__ = (
        "is_acknowledged_late", "is_servers", "request_bytes", "request_ms", "response_bytes",
        "response_ms", "silence",
    )  # fmt: skip

    def __init__(self, one: Socket, server: bool) -> None:
        info = one.info
        assert info is not None
        sent = None if info.bytes_acked is None else info.bytes_acked + one.send_queue
        received = info.bytes_received
        silent_ms = min(info.last_data_sent_ms, info.last_data_received_ms)
        self.silence = silent_ms / 1000
        self.is_servers = server
        self.is_acknowledged_late = 0 < silent_ms - info.last_ack_received_ms <= _DELAYED_ACK_MS
        if server:
            self.request_ms, self.response_ms = info.last_data_received_ms, info.last_data_sent_ms
            self.request_bytes, self.response_bytes = received, sent
        else:
            self.request_ms, self.response_ms = info.last_data_sent_ms, info.last_data_received_ms
            # The end that connects counts its SYN as a byte that was acknowledged.
            self.request_bytes = None if sent is None else max(sent - 1, 0)
            self.response_bytes = received

    def is_before_startup(self) -> bool:
        """Whether no startup packet can have been sent."""
        if self.request_bytes is None:
            return False
        if self.request_bytes == _STARTUP_BYTES:
            return self.response_bytes == 2
        return self.request_bytes < _STARTUP_BYTES

    def is_before_welcome(self) -> bool:
        """Whether no session can have begun."""
        return self.response_bytes is not None and self.response_bytes < _WELCOME_BYTES

    def contradicts(self, activity: str, title: Title) -> bool:
        """Whether a title stands still: a session can turn off update_process_title for itself.

        It says idle, and a request has been in for long; or active, and the last word was the
        server's, and long ago. (A statement that sent something and goes on in silence looks so,
        too. A walsender has nothing to answer.)
        """
        if activity in (IDLE, IDLE_IN_TRANSACTION):
            return _CONTRADICTION_MS < self.request_ms < self.response_ms
        if activity == ACTIVE and title.kind == CLIENT_BACKEND:
            return _CONTRADICTION_MS < self.response_ms < self.request_ms
        return False


def judge_activity(
    one: Socket,
    server: bool,
    title: "Optional[Title]" = None,
    other: "Optional[Socket]" = None,
) -> Activity:
    """What the connection of this socket is doing.

    `server` tells the end that accepted it from the one that connected. `title` is that of its
    backend, on either leg; None where that is not known. `other` is its other end, where that is
    known: on this host.
    """
    activity = _judge_socket(one, server)
    flow = None if one.info is None else _Flow(one, server)
    if activity is not None:
        silent = None
        if one.info is not None and activity in (SUSPECTED_DEAD_PEER, CLIENT_NOT_READING):
            silent = one.info.last_data_received_ms / 1000
        return Activity(activity, silent, BY_SOCKET)
    silence = None if flow is None else flow.silence
    if title is not None and title.kind == UNTITLED:
        return Activity(NO_STARTUP_PACKET, silence, BY_TITLE)
    if flow is not None and flow.is_before_startup():
        return Activity(NO_STARTUP_PACKET, silence, BY_TCP_INFO)
    if title is not None:
        found = judge_title(title)
        if found is not None and flow is not None and flow.contradicts(found, title):
            return Activity(UNKNOWN, None, BY_TCP_INFO)
        if found is not None:
            return Activity(found, None if found in (ACTIVE, WAITING) else silence, BY_TITLE)
        if title.state in _BEFORE_SESSION:
            return Activity(UNKNOWN, None, BY_TITLE)
    if flow is None:
        return Activity(UNKNOWN, None, BY_SOCKET)
    if flow.is_before_welcome() or (one.timer == _RETRANSMIT and one.retransmits):
        return Activity(UNKNOWN, None, BY_TCP_INFO)
    flows = [flow]
    if other is not None and other.info is not None:
        flows.append(_Flow(other, not server))
    found = _judge_flows(flows)
    return Activity(found, None if found == ACTIVE else silence, BY_TCP_INFO)


def _judge_socket(one: Socket, server: bool) -> "Optional[str]":
    """What socket state, owner, timer and queues say, without a look at the session."""
    if not one.inode:
        if server and one.state in (ESTABLISHED, CLOSE_WAIT):
            return NOT_ACCEPTED
        if one.state in (FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK):
            return KERNEL_ORPHAN
        return UNKNOWN
    if one.state == CLOSE_WAIT:
        return ORPHANED if server else CLOSED_BY_SERVER
    if one.state != ESTABLISHED:
        return UNKNOWN
    if one.retransmits >= _UNANSWERED.get(one.timer, one.retransmits + 1):
        return SUSPECTED_DEAD_PEER
    if one.timer == _PERSIST and one.send_queue:
        # On the client leg it is the backend that does not read: it has other work.
        return CLIENT_NOT_READING if server else ACTIVE
    return None


def judge_title(title: Title) -> "Optional[str]":
    """What a backend is doing by its title alone; None where that does not say."""
    if title.state in (ACTIVE, FASTPATH):
        # A title that may be cut does not say whether it waits.
        return WAITING if title.waiting else ACTIVE if title.waiting is False else None
    if title.waiting:
        return WAITING
    if title.state == IDLE:
        return IDLE
    if title.state in (IDLE_IN_TRANSACTION, ABORTED):
        return IDLE_IN_TRANSACTION
    if title.state is None and not title.whole and title.port is not None:
        # Cut within `idle in transaction (aborted)`, but behind all that begins like `idle`.
        text = title.text or ""
        if len(text) > len(IDLE) and ABORTED.startswith(text):
            return IDLE_IN_TRANSACTION
    return None


def _judge_flows(flows: "list[_Flow]") -> str:
    """What the flows of a session's ends tell, one or both of them: by their data, and where all
    came within one tick by who acknowledged the last of it by itself, without an answer.
    """
    for one in flows:
        if one.response_ms != one.request_ms:
            return ACTIVE if one.response_ms > one.request_ms else IDLE
    for one in flows:
        if one.is_acknowledged_late:
            return IDLE if one.is_servers else ACTIVE
    return UNKNOWN
