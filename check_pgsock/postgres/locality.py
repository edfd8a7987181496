"""Whether the server behind a connection runs on this host, which its address does not tell.

127.0.0.1 may be a tunnel or a pooler, and an address of another host may be a name of this one.
The proof is the backend itself: pg_backend_pid() names a process here, that is a postgres, and
started when the backend says it did.
"""

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import POSTGRES_COMMANDS, Process, ProcessTable, parse_stat
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# A backend notes its start just after its process began (measured: 0 to 12 ms later, 10 ms of it
# the kernel's clock tick); a slewed clock moves the two apart while a pooler keeps the session.
TOLERANCE = 0.5


class Locality:
    """Whether the server is proven to be on this host, and the reason, either way."""

    __slots__ = ("proven", "reason")

    def __init__(self, proven: bool, reason: str) -> None:
        self.proven = proven
        self.reason = reason


def find_locality(
    backend_pid: int,
    backend_start: "Optional[float]",
    deadline: Deadline,
    root: str = "/proc",
) -> Locality:
    """Look for the backend among the processes of this host."""
    deadline.doing = f"looking for process {backend_pid}"
    found = ProcessTable(deadline, LiveProc(root)).started(backend_pid)
    return judge_locality(backend_pid, backend_start, found)


def judge_locality(
    backend_pid: int,
    backend_start: "Optional[float]",
    found: "Optional[tuple[str, float]]",
) -> Locality:
    """Compare the backend's word with the process `found` here: its command and start."""
    backend = f"its backend {backend_pid}"
    if found is None:
        return Locality(False, f"{backend} is no process that can be seen here")
    command, start = found
    if command not in POSTGRES_COMMANDS:
        return Locality(False, f"{backend} is here a process called {clean(command)}")
    if backend_start is None:
        return Locality(False, f"{backend} hides when it started")
    apart = abs(start - backend_start)
    if apart > TOLERANCE:
        return Locality(False, f"{backend} and the process here started {apart:.1f} s apart")
    return Locality(True, f"{backend} is a postgres process here, started {apart:.3f} s apart")


def find_postmaster(backend_pid: int, table: ProcessTable) -> Process:
    """The postmaster of a backend that is proven to be here: its parent.

    Raises SourceError where that cannot be read, or is gone: the backend has another parent then.
    """
    try:
        parent = parse_stat(table.read(backend_pid, "stat") or b"")[1]
        command, above = parse_stat(table.read(parent, "stat") or b"")
    except (ValueError, IndexError):
        process, command = None, ""
    else:
        process = table.process(parent, command, above)
    if process is None or command not in POSTGRES_COMMANDS:
        raise SourceError(
            f"the postmaster of backend {backend_pid} cannot be seen here; run the check again, or "
            "see to the mount options of /proc (hidepid)"
        )
    return process
