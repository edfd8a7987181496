"""The recorded details of tests/data (see record_details.py) and what stands in them."""

from __future__ import annotations

from pathlib import Path

from check_pgsock.sockets.model import ESTABLISHED, Listener, Socket, TcpInfo
from check_pgsock.sockets.unix_sockets import STREAM, UnixListener, UnixSocket

DETAILS = Path(__file__).parent / "data" / "details"
DATAGRAM = 2
NOBODY = 65534
TMPFS = 39  # the device
PATH = b"/mnt/.s.PGSQL.5432"
FILE = (TMPFS, 3)
EARLIER_FILE = (TMPFS, 2)
ABSTRACT = b"\0pgsock/.s.PGSQL.5433"
ODD_PATH = b"/mnt/a b\nc/.s.PGSQL.5434"
RELATIVE_PATH = b".s.PGSQL.5435"

LISTENER = UnixListener(PATH, FILE, STREAM, 11774682, 0, 1433269, 1, 5)
ABSTRACT_LISTENER = UnixListener(ABSTRACT, None, STREAM, 11774690, NOBODY, 1433287, 0, 9)
ODD_LISTENER = UnixListener(ODD_PATH, (TMPFS, 5), STREAM, 11774693, 0, 1433270, 0, 5)
RELATIVE_LISTENER = UnixListener(RELATIVE_PATH, (TMPFS, 6), STREAM, 11774696, 0, 1433271, 0, 5)
UNIX_LISTENERS = [LISTENER, ABSTRACT_LISTENER, ODD_LISTENER, RELATIVE_LISTENER]


def connected(
    path: bytes | None,
    file: tuple[int, int] | None,
    inode: int,
    cookie: int,
    peer_inode: int,
    queues: tuple[int, int] = (0, 0),
    shutdown: int = 0,
    uid: int = 0,
    kind: int = STREAM,
) -> UnixSocket:
    """A connected socket of the details."""
    return UnixSocket(
        ESTABLISHED, path, file, kind, inode, uid, cookie, peer_inode, *queues, shutdown
    )


SESSION = connected(PATH, FILE, 11774684, 1433281, 11774683, (5, 768))  # unread data both ways
ORPHAN = connected(PATH, FILE, 11774686, 1433283, 0, shutdown=3)  # its client has closed
HALF_CLOSED = connected(PATH, FILE, 11774688, 1433282, 11774687, shutdown=1)
STRAY = connected(PATH, EARLIER_FILE, 11774681, 1433284, 11774680)
ABSTRACT_SESSION = connected(ABSTRACT, None, 11774692, 1433273, 11774691, uid=NOBODY)
ODD_SESSION = connected(ODD_PATH, (TMPFS, 5), 11774695, 1433274, 11774694)
LOG = connected(b"/mnt/log", (TMPFS, 7), 11774697, 1433272, 11774697, kind=DATAGRAM)
CLIENTS = [
    connected(None, None, 11774683, 1433278, 11774684, (6, 768)),
    connected(None, None, 11774687, 1433279, 11774688, shutdown=2),
    connected(None, None, 11774689, 1433280, 0),  # not accepted
    connected(None, None, 11774680, 1433277, 11774681),
    connected(None, None, 11774691, 1433276, 11774692, uid=NOBODY),
    connected(None, None, 11774694, 1433286, 11774695),
    connected(None, None, 11774698, 1433285, 11774699),  # a socketpair
    connected(None, None, 11774699, 1433275, 11774698),
]
UNIX_SOCKETS = [
    SESSION, ORPHAN, HALF_CLOSED, STRAY, ABSTRACT_SESSION, ODD_SESSION, LOG, *CLIENTS,
]  # fmt: skip
# What procfs alone shows: the accepted end of a connection that waits.
WAITING = UnixSocket(ESTABLISHED, PATH, None, STREAM, 0, *[None] * 6)

_LOCAL = bytes([127, 0, 0, 1])
SERVER_CGROUP, CLIENT_CGROUP = 63, 82
TCP_LISTENERS = [
    Listener(_LOCAL, 5432, 0, 11774700, 1433289, 0, 40, 0, SERVER_CGROUP),
    Listener(_LOCAL, 5433, 0, 11774703, 1433288, 2, 1, 4, CLIENT_CGROUP),
]
# The server's end of a client that does not read, and that client's own.
UNREAD = Socket(
    ESTABLISHED, _LOCAL, 5432, _LOCAL, 40001, 0, 11774702, 1433291, 4, 216, 1, 0, 3782144,
    TcpInfo(1252, 1508, 128512, 0, 1040, 0, 1, 2, 0, 1), SERVER_CGROUP,
)  # fmt: skip
UNREADING = Socket(
    ESTABLISHED, _LOCAL, 40001, _LOCAL, 5432, 0, 11774701, 1433290, 0, 0, 0, 128512, 0,
    TcpInfo(1508, 1252, 1, 128512, 1252, 0, 0, 0, 0, 0), CLIENT_CGROUP,
)  # fmt: skip
