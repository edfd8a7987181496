"""The processes that hold sockets, found by their descriptors."""

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple, Optional

    from check_pgsock.processes import ProcessTable

    class Holder(NamedTuple):
        """A process that holds an end of a connection; `age` in seconds."""

        pid: int
        command: str
        age: "Optional[float]"

else:
    Holder = namedtuple("Holder", "pid command age")


def find_holders(
    table: "ProcessTable", inodes: "Iterable[int]", uids: "set[int]", now: "Optional[float]" = None
) -> "dict[int, Holder]":
    """The processes of `uids` that hold these sockets, by inode, where descriptors may be read;
    their ages are those of `now`: see ProcessTable.age.
    """
    wanted = {inode for inode in inodes if inode}
    found: dict[int, Holder] = {}
    if not wanted:
        return found
    for pid, (command, _) in table.commands().items():
        if table.uid(pid) in uids:
            held = wanted & (table.socket_inodes(pid) or set())
            if held:
                found.update(dict.fromkeys(held, Holder(pid, command, table.age(pid, now))))
                wanted -= held
                if not wanted:
                    break
    return found
