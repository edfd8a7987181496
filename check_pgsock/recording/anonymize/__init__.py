"""Recordings without names and addresses: stand-ins for them, the same for the same throughout.

What decides a verdict stays: states, ports, users' and processes' ids, inodes, timers, sizes,
loopback, wildcard and link-local addresses, and which addresses are the same.
"""

from __future__ import annotations

import sys

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.recording.anonymize.processes import anonymize_processes
from check_pgsock.recording.anonymize.sockets import (
    Map,
    rewrite_tcp_dump,
    rewrite_tcp_file,
    rewrite_unix_dump,
    rewrite_unix_file,
)
from check_pgsock.recording.anonymize.stand_ins import StandIns
from check_pgsock.recording.capture import Captured
from check_pgsock.recording.manifest import OWN, Finding, Header, Place
from check_pgsock.recording.messages import DUMPS
from check_pgsock.sockets.sources import TCP_DUMP, UNIX_DUMP, UNIX_FILE


class Anonymizer:
    """The stand-ins of one recording."""

    def __init__(self, header: Header) -> None:
        self._byte_order = header.byte_order
        self._stand_ins = StandIns()

    def apply(self, one: Captured) -> Captured:
        """A moment with stand-ins for all names and addresses.

        Raises SourceError for one that only a machine of another byte order can read, and
        MalformedError for one that is not as it should be.
        """
        if self._byte_order != sys.byteorder and any(map(set(DUMPS).intersection, one.tables)):
            raise SourceError(
                f"a moment of a {self._byte_order}-endian machine, as netlink shows it, can be "
                "anonymized on such a one alone"
            )
        try:
            return self._apply(one)
        except ValueError as error:
            raise MalformedError(f"a moment cannot be anonymized as it is: {error}") from None

    def _apply(self, one: Captured) -> Captured:
        for tables in one.tables:
            for name, raw in tables.items():
                self._rewrite_tcp(name, raw, self._stand_ins.learn)
        return Captured(
            one.about._replace(
                places=tuple(self._place(place) for place in one.about.places),
                findings=tuple(self._finding(finding) for finding in one.about.findings),
            ),
            tuple(
                {name: self._rewrite(name, raw) for name, raw in tables.items()}
                for tables in one.tables
            ),
            anonymize_processes(one.processes, self._stand_ins),
            {number: self._stand_ins.cgroup(path) for number, path in one.cgroups.items()},
        )

    def _rewrite(self, table: str, raw: bytes) -> bytes:
        if table == UNIX_DUMP:
            return rewrite_unix_dump(raw, self._stand_ins.socket)
        if table == UNIX_FILE:
            return rewrite_unix_file(raw, self._stand_ins.socket)
        return self._rewrite_tcp(table, raw, self._stand_ins.address)

    def _rewrite_tcp(self, table: str, raw: bytes, address: Map) -> bytes:
        if table == TCP_DUMP:
            return rewrite_tcp_dump(raw, address)
        if table in (UNIX_DUMP, UNIX_FILE):
            return raw
        return rewrite_tcp_file(raw, address, self._byte_order)

    def _place(self, place: Place) -> Place:
        if place.name == OWN or place.name.isdigit():
            return place
        name = self._stand_ins.name("netns", place.name)
        refusal = None if place.refusal is None else place.refusal.replace(place.name, name)
        return place._replace(name=name, refusal=refusal)

    def _finding(self, finding: Finding) -> Finding:
        kind, _, path = finding.endpoint.partition(" ")
        if kind != "socket":
            return finding
        name = path.encode("utf-8", "surrogateescape")
        if path.startswith("@"):
            endpoint = f"socket @{self._stand_ins.socket(bytes(1) + name[1:])[1:].decode()}"
        else:
            endpoint = f"socket {self._stand_ins.socket(name).decode()}"
        return finding._replace(endpoint=endpoint)
