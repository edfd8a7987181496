"""Child processes of the lab: started as an unprivileged user, ended by their pid."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.accounts import Account
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.hosts import LOCAL, Host

# PostgreSQL writes process titles over its arguments and environment, which must be long enough.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "ROOM_FOR_PROCESS_TITLES": "." * 1000,
}


def spawn(
    command: Sequence[str], account: Account | None, log: Path, host: Host = LOCAL
) -> subprocess.Popen[bytes]:
    """Start `command` on `host` as `account` in a session of its own, its output appended to `log`.

    It works in the log's directory: by that the janitor knows it. Its own session keeps a
    terminal's Ctrl-C from it: we alone end it. Raises LabError.
    """
    whole = host.command(list(command), account)
    if host.switches_user:
        account = None
    with open(log, "ab") as output:
        try:
            return subprocess.Popen(
                whole,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT,
                cwd=log.parent,
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        except OSError as error:
            raise LabError(f"{whole[0]} cannot be started: {error.strerror}") from None


def run_to_end(command: Sequence[str], account: Account | None, log: Path, seconds: float) -> None:
    """Run `command` as spawn() does and wait; raises LabError when it fails or takes too long.

    However it is left, nothing that works in the log's directory goes on.
    """
    process = spawn(command, account, log)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} took more than {seconds:g} s; {tail(log)}") from None
    finally:
        if process.poll() is None:
            janitor.kill_below(log.parent)
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
