"""A client program as a process of its own, with any number of sessions, that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import check_pgsock
from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, Lab
from check_pgsock.pgsock.lab.wire import Session

_START = "from check_pgsock.pgsock.lab.client_process import main; main()"


class ClientProcess:
    """A context manager: a process with `count` sessions, each running `sql` if there is any.

    On enter it waits until all sessions are there and all statements sent; on exit the process is
    killed. It ends by itself when we do. `backend_pids` are those of its sessions; raises LabError
    where one is refused.
    """

    def __init__(self, lab: Lab, count: int, sql: str = "", *, via: str = "postgresql") -> None:
        self.backend_pids: list[int] = []
        self._lab = lab
        server = lab.server(via)
        self._task = json.dumps([server.host, server.port, count, sql])
        self._process: subprocess.Popen[str] | None = None
        self._asking = threading.Lock()

    @property
    def pid(self) -> int:
        """Its process id; raises LabError when it was not started."""
        if self._process is None:
            raise LabError("the client process was not started")
        return self._process.pid

    def count_lost(self) -> int:
        """How many of its sessions the server has ended; all of them once it has ended itself."""
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            return 0
        try:
            with self._asking:
                self._process.stdin.write("lost\n")
                self._process.stdin.flush()
                return int(self._process.stdout.readline())
        except (OSError, ValueError):
            return len(self.backend_pids)

    def kill(self) -> None:
        """Kill it, as the kernel's OOM killer does: nobody says good-bye to the server."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> ClientProcess:
        host = self._lab.client_host
        tree = str(Path(check_pgsock.__file__).parent.parent)
        self._process = subprocess.Popen(
            host.command([sys.executable, "-c", _START]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**processes.ENVIRONMENT, "PYTHONPATH": tree},
            cwd=self._lab.home.path,
            start_new_session=True,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{self._task}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer.startswith("["):
                raise LabError(f"a client process failed: {answer.strip() or 'it ended'}")
            self.backend_pids = json.loads(answer)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main() -> None:
    """Open the sessions that a line of standard input asks for, and hold them until its end; each
    further line asks how many are lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host, port, count, sql = json.loads(sys.stdin.readline())
    opened = []
    try:
        for _ in range(count):
            opened.append(Session.connect(host, port, APPLICATION, DATABASE))
        for session in opened:
            if sql:
                session.simple_query(sql)
    except (LabError, OSError) as error:
        print(error, flush=True)
        return
    print(json.dumps([session.backend_pid for session in opened]), flush=True)
    with contextlib.suppress(OSError):
        for _ in sys.stdin:
            print(sum(session.is_lost() for session in opened), flush=True)
    os._exit(0)
