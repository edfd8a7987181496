"""The janitor: ends every process that works below one directory, and removes the directory.

Run as a program with a lab's directory as its argument, it waits until its standard input ends,
which is when the lab has ended, however it did: also by SIGKILL. It knows nothing but the
directory, and imports nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def working_below(directory: Path) -> list[int]:
    """The pids of processes whose working directory is `directory` or lies below it.

    Everything that a lab starts works there (PostgreSQL in its data directory), and lab
    directories are fresh, so these are the lab's own. Processes that we may not look into are
    not found; a zombie has no working directory.
    """
    whole, below = str(directory), f"{directory}/"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
                if path == whole or path.startswith(below):
                    found.append(int(entry))
    return found


def kill_below(directory: Path, seconds: float = 5.0) -> list[int]:
    """Kill every process that works below `directory`; the pids of those still there at the end."""
    give_up = time.monotonic() + seconds
    while pids := working_below(directory):
        if time.monotonic() > give_up:
            return pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return []


def remove_shared_memory(data_directory: Path) -> None:
    """Remove the System V segment of a killed postmaster: line 7 of its pid file is key and id
    (miscadmin.h, LOCK_FILE_LINE_SHMEM_KEY).
    """
    try:
        lines = (data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    if len(lines) >= 7 and len(words := lines[6].split()) == 2:
        subprocess.run(["ipcrm", "-m", words[1]], check=False, stderr=subprocess.DEVNULL)


def clear(directory: Path, seconds: float = 30.0) -> None:
    """Kill what works below `directory` and remove it, again and again until both hold.

    Raises OSError where it cannot be removed within `seconds`.
    """
    give_up = time.monotonic() + seconds
    while True:
        kill_below(directory)
        for path, names, files in os.walk(directory):
            if "postmaster.pid" in files:
                names.clear()
                remove_shared_memory(Path(path))
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            if not directory.exists():
                return
        except OSError:
            if time.monotonic() > give_up:
                raise
        # A child that was being started may not have arrived in its directory yet.
        time.sleep(0.05)


def main() -> None:
    """Wait for the end of standard input, then clear the directory of the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    clear(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
