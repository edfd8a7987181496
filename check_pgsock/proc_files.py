"""Files of /proc, read whole: of a live one, or of what a recording keeps of it.

Who reads processes and kernel settings is handed one of these, and cannot tell which it is.
"""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class ProcFiles(Protocol):
        """What all of them can do; each method raises OSError, as the file system would."""

        @property
        def is_live(self) -> bool:
            """Whether what is read is so now: other files and programs fit to it."""

        @property
        def ticks_per_second(self) -> int:
            """What times in /proc/PID/stat count in."""

        def since_boot(self) -> float:
            """Seconds from the machine's boot, suspension included, to when it is read."""

        @property
        def root(self) -> str:
            """What they are read from, for messages; a live one's directory."""

        def read(self, *parts: str) -> bytes:
            """The content of a file, such as read("1", "stat")."""

        def names(self, *parts: str) -> "list[str]":
            """The names in a directory."""

        def link(self, *parts: str) -> str:
            """What a symbolic link says."""


class LiveProc:
    """The files below a proc root."""

    __slots__ = ("root",)
    is_live = True

    def __init__(self, root: str = "/proc") -> None:
        self.root = root

    @property
    def ticks_per_second(self) -> int:
        """What times in /proc/PID/stat count in."""
        return os.sysconf("SC_CLK_TCK")

    def since_boot(self) -> float:
        """Seconds from the machine's boot, suspension included, to now."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        with open(os.path.join(self.root, *parts), "rb", 0) as file:
            return file.read()

    def names(self, *parts: str) -> "list[str]":
        """The names in a directory."""
        return os.listdir(os.path.join(self.root, *parts))

    def link(self, *parts: str) -> str:
        """What a symbolic link says."""
        return os.readlink(os.path.join(self.root, *parts))
