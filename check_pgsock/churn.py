"""Churn: connections opened and closed within a window, from events or from snapshots; pure.

A connection is closed when the kernel frees its socket: then the process has let go of it and
nothing is left to send. Each is so counted once, in whichever window that falls. A connection
whose peer left earlier (CLOSE_WAIT, an orphaned backend) is closed when its process ends, one
that waits for its peer (FIN_WAIT1, LAST_ACK) when that answers; TIME_WAIT, and FIN_WAIT2 that the
process has let go of, are closed already: the kernel frees the socket on entering them. A socket
that was reset while its process was busy is in no dump, and closed once the process notices.

Opened are the connections that live at the end or were closed, and were not there at the start.
"""

from collections import namedtuple

from check_pgsock.legs import WILDCARDS, Leg
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
    from collections.abc import Iterable
    from typing import NamedTuple, Optional

    class Close(NamedTuple):
        """The end of one connection."""

        cookie: "Optional[int]"
        remote_address: bytes
        is_probe: bool  # no data came from the client
        is_older: bool  # its last data was exchanged before the window

else:
    Close = namedtuple("Close", "cookie remote_address is_probe is_older")

LIVE = (ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING)
_TIMER_TIME_WAIT = 3
_TICKS = 20  # ms; the kernel's times count in ticks of up to 10 ms


class Churn:
    """What happened in a window of `elapsed` seconds. `closed` and `opened` include the probes
    and, of events, the lost ones; what snapshots cannot tell is None.
    """

    __slots__ = (
        "closed", "closes", "elapsed", "failed_connects", "lost", "opened", "opened_probes",
        "probes", "unexplained",
    )  # fmt: skip

    def __init__(
        self,
        elapsed: float,
        closed: int,
        opened: int,
        closes: "list[Close]",
        probes: "Optional[int]" = None,
        opened_probes: int = 0,
        failed_connects: "Optional[int]" = None,
        lost: int = 0,
        unexplained: int = 0,
    ) -> None:
        self.elapsed = elapsed
        self.closed = closed
        self.opened = opened
        self.closes = closes  # without the lost ones
        self.probes = probes
        self.opened_probes = opened_probes  # those that were opened in the window, too
        self.failed_connects = failed_connects
        self.lost = lost
        self.unexplained = unexplained  # sockets this end aborted, that may have been of the leg

    @property
    def cycles(self) -> int:
        """The smaller of closed and opened: a pool that merely restarts does only one of them."""
        return min(self.closed, self.opened)

    def rate(self, count: int) -> float:
        """`count` per second."""
        return count / self.elapsed

    def without_probes(self) -> "Churn":
        """The same with closed and opened less the probes."""
        return Churn(
            self.elapsed,
            self.closed - (self.probes or 0),
            self.opened - self.opened_probes,
            [one for one in self.closes if not one.is_probe],
            self.probes,
            self.opened_probes,
            self.failed_connects,
            self.lost,
            self.unexplained,
        )


def sum_churns(parts: "list[Churn]") -> Churn:
    """The churn of several places that were watched at the same time.

    What one of them cannot tell of probes and failed connects, all cannot.
    """

    def total(values: "list[Optional[int]]") -> "Optional[int]":
        known = [one for one in values if one is not None]
        return sum(known) if len(known) == len(values) else None

    return Churn(
        sum(one.elapsed for one in parts) / len(parts),
        sum(one.closed for one in parts),
        sum(one.opened for one in parts),
        [close for one in parts for close in one.closes],
        total([one.probes for one in parts]),
        sum(one.opened_probes for one in parts),
        total([one.failed_connects for one in parts]),
        sum(one.lost for one in parts),
        sum(one.unexplained for one in parts),
    )


def is_live(one: Socket) -> bool:
    """Whether the kernel still holds the full socket of this connection."""
    return one.state in LIVE and one.timer != _TIMER_TIME_WAIT


def cookies(sockets: "Iterable[Socket]") -> "set[int]":
    """The cookies of the live sockets."""
    return {one.cookie for one in sockets if one.cookie is not None and is_live(one)}


class EventLedger:
    """Adds up the destroy events of a window.

    `start` holds the cookies of the leg's live sockets when the window began.
    """

    def __init__(self, leg: Leg, start: "set[int]") -> None:
        self._leg = leg
        self._ports = frozenset(leg.ports)
        self._accepts = leg.filter
        self._start = start
        self._seen: set[int] = set()
        self._closes: list[Close] = []
        self._failed = 0
        self.unexplained = 0  # aborts by this end whose connection was never seen

    def see(self, found: "set[int]") -> None:
        """Take note of a later snapshot: aborts by this end are recognised by it."""
        self._seen |= found

    def add(self, one: Socket, since_start_ms: float) -> None:
        """Take in one event, received that long after the start."""
        server = self._leg.server
        known = one.cookie in self._start or one.cookie in self._seen
        info = one.info
        if info is None or info.bytes_acked is None or info.bytes_received is None:
            raise ValueError("an event without tcp_info")
        if one.remote_port == 0:
            if not known and not self._is_aborted_connection(one):
                self.unexplained += one.remote_address not in WILDCARDS and not server
                return
            # tcp_disconnect has cleared what could tell a probe or an age.
            self._closes.append(Close(one.cookie, one.remote_address, False, False))
            return
        if (one.local_port if server else one.remote_port) not in self._ports:
            return
        if not known:
            if self._accepts and not self._accepts(one.local_address, one.remote_address):
                return
            if not server and info.bytes_acked == 0:  # not even its SYN was answered
                self._failed += 1
                return
        # A FIN counts as one byte, received or acknowledged, and the SYN we sent as another.
        is_probe = info.bytes_received <= 1 and (server or info.bytes_acked <= 2)
        # Both times begin when the connection does.
        quiet = max(info.last_data_sent_ms, info.last_data_received_ms)
        is_older = quiet > since_start_ms + _TICKS
        self._closes.append(Close(one.cookie, one.remote_address, is_probe, is_older))

    def _is_aborted_connection(self, one: Socket) -> bool:
        """Whether a socket without remote port, never seen in a snapshot, was a connection of
        the leg.

        On the server leg its own port says so. Its local address may be lost, and is then no
        match for --address. On the client leg a blocking connect that failed looks the same.
        """
        return (
            self._leg.server
            and one.local_port in self._ports
            and one.remote_address not in WILDCARDS
            and (self._accepts is None or self._accepts(one.local_address, one.remote_address))
        )

    def finish(self, end: "set[int]", lost: int, elapsed: float) -> Churn:
        """Add up; `end` holds the cookies of the live sockets, `lost` counts lost events.

        A lost event was the close of a connection that was there at the start and has gone, or
        else of one that was opened in the window too.
        """
        closes = [one for one in self._closes if one.cookie not in end]
        new = [one for one in closes if one.cookie not in self._start and not one.is_older]
        gone = self._start - end - {one.cookie for one in closes}
        return Churn(
            elapsed,
            len(closes) + lost,
            len(end - self._start) + len(new) + max(lost - len(gone), 0),
            closes,
            sum(one.is_probe for one in closes),
            sum(one.is_probe for one in new),
            None if self._leg.server else self._failed,
            lost,
            self.unexplained,
        )


class SnapshotLedger:
    """Compares the snapshots of a window, each with the one before: a lower bound, since what
    is opened and closed between two is in neither.
    """

    def __init__(self) -> None:
        self._last: Optional[dict[object, Socket]] = None
        self._closes: list[Close] = []
        self._opened = 0

    def add(self, sockets: "Iterable[Socket]") -> None:
        """Take in one snapshot."""
        found = {identity(one): one for one in sockets if is_live(one)}
        last, self._last = self._last, found
        if last is None:
            return
        for key, one in last.items():
            if key not in found or _replaced(one, found[key]):
                self._closes.append(Close(one.cookie, one.remote_address, False, False))
        for key, one in found.items():
            if key not in last or _replaced(last[key], one):
                self._opened += 1

    def finish(self, elapsed: float) -> Churn:
        """Add up."""
        return Churn(elapsed, len(self._closes), self._opened, self._closes)


def identity(one: Socket) -> object:
    """What two snapshots know a connection by: its cookie; under procfs, which knows none, its
    addresses (see also _replaced).
    """
    if one.cookie is not None:
        return one.cookie
    return (one.local_address, one.local_port, one.remote_address, one.remote_port)


def _replaced(old: Socket, new: Socket) -> bool:
    """Whether another connection has taken the same addresses (procfs).

    The inode is 0 before a connection is accepted and after its process has let go of it.
    """
    return old.cookie is None and 0 != old.inode != new.inode != 0


def has_data(one: Socket, server: bool) -> bool:
    """Whether data came from the client, read with tcp_info: it will be no probe."""
    if one.info is None or one.info.bytes_received is None or one.info.bytes_acked is None:
        return False
    return one.info.bytes_received > 1 or not (server or one.info.bytes_acked <= 2)


def fullest_destination(sockets: "Iterable[Socket]") -> "tuple[int, Optional[Socket]]":
    """How many of `sockets` share their local address, remote address and remote port, where
    most do, and one of these: they use up the ephemeral ports of that destination.
    """
    counts: dict[tuple[bytes, bytes, int], int] = {}
    example: Optional[Socket] = None
    most = 0
    for one in sockets:
        key = (one.local_address, one.remote_address, one.remote_port)
        counts[key] = number = counts.get(key, 0) + 1
        if number > most:
            most, example = number, one
    return most, example
