"""The processes of a recording as the files of a /proc."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from check_pgsock.recording.processes import Recorded


class RecordedProc:
    """The ProcFiles of one moment: raises FileNotFoundError for what is not in it, and
    PermissionError for descriptors that could not be read.

    A command line that is not in it is empty, as a kernel thread's is: who wants to know what a
    process is has its `comm`. `load` gives the processes, when they are first asked for.
    """

    is_live = False

    def __init__(
        self,
        root: str,
        ticks_per_second: int,
        since_boot: float,
        wall_clock: float,
        load: Callable[[], dict[int, Recorded]],
    ) -> None:
        self.root = root
        self.ticks_per_second = ticks_per_second
        self._since_boot = since_boot
        self._wall_clock = wall_clock
        self._load = functools.lru_cache(maxsize=1)(load)

    def since_boot(self) -> float:
        """Seconds from the machine's boot, suspension included, to when it was read."""
        return self._since_boot

    def wall_clock(self) -> float:
        """When it was read, in seconds since 1970."""
        return self._wall_clock

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        files = self.process(parts).files
        name = "/".join(parts[1:])
        if name == "comm":
            return self.process(parts).command.encode("utf-8", "replace") + b"\n"
        if name == "cmdline":
            return files.get(name, b"")
        if name not in files:
            raise _missing(parts)
        return files[name]

    def names(self, *parts: str) -> list[str]:
        """The names in a directory."""
        if not parts:
            return [str(pid) for pid in self._load()]
        if parts[1:] != ("fd",):
            raise _missing(parts)
        return list(self._sockets(parts))

    def link(self, *parts: str) -> str:
        """What a symbolic link says."""
        if len(parts) == 3 and parts[1] == "fd" and parts[2] in self._sockets(parts):
            return f"socket:[{self._sockets(parts)[parts[2]]}]"
        found = self.process(parts).links.get("/".join(parts[1:]))
        if found is None:
            raise _missing(parts)
        return found

    def process(self, parts: tuple[str, ...]) -> Recorded:
        """The process that a path begins with; raises FileNotFoundError."""
        one = self._load().get(int(parts[0])) if parts and parts[0].isdigit() else None
        if one is None:
            raise _missing(parts)
        return one

    def _sockets(self, parts: tuple[str, ...]) -> dict[str, int]:
        sockets = self.process(parts).sockets
        if sockets is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/".join(parts))
        return sockets


def _missing(parts: tuple[str, ...]) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(parts))
