"""What a run looks at: the sockets and the processes of one place and moment.

Live ones by default; those of other network namespaces (--netns), of another /proc (--proc-root),
of a recording (--source FILE).
"""

from check_pgsock.deadline import Deadline
from check_pgsock.option_values import names_recording
from check_pgsock.proc_files import LiveProc, NoProc
from check_pgsock.processes import ProcessTable
from check_pgsock.sockets.reader import Reader, SocketReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Optional

    from check_pgsock.proc_files import ProcFiles
    from check_pgsock.recording.replay import Replay


class View:
    """Sockets by `reader`, processes by `files`; both are of the same place and moment.

    `recorded` is what else a recording tells; None for what is none. `programs` is what
    servers.candidates.list_programs() has found, and when.
    """

    __slots__ = ("deadline", "files", "programs", "reader", "recorded")

    def __init__(
        self,
        reader: Reader,
        files: "ProcFiles",
        deadline: Deadline,
        recorded: "Optional[Replay]" = None,
    ) -> None:
        self.reader = reader
        self.files = files
        self.deadline = deadline
        self.recorded = recorded
        self.programs: Optional[tuple[float, dict[int, str]]] = None

    def processes(self) -> ProcessTable:
        """The processes, to be read."""
        return ProcessTable(self.deadline, self.files)


def open_view(options: "Namespace", deadline: Deadline) -> View:
    """The view that the options `source`, `moment`, `proc_root` and `netns` choose.

    Raises SourceError.
    """
    if names_recording(options.source):
        from check_pgsock.recording.replay import open_recording  # zipfile takes 10 ms

        return open_recording(options.source, options.moment, options.netns, deadline)
    files = LiveProc(options.proc_root or "/proc")
    if options.netns:
        from check_pgsock.sockets.pooled_reader import open_namespaces

        return View(open_namespaces(options.netns, options.source, deadline), files, deadline)
    reader = SocketReader(options.source, options.proc_root, deadline)
    return View(reader, NoProc(files.root) if reader.saved else files, deadline)
