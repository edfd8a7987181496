"""Child processes of the lab: started as an unprivileged user, ended by their pid."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from check_pgsock.errors import PgsockError


class LabError(PgsockError):
    """A throw-away server cannot be had, or did not do what it should."""


class Account(NamedTuple):
    """The user and group id a server runs as."""

    uid: int
    gid: int


# PostgreSQL writes process titles over its arguments and environment, which must be long enough.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "ROOM_FOR_PROCESS_TITLES": "." * 1000,
}


def account_of(user: str) -> Account | None:
    """The ids of `user` where this process is root, else None (servers then run as ourselves).

    Raises LabError for an unknown user, and for root: PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise LabError(f"there is no user '{user}' to run a server as; name another") from None
    if entry.pw_uid == 0:
        raise LabError("PostgreSQL refuses to run as root; name an unprivileged user")
    return Account(entry.pw_uid, entry.pw_gid)


def own(path: Path, account: Account | None) -> None:
    """Give a path that we made to `account`."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def spawn(command: Sequence[str], account: Account | None, log: Path) -> subprocess.Popen[bytes]:
    """Start `command` as `account` in a session of its own, its output appended to `log`.

    Its own session keeps a terminal's Ctrl-C from it: we alone end it. Raises LabError.
    """
    with open(log, "ab") as output:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        except OSError as error:
            raise LabError(f"{command[0]} cannot be started: {error.strerror}") from None


def run_to_end(command: Sequence[str], account: Account | None, log: Path, seconds: float) -> None:
    """Run `command` as spawn() does and wait; raises LabError when it fails or takes too long.

    However it is left, nothing of the command's process group goes on.
    """
    process = spawn(command, account, log)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} took more than {seconds:g} s; {tail(log)}") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        raise LabError(f"{command[0]} ended with exit code {code}; {tail(log)}")


def end(process: subprocess.Popen[bytes], number: signal.Signals, seconds: float) -> bool:
    """Send the signal `number` and wait up to `seconds`; then kill. Whether it ended by itself.

    A stopped process is continued first.
    """
    if process.poll() is None:
        # send_signal() does nothing where the process was reaped since.
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # However this wait was left: not a signal to a pid that was reaped.
            process.kill()
            process.wait()
    return True


def running_in(directory: Path) -> list[int]:
    """The pids of processes whose working directory is `directory` (as far as we may read it).

    Every PostgreSQL process works in its data directory; ours are fresh, so they name our own.
    """
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd") == str(directory):
                    found.append(int(entry))
    return found


def kill_all_in(directory: Path, seconds: float = 5.0) -> None:
    """Kill every process that works in `directory`, a fresh one of ours, and wait for their end.

    Raises LabError where one is still there after `seconds`.
    """
    end_of_wait = time.monotonic() + seconds
    while pids := running_in(directory):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end_of_wait:
            raise LabError(f"processes {pids} of {directory} do not end, even when killed")
        time.sleep(0.01)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that nobody uses and that no outgoing connection will be given."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", "rb") as stream:
        lowest = int(stream.read().split()[0])
    top = min(max(lowest, 20000), 65536)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(200):
        port = random.randrange(top - 10000, top)
        # Without SO_REUSEADDR a port with sockets in TIME_WAIT is refused, too.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, port))
            return port
    raise LabError(f"no free TCP port found on {host}")


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log on one line, for an error's sentence."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"its log cannot be read: {error}"
    return "its log ends: " + " / ".join(text.strip().splitlines()[-lines:])
