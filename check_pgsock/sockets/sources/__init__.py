"""Where sockets are read: the kernel's netlink dump, or /proc/net/tcp, tcp6 and unix.

In this package alone (and in events.py, by its open_channel) netlink sockets and files of /proc/net
are opened: a test holds to it. All sources answer the same queries with the same values;
SocketReader chooses between them.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, Protocol

    from check_pgsock.sockets.model import Query, Socket, Tally
    from check_pgsock.sockets.unix_sockets import AnyUnix

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
