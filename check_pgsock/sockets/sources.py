"""Where sockets are read: the kernel's netlink dump, or /proc/net/tcp, tcp6 and unix.

Here alone (and in events.py) netlink sockets and files of /proc/net are opened. Both sources
answer the same queries with the same values; `SocketReader` chooses between them.
"""

import os
import socket
import stat
import sys
from functools import partial

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets import inet_diag
from check_pgsock.sockets.model import ESTABLISHED, LISTEN, Listener, Query, Socket, Tally
from check_pgsock.sockets.netlink_dump import Dump
from check_pgsock.sockets.proc_net import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Callable, Optional, TypeVar, Union

    from check_pgsock.sockets.socket_file import SocketFile
    from check_pgsock.sockets.unix_sockets import UnixEndpoint, UnixListener, UnixSocket

    _T = TypeVar("_T")
    AnyUnix = Union[UnixListener, UnixSocket]

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

        def consume(tally: Tally, data: bytearray, run: "tuple[int, int, int]") -> None:
            inet_diag.count_sockets(data, run, tally, query.accepts)

        request = partial(inet_diag.pack_request, query)
        return self._dump(request, inet_diag.SHORTEST, Tally, consume)

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""

        def consume(found: "list[Socket]", data: bytearray, run: "tuple[int, int, int]") -> None:
            for one in inet_diag.parse_sockets(data, run, query.info, query.cgroup):
                if query.accepts is None or query.accepts(one.local_address, one.remote_address):
                    found.append(one)

        request = partial(inet_diag.pack_request, query)
        return self._dump(request, inet_diag.SHORTEST, list, consume)

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`, each once."""
        from check_pgsock.sockets import unix_diag

        def consume(
            found: "dict[Optional[int], AnyUnix]", data: bytearray, run: "tuple[int, int, int]"
        ) -> None:
            for one in unix_diag.parse_sockets(data, run):
                if wanted(one):
                    found[one.cookie] = one

        request = partial(unix_diag.pack_request, states)
        return list(self._dump(request, unix_diag.SHORTEST, dict, consume).values())

    def _dump(
        self,
        request: "Callable[[int], bytes]",
        shortest: int,
        start: "Callable[[], _T]",
        consume: "Callable[[_T, bytearray, tuple[int, int, int]], None]",
    ) -> "_T":
        for _ in range(_ATTEMPTS):
            self._sequence += 1
            result, dump = start(), Dump(self._sequence, shortest)
            try:
                for data in self._datagrams(request(self._sequence), dump):
                    for run in dump.runs(data):
                        consume(result, data, run)
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
    """Reads tcp, tcp6 and unix below a proc root.

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

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`, each once."""
        from check_pgsock.sockets.proc_net_unix import parse_sockets
        from check_pgsock.sockets.unix_sockets import UnixSocket

        path = os.path.join(self.directory, "unix")
        found = []
        try:
            for one in parse_sockets(path, _read_unbroken(path, self._deadline)):
                state = one.state if isinstance(one, UnixSocket) else LISTEN
                if states >> state & 1 and wanted(one):
                    found.append(one)
        except OSError as error:
            what = "; the saved moment holds no Unix sockets" if self.saved else ""
            raise SourceError(f"{path} cannot be read: {error.strerror}{what}") from error
        return found

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
    with open(_open_plain(path), "rb", 0) as file:
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


def _read_unbroken(path: str, deadline: Deadline) -> "Iterator[bytes]":
    """Yield the lines of a file, which newlines end and nothing else; raises as read_lines()."""
    with open(_open_plain(path), "rb", _CHUNK) as file:
        for line in file:
            deadline.remaining()
            yield line


def _open_plain(path: str) -> int:
    # O_NONBLOCK: a FIFO in a proc root from elsewhere must not hold the check.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is not a regular file")
    return descriptor


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

    def listeners(self, *ports: int, drops: bool = False) -> "list[Listener]":
        """Return the listeners on `ports`, or all of them; with `drops` also what they dropped."""
        return self.count(Query(ports, True, 1 << LISTEN, drops=drops)).listeners

    def unix_listeners(self) -> "list[UnixListener]":
        """Return all listening Unix sockets."""
        from check_pgsock.sockets.unix_sockets import UnixListener

        found = self._ask(lambda source: source.unix(1 << LISTEN, lambda one: True))
        return [one for one in found if isinstance(one, UnixListener)]

    def unix_sockets(self, path: str) -> "UnixEndpoint":
        """Return the sockets of the socket file `path`, or of the abstract name `@name`."""
        from check_pgsock.sockets.socket_file import SocketFile
        from check_pgsock.sockets.unix_sockets import choose

        place = SocketFile(path, self.of_this_host)

        def wanted(one: "AnyUnix") -> bool:
            return one.path is not None and (
                (place.file is not None and one.file == place.file) or place.is_name(one.path)
            )

        found = self._ask(lambda source: source.unix(1 << LISTEN | 1 << ESTABLISHED, wanted))
        endpoint = choose(found, place.is_name, place.file)
        note = self._unix_note(place, endpoint, found)
        return endpoint if note is None else endpoint._replace(notes=[note])

    def _unix_note(
        self, place: "SocketFile", endpoint: "UnixEndpoint", found: "list[AnyUnix]"
    ) -> "Optional[str]":
        """What qualifies the sockets of a socket file."""
        from check_pgsock.sockets.unix_sockets import UnixListener

        if place.is_abstract:
            return None
        if self.used == "procfs":
            return (
                "procfs does not tell apart a socket file and an earlier one of the same name: "
                "sessions that an earlier server accepted are counted too"
            )
        if isinstance(place.refusal, FileNotFoundError):
            if endpoint.listeners:
                return f"{place.path} is gone: nobody can connect to its listener any more"
        elif place.refusal is not None:
            return (
                f"{place.path} cannot be looked at ({place.refusal.strerror}): its sockets are "
                "told by name"
            )
        elif not endpoint.listeners and any(isinstance(one, UnixListener) for one in found):
            return (
                f"the listener named {place.path} is bound to another file: that was replaced, or "
                "the listener sees other file systems than this check"
            )
        return None

    def unix_peers(self, sessions: "Iterable[UnixSocket]") -> "dict[int, UnixSocket]":
        """Return the clients' ends of `sessions`, by their inode: those of this namespace; none
        under procfs, which does not tell who is connected to whom.
        """
        from check_pgsock.sockets.unix_sockets import UnixSocket

        wanted = {one.peer_inode for one in sessions if one.peer_inode}
        if not wanted:
            return {}
        found = self._ask(
            lambda source: source.unix(1 << ESTABLISHED, lambda one: one.inode in wanted)
        )
        return {one.inode: one for one in found if isinstance(one, UnixSocket)}

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
