"""The processes that may hold a listener: those of programs that listen for PostgreSQL clients."""

import time

from check_pgsock.servers.programs import POSTGRESQL, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.processes import ProcessTable
    from check_pgsock.view import View


def list_programs(view: "View") -> "dict[int, str]":
    """The command of each process whose program is of a known kind, by process id.

    A server's backends and the kernel's threads are left out unread, as far as the kernel tells
    whose children they are: most processes of a database host are such. Within a second they are
    read once.
    """
    if view.programs is not None and time.monotonic() - view.programs[0] < 1:
        return view.programs[1]
    view.deadline.doing = f"reading the processes of {view.files.root}"
    table = view.processes()
    try:
        pids = sorted(int(name) for name in view.files.names() if name.isdigit())
    except OSError:
        return {}
    left_out = children_of(table, 2) if table.sees_all() else set()  # kthreadd's
    found = {}
    for pid in pids:
        if pid in left_out:
            continue
        view.deadline.remaining()
        command = (table.read(pid, "comm") or b"").rstrip(b"\n").decode("utf-8", "replace")
        kind = kind_of(command)
        if kind is not None:
            found[pid] = command
            if kind == POSTGRESQL:
                left_out |= children_of(table, pid)
    found = {pid: command for pid, command in found.items() if pid not in left_out}
    view.programs = time.monotonic(), found
    return found


def children_of(table: "ProcessTable", pid: int) -> "set[int]":
    """The children of a process's first thread; none where the kernel does not tell.

    One that starts or ends meanwhile may be left out, or in its place another that goes on.
    """
    raw = table.read(pid, f"task/{pid}/children") or b""
    return {int(one) for one in raw.split() if one.isdigit()}


def shares_network(view: "View", pid: int, port: int, inode: int) -> bool:
    """Whether a listener on `port` is in the network namespace of a process."""
    if view.recorded is not None:
        return view.recorded.shares_network(pid, port, inode)
    from check_pgsock.sockets.sources.procfs import listener_inodes

    path = view.processes().path(pid, "net")
    return inode in listener_inodes(path, port, view.deadline)
