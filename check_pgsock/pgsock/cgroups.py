"""The names of cgroups that sockets refer to by number.

INET_DIAG_CGROUP_ID is the inode of the cgroup v2 directory that a socket was made in (cgroup_id()
in include/linux/cgroup.h); under systemd it names the unit.
"""

from __future__ import annotations

import os
from collections.abc import Collection

_MOUNTS = "/proc/self/mounts"


def find_names(ids: Collection[int], mounts: str = _MOUNTS) -> dict[int, str]:
    """The paths, below the cgroup v2 mount, of those of `ids` that can be found."""
    wanted = set(ids)
    found: dict[int, str] = {}
    if not wanted:
        return found
    for top in _mount_points(mounts):
        for directory, _, _ in os.walk(top):
            try:
                inode = os.stat(directory).st_ino
            except OSError:
                continue
            if inode in wanted:
                found[inode] = directory[len(top) :] or "/"
                if len(found) == len(wanted):
                    return found
    return found


def _mount_points(mounts: str) -> list[str]:
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            fields = [line.split() for line in file]
    except OSError:
        return []
    # Blanks in a path are octal (fstab(5)).
    return [
        each[1].replace("\\040", " ") for each in fields if len(each) > 2 and each[2] == "cgroup2"
    ]
