"""What may be left on a machine by processes that were killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from check_pgsock.pgsock.lab import janitor


def naming(path: Path) -> list[tuple[int, list[str]]]:
    """The processes (pid, words) whose command line names `path` or something below it."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if str(path) in line:
                found.append((pid, line.rstrip("\0").split("\0")))
    return found


def namespaces_below(directory: Path | None) -> set[str]:
    """The network namespaces, other than ours, of what works below `directory`, or of all."""
    found = set()
    for pid in _pids() if directory is None else janitor.working_below(directory):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    return found - {os.readlink("/proc/self/ns/net")}


def system_v_keys() -> set[int]:
    """The keys of the System V shared memory of this machine."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {int(line.split()[0]) for line in lines}


def machine_leftovers() -> set[str]:
    """Shared memory that nobody uses: System V segments, and POSIX segments of PostgreSQL."""
    found = set()
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        key, number, *_, attached = line.split()[:7]
        if attached == "0":
            found.add(f"System V segment {number} with key {key}")
    segments = {str(path) for path in Path("/dev/shm").glob("PostgreSQL.*")}
    if segments:
        # Whoever had one may have ended, and removed it, while we looked at who has which.
        found |= {path for path in segments - set(_mapped()) if os.path.exists(path)}
    return found


def _mapped() -> Iterator[str]:
    for pid in _pids():
        with contextlib.suppress(OSError):
            yield from Path(f"/proc/{pid}/maps").read_text(errors="replace").split()


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
