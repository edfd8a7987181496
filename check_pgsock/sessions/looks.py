"""Looking at the sessions of PostgreSQL servers several times: by titles, without a connection."""

from check_pgsock.option_values import parse_address
from check_pgsock.processes import parse_stat
from check_pgsock.servers.clusters import Census
from check_pgsock.sessions.activity import BY_TCP_INFO, UNKNOWN, judge_title
from check_pgsock.sessions.backends import Backends
from check_pgsock.sessions.states import AUTHENTICATION, INITIALIZING, STARTUP
from check_pgsock.sessions.titles import UNTITLED, WALSENDER
from check_pgsock.sessions.workers import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.sessions.backends import Backend
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.view import View

_LOOKS = 5
# Who has not logged in yet.
_BEFORE_SESSION = (AUTHENTICATION, STARTUP, INITIALIZING)


class Looks:
    """Looks at the backends that `connections` name, which are those of proven servers.

    A session that begins later is not looked at, one that ends is in the looks until then. What a
    title does not say stays as the survey told it by the socket: `by_socket` counts such sessions.
    `walsenders` are the process ids of those: they serve no client's session.
    """

    __slots__ = ("_clusters", "_found", "_heard", "_table", "_view", "by_socket", "walsenders")

    def __init__(self, view: "View", connections: "Iterable[Connection]") -> None:
        self._view = view
        self._table = view.processes()
        self._found = {
            one["backend_pid"]: one for one in connections if one["backend_pid"] is not None
        }
        self._heard = {
            (parse_address(one["peer_address"]), one["peer_port"])
            for one in self._found.values()
            if one["peer_port"] is not None and one["received_bytes"] != 0
        }
        self._clusters = self._find_clusters()
        self.walsenders: set[int] = set()
        self.by_socket = 0

    def watch(self, window: float) -> "list[Look]":
        """Several looks, the last one `window` seconds after the first; one, where it is 0."""
        looks = [self._look()]
        while window and len(looks) < _LOOKS:
            due = looks[0].at + window * len(looks) / (_LOOKS - 1)
            self._view.deadline.doing = "waiting for the next look at the sessions"
            self._view.deadline.sleep(max(due - self._view.files.since_boot(), 0))
            looks.append(self._look())
        return looks

    def _find_clusters(self) -> "list[Cluster]":
        """The clusters whose backends they are, found again by these."""
        parents, uids = set(), set()
        for pid in self._found:
            try:
                parents.add(parse_stat(self._table.read(pid, "stat") or b"")[1])
            except (ValueError, IndexError):
                continue  # it has ended
            uids.add(self._table.uid(pid))
        census = Census(self._table, {one for one in uids if one is not None})
        return [one for one in census.clusters if one.postmaster.pid in parents]

    def _look(self) -> Look:
        at = self._view.files.since_boot()
        sessions: dict[int, tuple[str, Optional[float]]] = {}
        self.by_socket = 0
        for cluster in self._clusters:
            for pid, backend in Backends(self._table, cluster, self._heard, at).by_pid.items():
                one = self._found.get(pid)
                if one is None:
                    continue
                title = backend.title
                if title.kind == WALSENDER:
                    self.walsenders.add(pid)
                elif title.kind != UNTITLED and title.state not in _BEFORE_SESSION:
                    sessions[pid] = (self._judge(one, backend), backend.cpu_seconds)
        return Look(at, sessions)

    def _judge(self, one: "Connection", backend: "Backend") -> str:
        """What a session is doing. Even an orphan's backend, or one whose client does not read, is
        at work on something: so its title goes before what its socket shows.
        """
        told = judge_title(backend.title)
        # A title that stands still was found out by the socket.
        if told is not None and one["activity_known_by"] != BY_TCP_INFO:
            return told
        if one["activity_known_by"] == BY_TCP_INFO:
            self.by_socket += one["activity"] != UNKNOWN
            return str(one["activity"])
        return UNKNOWN
