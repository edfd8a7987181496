"""One moment of what lives, read whole and unfiltered, and what is to be written of it."""

from __future__ import annotations

import json
import os
import platform
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock import __version__
from check_pgsock.pgsock.cgroups import find_names
from check_pgsock.recording import findings
from check_pgsock.recording.archive import Archive, cgroups_of, member_of, processes_of
from check_pgsock.recording.manifest import OWN, Finding, Header, Moment, Place, parse_cgroups
from check_pgsock.recording.messages import clear_keys, count_sockets, find_cgroups
from check_pgsock.recording.processes import (
    Recorded,
    identify_network,
    pack_processes,
    parse_processes,
    read_processes,
)
from check_pgsock.sockets.settings import read_setting_file
from check_pgsock.sockets.sources import TCP6_FILE, TCP_DUMP, TCP_FILE, UNIX_DUMP, UNIX_FILE

if TYPE_CHECKING:
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.view import View

# What parsing and judging sockets needs to know, below /proc/sys.
_SETTINGS = (
    "net/core/somaxconn",
    "net/ipv4/tcp_keepalive_time",
    "net/ipv4/tcp_keepalive_intvl",
    "net/ipv4/tcp_keepalive_probes",
    "net/ipv4/ip_local_port_range",
)


class Captured(NamedTuple):
    """A moment with all its content: `tables` as its places, each by table name."""

    about: Moment
    tables: tuple[dict[str, bytes], ...]
    processes: dict[int, Recorded]
    cgroups: dict[int, str]

    def members(self, number: int) -> Iterator[tuple[str, bytes]]:
        """Name and content of the members of this moment, which is the one of this number."""
        for place, tables in enumerate(self.tables, 1):
            for name, raw in tables.items():
                yield member_of(number, place, name), raw
        yield processes_of(number), pack_processes(self.processes)
        yield cgroups_of(number), json.dumps(self.cgroups, indent=1).encode("ascii")


def describe_machine() -> Header:
    """What is to be said of this machine, and of who records."""
    return Header(
        __version__,
        platform.release(),
        platform.machine(),
        sys.byteorder,
        8 * struct.calcsize("P"),
        os.sysconf("SC_CLK_TCK"),
        os.geteuid(),
        False,
    )


def capture(view: View, known: Iterable[Finding] = ()) -> Captured:
    """What `view` shows now; `known` are the findings of a moment ago. Raises SourceError."""
    taken, since_boot, began = time.time(), view.files.since_boot(), time.monotonic()
    tables = []
    for reader in view.reader.each:
        raw = reader.raw()
        if TCP_DUMP in raw:
            raw[TCP_DUMP] = clear_keys(raw[TCP_DUMP])
        tables.append(raw)
    places = tuple(
        _describe_place(reader, raw, view.files.root)
        for reader, raw in zip(view.reader.each, tables)
    )
    processes = read_processes(view.files, view.deadline)
    about = Moment(
        taken,
        since_boot,
        0.0,
        len(processes),
        not view.processes().sees_all(),
        sum(one.sockets is None for one in processes.values()),
        places,
        tuple(findings.find(view, known)),
    )
    ids = {one for raw in tables for one in find_cgroups(raw.get(TCP_DUMP, b""))}
    cgroups = find_names(ids) if ids else {}
    took = time.monotonic() - began
    return Captured(about._replace(seconds=round(took, 3)), tuple(tables), processes, cgroups)


def load(archive: Archive, number: int | None = None) -> Iterator[Captured]:
    """The moments of a recording, or the one of this number (from 1), whole.

    Raises SourceError.
    """
    for at, about in enumerate(archive.manifest.moments, 1):
        if number in (None, at):
            tables = tuple(
                {name: archive.read(member_of(at, where, name)) for name in place.tables}
                for where, place in enumerate(about.places, 1)
            )
            processes = archive.parse(processes_of(at), parse_processes)
            cgroups = archive.parse(cgroups_of(at), parse_cgroups)
            yield Captured(about, tables, processes, cgroups)


def _describe_place(reader: SocketReader, tables: dict[str, bytes], root: str) -> Place:
    namespace = reader.namespace
    settings = {}
    # With --proc-root /proc/sys is another namespace's.
    if reader.setting(_SETTINGS[0]) is not None:
        for name in _SETTINGS:
            content = read_setting_file(name, namespace)
            if content is not None:
                settings[name] = content.decode("ascii", "replace")
    return Place(
        OWN if namespace is None else namespace.name,
        namespace is not None,
        namespace is None or namespace.is_own,
        tuple(tables),
        count_sockets(tables, TCP_DUMP, TCP_FILE, TCP6_FILE) or 0,
        count_sockets(tables, UNIX_DUMP, UNIX_FILE),
        reader.refusal,
        settings,
        _identify_network(reader, root),
    )


def _identify_network(reader: SocketReader, root: str) -> int | None:
    namespace = reader.namespace
    if namespace is None:
        # With --proc-root it is that of its first process: see ProcfsSource.
        return identify_network(os.path.join(root, "1" if root != "/proc" else "self"))
    if namespace.process is not None:
        return identify_network(namespace.process)
    return namespace.call(lambda: identify_network("/proc/thread-self"))
