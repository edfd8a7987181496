"""The Unix sockets of a leg: the sessions over its socket files, counted and compared.

A Unix socket knows neither CLOSE_WAIT nor TIME_WAIT, and no event tells its end. A session whose
client has closed, or was killed, stays ESTABLISHED until the server closes it: netlink tells it by
its other end, which is gone, procfs does not.
"""

from check_pgsock.text import plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from check_pgsock.sockets.reader import Reader
    from check_pgsock.sockets.unix_sockets import UnixEndpoint, UnixListener, UnixSocket

_BOTH_WAYS = 3  # RCV_SHUTDOWN | SEND_SHUTDOWN, include/net/sock.h


class Sessions:
    """The sessions over some socket files, each once, at one moment.

    `connected` are those whose client is there (under procfs all), `gone` those that the server
    keeps for a client that is not, if `tells_gone`. `not_accepted` wait in a queue. `missing`
    says of each path that nobody listens on why that may be.
    """

    __slots__ = (
        "connected", "gone", "listeners", "missing", "not_accepted", "notes", "strays",
        "tells_gone",
    )  # fmt: skip

    def __init__(self, tells_gone: bool = True) -> None:
        self.connected: list[UnixSocket] = []
        self.gone: list[UnixSocket] = []
        self.listeners: list[UnixListener] = []
        self.not_accepted = 0
        self.strays = 0
        self.missing: list[str] = []
        self.notes: list[str] = []
        self.tells_gone = tells_gone

    @property
    def established(self) -> int:
        """The connections as their clients see them: also those that are not accepted yet."""
        return len(self.connected) + self.not_accepted

    @property
    def all(self) -> "list[UnixSocket]":
        """What was accepted, whether or not the client is there."""
        return [*self.connected, *self.gone]

    def add(self, endpoint: "UnixEndpoint") -> None:
        """Take in the sockets of one path; none if another path has led to them before."""
        listeners = {one.inode for one in self.listeners}
        sessions = {one.inode for one in self.all}
        if any(one.inode in listeners for one in endpoint.listeners) or any(
            one.inode in sessions for one in endpoint.sessions
        ):
            return
        self.listeners += endpoint.listeners
        self.not_accepted += endpoint.not_accepted
        self.strays += len(endpoint.strays)
        for one in endpoint.sessions:
            (self.gone if is_gone(one) else self.connected).append(one)

    def describe(self) -> "list[str]":
        """The listeners, and what is not counted."""
        lines = []
        for one in self.listeners:
            name = one.path.replace(b"\0", b"@").decode("utf-8", "replace")
            told = (
                "procfs tells neither its accept queue nor its backlog"
                if one.backlog is None
                else f"uid {one.uid}, accept queue {one.accept_queue}, backlog {one.backlog}"
            )
            lines.append(f"listener {name}: {told}")
        if self.strays:
            lines.append(
                f"not counted: {plural(self.strays, 'session')} of other socket files that had the "
                "same name"
            )
        return lines


def is_gone(one: "UnixSocket") -> bool:
    """Whether the client of an accepted session is known to have closed its end, or to be dead."""
    return one.shutdown == _BOTH_WAYS and one.peer_inode == 0


def read_sessions(reader: "Reader", paths: "tuple[str, ...]") -> Sessions:
    """The sessions over the socket files `paths` (or abstract names); raises SourceError."""
    found = Sessions()
    if not paths:
        return found
    for path in paths:
        endpoint = reader.unix_sockets(path)
        found.add(endpoint)
        if endpoint.listeners:
            found.notes += endpoint.notes
        else:
            found.missing.append(_say_missing(path, endpoint, reader))
    # By what was read, too: a recording may be one of procfs.
    found.tells_gone = all(one.used != "procfs" for one in reader.each) and all(
        one.shutdown is not None for one in found.all
    )
    return found


def _say_missing(path: str, endpoint: "UnixEndpoint", reader: "Reader") -> str:
    from check_pgsock.sockets.socket_file import SocketFile

    text = f"nothing listens on socket {path}"
    refusal = SocketFile(path, reader.of_this_host).refusal
    if refusal is not None:
        text += f" ({refusal.strerror})"
    elif endpoint.notes:
        text += f": {endpoint.notes[0]}"
    if endpoint.sessions:
        number = plural(len(endpoint.sessions), "session")
        text += f"; {number} over it: the listener has ended, or another network namespace has it"
    return text


def compare(looks: "Sequence[set[int]]") -> "tuple[set[int], set[int]]":
    """(closed, opened): the inodes of the sessions that came and went in a window, from those of
    each look at it. A lower bound, since what lives between two looks only is in neither.

    The first two looks are the beginning, the last two the end: while others come and go, a walk
    through the kernel's table may leave out sockets that are there all the time (up to 2 of 2,000
    were measured). One that a look lacks and a later one has is not closed.
    """
    start, end = looks[0] | looks[1], looks[-2] | looks[-1]
    seen: set[int] = set().union(*looks)
    return seen - end, seen - start
