"""Files of /proc/net, and of a copy of it, found, opened and read."""

import os
import stat
import sys

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.proc_files import open_plain
from check_pgsock.sockets.model import LISTEN, Query, Socket, Tally
from check_pgsock.sockets.proc_net import Table
from check_pgsock.sockets.settings import read_setting
from check_pgsock.sockets.sources import TCP6_FILE, TCP_FILE, UNIX_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional

    from check_pgsock.sockets.namespaces import Namespace
    from check_pgsock.sockets.unix_sockets import AnyUnix

_CHUNK = 1 << 17


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

        path = os.path.join(self.directory, UNIX_FILE)
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
        for name in (TCP_FILE, TCP6_FILE):
            path = os.path.join(self.directory, name)
            table = Table(path, query, sys.byteorder, ipv6=name == TCP6_FILE)
            try:
                for lines in read_lines(self._open(path), self._deadline):
                    yield table, lines
            except FileNotFoundError as error:
                if name == TCP6_FILE:
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
        for name in (TCP_FILE, TCP6_FILE):
            path = os.path.join(directory, name)
            table = Table(path, Query((port,), True, 1 << LISTEN), sys.byteorder, name == TCP6_FILE)
            for lines in read_lines(open_plain(path), deadline):
                table.count(lines, tally)
                if lines[-1].split()[3:4] not in ([b"st"], [b"0A"]):
                    break  # the listeners come first
    except (OSError, SourceError):
        pass
    return {one.inode for one in tally.listeners}
