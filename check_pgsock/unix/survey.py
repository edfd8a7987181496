"""Who holds the sessions over a socket file: sockets and processes read and brought together.

Whose backends they are is told by descriptors: see sessions/survey.py for TCP.
"""

from contextlib import suppress

from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.sessions import connections
from check_pgsock.sessions.backends import Backends
from check_pgsock.sessions.holders import find_holders
from check_pgsock.sessions.surveyed import Survey
from check_pgsock.text import plural
from check_pgsock.unix.server import find_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.view import View


def add_unix_socket(view: "View", path: str, found: Survey) -> None:
    """Add the sessions over the socket file `path` to what was `found`. Raises SourceError."""
    endpoint = view.reader.unix_sockets(path)
    found.notes += endpoint.notes
    if endpoint.not_accepted:
        waiting = plural(endpoint.not_accepted, "connection")
        found.notes.append(f"{waiting} to {path} not accepted yet, and not shown")
    table, now = view.processes(), view.files.since_boot()
    backends = None
    with suppress(LimitUnknown):
        cluster, _ = find_owner(view, f"socket {path}", endpoint.listeners)
        backends = Backends(table, cluster, (), now)
    found.add_server(endpoint.listeners, backends is not None)
    peers = view.reader.unix_peers(endpoint.sessions)
    ends = [*peers.values(), *(endpoint.sessions if backends is None else [])]
    uids = {one.uid for one in ends if one.uid is not None}
    holders = find_holders(table, {one.inode for one in ends}, uids, now)
    for one in endpoint.sessions:
        backend = None if backends is None else backends.of_inode(one.inode)
        peer = peers.get(one.peer_inode or 0)
        client = None if peer is None else holders.get(peer.inode)
        row = connections.of_unix_socket(one, backend, peer, holders.get(one.inode), client)
        found.add(row, backends is not None)
