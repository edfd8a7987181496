"""Whether a process is alone in its cgroup v2, but for its descendants: what everybody may read.

A socket tells the cgroup that it was made in (INET_DIAG_CGROUP_ID, the inode of its directory):
cgroup_sk_alloc() in kernel/cgroup/cgroup.c takes that of the process that makes it. systemd gives
each service one of its own, and its processes cannot leave it. Where a postmaster and its
descendants are all that is in a cgroup, and below it, no other program there made the listener.
Not excluded is a program that made it there before root, or a user whom systemd delegated the
cgroup to, moved it elsewhere.

A login session's scope, which may hold a shell, and a pod's or Patroni's service prove nothing;
nor does a socket unit, whose listener is of its own cgroup, or of init's. Authority: cgroups(7),
Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

import os

from check_pgsock.processes import ProcessTable, parse_stat
from check_pgsock.servers.candidates import children_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

MOUNTS = "/proc/self/mounts"
_UNIFIED = b"0::"  # the line of cgroup v2 in /proc/PID/cgroup


def is_alone(table: ProcessTable, pid: int, cgroup: int, mounts: str = MOUNTS) -> bool:
    """Whether a process is in the `cgroup` of this inode, and nothing else is but its descendants;
    False where that cannot be told, and of the root, where everything is that has no other.
    """
    path = parse_path(table.read(pid, "cgroup") or b"") if table.files.is_live else None
    directory = None if path is None else _find_directory(path, cgroup, mounts)
    if directory is None:
        return False
    known = {pid, *children_of(table, pid)}
    try:
        members = set(_members(directory))
        # (In a process namespace the members outside of it are 0.)
        others = {one for one in members - known if not _descends(table, one, pid)}
        return pid in members and (not others or others.isdisjoint(_members(directory)))
    except (OSError, ValueError):
        return False


def parse_path(raw: bytes) -> "Optional[str]":
    """The path of the cgroup v2 in /proc/PID/cgroup; None for the root of what can be seen, for
    one outside of it, and for one that is removed.
    """
    for line in raw.splitlines():
        if line.startswith(_UNIFIED):
            path = os.fsdecode(line[len(_UNIFIED) :])
            if path == "/" or path.startswith("/..") or path.endswith(" (deleted)"):
                return None
            return path
    return None


def mount_points(mounts: str = MOUNTS) -> "list[str]":
    """Where cgroup v2 is mounted; none where that cannot be read."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            fields = [line.split() for line in file]
    except OSError:
        return []
    # Blanks in a path are octal (fstab(5)).
    return [
        each[1].replace("\\040", " ") for each in fields if len(each) > 2 and each[2] == "cgroup2"
    ]


def _find_directory(path: str, inode: int, mounts: str) -> "Optional[str]":
    """The directory of a cgroup, if it has this inode: a mount may begin further down."""
    for top in mount_points(mounts):
        directory = top.rstrip("/") + path
        try:
            if os.stat(directory).st_ino == inode:
                return directory
        except OSError:
            continue
    return None


def _members(directory: str) -> "Iterator[int]":
    """The processes in a cgroup and below it. Raises OSError (of a threaded one, too, which does
    not tell them) and ValueError.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, _, _ in os.walk(directory, onerror=fail):
        with open(os.path.join(parent, "cgroup.procs"), "rb") as file:
            for line in file:
                yield int(line)


def _descends(table: ProcessTable, pid: int, ancestor: int) -> bool:
    """Whether a process is a descendant of another; one that is gone is not."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = parse_stat(table.read(pid, "stat") or b"")[1]
        except (ValueError, IndexError):
            return False
    return False
