"""What a run looks at: the sockets and the processes of one place and moment.

Live ones by default; those of other network namespaces (--netns), of another /proc (--proc-root).
"""

from check_pgsock.deadline import Deadline
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import ProcessTable
from check_pgsock.sockets.reader import Reader, SocketReader, open_namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from check_pgsock.proc_files import ProcFiles


class View:
    """Sockets by `reader`, processes by `files`; both are of the same place and moment."""

    __slots__ = ("deadline", "files", "reader")

    def __init__(self, reader: Reader, files: "ProcFiles", deadline: Deadline) -> None:
        self.reader = reader
        self.files = files
        self.deadline = deadline

    def processes(self) -> ProcessTable:
        """The processes, to be read."""
        return ProcessTable(self.deadline, self.files)


def open_view(options: "Namespace", deadline: Deadline) -> View:
    """The view that the options `source`, `proc_root` and `netns` choose; raises SourceError."""
    files = LiveProc(options.proc_root or "/proc")
    if options.netns:
        return View(open_namespaces(options.netns, options.source, deadline), files, deadline)
    return View(SocketReader(options.source, options.proc_root, deadline), files, deadline)
