"""The kernel's netlink dumps of sockets, asked for and read."""

import socket
from functools import partial

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets import inet_diag
from check_pgsock.sockets.model import Query, Socket, Tally
from check_pgsock.sockets.netlink_dump import Dump
from check_pgsock.sockets.sources import TCP_DUMP, UNIX_DUMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, TypeVar

    from check_pgsock.sockets.namespaces import Namespace
    from check_pgsock.sockets.netlink_dump import Runs
    from check_pgsock.sockets.unix_sockets import AnyUnix

    _T = TypeVar("_T")

NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h; Python names it only as NETLINK_INET_DIAG
_BUFFER = 1 << 16  # the kernel sends at most 32 KiB at once
_ATTEMPTS = 3
# All states that there are, and TCP_BOUND_INACTIVE (13, since Linux 6.8).
_EVERY_STATE = 0x3FFE


class NetlinkSource:
    """Dumps through NETLINK_SOCK_DIAG in `namespace`, or else that of this process."""

    name = "netlink"
    saved = False
    of_this_host = True

    def __init__(self, deadline: Deadline, namespace: "Optional[Namespace]" = None) -> None:
        self._deadline = deadline
        self._namespace = namespace
        self._sequence = 0

    def setting(self, name: str) -> "Optional[int]":
        """A whole number of /proc/sys; None where it cannot be read."""
        from check_pgsock.sockets.settings import read_setting

        return read_setting(name, self._namespace)

    def notes(self) -> "list[str]":
        """Nothing qualifies what the kernel answers."""
        return []

    def describe(self) -> "list[str]":
        """How it was read."""
        return [f"source: {self.name}"]

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`."""

        def consume(tally: Tally, data: bytearray, runs: "Runs") -> None:
            for run in runs:
                inet_diag.count_sockets(data, run, tally, query.accepts)

        request = partial(inet_diag.pack_request, query)
        return self._dump(request, inet_diag.SHORTEST, Tally, consume)

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""

        def consume(found: "list[Socket]", data: bytearray, runs: "Runs") -> None:
            for run in runs:
                found += inet_diag.accepted_sockets(data, run, query)

        request = partial(inet_diag.pack_request, query)
        return self._dump(request, inet_diag.SHORTEST, list, consume)

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`, each once."""
        from check_pgsock.sockets import unix_diag

        def consume(found: "dict[Optional[int], AnyUnix]", data: bytearray, runs: "Runs") -> None:
            for run in runs:
                for one in unix_diag.parse_sockets(data, run):
                    if wanted(one):
                        found[one.cookie] = one

        request = partial(unix_diag.pack_request, states)
        return list(self._dump(request, unix_diag.SHORTEST, dict, consume).values())

    def unix_queues(self) -> "dict[int, tuple[int, ...]]":
        """The inodes of the clients' ends that wait on Unix listeners, by the listener's inode:
        see unix_diag.parse_queues(). One whose clients are too many for a message, and what comes
        after it, is left out.
        """
        from check_pgsock.sockets import unix_diag

        def consume(found: "dict[int, tuple[int, ...]]", data: bytearray, runs: "Runs") -> None:
            for run in runs:
                found.update(unix_diag.parse_queues(data, run))

        return self._dump(unix_diag.pack_queues_request, unix_diag.SHORTEST, dict, consume)

    def raw(self) -> "dict[str, bytes]":
        """Dumps of all sockets, with all that a query can ask for."""
        from check_pgsock.sockets import unix_diag

        def keep(whole: bytearray, data: bytearray, runs: "Runs") -> None:
            whole += data
            for _ in runs:
                pass  # walked to its end, and valid

        everything = Query((), True, _EVERY_STATE, info=True, drops=True, cgroup=True)
        tcp = partial(inet_diag.pack_request, everything)
        unix = partial(unix_diag.pack_request, _EVERY_STATE)
        return {
            TCP_DUMP: bytes(self._dump(tcp, inet_diag.SHORTEST, bytearray, keep)),
            UNIX_DUMP: bytes(self._dump(unix, unix_diag.SHORTEST, bytearray, keep)),
        }

    def _dump(
        self,
        request: "Callable[[int], bytes]",
        shortest: int,
        start: "Callable[[], _T]",
        consume: "Callable[[_T, bytearray, Runs], None]",
    ) -> "_T":
        for _ in range(_ATTEMPTS):
            self._sequence += 1
            result, dump = start(), Dump(self._sequence, shortest)
            try:
                for data in self._datagrams(request(self._sequence), dump):
                    consume(result, data, dump.runs(data))
            except OSError as error:
                raise SourceError(
                    f"the netlink socket dump failed: {error.strerror or error}"
                ) from error
            if not dump.interrupted:
                return result
        raise SourceError(
            f"the kernel called its socket dump inconsistent {_ATTEMPTS} times in a row; "
            "try again, or use --source procfs"
        )

    def _datagrams(self, request: bytes, dump: Dump) -> "Iterator[bytearray]":
        buffer = bytearray(_BUFFER)
        with open_channel(self._namespace) as channel:
            channel.settimeout(self._deadline.remaining())
            channel.send(request)
            while not dump.done:
                channel.settimeout(self._deadline.remaining())
                try:
                    size, _, flags, _ = channel.recvmsg_into([buffer])
                except socket.timeout:
                    self._deadline.remaining()
                    continue
                if flags & socket.MSG_TRUNC:
                    raise SourceError(
                        f"the netlink socket dump sent more than {_BUFFER} bytes at once and was "
                        "truncated; use --source procfs"
                    )
                yield buffer[:size]


def open_channel(namespace: "Optional[Namespace]" = None) -> socket.socket:
    """A netlink socket to sock_diag in `namespace`, or that of this process; raises OSError, and
    SourceError where the namespace may not be entered.
    """
    parameters = (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    if namespace is None:
        return socket.socket(*parameters)
    return namespace.call(lambda: socket.socket(*parameters))
