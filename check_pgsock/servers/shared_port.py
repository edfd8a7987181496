"""Several processes that listen at one address and port (SO_REUSEPORT), as several PgBouncers do:
the kernel shares connections out by a hash, whether or not the process they go to is full.
"""

from check_pgsock.legs import Leg
from check_pgsock.sessions.survey import find_holders
from check_pgsock.sockets.model import ESTABLISHED
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.model import Listener
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.view import View


class Worker:
    """One of the processes, and how many of the port's connections it holds."""

    __slots__ = ("command", "connections", "pid")

    def __init__(self, pid: int, command: str, connections: int) -> None:
        self.pid = pid
        self.command = command  # not fit to print before clean()
        self.connections = connections

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
    view: "View", reader: "SocketReader", port: int, listeners: "list[Listener]"
) -> "Optional[list[Worker]]":
    """The processes that hold `listeners`, those of `port`, the fullest first; None where
    descriptors may not be read. Raises SourceError.
    """
    table = view.processes()
    inodes = {one.inode for one in listeners}
    holders = find_holders(table, inodes, {one.uid for one in listeners})
    if holders.keys() != inodes:
        return None
    accepted = reader.sockets(Leg((port,)).query(ESTABLISHED))
    mine = {one.inode for one in accepted if one.inode}
    workers = []
    for pid, command in {(one.pid, one.command) for one in holders.values()}:
        held = table.socket_inodes(pid)
        if held is None:
            return None
        workers.append(Worker(pid, command, len(held & mine)))
    return sorted(workers, key=lambda one: (-one.connections, one.pid))
