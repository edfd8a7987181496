"""/proc/net/unix: lines to Unix sockets; nothing opened.

Authority: unix_seq_show in net/unix/af_unix.c. The file says neither queues nor backlog, user,
peer, nor which socket file a name means.

The kernel prints names as they are: the `@` that begins one stands for the NUL of an abstract
name, other NULs are `@` too, and a newline breaks the line. What continues a name is taken for it
up to the length that a name can have. A name that holds a newline and behind it what looks like a
line is taken for that line: whoever may make sockets can forge lines here, not under netlink.
"""

import re

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.model import CLOSE, ESTABLISHED
from check_pgsock.sockets.proc_net import diagnose, quoted
from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Optional, Union

_FIELDS = (
    ("Num", rb"[0-9A-Fa-f]{8,16}:"),
    ("RefCount", rb"[0-9A-F]{8}"),
    ("Protocol", rb"[0-9A-F]{8}"),
    ("Flags", rb"[0-9A-F]{8}"),
    ("Type", rb"[0-9A-F]{4}"),
    ("St", rb"0[1-4]"),
    ("Inode", rb"\d+"),
)
_LINE = re.compile(
    rb"([0-9A-Fa-f]{8,16}): [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) (0[1-4]) +(\d+)"
    rb"(?: ([^\n]*))?\n"
)
_HEADER = re.compile(rb"Num +RefCount +Protocol +Flags +Type +St +Inode +Path *\n")
_LONGEST_NAME = 108  # sun_path in struct sockaddr_un; here it may end without a NUL
_ACCEPTS_CONNECTIONS = 0x10000  # __SO_ACCEPTCON
# enum socket_state. A socket that no process holds yet is SS_CONNECTING.
_STATES = {b"01": CLOSE, b"02": ESTABLISHED, b"03": ESTABLISHED, b"04": CLOSE}


def parse_sockets(
    name: str, lines: "Iterable[bytes]"
) -> "Iterator[Union[UnixListener, UnixSocket]]":
    """Yield the sockets of a file, each once: while others come and go it may list one again.

    `name` is what errors call the file; the lines end with a newline each, and nowhere else.
    Raises MalformedError naming file, line and text.
    """
    seen: set[bytes] = set()
    for match, path in entries(name, lines):
        identity = match[5] if match[5] != b"0" else match[1]
        if identity in seen:
            continue
        if identity.strip(b"0"):  # kernel.kptr_restrict makes all numbers 0
            seen.add(identity)
        if path is not None and path.startswith(b"@"):
            path = b"\0" + path[1:]
        kind, inode = int(match[3], 16), int(match[5])
        if int(match[2], 16) & _ACCEPTS_CONNECTIONS and path is not None:
            yield UnixListener(path, None, kind, inode, None, None, None, None)
        else:
            yield UnixSocket(
                _STATES[match[4]], path, None, kind, inode, None, None, None, None, None, None
            )


def entries(
    name: str, lines: "Iterable[bytes]"
) -> "Iterator[tuple[re.Match[bytes], Optional[bytes]]]":
    """Yield the match of each socket's line, and its name put together."""
    number = 0
    last: Optional[re.Match[bytes]] = None
    path: Optional[bytes] = None
    for line in lines:
        number += 1
        where = f"{name} line {number}"
        if number == 1:
            if _HEADER.fullmatch(line) is None:
                raise MalformedError(f"{where}: no header, but {quoted(line)}")
            continue
        match = _LINE.fullmatch(line)
        if match is not None:
            if last is not None:
                yield last, path
            last, path = match, match[6]
            continue
        if path is not None and line.endswith(b"\n"):
            path += b"\n" + line[:-1]
            if len(path) <= _LONGEST_NAME:
                continue
        raise MalformedError(f"{where}: {diagnose(line, _FIELDS)}")
    if number == 0:
        raise MalformedError(f"{name} is empty, not even a header line")
    if last is not None:
        yield last, path
