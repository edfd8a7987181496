"""Files of /proc, read whole: of a live one, or of what a recording keeps of it.

Who reads processes and kernel settings is handed one of these, and cannot tell which it is.
"""

import errno
import os
import stat
import time

from check_pgsock.errors import SourceError

_PART = 65536  # bytes

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

        def wall_clock(self) -> float:
            """When it is read, in seconds since 1970."""

        @property
        def root(self) -> str:
            """What they are read from, for messages; a live one's directory."""

        def read(self, *parts: str) -> bytes:
            """The content of a file, such as read("1", "stat")."""

        def names(self, *parts: str) -> "list[str]":
            """The names in a directory."""

        def link(self, *parts: str) -> str:
            """What a symbolic link says."""


def open_plain(path: str) -> int:
    """Open a regular file; raises OSError, and SourceError for what is none."""
    # O_NONBLOCK: a FIFO in a proc root from elsewhere must not hold the check.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is not a regular file")
    return descriptor


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

    def wall_clock(self) -> float:
        """Now, in seconds since 1970."""
        return time.time()

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        # Without a file object: a check may read some hundred of them.
        descriptor = open_plain(os.path.join(self.root, *parts))
        try:
            content = more = os.read(descriptor, _PART)
            while more:
                more = os.read(descriptor, _PART)
                content += more
            return content
        finally:
            os.close(descriptor)

    def names(self, *parts: str) -> "list[str]":
        """The names in a directory."""
        return os.listdir(os.path.join(self.root, *parts))

    def link(self, *parts: str) -> str:
        """What a symbolic link says."""
        return os.readlink(os.path.join(self.root, *parts))


class NoProc:
    """The processes of a saved /proc/net, which holds none."""

    __slots__ = ("root",)
    is_live = False
    ticks_per_second = 100

    def __init__(self, root: str) -> None:
        self.root = root

    def since_boot(self) -> float:
        """Nothing is dated by it."""
        return 0.0

    def wall_clock(self) -> float:
        """Now: when the moment was saved is not known."""
        return time.time()

    def read(self, *parts: str) -> bytes:
        """No file is there."""
        raise FileNotFoundError(errno.ENOENT, "it is not in a saved moment", "/".join(parts))

    def names(self, *parts: str) -> "list[str]":
        """No directory is there."""
        raise FileNotFoundError(errno.ENOENT, "it is not in a saved moment", "/".join(parts))

    def link(self, *parts: str) -> str:
        """No link is there."""
        raise FileNotFoundError(errno.ENOENT, "it is not in a saved moment", "/".join(parts))
