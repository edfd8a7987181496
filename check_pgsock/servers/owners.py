"""Whose process a listener is: proven by descriptors or titles, else what speaks for one.

Descriptors prove it, to whoever may read them; the titles of its backends prove a PostgreSQL
server's port to everybody (postmaster.py). Anything else makes a program the probable owner and
no more (evidence.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock.legs import Leg
from check_pgsock.processes import Process, parse_stat
from check_pgsock.servers.candidates import list_programs
from check_pgsock.servers.clusters import Census
from check_pgsock.servers.evidence import Candidate, find_probable
from check_pgsock.servers.forwards import find_forward
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.ownership import find_cluster
from check_pgsock.servers.postmaster import made_with
from check_pgsock.servers.programs import FORWARDER, POOLER, POSTGRESQL, kind_of
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Listener

if TYPE_CHECKING:
    from check_pgsock.servers.listeners import Endpoint
    from check_pgsock.view import View

OTHER = "other"  # the kind of a program that is none of programs.py

BY_DESCRIPTORS = "it holds the listener"
BY_RUN = "the listener was made in one go with its TCP listeners"


class Owner(NamedTuple):
    """The program that has a listener: the processes that share it, or one of which has it.

    `proof` says in words how that is known; it is `proven`, or else probable. `target` is where
    a forwarder connects on, None where that is not known.
    """

    kind: str  # POSTGRESQL, POOLER, FORWARDER or OTHER
    processes: tuple[Process, ...]
    proof: str
    proven: bool
    target: str | None = None

    @property
    def command(self) -> str:
        """The name of the program; not fit to print before text.clean()."""
        return self.processes[0].command


class Owners:
    """Finds the owners of `endpoints` and sets them.

    `refused` tells whether there are processes whose descriptors may not be read.
    """

    def __init__(self, view: View, endpoints: Sequence[Endpoint]) -> None:
        self.refused = False
        self._view = view
        self._table = view.processes()
        self._endpoints = endpoints
        uids = {one.listener.uid for one in endpoints if one.listener.uid is not None}
        self._clusters = {one.postmaster.pid: one for one in Census(self._table, uids).clusters}
        self._candidates = self._read_candidates()

    def find(self, expected: Collection[int]) -> None:
        """Set the owners whose program is known; on the ports that are `expected` of one it may
        be known by exclusion.
        """
        self._set_holders(self._candidates, self._endpoints)
        for one in self._endpoints:
            if one.owner is None and isinstance(one.listener, Listener):
                self._find_by_titles(one, one.listener)
        for one in self._endpoints:
            if one.owner is None and one.directory is not None:
                self._find_by_run(one)
        for one in self._endpoints:
            if one.owner is None:
                found, proof = find_probable(
                    self._view, self._candidates, one, one.port in expected
                )
                if found:
                    self._set_owner(one, found, proof, False)

    def find_strangers(self, endpoints: Sequence[Endpoint]) -> None:
        """Set what any process holds of `endpoints`, as far as descriptors may be read."""
        known = {one.process.pid for one in self._candidates}
        known.update(pid for one in self._clusters.values() for pid, _ in one.children)
        others = []
        for pid, (command, parent) in self._table.commands().items() if endpoints else ():
            process = None if pid in known else self._table.process(pid, command, parent)
            if process is not None:
                others.append(Candidate(self._table, process, OTHER))
        self._set_holders(others, endpoints)

    def count_programs(self) -> Counter[tuple[int, str]]:
        """How many programs of each user and kind there are, whatever they listen on; workers of
        another process are none of their own.
        """
        pids = {one.process.pid for one in self._candidates}
        return Counter(
            (one.process.uid, one.kind)
            for one in self._candidates
            if one.process.parent not in pids
        )

    def _read_candidates(self) -> list[Candidate]:
        found = []
        for pid, command in list_programs(self._view).items():
            kind = kind_of(command) or OTHER
            if kind == POSTGRESQL and pid not in self._clusters:
                continue  # a name alone makes no server
            try:
                parent = parse_stat(self._table.read(pid, "stat") or b"")[1]
            except (ValueError, IndexError):
                continue
            process = self._table.process(pid, command, parent)
            if process is not None:
                found.append(Candidate(self._table, process, kind))
                if pid in self._clusters:
                    found[-1].port = self._clusters[pid].port
        return found

    def _set_holders(self, candidates: Iterable[Candidate], endpoints: Sequence[Endpoint]) -> None:
        wanted = {one.listener.inode for one in endpoints}
        holders: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            self._view.deadline.remaining()
            if candidate.inodes is None:
                self.refused = True
            for inode in wanted & (candidate.inodes or set()):
                holders.setdefault(inode, []).append(candidate)
        for one in endpoints:
            held = holders.get(one.listener.inode)
            if held:
                self._set_owner(one, _leaders(held), BY_DESCRIPTORS, True)

    def _set_owner(
        self, one: Endpoint, found: Sequence[Candidate], proof: str, proven: bool
    ) -> None:
        first = found[0]
        target = None
        if first.kind == FORWARDER and one.address is not None and one.port is not None:
            process = first.process
            target = find_forward(process.command, process.arguments, one.address, one.port)[1]
        processes = tuple(each.process for each in found)
        one.owner = Owner(first.kind, processes, proof, proven, target)
        if proven and first.kind == POSTGRESQL and one.port is not None:
            first.port, first.port_is_proven = one.port, True

    def _find_by_titles(self, one: Endpoint, listener: Listener) -> None:
        """By the proofs that need no descriptors of the postmaster."""
        if all(listener.uid != each.postmaster.uid for each in self._clusters.values()):
            return
        bound = [
            each.listener
            for each in self._endpoints
            if each.reader is one.reader and each.port == listener.port
            if isinstance(each.listener, Listener)
        ]
        accepted = one.reader.sockets(Leg((listener.port,)).query(ESTABLISHED, CLOSE_WAIT))
        try:
            cluster, proof = find_cluster(
                self._view, one.reader, listener.port, [listener], bound, accepted
            )
        except LimitUnknown:
            return
        for candidate in self._candidates:
            if candidate.process.pid == cluster.postmaster.pid:
                self._set_owner(one, [candidate], proof, True)

    def _find_by_run(self, one: Endpoint) -> None:
        """By the listeners of the same port that are proven to be a server's: see made_with()."""
        place = one.reader, one.port
        alike = [each for each in self._endpoints if (each.reader, each.port) == place]
        run = made_with(one.listener, (each.listener for each in alike))
        for each in alike:
            owner, inode = each.owner, each.listener.inode
            if owner is None or not owner.proven or owner.kind != POSTGRESQL:
                continue
            if inode in run and inode < one.listener.inode:
                one.owner = owner._replace(proof=BY_RUN)
                return


def _leaders(holders: Sequence[Candidate]) -> list[Candidate]:
    """Of the processes that share a listener those of the kind that it is for, without the
    workers of another: systemd and many a master hold it, too.
    """
    kinds = (POSTGRESQL, POOLER, FORWARDER, OTHER)
    best = min((one.kind for one in holders), key=kinds.index)
    mine = [one for one in holders if one.kind == best]
    pids = {one.process.pid for one in mine}
    return [one for one in mine if one.process.parent not in pids] or mine
