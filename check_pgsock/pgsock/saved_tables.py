"""Saved copies of /proc/net/tcp and tcp6, wherever they lie: one table a file, or several in one.

They answer what a reader of sockets is asked. Their headers tell which is which: tcp6 alone calls
a column remote_address (tcp6_seq_show in net/ipv6/tcp_ipv6.c).
"""

from __future__ import annotations

import os
import select
from typing import NamedTuple

from check_pgsock.deadline import Deadline
from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.sockets.model import Query, Socket, Tally
from check_pgsock.sockets.proc_net import Table
from check_pgsock.text import clean

STDIN = "-"
_CHUNK = 1 << 16
MOST_BYTES = 1 << 28  # 1.7 million sockets: what is longer is something else


class SavedTable(NamedTuple):
    """The lines of one table, its header first; `name` is what errors call it."""

    name: str
    ipv6: bool
    lines: list[bytes]


class SavedTables:
    """What the files of these names hold (`-` is standard input), their sockets together.

    `byteorder` ("little" or "big") is that of the machine which wrote them. Raises SourceError
    for what cannot be read, MalformedError (here, or when it is asked) for what is no such table.
    """

    used = "file"

    def __init__(self, names: list[str], byteorder: str, deadline: Deadline) -> None:
        self._byteorder = byteorder
        self._tables = [one for name in names for one in _read_tables(name, deadline)]

    @property
    def each(self) -> tuple[SavedTables]:
        """This one: it is taken for one place."""
        return (self,)

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`, and keep the listeners among them."""
        tally = Tally()
        for one in self._tables:
            self._parser(one, query).count(one.lines, tally)
        return tally

    def sockets(self, query: Query) -> list[Socket]:
        """Return the sockets that answer `query`."""
        return [
            found for one in self._tables for found in self._parser(one, query).sockets(one.lines)
        ]

    def notes(self) -> list[str]:
        """What the files do not hold."""
        families = {one.ipv6 for one in self._tables}
        if families == {False}:
            return [
                "no tcp6 was given: IPv6 connections, and those of listeners that take IPv4 and "
                "IPv6, are not counted"
            ]
        return ["no tcp was given: IPv4 connections are not counted"] if families == {True} else []

    def describe(self) -> list[str]:
        """What was read."""
        tables = (f"{one.name} ({'tcp6' if one.ipv6 else 'tcp'})" for one in self._tables)
        return [f"source: {', '.join(tables)}"]

    def _parser(self, one: SavedTable, query: Query) -> Table:
        return Table(one.name, query, self._byteorder, one.ipv6)


def split_tables(name: str, raw: bytes) -> list[SavedTable]:
    """The tables in a file: each header begins one. Raises MalformedError where none begins it."""
    tables: list[SavedTable] = []
    for line in raw.splitlines(keepends=True):
        if line.lstrip().startswith(b"sl "):
            what = name if not tables else f"{name}, table {len(tables) + 1}"
            tables.append(SavedTable(what, b" remote_address " in line, []))
        if not tables:
            break
        tables[-1].lines.append(line)
    if not tables:
        what = "does not begin with the header of one" if raw else "is empty"
        raise MalformedError(f"{name} {what}; name a whole copy of /proc/net/tcp or tcp6")
    return tables


def _read_tables(name: str, deadline: Deadline) -> list[SavedTable]:
    called = "standard input" if name == STDIN else clean(name, 200)
    deadline.doing = f"reading {called}"
    try:
        # O_NONBLOCK: of a FIFO that nobody writes to, the reading waits, and within the deadline.
        descriptor = 0 if name == STDIN else os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            raw = _read_all(descriptor, deadline)
        finally:
            if name != STDIN:
                os.close(descriptor)
    except OSError as error:
        raise SourceError(f"{called} cannot be read: {error.strerror or error}") from error
    if len(raw) > MOST_BYTES:
        raise SourceError(
            f"{called} holds more than {MOST_BYTES >> 20} MiB; name a copy of /proc/net/tcp or tcp6"
        )
    return split_tables(called, bytes(raw))


def _read_all(descriptor: int, deadline: Deadline) -> bytearray:
    """What an open file or pipe holds, but no more than one chunk beyond MOST_BYTES."""
    raw = bytearray()
    while len(raw) <= MOST_BYTES:
        if select.select([descriptor], [], [], deadline.remaining())[0]:
            chunk = os.read(descriptor, _CHUNK)
            if not chunk:
                break
            raw += chunk
    return raw
