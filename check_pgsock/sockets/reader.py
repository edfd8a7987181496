"""What checks and tools read sockets with, and which source answers them.

`SocketReader` reads one place; pooled_reader.py several, summed. Both answer alike.
"""

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.sockets.model import ESTABLISHED, LISTEN, Listener, Query, Socket, Tally
from check_pgsock.sockets.sources.netlink import NetlinkSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Callable, Optional, TypeVar

    from check_pgsock.sockets.namespaces import Namespace
    from check_pgsock.sockets.sources import Source
    from check_pgsock.sockets.sources.procfs import ProcfsSource
    from check_pgsock.sockets.unix_sockets import AnyUnix, UnixEndpoint, UnixListener, UnixSocket

    _T = TypeVar("_T")

_TCP, _UNIX, _ALL = "TCP", "Unix", "all"  # what a source may answer, or not, apart from the rest


class Reader:
    """What can be asked of sockets, wherever they are read. Methods raise SourceError."""

    @property
    def used(self) -> str:
        """The name of the source: netlink, procfs or recording."""
        raise NotImplementedError

    @property
    def saved(self) -> bool:
        """Whether a saved moment is read: looking twice at it tells nothing."""
        raise NotImplementedError

    @property
    def of_this_host(self) -> bool:
        """Whether its files and processes are those that can be seen here, and now."""
        raise NotImplementedError

    @property
    def each(self) -> "tuple[SocketReader, ...]":
        """The readers of the single places: what one server accepts is in one of them."""
        raise NotImplementedError

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`, and keep the listeners among them."""
        raise NotImplementedError

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""
        raise NotImplementedError

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`."""
        raise NotImplementedError

    def notes(self) -> "list[str]":
        """What qualifies all that was read: what a saved moment does not hold."""
        raise NotImplementedError

    def describe(self) -> "list[str]":
        """How the sockets were read, for -vv."""
        raise NotImplementedError

    def listeners(self, *ports: int, drops: bool = False) -> "list[Listener]":
        """Return the listeners on `ports`, or all of them; with `drops` also what they dropped."""
        return self.count(Query(ports, True, 1 << LISTEN, drops=drops)).listeners

    def unix_listeners(self) -> "list[UnixListener]":
        """Return all listening Unix sockets."""
        from check_pgsock.sockets.unix_sockets import UnixListener

        found = self.unix(1 << LISTEN, lambda one: True)
        return [one for one in found if isinstance(one, UnixListener)]

    def unix_sockets(self, path: str) -> "UnixEndpoint":
        """Return the sockets of the socket file `path`, or of the abstract name `@name`."""
        from check_pgsock.sockets.socket_file import SocketFile
        from check_pgsock.sockets.unix_sockets import choose

        place = SocketFile(path, self.of_this_host)
        found = self.unix(1 << LISTEN | 1 << ESTABLISHED, place.may_be_of)
        endpoint = choose(found, place.is_name, place.file)
        note = place.qualify(endpoint, found)
        return endpoint if note is None else endpoint._replace(notes=[note])

    def unix_peers(self, sessions: "Iterable[UnixSocket]") -> "dict[int, UnixSocket]":
        """Return the clients' ends of `sessions`, by their inode: those of these namespaces; none
        under procfs, which does not tell who is connected to whom.
        """
        from check_pgsock.sockets.unix_sockets import UnixSocket

        wanted = {one.peer_inode for one in sessions if one.peer_inode}
        if not wanted:
            return {}
        found = self.unix(1 << ESTABLISHED, lambda one: one.inode in wanted)
        return {one.inode: one for one in found if isinstance(one, UnixSocket)}


class SocketReader(Reader):
    """One place, and the source chosen to read it.

    `auto` asks netlink first, and procfs for the rest of the run where netlink is refused or fails
    at the first question, on TCP and on Unix sockets each: what both say cannot be compared, so
    later on it is an error. A source chosen by name is never replaced. `recorded` is a source that
    was read before.
    """

    def __init__(
        self,
        choice: str,
        proc_root: "Optional[str]",
        deadline: Deadline,
        namespace: "Optional[Namespace]" = None,
        recorded: "Optional[Source]" = None,
    ) -> None:
        self.refusal: Optional[str] = None  # why netlink did not answer under `auto`
        self.namespace = namespace
        self._deadline = deadline
        self._source: Source
        self._fallbacks: dict[str, ProcfsSource] = {}
        # What netlink has not been asked for yet.
        self._may_fall_back: set[str] = set()
        if choice == "auto" and proc_root is None and recorded is None:
            self._may_fall_back = {_TCP, _UNIX, _ALL}
        if recorded is not None:
            self._source = recorded
        elif choice == "procfs" or proc_root is not None:
            self._source = self._open_procfs(proc_root)
        else:
            self._source = NetlinkSource(deadline, namespace)

    @property
    def used(self) -> str:
        """The name of the source."""
        return self._main.name

    @property
    def saved(self) -> bool:
        """Whether a saved moment is read."""
        return self._source.saved

    @property
    def of_this_host(self) -> bool:
        """Whether its files and processes are those that can be seen here, and now."""
        return self._source.of_this_host

    @property
    def each(self) -> "tuple[SocketReader, ...]":
        """This one."""
        return (self,)

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`, and keep the listeners among them."""
        return self._ask(_TCP, lambda source: source.count(query))

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""
        return self._ask(_TCP, lambda source: source.sockets(query))

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`."""
        return self._ask(_UNIX, lambda source: source.unix(states, wanted))

    def setting(self, name: str) -> "Optional[int]":
        """A whole number of /proc/sys, such as net/core/somaxconn; None: cannot be read."""
        return self._source.setting(name)

    def raw(self) -> "dict[str, bytes]":
        """All that the source reads, as the kernel writes it: see Source.raw()."""
        return self._ask(_ALL, lambda source: source.raw())

    def notes(self) -> "list[str]":
        """What qualifies all that was read."""
        return self._main.notes()

    def describe(self) -> "list[str]":
        """How the sockets were read."""
        lines = self._main.describe()
        if self.namespace is not None:
            lines[0] += f", network namespace {self.namespace.name}"
        if self.refusal:
            what = "" if self._main.name == "procfs" else " on Unix sockets, procfs did"
            lines.append(f"netlink did not answer{what}: {self.refusal}")
        return lines

    @property
    def _main(self) -> "Source":
        """What answers on TCP sockets; while that was not asked, on those that were."""
        if _TCP in self._may_fall_back and self._fallbacks:
            return next(iter(self._fallbacks.values()))
        return self._source_of(_TCP)

    def _source_of(self, kind: str) -> "Source":
        return self._fallbacks.get(kind, self._source)

    def _ask(self, kind: str, question: "Callable[[Source], _T]") -> "_T":
        source = self._source_of(kind)
        self._deadline.doing = f"reading sockets from {source.name}"
        try:
            answer = question(source)
        except SourceError as error:
            if kind not in self._may_fall_back:
                raise
            self.refusal = str(error)
        else:
            self._may_fall_back.discard(kind)
            return answer
        fallback = self._open_procfs(None)
        self._deadline.doing = "reading sockets from procfs"
        try:
            answer = question(fallback)
        except SourceError as error:
            if str(error) == self.refusal:
                raise  # what both need is refused
            raise SourceError(
                f"no source answers; netlink: {self.refusal}; procfs: {error}"
            ) from error
        self._fallbacks[kind] = fallback
        self._may_fall_back.discard(kind)
        return answer

    def _open_procfs(self, root: "Optional[str]") -> "ProcfsSource":
        from check_pgsock.sockets.sources.procfs import ProcfsSource  # most runs do without

        return ProcfsSource(root, self._deadline, self.namespace)
