"""The connection slots of one PostgreSQL server that are in use, told by its processes' titles.

A client backend holds a slot of max_connections, whatever its client came over: TCP, any Unix
socket, from any network namespace, and also when that client is gone. A walsender has slots of its
own (max_wal_senders), parallel and autovacuum workers have theirs, and a connection without a
startup packet has none yet (InitProcess in src/backend/storage/lmgr/proc.c, which comes after
ProcessStartupPacket).
"""

from check_pgsock.legs import accepting
from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.sessions.backends import read_titles
from check_pgsock.sessions.children import match_peers
from check_pgsock.sessions.titles import CLIENT_BACKEND, UNKNOWN, UNTITLED, WALSENDER, text_of
from check_pgsock.sockets.model import ESTABLISHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Optional

    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.servers.leg_owner import Target
    from check_pgsock.sessions.titles import Peer, Title
    from check_pgsock.view import View

_SENDER = "walsender "


class Slots:
    """`holders` are the processes that hold a slot, by process id; `attributed` are those of others
    whose title does not tell what they are, which hold one by their connection, and `untold` those
    that may hold one; of these `resting` are walsenders at rest, or sessions of a user of that
    name. `senders` are the remote ends of both kinds of walsenders over TCP.
    """

    __slots__ = ("attributed", "holders", "resting", "senders", "untold")

    def __init__(self, holders: "Mapping[int, Title]", senders: "set[Peer]") -> None:
        self.holders = holders
        self.senders = senders
        self.attributed = 0
        self.resting = 0
        self.untold = 0

    @property
    def used(self) -> int:
        """The slots in use: a lower bound where some are `untold`."""
        return len(self.holders) + self.attributed

    def note(self) -> "Optional[str]":
        """What qualifies the number."""
        if not self.untold:
            return None
        reasons = []
        if self.untold > self.resting:
            reasons.append(
                f"of {self.untold - self.resting} of the server's processes the title does not "
                "tell whether it holds one"
            )
        if self.resting:
            reasons.append(
                f"{self.resting} of the server's processes count neither as slots nor as "
                "established, since by the title they are walsenders at rest; sessions of a user "
                "named walsender, which hold slots, have the same title"
            )
        return f"a lower bound of the connection slots: {'; '.join(reasons)}"


def read_slots(view: "View", cluster: "Cluster", target: "Target") -> Slots:
    """The slots in use of the server that is proven to have `target`. Raises SourceError."""
    listeners = {one.inode for one in target.listeners}
    accepted = target.accepted
    if len(listeners) < len(target.bound):  # those at other addresses may be another's
        takers = {at: accepting(at, target.bound) for at in {one.local_address for one in accepted}}
        mine = {at for at, taker in takers.items() if taker and taker.inode in listeners}
        accepted = [one for one in accepted if one.local_address in mine]
    accepted = [one for one in accepted if one.inode]
    peers = {(one.remote_address, one.remote_port) for one in accepted}
    titles = read_titles(view.processes(), cluster, peers)
    doubtful = [pid for pid, one in titles.items() if one.kind == UNKNOWN]
    if not doubtful:
        return count_slots(titles, peers)
    raws = {pid: view.processes().read(pid, "cmdline") or b"" for pid in doubtful}
    senders = {pid for pid, raw in raws.items() if begins_as_sender(text_of(raw))}
    connected = _find_connected(view, cluster, doubtful, {one.inode for one in accepted})
    return count_slots(titles, peers, senders, connected)


def _find_connected(
    view: "View", cluster: "Cluster", pids: "list[int]", accepted: "set[int]"
) -> "Optional[dict[int, Optional[bool]]]":
    """Whether each of these children holds an accepted connection, of which `accepted` are those
    over TCP; None for one that is not known, and where descriptors may not be read.

    A socket of its own that is none of those seen may be a client's over a Unix socket, from
    another network namespace, or its connection to another server (a walreceiver's).
    """
    table = view.processes()
    inherited = table.socket_inodes(cluster.postmaster.pid)
    if inherited is None:
        return None
    unix = view.reader.unix(1 << ESTABLISHED, lambda one: one.path is not None)
    seen = accepted | {one.inode for one in unix}
    found: dict[int, Optional[bool]] = {}
    for pid in pids:
        own = (table.socket_inodes(pid) or set()) - inherited
        found[pid] = True if own & seen else None if own else False
    return found


def count_slots(
    titles: "Mapping[int, Title]",
    peers: "Collection[Peer]" = (),
    senders: "Collection[int]" = (),
    connected: "Optional[Mapping[int, Optional[bool]]]" = None,
) -> Slots:
    """The slots that the children of one postmaster hold, by their `titles`.

    `peers` are the remote ends of all connections that it has accepted over TCP. A child whose
    title does not tell what it is holds a slot if it is `connected` (whether a child holds an
    accepted connection, by process id, None where it is not known; none where nobody can tell).
    Else so many of them do, at the least, as there are connections that no other child has. Of
    these `senders` have titles that begin as a walsender's, and are never taken to hold one.
    """
    matched = match_peers(titles, peers)
    holders = {pid: one for pid, one in titles.items() if one.kind == CLIENT_BACKEND}
    doubtful = {pid for pid, one in titles.items() if one.kind == UNKNOWN}
    resting = doubtful.intersection(senders)
    senders = resting | {pid for pid, one in titles.items() if one.kind == WALSENDER}
    found = Slots(holders, {peer for peer, pid in matched.items() if pid in senders})
    if connected is not None:
        found.attributed = sum(connected.get(pid) is True for pid in doubtful - senders)
        found.untold = sum(connected.get(pid) is not False for pid in doubtful) - found.attributed
        found.resting = sum(connected.get(pid) is not False for pid in resting)
    elif doubtful:
        untitled = sum(one.kind == UNTITLED for one in titles.values())
        left = sum(matched.get(peer) not in holders for peer in peers) - untitled - len(senders)
        found.attributed = min(max(left, 0), len(doubtful - senders))
        found.untold = len(doubtful) - found.attributed
        found.resting = len(resting)
    return found


def begins_as_sender(text: str) -> bool:
    """Whether a title begins as a walsender's does, after the cluster_name: at rest it reads like
    that of a user of this name.
    """
    return text.startswith(TITLE_PREFIX + _SENDER) or f": {_SENDER}" in text
