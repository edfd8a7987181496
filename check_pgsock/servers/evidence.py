"""What speaks for a program as the owner of a listener, where nothing proves whose it is.

A program counts only if it may hold a listener of that user (programs.may_hold) in its network
namespace. Its own word is no proof: what is found here is the probable owner.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from check_pgsock.errors import SourceError
from check_pgsock.option_values import parse_address
from check_pgsock.pgbouncer.ini import Ini, names_listener
from check_pgsock.pgbouncer.process import read_process_ini
from check_pgsock.processes import Process, ProcessTable
from check_pgsock.servers.candidates import shares_network
from check_pgsock.servers.forwards import find_forward
from check_pgsock.servers.limits import parse_arguments
from check_pgsock.servers.programs import (
    FORWARDER,
    PGBOUNCER,
    POOLERS,
    POSTGRESQL,
    may_hold,
    only_forwards,
    pooler_of,
)

if TYPE_CHECKING:
    from check_pgsock.servers.listeners import Endpoint
    from check_pgsock.view import View

BY_COMMAND_LINE = "its command line names the listener"
BY_PORT = "the other listeners on this port are its own"
BY_INI = "its configuration file names the listener"
BY_USUAL_PORT = "it is the only such program whose usual port this is"
BY_EXCLUSION = "it is the only such program that may hold the listener"

_STRENGTH = {BY_COMMAND_LINE: 2, BY_PORT: 2, BY_INI: 2, BY_USUAL_PORT: 1, BY_EXCLUSION: 0}
_USUAL_PORTS = {"postgres": 5432, **POOLERS}


class Candidate:
    """A process that may own listeners; what is read of it is read when first asked for.

    `port` is the one port of a PostgreSQL server, by its command line or proven.
    """

    def __init__(self, table: ProcessTable, process: Process, kind: str) -> None:
        self.process = process
        self.kind = kind
        self.port: int | None = None
        self.port_is_proven = False
        self._table = table

    @functools.cached_property
    def inodes(self) -> set[int] | None:
        """The inodes of its sockets; None where its descriptors may not be read."""
        return self._table.socket_inodes(self.process.pid)

    @functools.cached_property
    def ini(self) -> Ini | None:
        """Its configuration file; None where it has none that can be read."""
        if pooler_of(self.process.command) != PGBOUNCER:
            return None
        try:
            return read_process_ini(self._table, self.process)
        except (OSError, SourceError):
            return None


def find_probable(
    view: View, candidates: Sequence[Candidate], one: Endpoint, expected: bool
) -> tuple[list[Candidate], str]:
    """The candidates that probably own an endpoint, several where all of them name it, and what
    speaks for them; none where nothing does, or for programs that differ.

    By exclusion it is found only where a listener for PostgreSQL clients is `expected`.
    """
    best: list[Candidate] = []
    proof = ""
    for candidate in candidates:
        found = _support(candidate, one) if _may_own(candidate, one) else None
        if found is None or not _shares_network(view, candidate, one):
            continue
        if not best or _STRENGTH[found] > _STRENGTH[proof]:
            best, proof = [candidate], found
        elif _STRENGTH[found] == _STRENGTH[proof]:
            best.append(candidate)
    if len({each.process.command for each in best}) > 1:
        return [], ""
    if proof == BY_EXCLUSION and not expected:
        return [], ""
    if len(best) > 1 and _STRENGTH[proof] < 2:
        return [], ""
    return best, proof


def _may_own(candidate: Candidate, one: Endpoint) -> bool:
    process, uid = candidate.process, one.listener.uid
    if one.port is None or uid is None or candidate.inodes is not None:
        return False  # whose descriptors can be read does not hold it
    return may_hold(process.command, process.uid, one.port, uid)


def _may_listen_at(process: Process, one: Endpoint) -> bool:
    """Whether what the command line of a postmaster says of its addresses and of the directories
    of its Unix sockets leaves room for an endpoint.
    """
    settings = parse_arguments(process.arguments)
    name = "unix_socket_directories" if one.address is None else "listen_addresses"
    if name not in settings:
        return True
    named = [each.strip(" \"'") for each in settings[name].split(",")]
    if one.address is None:
        return one.directory in named
    addresses = [_parse_bound(each) for each in named if each]
    return None in addresses or one.address in addresses


def _parse_bound(name: str) -> bytes | None:
    """The address that a listener at `name` of listen_addresses is bound to; None where it takes
    a look elsewhere: a host's name, or `*`, which is both wildcards.
    """
    try:
        return parse_address(name)
    except ValueError:
        return None


def _shares_network(view: View, candidate: Candidate, one: Endpoint) -> bool:
    """Whether the endpoint is in the candidate's network namespace; of a Unix socket that does
    not matter.
    """
    if one.address is None or one.port is None:
        return True
    return shares_network(view, candidate.process.pid, one.port, one.listener.inode)


def _support(candidate: Candidate, one: Endpoint) -> str | None:
    """What speaks for a candidate that may own an endpoint; None where something speaks against
    it.
    """
    process, port = candidate.process, one.port
    assert port is not None
    if candidate.kind == FORWARDER:
        if one.address is None:
            return None
        named, _ = find_forward(process.command, process.arguments, one.address, port)
        if named is None and only_forwards(process.command):
            return BY_EXCLUSION
        return BY_COMMAND_LINE if named else None
    if candidate.kind == POSTGRESQL and candidate.port is not None:
        if candidate.port != port or not _may_listen_at(process, one):
            return None
        return BY_PORT if candidate.port_is_proven else BY_COMMAND_LINE
    if candidate.ini is not None:
        settings = candidate.ini.settings
        return BY_INI if names_listener(settings, one.address, port, one.directory) else None
    usual = _USUAL_PORTS.get(pooler_of(process.command))
    return BY_USUAL_PORT if port == usual else BY_EXCLUSION
