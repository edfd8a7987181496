"""Whether a listener only forwards: then the sessions of the server behind it are elsewhere."""

from check_pgsock.legs import format_address
from check_pgsock.servers.candidates import list_programs, shares_network
from check_pgsock.servers.programs import (
    CONTAINER_FORWARDERS,
    FORWARDER,
    kind_of,
    may_hold,
    only_forwards,
)
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.processes import Process, ProcessTable
    from check_pgsock.sockets.model import Listener
    from check_pgsock.view import View


class Forwarder:
    """The forwarder that holds a listener; `proven` by its descriptors, or else probably."""

    __slots__ = ("listener", "process", "proven")

    def __init__(self, process: "Process", listener: "Listener", proven: bool) -> None:
        self.process = process
        self.listener = listener
        self.proven = proven


def find_forwarder(view: "View", listeners: "list[Listener]") -> "Optional[Forwarder]":
    """The forwarder that holds one of `listeners`; None where none is known to.

    Where its descriptors may not be read, one whose command line names the listener counts, or
    one that does nothing but forward where no server and no pooler may hold the listener. Where
    processes cannot be seen, nothing is known of forwarders.
    """
    programs = list_programs(view)
    names = {pid: name for pid, name in programs.items() if kind_of(name) == FORWARDER}
    table = view.processes()
    hidden = []
    for pid, name in names.items():
        process = table.process(pid, name, 0)
        mine = [] if process is None else _choose(process, listeners)
        if process is None or not mine:
            continue
        held = table.socket_inodes(pid)
        if held is None:
            hidden += [(process, one) for one in mine]
        for one in mine:
            if held is not None and one.inode in held:
                return Forwarder(process, one, True)
    if not hidden:
        return None
    return _find_hidden(view, hidden, {pid: programs[pid] for pid in programs if pid not in names})


def _choose(process: "Process", listeners: "list[Listener]") -> "list[Listener]":
    return [one for one in listeners if may_hold(process.command, process.uid, one.port, one.uid)]


def _find_hidden(
    view: "View", hidden: "list[tuple[Process, Listener]]", others: "dict[int, str]"
) -> "Optional[Forwarder]":
    """The one of the pairs `hidden` of a forwarder, whose descriptors may not be read, and a
    listener that is probably right; `others` are the programs of other kinds.
    """
    from check_pgsock.servers.forwards import find_forward  # few hosts have such a pair

    silent = []
    for process, one in hidden:
        named, _ = find_forward(process.command, process.arguments, one.address, one.port)
        if named is False or not shares_network(view, process.pid, one.port, one.inode):
            continue
        if named:
            return Forwarder(process, one, False)
        if only_forwards(process.command):
            silent.append(Forwarder(process, one, False))
    table = view.processes()
    for found in silent:
        if not any(_may_hold(table, pid, name, found.listener) for pid, name in others.items()):
            return found
    return None


def _may_hold(table: "ProcessTable", pid: int, command: str, one: "Listener") -> bool:
    process = table.process(pid, command, 0)
    if process is None or not _choose(process, [one]):
        return False
    held = table.socket_inodes(pid)
    return held is None or one.inode in held


def describe(found: Forwarder) -> str:
    """What a forwarder means for a check, and what to do: one sentence."""
    process, listener = found.process, found.listener
    certainty = "" if found.proven else "probably "
    text = (
        f"port {listener.port} at {format_address(listener.address)} is {certainty}only forwarded "
        f"here, by {clean(process.command)} (process {process.pid}): "
    )
    if process.command in CONTAINER_FORWARDERS:
        return text + (
            "its connections are in another network namespace; run the check there or name it "
            "with --netns PID"
        )
    return text + (
        "the connections of the server behind it are on that server's own host and port; run the "
        "check there, or name its network namespace with --netns PID if it is on this host"
    )
