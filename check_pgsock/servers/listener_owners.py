"""Whose the listeners of some ports are, and how the process fares that is to accept there."""

from check_pgsock.processes import parse_start_ticks, parse_stat
from check_pgsock.servers.listeners import Endpoint
from check_pgsock.servers.owners import Owners
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

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
    each = view.reader.each
    endpoints = [Endpoint(each[0], one) for one in unix]
    expected = {*ports, *(one.port for one in endpoints if one.port is not None)}
    if endpoints:
        # What proves whose a port is proves it of the Unix sockets that were made with it.
        known = {one.listener.inode for one in endpoints}
        others = (Endpoint(each[0], one) for one in each[0].unix_listeners())
        endpoints += [
            one for one in others if one.port in expected and one.listener.inode not in known
        ]
    if expected:
        endpoints += [
            Endpoint(reader, one) for reader in each for one in reader.listeners(*expected)
        ]
    Owners(view, endpoints).find(expected)
    return {one.listener.inode: one.owner for one in endpoints if one.owner is not None}


def describe_owner(view: "View", owner: "Owner") -> str:
    """`process 4711 (postgres), stopped by a signal`; of several processes all."""
    told = [describe_process(view, one.pid, one.command) for one in owner.processes]
    return ("" if owner.proven else "probably ") + "; ".join(told)


def describe_known(view: "View", pid: int, started: int) -> "Optional[str]":
    """The same of a process that was started then (clock ticks since the machine's boot); None if
    that has ended.
    """
    raw = view.processes().read(pid, "stat") or b""
    try:
        if parse_start_ticks(raw) == started:
            return describe_process(view, pid, parse_stat(raw)[0])
    except (ValueError, IndexError):
        pass
    return None


def describe_process(view: "View", pid: int, command: str) -> str:
    """One process, and what keeps it from accepting."""
    raw = view.processes().read(pid, "stat") or b""
    state = raw[raw.rfind(b")") + 2 :][:1].decode("ascii", "replace")
    held_up = f", {_HELD_UP[state]}" if state in _HELD_UP else ""
    return f"process {pid} ({clean(command)}){held_up}"
