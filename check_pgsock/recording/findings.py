"""Whose server each listener is and what its limit is: found when recording, told on replay.

A limit comes from files and programs that no recording holds, and a proof may take descriptors
that it does not hold either: so the answers are recorded, or the reasons why there are none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Callable

from check_pgsock.errors import SourceError
from check_pgsock.legs import Leg
from check_pgsock.recording.manifest import Finding
from check_pgsock.servers import limits
from check_pgsock.servers.auto_limit import LimitReader, read_limit_of
from check_pgsock.servers.clusters import Census, unseen
from check_pgsock.servers.limits import Limit, LimitUnknown
from check_pgsock.servers.ownership import find_cluster
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Listener
from check_pgsock.unix.server import find_owner
from check_pgsock.view import View

if TYPE_CHECKING:
    from check_pgsock.servers.auto_limit import AnyListener
    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.sockets.unix_sockets import UnixListener

    FindOwner = Callable[[], tuple[Cluster, str]]

_AS_RECORDED = " (as recorded)"


def find(view: View, known: Iterable[Finding] = ()) -> list[Finding]:
    """What is to be found of all listeners of `view` that may be a PostgreSQL server's.

    `known` is what was found a moment ago: a listener keeps its server, and that its limit.
    Raises SourceError.
    """
    finder = _Finder(known)
    for reader in view.reader.each:
        finder.look(View(reader, view.files, view.deadline), reader)
    return finder.found


class _Finder:
    def __init__(self, known: Iterable[Finding]) -> None:
        self._sure = {one.listeners: one for one in known if one.limit is not None}
        self.found: list[Finding] = []

    def look(self, view: View, reader: SocketReader) -> None:
        """Find out about the listeners of one place."""
        listeners = reader.listeners()
        try:
            unix = reader.unix_listeners()
        except SourceError:
            unix = []  # what is not recorded either
        uids = {one.uid for one in listeners} | {one.uid for one in unix if one.uid is not None}
        servers = Census(view.processes(), uids).clusters
        uids = {one.postmaster.uid for one in servers}
        for port in sorted({one.port for one in listeners if one.uid in uids}):
            self._look_at_port(view, reader, port, [one for one in listeners if one.port == port])
        for one in unix:
            if one.uid in uids:
                self._look_at_socket(view, reader, one)

    def _look_at_port(
        self, view: View, reader: SocketReader, port: int, bound: list[Listener]
    ) -> None:
        accepted = reader.sockets(Leg((port,)).query(ESTABLISHED, CLOSE_WAIT))
        for chosen in _choices(bound):

            def find_it(chosen: list[Listener] = chosen) -> tuple[Cluster, str]:
                return find_cluster(view, reader, port, chosen, bound, accepted)

            self._add(view, reader, f"port {port}", chosen, find_it)

    def _look_at_socket(self, view: View, reader: SocketReader, one: UnixListener) -> None:
        endpoint = f"socket {one.path.replace(bytes(1), b'@').decode('utf-8', 'surrogateescape')}"
        self._add(view, reader, endpoint, [one], lambda: find_owner(view, endpoint, [one]))

    def _add(
        self, view: View, reader: SocketReader, endpoint: str, chosen: Sequence[AnyListener],
        find_it: FindOwner,
    ) -> None:  # fmt: skip
        inodes = tuple(sorted(one.inode for one in chosen))
        found = self._sure.get(inodes)
        if found is None:
            found = Finding(endpoint, inodes, None, "", None, None, None, "")
            try:
                cluster, proof = find_it()
                owner = cluster.postmaster
                version = LimitReader(view, reader, owner, endpoint, None).major()
                found = found._replace(owner=owner.pid, proof=proof, version=version)
                limit, pending = read_limit_of(view, reader, owner, endpoint, chosen)
                found = found._replace(limit=limit, pending=pending)
            except LimitUnknown as unknown:
                found = found._replace(why=unknown.why or str(unknown))
                if unknown.why == unseen(endpoint).why:
                    return  # another's, of the same user: what is not found says the same
        self.found.append(found)


def _choices(bound: list[Listener]) -> list[list[Listener]]:
    """What a leg may be about: all listeners of a port, or those at one address."""
    addresses = sorted({one.address for one in bound})
    if len(addresses) == 1:
        return [bound]
    return [bound, *([one for one in bound if one.address == at] for at in addresses)]


class Findings:
    """The findings of one moment; a listener is known by its inode. Methods raise LimitUnknown,
    with the recorded reason.
    """

    def __init__(self, findings: Collection[Finding]) -> None:
        self._findings = findings

    def owner(self, endpoint: str, listeners: Iterable[AnyListener]) -> tuple[int, str]:
        """Process id of the postmaster that owns these listeners, and the proof in words."""
        found = self._find(endpoint, listeners)
        if found.owner is None:
            raise limits.unknown(endpoint, found.why + _AS_RECORDED)
        return found.owner, found.proof

    def limit(self, endpoint: str, listeners: Iterable[AnyListener]) -> tuple[Limit, str | None]:
        """Their limit, whose source says that it is a recorded one, and a pending change of it."""
        found = self._find(endpoint, listeners)
        one = found.limit
        if one is None:
            raise limits.unknown(endpoint, found.why + _AS_RECORDED)
        source = one.source + _AS_RECORDED
        return Limit(one.max_connections, one.reserved, source, one.assumed), found.pending

    def version(self, endpoint: str, listeners: Iterable[AnyListener]) -> int | None:
        """The major version of the server that owns them; None where it is not known."""
        return self._find(endpoint, listeners).version

    def _find(self, endpoint: str, listeners: Iterable[AnyListener]) -> Finding:
        """The finding about these very listeners, or else about more than these."""
        inodes = {one.inode for one in listeners}
        found = [one for one in self._findings if inodes and inodes <= set(one.listeners)]
        if not found:
            raise limits.unknown(endpoint, unseen(endpoint).why + _AS_RECORDED)
        return min(found, key=lambda one: len(one.listeners))
