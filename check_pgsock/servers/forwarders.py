"""Whether a listener only forwards: then the sessions of the server behind it are elsewhere."""

from check_pgsock.legs import format_address
from check_pgsock.servers.candidates import list_programs, shares_network
from check_pgsock.servers.programs import (
    CONTAINER_FORWARDERS,
    FORWARDER,
    kind_of,
    may_forward,
    may_hold,
    only_forwards,
)
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.processes import Process, ProcessTable
    from check_pgsock.sockets.model import Listener
    from check_pgsock.view import View

PROVEN, PROBABLE, POSSIBLE = "proven", "probable", "possible"
_SAID = {PROVEN: "is only", PROBABLE: "is probably only", POSSIBLE: "may only be"}


class Forwarder:
    """A forwarder that holds a listener: PROVEN by its descriptors, PROBABLE, or merely POSSIBLE.

    `contested` tells of a possible one whether a server or a pooler may hold the listener as well.
    """

    __slots__ = ("certainty", "contested", "listener", "process")

    def __init__(
        self, process: "Process", listener: "Listener", certainty: str, contested: bool = False
    ) -> None:
        self.process = process
        self.listener = listener
        self.certainty = certainty
        self.contested = contested


def find_forwarders(view: "View", listeners: "list[Listener]") -> "list[Forwarder]":
    """The forwarder that holds one of `listeners`, proven or else probable; else those that may,
    one for each listener at most.

    Where its descriptors may not be read, one whose command line names the listener is probable,
    or one that does nothing but forward where no server and no pooler may hold the listener.
    Others are possible, unless their command line names other listeners. Where processes cannot
    be seen, nothing is known of forwarders.
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
        if held is None and may_forward(name, process.title):
            hidden += [(process, one) for one in mine]
        for one in mine:
            if held is not None and one.inode in held:
                return [Forwarder(process, one, PROVEN)]
    if not hidden:
        return []
    return _find_hidden(view, hidden, {pid: programs[pid] for pid in programs if pid not in names})


def _choose(process: "Process", listeners: "list[Listener]") -> "list[Listener]":
    return [one for one in listeners if may_hold(process.command, process.uid, one.port, one.uid)]


def _find_hidden(
    view: "View", hidden: "list[tuple[Process, Listener]]", others: "dict[int, str]"
) -> "list[Forwarder]":
    """Those of the pairs `hidden` of a forwarder, whose descriptors may not be read, and a listener
    that are probably or possibly right; `others` are the programs of other kinds.
    """
    from check_pgsock.servers.forwards import find_forward  # few hosts have such a pair

    first: dict[int, tuple[Process, Listener]] = {}  # of each listener, by its inode
    for process, one in sorted(hidden, key=lambda pair: not only_forwards(pair[0].command)):
        named, _ = find_forward(process.command, process.arguments, one.address, one.port)
        if named is False or (named is None and one.inode in first):
            continue
        if not shares_network(view, process.pid, one.port, one.inode):
            continue
        if named:
            return [Forwarder(process, one, PROBABLE)]
        first[one.inode] = process, one
    table = view.processes()
    found = []
    for process, one in first.values():
        contested = any(_may_hold(table, pid, name, one) for pid, name in others.items())
        if not contested and only_forwards(process.command):
            return [Forwarder(process, one, PROBABLE)]
        found.append(Forwarder(process, one, POSSIBLE, contested))
    return found


def _may_hold(table: "ProcessTable", pid: int, command: str, one: "Listener") -> bool:
    process = table.process(pid, command, 0)
    if process is None or not _choose(process, [one]):
        return False
    held = table.socket_inodes(pid)
    return held is None or one.inode in held


def describe(found: Forwarder) -> str:
    """What a forwarder means for a check, and what to do: one sentence."""
    process, listener = found.process, found.listener
    text = (
        f"port {listener.port} at {format_address(listener.address)} {_SAID[found.certainty]} "
        f"forwarded here, by {clean(process.command)} (process {process.pid})"
    )
    text += ", which cannot be seen without root: then " if found.certainty == POSSIBLE else ": "
    if process.command in CONTAINER_FORWARDERS:
        return text + (
            "its connections are in another network namespace; run the check there or name it "
            "with --netns PID"
        )
    return text + (
        "the connections of the server behind it are on that server's own host and port; run the "
        "check there, or name its network namespace with --netns PID if it is on this host"
    )
