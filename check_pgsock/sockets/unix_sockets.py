"""Unix sockets: what both sources yield, and which of them belong to one socket file; pure.

A connection has two ends. The one that the server accepted carries the listener's name and refers
to the listener's socket file, for as long as it lives; the end that connected has no name. The
accepted end belongs to the network namespace of the *client*: connections from other namespaces,
such as containers that share the socket's directory, are in the tables of those.

A connection whose client has closed, or was killed, stays ESTABLISHED (there is no CLOSE_WAIT):
its accepted end has `shutdown` 3 and `peer_inode` 0 until the server closes it.
"""

from collections import namedtuple

from check_pgsock.sockets.model import ESTABLISHED

STREAM = 1
SEQPACKET = 5
FileId = tuple[int, int]  # device as os.stat() has it, and the lower 32 bits of the inode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NamedTuple, Optional, Union

    class UnixListener(NamedTuple):
        """One listening Unix socket. Absent is None, never 0."""

        path: bytes  # as bound, which may be relative; an abstract name begins with NUL
        file: "Optional[FileId]"  # the socket file; None if abstract, and under procfs
        type: int  # STREAM or SEQPACKET
        inode: int
        uid: "Optional[int]"  # None under procfs, as all below
        cookie: "Optional[int]"
        accept_queue: "Optional[int]"  # connections that wait, whatever their namespace
        backlog: "Optional[int]"  # one more than this may wait

    class UnixSocket(NamedTuple):
        """One Unix socket that does not listen."""

        state: int  # as TCP's: ESTABLISHED, or CLOSE where it has no peer
        path: "Optional[bytes]"
        file: "Optional[FileId]"
        type: int
        inode: int  # 0: not accepted yet (procfs alone shows those)
        uid: "Optional[int]"  # of whoever made this end: the server; None under procfs, as below
        cookie: "Optional[int]"
        peer_inode: "Optional[int]"  # 0: the peer is closed, or it is not accepted yet
        receive_queue: "Optional[int]"  # bytes
        send_queue: "Optional[int]"  # memory of what the peer has not read, overhead included
        shutdown: "Optional[int]"  # 1: the peer sends no more, 2: nor does this end; 3: both

    AnyUnix = Union[UnixListener, UnixSocket]

    class UnixEndpoint(NamedTuple):
        """The sockets of one socket file (or abstract name)."""

        listeners: "list[UnixListener]"
        sessions: "list[UnixSocket]"  # accepted ends of clients of this network namespace
        not_accepted: int  # connections that wait; under procfs those of this namespace alone
        strays: "list[UnixSocket]"  # accepted ends of this name, but of another socket file
        notes: "list[str]"  # what qualifies all this, a sentence each
else:
    UnixListener = namedtuple(
        "UnixListener", "path file type inode uid cookie accept_queue backlog"
    )
    UnixSocket = namedtuple(
        "UnixSocket",
        "state path file type inode uid cookie peer_inode receive_queue send_queue shutdown",
    )
    UnixEndpoint = namedtuple("UnixEndpoint", "listeners sessions not_accepted strays notes")


def choose(
    found: "Iterable[AnyUnix]",
    is_name: "Callable[[bytes], bool]",
    file: "Optional[FileId]",
) -> UnixEndpoint:
    """Sort out which of `found` belong to one path: `is_name` tells whether a name that a socket
    is bound to means it, `file` is what lies there now (None where that cannot be seen).

    The file decides: a server that is started again makes a new one, and what the earlier server
    accepted refers to the old one. An overlay file system may show os.stat() another device than
    the kernel has: there the inode decides among the sockets of the name. Where the file cannot
    be seen, it is the one that the listeners of the name are bound to. Sockets that refer to no
    file (under procfs, and of abstract names) are told by name alone.
    """
    connected = [one for one in found if one.type in (STREAM, SEQPACKET)]
    named = [one for one in connected if one.path is not None and is_name(one.path)]
    files: set[Optional[FileId]]
    if file is None:
        files = {one.file for one in named if isinstance(one, UnixListener)}
    elif any(one.file == file for one in connected):
        files = {file}
    else:
        files = {one.file for one in named if one.file is not None and one.file[1] == file[1]}
    mine = [one for one in named if one.file is None]
    mine += [one for one in connected if one.file is not None and one.file in files]
    listeners = [one for one in mine if isinstance(one, UnixListener)]
    accepted = [one for one in mine if isinstance(one, UnixSocket) and one.state == ESTABLISHED]
    sessions = [one for one in accepted if one.inode]
    # A queue holds those of all namespaces, so also those that procfs shows of one of several.
    queues = [one.accept_queue for one in listeners if one.accept_queue is not None]
    waiting = sum(queues) if queues else len(accepted) - len(sessions)
    strays = [
        one
        for one in named
        if isinstance(one, UnixSocket) and one.state == ESTABLISHED
        if one.file is not None and one.file not in files
    ]
    return UnixEndpoint(listeners, sessions, waiting, strays, [])
