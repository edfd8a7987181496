"""The sockets of a recording: its tables, read by the parsers of the live sources.

What the kernel filters when it is asked this filters as the kernel does, listeners included:
states and ports (inet_diag_bc_sk and inet_csk_diag_dump in net/ipv4/inet_diag.c, unix_diag_dump in
net/unix/diag.c).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.recording.messages import DUMPS, datagrams, sequence_of
from check_pgsock.sockets import inet_diag, unix_diag
from check_pgsock.sockets.model import CLOSE, LISTEN, Query, Socket, Tally
from check_pgsock.sockets.netlink_dump import HEADER, Dump
from check_pgsock.sockets.proc_net import Table
from check_pgsock.sockets.proc_net_unix import parse_sockets
from check_pgsock.sockets.sources import TCP6_FILE, TCP_DUMP, TCP_FILE, UNIX_DUMP, UNIX_FILE
from check_pgsock.sockets.unix_sockets import UnixSocket

if TYPE_CHECKING:
    from check_pgsock.deadline import Deadline
    from check_pgsock.recording.manifest import Place
    from check_pgsock.sockets.netlink_dump import Runs
    from check_pgsock.sockets.unix_sockets import AnyUnix

_STATE_AT = HEADER.size + 1  # inet_diag_msg: family, state, timer, retransmits, then two ports
_LOCAL_PORT_AT, _REMOTE_PORT_AT = HEADER.size + 4, HEADER.size + 6
# Sockets that are bound, and no more, are told to be in CLOSE to those who ask for state 13,
# TCP_BOUND_INACTIVE; no others are.
_ASKED_AS = {CLOSE: 13}


class RecordedSource:
    """A place of one moment: `read` gives the content of its tables, `called` how errors name
    them; `notes` and `details` are told as a source's own.

    Raises SourceError where this machine cannot read what that one wrote.
    """

    name = "recording"
    saved = True
    of_this_host = False

    def __init__(
        self,
        place: Place,
        byte_order: str,
        read: Callable[[str], bytes],
        called: Callable[[str], str],
        notes: list[str],
        details: list[str],
        deadline: Deadline,
    ) -> None:
        self._place = place
        self._byte_order = byte_order
        self._read = read
        self._called = called
        self._notes = notes
        self._details = details
        self._deadline = deadline
        self._kept: dict[str, bytes] = {}
        dumps = [one for one in DUMPS if one in place.tables]
        if dumps and byte_order != sys.byteorder:
            raise SourceError(
                f"{called(dumps[0])} was written by a {byte_order}-endian machine, and what "
                "netlink says can be read on such a one alone: replay it there"
            )

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`."""
        tally = Tally()
        if TCP_DUMP not in self._place.tables:
            for table, lines in self._files(query):
                table.count(lines, tally)
            return tally
        with self._naming(TCP_DUMP):
            for data, run in self._answer(query):
                inet_diag.count_sockets(data, run, tally, query.accepts)
        if not query.drops:
            tally.listeners = [one._replace(drops=None) for one in tally.listeners]
        return tally

    def sockets(self, query: Query) -> list[Socket]:
        """Return the sockets that answer `query`."""
        if TCP_DUMP not in self._place.tables:
            return [one for table, lines in self._files(query) for one in table.sockets(lines)]
        with self._naming(TCP_DUMP):
            return [
                one
                for data, run in self._answer(query)
                for one in inet_diag.accepted_sockets(data, run, query)
            ]

    def unix(self, states: int, wanted: Callable[[AnyUnix], bool]) -> list[AnyUnix]:
        """Return the Unix sockets in these states that are `wanted`, each once."""
        if UNIX_DUMP not in self._place.tables and UNIX_FILE not in self._place.tables:
            raise SourceError(f"{self._called(UNIX_FILE)}: no Unix sockets were recorded")
        found: dict[int, AnyUnix] = {}
        with self._naming(UNIX_DUMP):
            for number, one in enumerate(self._all_unix()):
                state = one.state if isinstance(one, UnixSocket) else LISTEN
                if states >> state & 1 and wanted(one):
                    found[number if one.cookie is None else one.cookie] = one
        return list(found.values())

    def setting(self, name: str) -> int | None:
        """A whole number of /proc/sys, such as net/core/somaxconn; None: it could not be read."""
        words = self._place.settings.get(name, "").split()
        return int(words[0]) if words and words[0].isascii() and words[0].isdigit() else None

    def notes(self) -> list[str]:
        """What qualifies all that was read: that it was, and when."""
        return self._notes

    def describe(self) -> list[str]:
        """How it was read."""
        return list(self._details)

    def raw(self) -> dict[str, bytes]:
        """The tables."""
        return {name: self._content(name) for name in self._place.tables}

    def _content(self, table: str) -> bytes:
        if table not in self._kept:
            self._kept[table] = self._read(table)
        return self._kept[table]

    @contextlib.contextmanager
    def _naming(self, table: str) -> Iterator[None]:
        """Within it a MalformedError names the dump; of a text file it does so by itself."""
        if table not in self._place.tables:
            yield
            return
        self._content(table)  # which the archive names
        try:
            yield
        except MalformedError as error:
            raise MalformedError(f"{self._called(table)}: {error}") from None

    def _dump(self, table: str, shortest: int) -> Iterator[tuple[bytes, Runs]]:
        """Yield each datagram of a dump with its runs."""
        raw = self._content(table)
        dump = Dump(sequence_of(raw), shortest)
        for data in datagrams(raw):
            self._deadline.remaining()
            yield data, dump.runs(data)
        if not dump.done:
            raise MalformedError("the dump has no end")

    def _answer(self, query: Query) -> Iterator[tuple[bytes, tuple[int, int, int]]]:
        """Yield what the kernel would send for `query`: messages, and the run that they are."""
        for data, runs in self._dump(TCP_DUMP, inet_diag.SHORTEST):
            for run in runs:
                chosen = select(data, run, query)
                if chosen:
                    yield chosen, (0, run[1], len(chosen) // run[1])

    def _files(self, query: Query) -> Iterator[tuple[Table, list[bytes]]]:
        for name in (TCP_FILE, TCP6_FILE):
            if name in self._place.tables or name == TCP_FILE:
                called = self._called(name)
                table = Table(called, query, self._byte_order, ipv6=name == TCP6_FILE)
                yield table, self._content(name).splitlines(keepends=True)
                table.close()

    def _all_unix(self) -> Iterator[AnyUnix]:
        if UNIX_DUMP in self._place.tables:
            for data, runs in self._dump(UNIX_DUMP, unix_diag.SHORTEST):
                for run in runs:
                    yield from unix_diag.parse_sockets(data, run)
            return
        lines = self._content(UNIX_FILE).split(b"\n")
        last = lines.pop()
        whole = [line + b"\n" for line in lines]
        yield from parse_sockets(self._called(UNIX_FILE), [*whole, last] if last else whole)


def select(data: bytes, run: tuple[int, int, int], query: Query) -> bytes:
    """Those messages of a run of equally long ones that answer `query`, but for its addresses."""
    offset, stride, number = run
    end = offset + stride * number
    states = data[offset + _STATE_AT : end : stride]
    asked = bytes(query.states >> _ASKED_AS.get(state, state) & 1 for state in range(32))
    wanted = [state < len(asked) and asked[state] for state in states]
    if query.ports:
        at = offset + (_LOCAL_PORT_AT if query.local else _REMOTE_PORT_AT)
        ports = zip(data[at:end:stride], data[at + 1 : end : stride])
        numbers = {(port >> 8, port & 0xFF) for port in query.ports}
        wanted = [both[0] and both[1] in numbers for both in zip(wanted, ports)]
    if all(wanted):
        return data[offset:end]
    return b"".join(
        data[offset + stride * index : offset + stride * (index + 1)]
        for index, is_wanted in enumerate(wanted)
        if is_wanted
    )
