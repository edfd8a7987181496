"""The names of cgroups that sockets refer to by number.

INET_DIAG_CGROUP_ID is the inode of the cgroup v2 directory that a socket was made in (cgroup_id()
in include/linux/cgroup.h); under systemd it names the unit.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from check_pgsock.servers.cgroup_proof import MOUNTS, mount_points


def find_names(ids: Collection[int], mounts: str = MOUNTS) -> dict[int, str]:
    """The paths, below the cgroup v2 mount, of those of `ids` that can be found."""
    wanted = set(ids)
    found: dict[int, str] = {}
    if not wanted:
        return found
    for top in mount_points(mounts):
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
