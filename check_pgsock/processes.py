"""Processes as /proc shows them: readers in `ProcessTable`, parsers beside it.

Authority: proc(5). All of it but file descriptors, `cwd` and `exe` is readable by anyone, unless
/proc is mounted with hidepid.
"""

import os
import re
import socket
import time

from check_pgsock.deadline import Deadline
from check_pgsock.proc_files import LiveProc
from check_pgsock.sockets.model import fold_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.proc_files import ProcFiles

# What PostgreSQL's server processes call themselves (task comm), in its own and others' packages.
POSTGRES_COMMANDS = frozenset(("postgres", "postmaster", "edb-postgres"))
TITLE_PREFIX = "postgres: "
# host(port) or [local], as set_ps_display gets it from BackendInitialize; nothing that a user may
# name comes after.
_CLIENT = re.compile(r"(?:^| )(?:([0-9A-Fa-f:.]+)\((\d{1,5})\)|\[local\])(?= |$)")


class Process:
    """One process; `arguments` is its command line, or [title] where the process rewrote it."""

    __slots__ = ("arguments", "command", "parent", "pid", "uid")

    def __init__(
        self, pid: int, parent: int, command: str, uid: int, arguments: "list[str]"
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.command = command
        self.uid = uid
        self.arguments = arguments

    @property
    def title(self) -> str:
        """The command line as ps shows it."""
        return " ".join(self.arguments)


def parse_stat(raw: bytes) -> "tuple[str, int]":
    """Command and parent of /proc/PID/stat. The command may hold any character, also `)`."""
    opening, closing = raw.index(b"("), raw.rindex(b")")
    parent = int(raw[closing + 2 :].split(b" ", 2)[1])
    return raw[opening + 1 : closing].decode("utf-8", "replace"), parent


def parse_start_ticks(raw: bytes) -> int:
    """The start of /proc/PID/stat, field 22: clock ticks since the machine's boot."""
    return int(raw[raw.rindex(b")") + 2 :].split(b" ", 20)[19])


def parse_cpu_ticks(raw: bytes) -> int:
    """User and system time of a process, fields 14 and 15 of /proc/PID/stat, in clock ticks."""
    fields = raw[raw.rindex(b")") + 2 :].split(b" ", 13)
    return int(fields[11]) + int(fields[12])


def parse_title_area(raw: bytes) -> "Optional[int]":
    """Bytes from arg_start to env_end, fields 48 and 51 of /proc/PID/stat: where a process may
    write its title. None for a stranger's process, of which the kernel tells zeros.
    """
    fields = raw[raw.rfind(b")") + 2 :].split()
    if len(fields) < 49:
        return None
    start, end = int(fields[45]), int(fields[48])
    return end - start if 0 < start < end else None


def parse_ids(raw: bytes, name: bytes) -> int:
    """The effective id on the line `name` (b"Uid" or b"Gid") of /proc/PID/status."""
    for line in raw.splitlines():
        if line.startswith(name + b":"):
            return int(line.split()[2])
    raise ValueError(f"no {name.decode()} line")


def parse_command_line(raw: bytes) -> "list[str]":
    """The arguments of /proc/PID/cmdline; a rewritten title is one argument without its padding."""
    return raw.rstrip(b"\0").decode("utf-8", "replace").split("\0")


def parse_title_peer(title: str) -> "Optional[tuple[bytes, int]]":
    """The packed address and port of the client in a backend's title, or None.

    Read from the right: user and database names stand left of it and may look like one.
    """
    found = None
    for match in _CLIENT.finditer(title):
        found = match
    if found is None or found[1] is None:
        return None
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return fold_address(socket.inet_pton(family, found[1])), int(found[2])
        except OSError:
            continue
    return None


class ProcessTable:
    """Reads processes from `files`; a process that ends while it is read is left out."""

    def __init__(self, deadline: Deadline, files: "Optional[ProcFiles]" = None) -> None:
        self._deadline = deadline
        self.files: ProcFiles = LiveProc() if files is None else files

    def path(self, pid: int, *parts: str) -> str:
        """The path of a process's file, of a live /proc."""
        return os.path.join(self.files.root, str(pid), *parts)

    def commands(self) -> "dict[int, tuple[str, int]]":
        """Command and parent of every process that may be seen, by process id."""
        self._deadline.doing = f"reading the processes of {self.files.root}"
        found = {}
        try:
            names = self.files.names()
        except OSError:
            return {}
        for name in names:
            if name.isdigit():
                self._deadline.remaining()
                raw = self.read(int(name), "stat")
                if raw:
                    try:
                        found[int(name)] = parse_stat(raw)
                    except (ValueError, IndexError):
                        continue
        return found

    def process(self, pid: int, command: str, parent: int) -> "Optional[Process]":
        """The whole process, or None if it is gone."""
        status, line = self.read(pid, "status"), self.read(pid, "cmdline")
        if not status or line is None:
            return None
        try:
            uid = parse_ids(status, b"Uid")
        except (ValueError, IndexError):
            return None
        return Process(pid, parent, command, uid, parse_command_line(line))

    def started(self, pid: int) -> "Optional[tuple[str, float]]":
        """Command of a process, and its start by the wall clock of now; None if it is gone.

        As exact as a clock tick (10 ms), as long as the wall clock was not set since.
        """
        raw = self.read(pid, "stat")
        if not raw:
            return None
        boot = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            return parse_stat(raw)[0], boot + self._start(raw)
        except (ValueError, IndexError):
            return None

    def age(self, pid: int, now: "Optional[float]" = None) -> "Optional[float]":
        """Seconds from a process's start to `now` (seconds since the machine's boot; else when it
        is read), as exact as a clock tick; None if it is gone.
        """
        raw = self.read(pid, "stat")
        return self.age_of(raw, now) if raw else None

    def age_of(self, raw: bytes, now: "Optional[float]" = None) -> "Optional[float]":
        """The same, of its /proc/PID/stat."""
        try:
            read = self.files.since_boot() if now is None else now
            return max(read - self._start(raw), 0.0)
        except (ValueError, IndexError):
            return None

    def _start(self, raw: bytes) -> float:
        return parse_start_ticks(raw) / self.files.ticks_per_second

    def uid(self, pid: int) -> "Optional[int]":
        """The effective user id of a process, or None if it is gone."""
        if self.files.root == "/proc":
            # Its directory is that user's, dumpable or not (task_dump_owner in fs/proc/base.c), and
            # the kernel writes a status in ten times the time.
            try:
                return os.stat(self.path(pid)).st_uid
            except OSError:
                return None
        return self._id(pid, b"Uid")

    def group(self, pid: int) -> "Optional[int]":
        """The effective group id of a process, or None if it is gone."""
        return self._id(pid, b"Gid")

    def _id(self, pid: int, name: bytes) -> "Optional[int]":
        try:
            return parse_ids(self.read(pid, "status") or b"", name)
        except (ValueError, IndexError):
            return None

    def sees_all(self) -> bool:
        """Whether all processes of the machine are in this table: process 2 is a kernel thread in
        the first process namespace alone (PF_KTHREAD in field 9 of its stat).
        """
        raw = self.read(2, "stat") or b""
        fields = raw[raw.rfind(b")") + 2 :].split()
        return len(fields) > 6 and bool(int(fields[6]) & 0x00200000)

    def shares_namespaces(self, pid: int) -> bool:
        """Whether a process is known to live among the same files, processes and users as we."""
        if not self.files.is_live:
            return False
        try:
            return all(
                self.files.link(str(pid), "ns", name) == os.readlink(f"/proc/self/ns/{name}")
                for name in ("mnt", "pid", "user")
            )
        except OSError:
            return False

    def socket_inodes(self, pid: int) -> "Optional[set[int]]":
        """Inodes of the sockets a process holds; None where its descriptors may not be read."""
        try:
            names = self.files.names(str(pid), "fd")
        except OSError:
            return None
        inodes = set()
        for name in names:
            try:
                target = self.files.link(str(pid), "fd", name)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
        return inodes

    def read(self, pid: int, name: str) -> "Optional[bytes]":
        """A file of a process, or None if that is gone or may not be read."""
        try:
            return self.files.read(str(pid), name)
        except OSError:
            return None
