"""Who holds the connections of a survey, and which of them are alike: read from processes."""

from collections import Counter

from check_pgsock.errors import PgsockError
from check_pgsock.sessions.connections import OVER_UNIX
from check_pgsock.sessions.holders import find_holders
from check_pgsock.sessions.workers import CGROUPS, PEERS, PROCESSES, Worker, group, remove_numbers
from check_pgsock.text import clean, plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Optional

    from check_pgsock.legs import Leg
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.sockets.model import Listener
    from check_pgsock.view import View


class Holding:
    """The workers that were found, how many connections are of `unseen` ones, and what is to be
    said of how the others were found.
    """

    __slots__ = ("notes", "unseen", "workers")

    def __init__(
        self, workers: "list[Worker]", unseen: int, notes: "Optional[list[str]]" = None
    ) -> None:
        self.workers = workers
        self.unseen = unseen
        self.notes = notes or []

    def describe(self) -> "list[str]":
        """What qualifies it."""
        if not self.unseen:
            return self.notes
        number = plural(self.unseen, "connection")
        return [*self.notes, f"not compared: {number} of processes that cannot be seen from here"]


def find_workers(
    view: "View", leg: "Leg", held: "list[Connection]", listeners: "list[Listener]",
    unproven: "Optional[str]" = None,
) -> Holding:  # fmt: skip
    """The workers that have the connections `held`, all of `leg`, whose listeners on this host are
    `listeners`; on the server leg of PostgreSQL its clients. Raises PgsockError where nothing
    tells who they are; `unproven` is why it is not known whether it is one of PostgreSQL.
    """
    if not held:
        return Holding([], 0)
    clients = [one for one in held if leg.server and one["backend_pid"] is not None]
    if clients:
        found = find_clients(view, clients)
        rest = find_processes(view, [one for one in held if one["backend_pid"] is None])
        found.workers += rest.workers
        found.unseen += rest.unseen
        return found
    found = find_processes(view, held, listeners if leg.server else ())
    if found.unseen < len(held):
        return found
    cgroups = find_cgroups(view, held)
    if any(len(kind.workers) > 1 for kind in group(cgroups.workers)):
        return cgroups
    remedy = (
        "record them as root"
        if view.reader.saved
        else "run the check as root, as the user of these processes, or with CAP_SYS_PTRACE and "
        "CAP_DAC_READ_SEARCH"
    )
    if unproven is not None:
        raise PgsockError(
            f"which processes hold the {plural(len(held), 'connection')} {leg.describe()} cannot "
            f"be seen, and {unproven}: {remedy}"
        )
    raise PgsockError(
        f"which processes hold the {plural(len(held), 'connection')} {leg.describe()} cannot be "
        f"seen, nor do cgroups tell like ones apart: {remedy}"
    )


def find_clients(view: "View", connections: "Iterable[Connection]") -> Holding:
    """The clients of a PostgreSQL server: their processes where these can be seen, else their
    addresses.
    """
    peers: Counter[str] = Counter()
    processes: Counter[tuple[int, str]] = Counter()
    hidden = 0
    for one in connections:
        if one["peer_pid"] is None:
            peers[one["peer_address"]] += 1
            hidden += one["peer_uid"] is not None
        else:
            processes[one["peer_pid"], one["peer_process"]] += 1
    found = _of_programs(view, processes)
    found.workers += [
        # Unix sockets are no host, to be compared with others.
        Worker((PEERS, peer == OVER_UNIX), f"peer {peer}", number)
        for peer, number in peers.items()
    ]
    if hidden:
        found.notes.append(
            f"not compared: the processes of {plural(hidden, 'connection')} from this host, which "
            "cannot be seen from here"
        )
    return found


def find_processes(
    view: "View", connections: "Sequence[Connection]", listeners: "Sequence[Listener]" = ()
) -> Holding:
    """The processes that hold this host's end of `connections`, and those that hold the
    `listeners` of a server leg, with or without a connection: there the ones of one name that
    listen at the same addresses are alike.
    """
    processes = Counter(
        (one["pid"], one["process"]) for one in connections if one["pid"] is not None
    )
    unseen = len(connections) - sum(processes.values())
    if not listeners:
        found = _of_programs(view, processes)
        found.unseen = unseen
        return found
    inodes, uids = {each.inode for each in listeners}, {each.uid for each in listeners}
    held = find_holders(view.processes(), inodes, uids)
    places: dict[int, set[tuple[bytes, int]]] = {}
    for each in listeners:
        holder = held.get(each.inode)
        if holder is not None:
            processes[holder.pid, holder.command] += 0
            places.setdefault(holder.pid, set()).add((each.address, each.port))
    workers = [
        Worker((PROCESSES, command, frozenset(places.get(pid, ()))), _name(pid, command), number)
        for (pid, command), number in processes.items()
    ]
    return Holding(workers, unseen)


def find_cgroups(view: "View", connections: "Sequence[Connection]") -> Holding:
    """The cgroups (of systemd a unit each) that sockets were made in, whoever holds them: alike
    are those of one user whose names differ by numbers alone.
    """
    counts = Counter(
        (one["uid"], one["cgroup"]) for one in connections if one["cgroup"] is not None
    )
    unseen = len(connections) - sum(counts.values())
    names = _read_cgroup_names(view, {number for _, number in counts})
    workers = []
    for (uid, number), n in counts.items():
        name = names.get(number, f"number {number}")
        kind = (CGROUPS, uid, remove_numbers(name) if number in names else number)
        workers.append(Worker(kind, f"cgroup {clean(name)}", n))
    return Holding(workers, unseen, ["processes cannot be seen from here: cgroups are compared"])


def _of_programs(view: "View", processes: "Mapping[tuple[int, str], int]") -> Holding:
    """Workers with their connections by process id and command; alike are those of one program."""
    table = view.processes()
    workers, notes = [], []
    for (pid, command), number in processes.items():
        line, cgroup = (
            remove_numbers((table.read(pid, name) or b"").decode("utf-8", "surrogateescape"))
            for name in ("cmdline", "cgroup")
        )
        kind = (PROCESSES, table.uid(pid), command, line, cgroup)
        workers.append(Worker(kind, _name(pid, command), number))
        if not line:
            notes = [
                "no command lines were recorded: programs are told apart by name and user alone"
            ]
    return Holding(workers, 0, notes if view.recorded is not None else [])


def _read_cgroup_names(view: "View", numbers: "set[int]") -> "dict[int, str]":
    if view.recorded is not None:
        return view.recorded.cgroups()
    from check_pgsock.pgsock.cgroups import find_names  # few runs come to this

    return find_names(numbers)


def _name(pid: int, command: str) -> str:
    return f"process {pid} ({clean(command)})"
