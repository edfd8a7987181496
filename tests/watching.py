"""Running check_pgsock_thrashing while something happens, and reading what it printed."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.processes import ProcessTable
from tests import support
from tests.support import Completed

SETTLED = 0.25  # seconds; between joining the events' groups and the start of the window


class Check:
    """A running check_pgsock_thrashing, as user nobody: `with Check(...) as check: ...`."""

    def __init__(self, *args: str, prefix: Sequence[str] = (), events: bool = True) -> None:
        """`prefix` is a command that executes its arguments; without `events` there is nothing
        that tells when the window starts but time.
        """
        account = accounts.account_of("nobody")
        support.require("system-python")
        self._events = events
        self.process = subprocess.Popen(
            [*prefix, *support.command("thrashing", *args, python=support.SYSTEM_PYTHON)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=support.environment(support.readable_tree()),
            cwd="/",
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )

    def __enter__(self) -> Check:
        if self._events:
            try:
                support.wait_until(self._is_listening, "the check watches")
            except BaseException:
                self.process.kill()
                self.process.communicate()
                raise
            time.sleep(SETTLED)
        else:
            time.sleep(3 * SETTLED)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.process.kill()
        self.result()

    def result(self) -> Completed:
        """Wait for the end of the check."""
        if self.process.returncode is None:
            self._out, self._err = self.process.communicate(timeout=30)
        return Completed(self.process.returncode, self._out, self._err)

    def _is_listening(self) -> bool:
        # Protocol 4, NETLINK_SOCK_DIAG; groups 1 and 3. The port id is the pid, but for a process
        # that dumps sockets at the same time: the first of its channels has that.
        own = ProcessTable(Deadline(5)).socket_inodes(self.process.pid) or set()
        with open("/proc/net/netlink", encoding="ascii") as stream:
            rows = [line.split() for line in stream][1:]
        return any(
            (row[1], row[3]) == ("4", "00000005")
            and (row[2] == str(self.process.pid) or int(row[9]) in own)
            for row in rows
        )


def thrash(*args: str, events: bool = True) -> Completed:
    """Run the check while nothing happens."""
    with Check(*args, events=events) as check:
        pass
    return check.result()


_COUNTS = re.compile(
    r"counted in (?P<elapsed>\d+\.\d{3}) s: (?P<closed>\d+) closed, (?P<opened>\d+) opened"
    r"(?:; of the closed (?P<probes>\d+) probes?, (?P<lost>\d+) lost)?"
    r"(?:; (?P<failed>\d+) failed connects)?"
)


class Counts(dict[str, int]):
    """The counts of the -v line by name."""

    elapsed = 0.0


def counts(done: Completed) -> Counts:
    """The counts behind the rates of a run at -v."""
    (match,) = filter(None, map(_COUNTS.fullmatch, done.out.splitlines()))
    found = Counts((k, int(v)) for k, v in match.groupdict().items() if v and k != "elapsed")
    found.elapsed = float(match["elapsed"])
    return found


def masked(done: Completed, time_wait: bool = True) -> list[str]:
    """The lines of a run, rates replaced by `count/s` after they were compared with the counts.

    A number that fits none of the counts stays; TIME_WAIT's becomes N unless `time_wait`.
    """
    known = counts(done)
    by_label = {"probe": "probes", "failed_connect": "failed"}

    def perfdata(match: re.Match[str]) -> str:
        label, number = match[1], float(match[2])
        if label == "cycle":
            count = min(known["closed"], known["opened"])
        else:
            count = known[by_label.get(label, label)]
        exact = abs(number - count / known.elapsed) <= 0.001 * (1 + number)
        return f"{label}_rate={count}/s" if exact else match[0]

    def spoken(match: re.Match[str]) -> str:
        for count in sorted({*known.values()}):
            # To one decimal; a lower bound is rounded down.
            if -0.1 <= float(match[0]) - count / known.elapsed <= 0.06:
                return f"{count}/s"
        return match[0]

    first, *rest = done.out.splitlines()
    head, _, tail = first.partition(" | ")
    tail = re.sub(r"(\w+)_rate=([\d.]+)", perfdata, tail)
    if not time_wait:
        tail = re.sub(r"time_wait=\d+", "time_wait=N", tail)
        rest = [line for line in rest if not line.startswith("TIME_WAIT: ")]
    head = re.sub(r"\d+\.\d(?= (?:conn|opened|closed|probes))", spoken, head)
    rest = [re.sub(r"in \d+\.\d{3} s", "in T s", line) for line in rest]
    return [f"{head} | {tail}", *rest]


@contextlib.contextmanager
def listening(family: int, address: str, answer: bool = True) -> Iterator[int]:
    """A listener that accepts, reads until the end and then closes; yields its port."""
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, processes.free_port("::1" if family == socket.AF_INET6 else address)))
        server.listen(100)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    while answer and connection.recv(4096):
                        connection.sendall(b"answer")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def abort(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
