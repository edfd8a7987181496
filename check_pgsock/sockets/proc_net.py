"""/proc/net/tcp and tcp6: lines to sockets; nothing opened.

Authority: get_tcp4_sock, get_openreq4, get_timewait4_sock in net/ipv4/tcp_ipv4.c and their IPv6
twins. Addresses are 32-bit words in the byte order of the host that wrote the file, ports are
plain hexadecimal numbers. The file says neither backlog nor cookie nor tcp_info.

One reading may list a socket more than once. The kernel prints a page at a time and then finds
its place again by counting: within a hash chain, and once it has reached the end from the
beginning of the table (tcp_seek_last_pos and tcp_get_idx in net/ipv4/tcp_ipv4.c). So as many
sockets as were added meanwhile are listed again behind the last one, and that again and again:
while connections came and went, 4,000 live sockets have been seen on 10,000 lines.
"""

import re

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.model import (
    LISTEN,
    Listener,
    Query,
    Socket,
    Tally,
    fold_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ADDRESS = rb"[0-9A-F]{%d}"
_FIELDS = (
    ("sl", rb"\d+:"),
    ("local_address", _ADDRESS + rb":[0-9A-F]{4}"),
    ("rem_address", _ADDRESS + rb":[0-9A-F]{4}"),
    ("st", rb"0[1-9A-C]"),
    ("tx_queue:rx_queue", rb"[0-9A-F]{8}:[0-9A-F]{8}"),
    ("tr:tm->when", rb"0[0-4]:[0-9A-F]{8,16}"),
    ("retrnsmt", rb"[0-9A-F]{8}"),
    ("uid", rb"\d+"),
    ("timeout", rb"\d+"),
    ("inode", rb"\d+"),
)
_LINE = (
    rb" *\d+: (" + _ADDRESS + rb"):([0-9A-F]{4}) (" + _ADDRESS + rb"):([0-9A-F]{4})"
    rb" (0[1-9A-C]) ([0-9A-F]{8}):([0-9A-F]{8}) (0[0-4]):([0-9A-F]{8,16}) ([0-9A-F]{8})"
    rb" +(\d+) +(\d+) +(\d+)(?: [ -~]*)?\n"
)
_HEADER = re.compile(rb" *sl +local_address +(?:rem|remote)_address +st tx_queue rx_queue .*\n")
_TIME_WAIT = b"06"
_TIMER_KEEPALIVE, _TIMER_PERSIST, _TIMER_RETRANSMIT = 2, 4, 1


class Table:
    """One file, fed line by line: validates each line, whatever its port.

    `name` is what errors call the file, `ipv6` whether it is tcp6; `byteorder` ("little" or "big")
    is the writing host's. A socket that is listed again is not yielded again: its inode tells, or
    both its ends where no process holds it. A connection in TIME_WAIT is told by its ends too, but
    apart from others, since a new one may take them over: one that closes meanwhile is in both
    states.
    """

    __slots__ = (
        "_byteorder", "_digits", "_line", "_number", "_owned", "_ports", "_query", "_unowned",
        "name",
    )  # fmt: skip

    def __init__(self, name: str, query: Query, byteorder: str, ipv6: bool = False) -> None:
        self.name = name
        self._digits = 32 if ipv6 else 8
        self._line = re.compile(_LINE % (self._digits, self._digits))
        self._query = query
        self._ports = {b"%04X" % port for port in query.ports}
        self._byteorder = byteorder
        self._number = 0
        self._owned: set[int] = set()
        self._unowned: set[bytes] = set()

    def matches(self, lines: "list[bytes]") -> "Iterator[re.Match[bytes]]":
        """Yield the matches of the lines that answer the query but for its addresses.

        Raises MalformedError naming file, line and text.
        """
        ports, states = self._ports, self._query.states
        port_group = 2 if self._query.local else 4
        for line in lines:
            self._number += 1
            if self._number == 1:
                if _HEADER.fullmatch(line) is None:
                    raise MalformedError(f"{self._where()}: no header, but {quoted(line)}")
                continue
            match = self._line.fullmatch(line)
            if match is None:
                raise MalformedError(f"{self._where()}: {diagnose(line, _fields(self._digits))}")
            if ports and match[port_group] not in ports:
                continue
            if states >> int(match[5], 16) & 1 and self._is_first(match):
                yield match

    def _is_first(self, match: "re.Match[bytes]") -> bool:
        inode = int(match[13])
        if inode:
            if self._unowned and _ends(match) in self._unowned:
                return False  # accepted since it was listed
            known = len(self._owned)
            # Inodes are numbers of 32 bits, and used again after that many sockets and pipes.
            self._owned.add(inode << 16 | int(match[4], 16))
            return len(self._owned) > known
        ends = _ends(match) + match[5] if match[5] == _TIME_WAIT else _ends(match)
        known = len(self._unowned)
        self._unowned.add(ends)
        return len(self._unowned) > known

    def close(self) -> None:
        """Say that the file ended; raises MalformedError if it held not even a header."""
        if self._number == 0:
            raise MalformedError(f"{self.name} is empty, not even a header line")

    def count(self, lines: "list[bytes]", tally: Tally) -> None:
        """Add the sockets on `lines` to `tally`."""
        accepts = self._query.accepts
        for match in self.matches(lines):
            state = int(match[5], 16)
            if state == LISTEN:
                tally.listeners.append(self._listener(match))
            elif accepts is None or accepts(self._address(match[1]), self._address(match[3])):
                tally.add(state, int(match[13]))

    def sockets(self, lines: "list[bytes]") -> "Iterator[Socket]":
        """Yield the sockets on `lines`, but listeners."""
        accepts = self._query.accepts
        for match in self.matches(lines):
            if int(match[5], 16) != LISTEN:
                socket = self._socket(match)
                if accepts is None or accepts(socket.local_address, socket.remote_address):
                    yield socket

    def _socket(self, match: "re.Match[bytes]") -> Socket:
        timer = int(match[8], 16)
        if timer == _TIMER_RETRANSMIT:
            retransmits = int(match[10], 16)
        elif timer in (_TIMER_KEEPALIVE, _TIMER_PERSIST):
            retransmits = int(match[12])  # the column is named timeout and holds the probes
        else:
            retransmits = 0
        return Socket(
            int(match[5], 16),
            self._address(match[1]),
            int(match[2], 16),
            self._address(match[3]),
            int(match[4], 16),
            int(match[11]),
            int(match[13]),
            None,
            timer,
            int(match[9], 16) * 10,  # clock ticks, USER_HZ is 100 on every architecture
            retransmits,
            int(match[7], 16),
            int(match[6], 16),
            None,
        )

    def _listener(self, match: "re.Match[bytes]") -> Listener:
        return Listener(
            self._address(match[1]), int(match[2], 16), int(match[11]), int(match[13]), None,
            int(match[7], 16), None,
        )  # fmt: skip

    def _address(self, text: bytes) -> bytes:
        raw = bytes.fromhex(text.decode("ascii"))
        if self._byteorder == "little":
            raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
        return fold_address(raw)

    def _where(self) -> str:
        return f"{self.name} line {self._number}"


def _ends(match: "re.Match[bytes]") -> bytes:
    return match.string[match.start(1) : match.end(4)]


def _fields(digits: int) -> "tuple[tuple[str, bytes], ...]":
    return tuple((name, pattern.replace(b"%d", b"%d" % digits)) for name, pattern in _FIELDS)


def diagnose(line: bytes, fields: "tuple[tuple[str, bytes], ...]") -> str:
    """What is wrong with a line that should hold `fields`, each a name and a pattern."""
    if not line.endswith(b"\n"):
        return f"the file ends within a line, {quoted(line)}"
    values = line.split()
    for (name, pattern), value in zip(fields, values):
        if re.fullmatch(pattern, value) is None:
            return f"bad {name} {quoted(value)}"
    if len(values) < len(fields):
        return f"{len(values)} fields, {len(fields)} are needed, {quoted(line)}"
    return f"not a line of this file, {quoted(line)}"


def quoted(raw: bytes) -> str:
    """The beginning of a line or field, as errors show it."""
    text = raw.strip().decode("ascii", "backslashreplace")
    return repr(text if len(text) <= 60 else text[:60] + "...")
