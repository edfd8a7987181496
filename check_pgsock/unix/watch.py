"""Watching sessions over Unix sockets for a while, whose end no event tells: by snapshots."""

import time

from check_pgsock.churn import Churn
from check_pgsock.unix.leg import compare, read_sessions
from check_pgsock.watch import PAUSE, Watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.deadline import Deadline
    from check_pgsock.sockets.reader import Reader
    from check_pgsock.unix.leg import Sessions

NO_EVENTS = "no event tells the end of a session over a Unix socket"
_SHARE = 5  # a look is followed by a pause this many times as long


def watch_sessions(
    paths: "tuple[str, ...]", reader: "Reader", window: float, deadline: "Deadline"
) -> Watched:
    """Watch the sessions over the socket files `paths` for `window` seconds.

    Raises SourceError. `reader` is this thread's own.
    """
    users: dict[int, Optional[int]] = {}
    looks: list[set[int]] = []

    def look() -> "Sessions":
        found = read_sessions(reader, paths)
        looks.append({one.inode for one in found.all})
        new = [one for one in found.connected if one.inode not in users]
        peers = reader.unix_peers(new)
        for one in new:
            peer = peers.get(one.peer_inode or 0)
            users[one.inode] = None if peer is None else peer.uid
        return found

    look()
    look()
    began = ended = time.monotonic()
    took = 0.0
    while ended - began < window:
        deadline.doing = "watching connections"
        pause = max(PAUSE, _SHARE * took)
        deadline.sleep(max(min(pause, began + window - ended), 0))
        before = time.monotonic()
        look()
        ended = time.monotonic()
        took = ended - before
    last = look()
    closed, opened = compare(looks)
    churn = Churn(ended - began, len(closed), len(opened), [])
    return Watched(
        churn,
        [],
        [f"snapshots of Unix sockets: {len(looks)}, {PAUSE:g} s or more apart"],
        NO_EVENTS,
        sessions=len(last.connected),
        users=[users.get(inode) for inode in closed],
    )
