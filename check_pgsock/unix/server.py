"""The PostgreSQL server behind a Unix socket: whose it is, and its sessions that are not seen here.

Who owns a listening Unix socket is proven by descriptors alone, which root and the server's own
user may read: a title names no client of a Unix socket, and any program may make a file
`.s.PGSQL.5432`.
"""

from check_pgsock.servers import limits
from check_pgsock.servers.clusters import Census, unseen
from check_pgsock.sockets.model import ESTABLISHED
from check_pgsock.text import plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.processes import ProcessTable
    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.sockets.unix_sockets import AnyUnix, UnixListener
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View


def find_owner(
    view: "View", endpoint: str, listeners: "list[UnixListener]"
) -> "tuple[Cluster, str]":
    """The cluster whose postmaster holds `listeners`, and the proof in words; of a recording as it
    was then. Raises LimitUnknown.
    """
    table = view.processes()
    wanted = {one.inode for one in listeners}
    hidden = False
    if view.recorded is not None:
        pid, proof = view.recorded.owner(endpoint, listeners)
        return Census(table, _users(listeners)).cluster_of(pid, endpoint), proof
    for cluster in Census(table, _users(listeners)).clusters:
        held = table.socket_inodes(cluster.postmaster.pid)
        if held is None:
            hidden = True
        elif wanted <= held:
            return cluster, "it holds the listener"
    if hidden:
        raise limits.unknown(
            endpoint, "which server owns its listener is seen by root and the server's user alone"
        )
    raise unseen(endpoint)


def _users(listeners: "list[UnixListener]") -> "set[int]":
    """The users whose listeners they are; none under procfs, which does not tell."""
    return {one.uid for one in listeners if one.uid is not None}


def say_elsewhere(view: "View", sessions: "Sessions") -> "Optional[str]":
    """What is to be said of sessions over Unix sockets of the same server that are in none of the
    network namespaces read: those of clients in others. None where none are noticed.

    By titles, which everybody may read: each `[local]` one is a session over some Unix socket.
    Titles and sockets are both read twice, since sessions come and go in between. Where the
    descriptors may not be read, all servers of the user together tell of it.
    """
    users = _users(sessions.listeners)
    if not users or view.reader.saved:
        return None
    table = view.processes()
    clusters = Census(table, users).clusters
    held = {one: table.socket_inodes(one.postmaster.pid) for one in clusters}
    of = "the server, or of another of its user"
    is_proven = None not in held.values()
    if is_proven:
        listeners = {one.inode for one in sessions.listeners}
        clusters = [one for one in clusters if not listeners.isdisjoint(held[one] or ())]
        of = "the server"
    titled = _titled(table, clusters)
    if len(titled) <= len(sessions.all):
        return None
    seen = _accepted(view, users)
    titled &= _titled(table, clusters)
    seen |= _accepted(view, users)
    number = len(titled) - len(seen)
    if is_proven:
        inodes = (table.socket_inodes(pid) for pid in titled)
        number = sum(seen.isdisjoint(one) for one in inodes if one)
    if number <= 0:
        return None
    return (
        f"not counted: at least {plural(number, 'session')} over Unix sockets of {of}, of clients "
        "in other network namespaces (--netns adds them)"
    )


def _titled(table: "ProcessTable", clusters: "list[Cluster]") -> "set[int]":
    """The process ids of backends whose title says that their client came over a Unix socket."""
    from check_pgsock.sessions.backends import read_titles
    from check_pgsock.sessions.titles import LOCAL

    titles = (read_titles(table, one) for one in clusters)
    return {pid for told in titles for pid, title in told.items() if title.host == LOCAL}


def _accepted(view: "View", users: "set[int]") -> "set[int]":
    """The inodes of all sessions that programs of these users have accepted over Unix sockets."""

    def wanted(one: "AnyUnix") -> bool:
        return one.path is not None and (one.uid is None or one.uid in users)

    return {one.inode for one in view.reader.unix(1 << ESTABLISHED, wanted)}
