"""Whose the listeners of some ports are, and how the process fares that is to accept there."""

from check_pgsock.servers.listeners import Endpoint
from check_pgsock.servers.owners import Owners
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from check_pgsock.servers.owners import Owner
    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.view import View

# Field 3 of /proc/PID/stat (proc(5)), where it keeps a process from accepting.
_HELD_UP = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "in uninterruptible sleep",
    "R": "running, or waiting for a CPU",
}


def find_owners(
    view: "View", ports: "Iterable[int]", unix: "Iterable[UnixListener]" = ()
) -> "dict[int, Owner]":
    """The programs that own the listeners on `ports`, and those of `unix`, by the listener's
    inode: those that are known, proven or probable. Raises SourceError.
    """
    expected, each = set(ports), view.reader.each
    endpoints = [Endpoint(each[0], one) for one in unix]
    if expected:
        endpoints += [
            Endpoint(reader, one) for reader in each for one in reader.listeners(*expected)
        ]
    Owners(view, endpoints).find(expected)
    return {one.listener.inode: one.owner for one in endpoints if one.owner is not None}


def describe_owner(view: "View", owner: "Owner") -> str:
    """`process 4711 (postgres), stopped by a signal`; of several processes all."""
    table, told = view.processes(), []
    for one in owner.processes:
        raw = table.read(one.pid, "stat") or b""
        state = raw[raw.rfind(b")") + 2 :][:1].decode("ascii", "replace")
        held_up = f", {_HELD_UP[state]}" if state in _HELD_UP else ""
        told.append(f"process {one.pid} ({clean(one.command)}){held_up}")
    return ("" if owner.proven else "probably ") + "; ".join(told)
