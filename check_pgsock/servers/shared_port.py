"""Several processes that listen at one address and port (SO_REUSEPORT), as several PgBouncers do:
the kernel shares connections out by a hash, whether or not the process they go to is full.
"""

from check_pgsock.legs import Leg
from check_pgsock.sessions.holders import find_holders
from check_pgsock.sockets.model import ESTABLISHED
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.servers.leg_owner import Target
    from check_pgsock.sockets.model import Listener
    from check_pgsock.view import View


class Worker:
    """One of the processes, how many of the port's connections it holds, and how many it can."""

    __slots__ = ("command", "connections", "limit", "pid")

    def __init__(self, pid: int, command: str, connections: int, limit: int) -> None:
        self.pid = pid
        self.command = command  # not fit to print before clean()
        self.connections = connections
        self.limit = limit

    @property
    def share(self) -> float:
        """How full it is; where it can hold none, as if it could one."""
        return self.connections / max(self.limit, 1)

    def describe(self) -> str:
        """`pgbouncer (process 1234)`"""
        return f"{clean(self.command)} (process {self.pid})"


def count_sharers(listeners: "list[Listener]") -> int:
    """The most listeners that share one address and port: so many processes at the most."""
    counts: dict[tuple[bytes, int], int] = {}
    for one in listeners:
        counts[one.address, one.port] = counts.get((one.address, one.port), 0) + 1
    return max(counts.values(), default=0)


def read_workers(
    view: "View", target: "Target", limit: int, by_process: "Optional[dict[int, int]]"
) -> "Optional[list[Worker]]":
    """The processes that hold the listeners of `target`, the fullest first; None where descriptors
    may not be read. Raises SourceError.

    Each can hold what `by_process` says, by process id. Without it the configuration files do where
    they differ and may be read; else each has an equal part of the `limit` of all.
    """
    listeners, port = target.listeners, target.port
    assert port is not None
    table = view.processes()
    inodes = {one.inode for one in listeners}
    holders = find_holders(table, inodes, {one.uid for one in listeners})
    if holders.keys() != inodes:
        return None
    accepted = target.reader.sockets(Leg((port,)).query(ESTABLISHED))
    mine = {one.inode for one in accepted if one.inode}
    commands = {one.pid: one.command for one in holders.values()}
    shares = by_process or _read_shares(view, target) or {}
    workers = []
    for pid, command in commands.items():
        held = table.socket_inodes(pid)
        if held is None:
            return None
        share = shares.get(pid, limit // len(commands))
        workers.append(Worker(pid, command, len(held & mine), share))
    return sorted(workers, key=lambda one: (-one.share, one.pid))


def _read_shares(view: "View", target: "Target") -> "Optional[dict[int, int]]":
    """How many connections each of several PgBouncers can hold, where they differ in that."""
    from check_pgsock.servers.limits import LimitUnknown
    from check_pgsock.servers.pooler_limit import read_pooler_limit

    try:
        found = read_pooler_limit(view, target)
    except LimitUnknown:
        return None
    by_process = {} if found is None else found[0].by_process
    return by_process if len(set(by_process.values())) > 1 else None
