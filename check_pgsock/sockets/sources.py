"""Where sockets are read: the kernel's netlink dump, or /proc/net/tcp and tcp6.

Here alone (and in events.py) netlink sockets and files of /proc/net are opened. Both sources
answer the same queries with the same values; `SocketReader` chooses between them.
"""

import os
import socket
import stat
import sys

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets import inet_diag
from check_pgsock.sockets.model import LISTEN, Listener, Query, Socket, Tally
from check_pgsock.sockets.proc_net import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, TypeVar, Union

    from check_pgsock.sockets.inet_diag import Dump

    _T = TypeVar("_T")

NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h; Python names it only as NETLINK_INET_DIAG
_BUFFER = 1 << 16  # the kernel sends at most 32 KiB at once
_CHUNK = 1 << 17
_ATTEMPTS = 3


class NetlinkSource:
    """Dumps through NETLINK_SOCK_DIAG in the network namespace of this process."""

    name = "netlink"

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._sequence = 0

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`."""

        def consume(tally: Tally, data: bytearray, dump: "Dump") -> None:
            for run in dump.runs(data):
                inet_diag.count_sockets(data, run, tally, query.accepts)

        return self._dump(query, Tally, consume)

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""

        def consume(found: "list[Socket]", data: bytearray, dump: "Dump") -> None:
            for run in dump.runs(data):
                for one in inet_diag.parse_sockets(data, run):
                    if query.accepts is None or query.accepts(
                        one.local_address, one.remote_address
                    ):
                        found.append(one)

        return self._dump(query, list, consume)

    def _dump(
        self,
        query: Query,
        start: "Callable[[], _T]",
        consume: "Callable[[_T, bytearray, Dump], None]",
    ) -> "_T":
        for _ in range(_ATTEMPTS):
            self._sequence += 1
            result, dump = start(), inet_diag.Dump(self._sequence)
            try:
                for data in self._datagrams(inet_diag.pack_request(query, self._sequence), dump):
                    consume(result, data, dump)
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

    def _datagrams(self, request: bytes, dump: "Dump") -> "Iterator[bytearray]":
        buffer = bytearray(_BUFFER)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as channel:
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


class ProcfsSource:
    """Reads tcp and tcp6 below a proc root.

    Without a root the reader's own namespace is read. Below a given root whose `net` is a
    symlink (a live /proc, such as a host's seen from a container) `1/net` is read, since `net`
    would be the reader's own namespace; where `net` is a directory it is a saved moment.
    """

    name = "procfs"

    def __init__(self, root: "Optional[str]", deadline: Deadline) -> None:
        self._deadline = deadline
        self.saved = False
        self.without_ipv6 = False
        if root is None:
            self.directory = "/proc/net"
            return
        net = os.path.join(root, "net")
        try:
            mode = os.lstat(net).st_mode
        except OSError as error:
            raise SourceError(f"{net} cannot be read: {error.strerror}; see --proc-root") from error
        if stat.S_ISLNK(mode):
            self.directory = os.path.join(root, "1", "net")
        elif stat.S_ISDIR(mode):
            self.directory, self.saved = net, True
        else:
            raise SourceError(f"{net} is no directory; --proc-root wants the copy of a /proc")

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`."""
        tally = Tally()
        for table, lines in self._read(query):
            table.count(lines, tally)
        return tally

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""
        return [one for table, lines in self._read(query) for one in table.sockets(lines)]

    def _read(self, query: Query) -> "Iterator[tuple[Table, list[bytes]]]":
        for name in ("tcp", "tcp6"):
            path = os.path.join(self.directory, name)
            table = Table(path, query, sys.byteorder, ipv6=name == "tcp6")
            try:
                for lines in read_lines(path, self._deadline):
                    yield table, lines
            except FileNotFoundError as error:
                if name == "tcp6":
                    self.without_ipv6 = True  # a kernel without IPv6
                    return
                raise SourceError(f"{path} cannot be read: {error.strerror}") from error
            except OSError as error:
                raise SourceError(f"{path} cannot be read: {error.strerror}") from error
            table.close()


def read_lines(path: str, deadline: Deadline) -> "Iterator[list[bytes]]":
    """Yield the lines of a file, some at a time; raises OSError, SourceError for no plain file."""
    # O_NONBLOCK: a FIFO in a proc root from elsewhere must not hold the check.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SourceError(f"{path} is not a regular file")
        rest = b""
        while True:
            deadline.remaining()
            chunk = file.read(_CHUNK)
            if not chunk:
                break
            lines = (rest + chunk).splitlines(keepends=True)
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            if lines:
                yield lines
        if rest:
            yield [rest]


def listener_inodes(directory: str, port: int, deadline: Deadline) -> "set[int]":
    """The inodes of the listeners on `port` in the namespace of `directory`, some PID's /proc
    net; none where that may not be read.
    """
    tally = Tally()
    try:
        for name in ("tcp", "tcp6"):
            path = os.path.join(directory, name)
            table = Table(path, Query((port,), True, 1 << LISTEN), sys.byteorder, name == "tcp6")
            for lines in read_lines(path, deadline):
                table.count(lines, tally)
                if lines[-1].split()[3:4] not in ([b"st"], [b"0A"]):
                    break  # the listeners come first
    except (OSError, SourceError):
        pass
    return {one.inode for one in tally.listeners}


class SocketReader:
    """The chosen source, and what there is to say about the choice.

    `auto` asks netlink first and goes over to procfs, for the whole run, when netlink is refused
    or fails; a source chosen by name is never replaced. Methods raise SourceError.
    """

    def __init__(self, choice: str, proc_root: "Optional[str]", deadline: Deadline) -> None:
        self.refusal: Optional[str] = None  # why netlink did not answer under `auto`
        self._deadline = deadline
        self._source: Union[NetlinkSource, ProcfsSource]
        self._may_fall_back = choice == "auto" and proc_root is None
        if choice == "procfs" or proc_root is not None:
            self._source = ProcfsSource(proc_root, deadline)
        else:
            self._source = NetlinkSource(deadline)

    @property
    def used(self) -> str:
        """The name of the source: netlink or procfs."""
        return self._source.name

    @property
    def saved(self) -> bool:
        """Whether a saved moment is read: looking twice at it tells nothing."""
        return isinstance(self._source, ProcfsSource) and self._source.saved

    @property
    def of_this_host(self) -> bool:
        """Whether the sockets are those of this process's own network namespace, now."""
        return isinstance(self._source, NetlinkSource) or self._source.directory == "/proc/net"

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`, and keep the listeners among them."""
        return self._ask(lambda source: source.count(query))

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""
        return self._ask(lambda source: source.sockets(query))

    def listeners(self, *ports: int) -> "list[Listener]":
        """Return the listeners on `ports`, or all of them."""
        return self.count(Query(ports, True, 1 << LISTEN)).listeners

    def notes(self) -> "list[str]":
        """What qualifies all that was read: what a saved moment does not hold."""
        if self.saved and isinstance(self._source, ProcfsSource) and self._source.without_ipv6:
            return [
                "the saved moment has no tcp6: IPv6 connections, and those of listeners that take "
                "IPv4 and IPv6, are not in it"
            ]
        return []

    def describe(self) -> "list[str]":
        """How the sockets were read, for -vv."""
        lines = [f"source: {self.used}"]
        if isinstance(self._source, ProcfsSource):
            lines[0] += f" ({self._source.directory})"
            if self._source.without_ipv6 and not self.saved:
                lines.append("no tcp6 beside tcp: a kernel without IPv6")
        if self.refusal:
            lines.append(f"netlink did not answer: {self.refusal}")
        return lines

    def _ask(self, question: "Callable[[Union[NetlinkSource, ProcfsSource]], _T]") -> "_T":
        self._deadline.doing = f"reading sockets from {self.used}"
        try:
            return question(self._source)
        except SourceError as error:
            if not self._may_fall_back:
                raise
            self.refusal, self._may_fall_back = str(error), False
        self._source = ProcfsSource(None, self._deadline)
        self._deadline.doing = "reading sockets from procfs"
        try:
            return question(self._source)
        except SourceError as error:
            raise SourceError(
                f"no source answers; netlink: {self.refusal}; procfs: {error}"
            ) from error
