"""Where sockets are read: the kernel's netlink dump, or /proc/net/tcp, tcp6 and unix.

Here alone (and in events.py) netlink sockets and files of /proc/net are opened. Both sources
answer the same queries with the same values; reader.py chooses between them.
"""

import os
import socket
import stat
import sys
from functools import partial

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.proc_files import open_plain
from check_pgsock.sockets import inet_diag
from check_pgsock.sockets.model import LISTEN, Query, Socket, Tally
from check_pgsock.sockets.netlink_dump import Dump
from check_pgsock.sockets.proc_net import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, Protocol, TypeVar, Union

    from check_pgsock.sockets.namespaces import Namespace
    from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket

    _T = TypeVar("_T")
    AnyUnix = Union[UnixListener, UnixSocket]
    Runs = Iterator[tuple[int, int, int]]  # see Dump.runs()

    class Source(Protocol):
        """What answers queries. Methods raise SourceError."""

        @property
        def name(self) -> str:
            """netlink, procfs or recording."""

        @property
        def saved(self) -> bool:
            """Whether it is a saved moment: looking twice at it tells nothing."""

        @property
        def of_this_host(self) -> bool:
            """Whether it is of the file systems and processes that can be seen here, and now."""

        def count(self, query: Query) -> Tally:
            """Count the sockets that answer `query`, and keep the listeners among them."""

        def sockets(self, query: Query) -> "list[Socket]":
            """Return the sockets that answer `query`."""

        def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
            """Return the Unix sockets in these states that are `wanted`, each once."""

        def setting(self, name: str) -> "Optional[int]":
            """A whole number of /proc/sys, such as net/core/somaxconn; None: cannot be read."""

        def notes(self) -> "list[str]":
            """What qualifies all that was read."""

        def describe(self) -> "list[str]":
            """How it was read, for -vv: the first line names the source."""

        def raw(self) -> "dict[str, bytes]":
            """All that it reads, unfiltered, as the kernel writes it; by the names of RAW_TABLES.
            A table that the kernel does not have is left out.
            """


# Whole dumps, as `ss -D FILE` writes those of TCP, and files of /proc/net.
TCP_DUMP, UNIX_DUMP = "tcp.netlink", "unix.netlink"
TCP_FILE, TCP6_FILE, UNIX_FILE = "tcp", "tcp6", "unix"
RAW_TABLES = (TCP_DUMP, UNIX_DUMP, TCP_FILE, TCP6_FILE, UNIX_FILE)
# All states that there are, and TCP_BOUND_INACTIVE (13, since Linux 6.8).
_EVERY_STATE = 0x3FFE

NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h; Python names it only as NETLINK_INET_DIAG
_BUFFER = 1 << 16  # the kernel sends at most 32 KiB at once
_CHUNK = 1 << 17
_ATTEMPTS = 3


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


def read_setting(name: str, namespace: "Optional[Namespace]" = None) -> "Optional[int]":
    """A whole number of /proc/sys, as `namespace` has it; None where it cannot be read."""
    try:
        return int((read_setting_file(name, namespace) or b"").split()[0])
    except (ValueError, IndexError):
        return None


def read_setting_file(name: str, namespace: "Optional[Namespace]" = None) -> "Optional[bytes]":
    """A file of /proc/sys, as `namespace` has it; None where it cannot be read."""

    def read() -> bytes:
        with open(f"/proc/sys/{name}", "rb", 0) as file:
            return file.read()

    try:
        return read() if namespace is None else namespace.call(read)
    except (OSError, SourceError):
        return None


class ProcfsSource:
    """Reads tcp, tcp6 and unix below a proc root, or in `namespace`.

    Without a root the reader's own namespace is read. Below a given root whose `net` is a
    symlink (a live /proc, such as a host's seen from a container) `1/net` is read, since `net`
    would be the reader's own namespace; where `net` is a directory it is a saved moment.
    """

    name = "procfs"

    def __init__(
        self, root: "Optional[str]", deadline: Deadline, namespace: "Optional[Namespace]" = None
    ) -> None:
        self._deadline = deadline
        self._namespace = namespace
        self._entered: Optional[Namespace] = None
        self._live = root is None
        self.saved = False
        self._without_ipv6 = False
        if root is None:
            self.directory = "/proc/net"
            if namespace is not None and namespace.process is not None:
                self.directory = f"{namespace.process}/net"
            elif namespace is not None:
                # /proc/net is the process's, whatever namespace its thread is in.
                self.directory, self._entered = "/proc/thread-self/net", namespace
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

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`, each once."""
        from check_pgsock.sockets.proc_net_unix import parse_sockets
        from check_pgsock.sockets.unix_sockets import UnixSocket

        path = os.path.join(self.directory, "unix")
        found = []
        try:
            for one in parse_sockets(path, _read_unbroken(self._open(path), self._deadline)):
                state = one.state if isinstance(one, UnixSocket) else LISTEN
                if states >> state & 1 and wanted(one):
                    found.append(one)
        except OSError as error:
            what = "; the saved moment holds no Unix sockets" if self.saved else ""
            raise SourceError(f"{path} cannot be read: {error.strerror}{what}") from error
        return found

    @property
    def of_this_host(self) -> bool:
        """Whether it is this host's own /proc, now."""
        return self.directory.startswith("/proc/") and not self.saved

    def setting(self, name: str) -> "Optional[int]":
        """A whole number of /proc/sys: that is never another proc root's, so None for one."""
        return read_setting(name, self._namespace) if self._live else None

    def notes(self) -> "list[str]":
        """What qualifies all that was read: what a saved moment does not hold."""
        if self.saved and self._without_ipv6:
            return [
                "the saved moment has no tcp6: IPv6 connections, and those of listeners that take "
                "IPv4 and IPv6, are not in it"
            ]
        return []

    def describe(self) -> "list[str]":
        """How it was read."""
        lines = [f"source: {self.name} ({self.directory})"]
        if self._without_ipv6 and not self.saved:
            lines.append("no tcp6 beside tcp: a kernel without IPv6")
        return lines

    def raw(self) -> "dict[str, bytes]":
        """The files, whole."""
        found = {}
        for name in (TCP_FILE, TCP6_FILE, UNIX_FILE):
            path = os.path.join(self.directory, name)
            try:
                found[name] = b"".join(_read_unbroken(self._open(path), self._deadline))
            except FileNotFoundError as error:
                if name == TCP_FILE:
                    raise SourceError(f"{path} cannot be read: {error.strerror}") from error
            except OSError as error:
                raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        return found

    def _open(self, path: str) -> int:
        if self._entered is None:
            return open_plain(path)
        return self._entered.call(lambda: open_plain(path))

    def _read(self, query: Query) -> "Iterator[tuple[Table, list[bytes]]]":
        for name in ("tcp", "tcp6"):
            path = os.path.join(self.directory, name)
            table = Table(path, query, sys.byteorder, ipv6=name == "tcp6")
            try:
                for lines in read_lines(self._open(path), self._deadline):
                    yield table, lines
            except FileNotFoundError as error:
                if name == "tcp6":
                    self._without_ipv6 = True  # a kernel without IPv6
                    return
                raise SourceError(f"{path} cannot be read: {error.strerror}") from error
            except OSError as error:
                raise SourceError(f"{path} cannot be read: {error.strerror}") from error
            table.close()


def read_lines(descriptor: int, deadline: Deadline) -> "Iterator[list[bytes]]":
    """Yield the lines of an open file, some at a time, then close it; raises OSError."""
    with open(descriptor, "rb", 0) as file:
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


def _read_unbroken(descriptor: int, deadline: Deadline) -> "Iterator[bytes]":
    """Yield the lines of an open file, which newlines end and nothing else, then close it."""
    with open(descriptor, "rb", _CHUNK) as file:
        for line in file:
            deadline.remaining()
            yield line


def listener_inodes(directory: str, port: int, deadline: Deadline) -> "set[int]":
    """The inodes of the listeners on `port` in the namespace of `directory`, some PID's /proc
    net; none where that may not be read.
    """
    tally = Tally()
    try:
        for name in ("tcp", "tcp6"):
            path = os.path.join(directory, name)
            table = Table(path, Query((port,), True, 1 << LISTEN), sys.byteorder, name == "tcp6")
            for lines in read_lines(open_plain(path), deadline):
                table.count(lines, tally)
                if lines[-1].split()[3:4] not in ([b"st"], [b"0A"]):
                    break  # the listeners come first
    except (OSError, SourceError):
        pass
    return {one.inode for one in tally.listeners}
