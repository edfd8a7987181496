"""The janitor: ends every process that works below one directory, and removes the directory.

Run as a program with a home's directory and its process id as arguments, it waits until that
process has ended, however it did: also by SIGKILL. It knows nothing but the directory, and
imports nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# What it says on standard output when no signal but SIGKILL ends it any more.
READY = b"!"
# Seconds between two looks at whether our parent is still there: see _wait_for_end().
_LOOK = 1.0
_IPC_RMID = 0  # linux/ipc.h
# src/backend/storage/ipc/dsm_impl.c: the names of POSIX segments.
_SEGMENTS = "/dev/shm/PostgreSQL."


def working_below(directory: Path) -> list[int]:
    """The pids of processes whose working directory is `directory` or lies below it.

    Everything that a lab starts works there (PostgreSQL in its data directory), and lab
    directories are fresh, so these are the lab's own, but for what has a terminal, that is
    somebody who looks around, and what is of a user who owns no directory there. Processes that
    we may not look into are not found; a zombie has no working directory.
    """
    return _working_below(directory, _owners(directory))


def _working_below(directory: Path, owners: set[int]) -> list[int]:
    whole, below = str(directory), f"{directory}/"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
                if (
                    (path == whole or path.startswith(below))
                    and os.stat(f"/proc/{entry}").st_uid in owners
                    and not _has_terminal(entry)
                ):
                    found.append(int(entry))
    return found


def _owners(directory: Path) -> set[int]:
    """The user ids that own the directory or one up to two levels below it, and our own."""
    owners = {os.geteuid()}
    for depth in ("", "*", "*/*"):
        with contextlib.suppress(OSError):
            for path in directory.glob(depth) if depth else (directory,):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    owners.add(status.st_uid)
    return owners


def kill_below(directory: Path, seconds: float = 5.0, owners: set[int] | None = None) -> list[int]:
    """Kill every process that works or has a home below `directory`, and remove the POSIX shared
    memory that it leaves; the pids of those still there at the end.

    initdb's servers use such memory whatever the settings of a lab's. This process and its parent
    are not killed: they only end their own. `owners` are users whose processes are meant, where
    they are known better than by the directories that are left.
    """
    owners = _owners(directory) if owners is None else owners
    segments: set[str] = set()
    spared = {os.getpid(), os.getppid()}
    give_up = time.monotonic() + seconds
    while pids := {*_working_below(directory, owners), *_at_home_below(directory)} - spared:
        if time.monotonic() > give_up:
            break
        # Stopped first, so that what they have is what they leave.
        _signal(pids, signal.SIGSTOP)
        for pid in pids:
            segments.update(_segments(pid))
        _signal(pids, signal.SIGKILL)
        time.sleep(0.01)
    for path in segments:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return sorted(pids)


def remove_shared_memory(data_directory: Path, seconds: float = 1.0) -> None:
    """Remove the System V segment of a killed postmaster, which nobody has attached.

    Its key and id are line 7 of its pid file (miscadmin.h, LOCK_FILE_LINE_SHMEM_KEY). Where it was
    killed before it wrote them, or initdb removed that file after a server of its own had failed,
    the key is the inode of the data directory (sysv_shmem.c), and the directory's owner made it.
    """
    try:
        status = data_directory.stat()
    except OSError:
        return
    default = (ctypes.c_int32(status.st_ino).value, status.st_uid)
    written = _key_and_id(data_directory / "postmaster.pid")
    give_up = time.monotonic() + seconds
    for segment in _system_v_segments():
        if default == (segment.key, segment.creator) or written == (segment.key, segment.id):
            # Who reads /proc may keep the memory of an ended process for a moment.
            while segment.attached and time.monotonic() < give_up:
                time.sleep(0.01)
                segment = next((s for s in _system_v_segments() if s.id == segment.id), segment)
            if not segment.attached:
                ctypes.CDLL(None).shmctl(segment.id, _IPC_RMID, None)


def clear(directory: Path, seconds: float = 30.0) -> None:
    """Kill what works below `directory` and remove it, again and again until both hold.

    Raises OSError where it cannot be removed within `seconds`.
    """
    give_up = time.monotonic() + seconds
    owners: set[int] = set()
    while True:
        owners |= _owners(directory)
        kill_below(directory, owners=owners)
        for path, names, files in os.walk(directory):
            if "postmaster.pid" in files:
                names.clear()
                remove_shared_memory(Path(path))
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            if not os.path.lexists(directory):
                return
        except OSError as error:
            if time.monotonic() > give_up:
                raise
            if isinstance(error, PermissionError):
                _open_directories(directory)
        # A child that was being started may not have arrived in its directory yet.
        time.sleep(0.05)


def _key_and_id(pid_file: Path) -> tuple[int, int] | None:
    """What line 7 of a postmaster's pid file says, or None."""
    # Its owner may be another user: no link is followed, and no pipe waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(pid_file, flags), "rb") as stream:
            key, number = stream.read(4096).splitlines()[6].split()
        # Written without a sign, which it may have.
        return ctypes.c_int32(int(key)).value, int(number)
    except (OSError, IndexError, ValueError):
        return None


class _Segment(NamedTuple):
    key: int
    id: int
    attached: int
    creator: int  # user id


def _system_v_segments() -> Iterator[_Segment]:
    """The System V shared memory of this machine (ipc/shm.c: key shmid perms size cpid lpid nattch
    uid gid cuid ...).
    """
    with contextlib.suppress(OSError), open("/proc/sysvipc/shm", "rb") as stream:
        for line in stream.readlines()[1:]:
            words = line.split()
            yield _Segment(*(int(words[column]) for column in (0, 1, 6, 9)))


def _segments(pid: int) -> Iterator[str]:
    """The files of PostgreSQL's POSIX shared memory that a process maps or has open."""
    names = []
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as stream:
            # address perms offset dev inode path
            names += [words[5] for line in stream if len(words := line.rstrip().split(None, 5)) > 5]
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    for name in names:
        if name.startswith(_SEGMENTS) and not name.endswith(" (deleted)"):
            yield name


def _at_home_below(directory: Path) -> Iterator[int]:
    """The pids of processes that have a home below `directory`: the parents of its janitors."""
    program, below = os.path.basename(__file__).encode(), os.fsencode(f"{directory}/")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/cmdline", "rb") as stream:
                    words = stream.read().split(b"\0")[:-1]
                if len(words) > 2 and os.path.basename(words[-3]) == program:
                    path, parent = words[-2:]
                    if (
                        path.startswith(below)
                        and _status(entry)[1] == parent
                        and _is_ours(entry)
                        and _is_ours(parent.decode())
                    ):
                        yield int(parent)


def _is_ours(pid: str) -> bool:
    """Whether a process (never the first) runs as we do: what others call themselves is theirs."""
    return pid != "1" and os.stat(f"/proc/{pid}").st_uid == os.geteuid()


def _has_terminal(pid: str) -> bool:
    return _status(pid)[4] != b"0"


def _status(pid: str) -> list[bytes]:
    """The words after the name in parentheses: state ppid pgrp session tty_nr ..."""
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return stream.read().rpartition(b")")[2].split()


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _open_directories(directory: Path) -> None:
    """Make the directories such that an owner who is not root can remove what is in them."""
    for path, names, _ in os.walk(directory):
        for name in (".", *names):
            each = os.path.join(path, name)
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(each).st_mode):
                    os.chmod(each, 0o700)


def _wait_for_end(parent: int) -> None:
    """Wait until a byte of standard input comes, or its end, or until our parent has gone.

    A child that our parent forked, and that runs nothing else, keeps that input from its end.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _LOOK)
        if readable:
            return


def main() -> None:
    """Wait for the end of the process of the second argument, our parent, then clear the
    directory of the first.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, READY)
    _wait_for_end(int(sys.argv[2]))
    clear(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
