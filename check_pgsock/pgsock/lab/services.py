"""The services of a drill: a check each, on one endpoint and leg of the lab, and how to run it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.lab import DATABASE, MAX_CLIENT_CONN, MONITOR, Lab
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.postgres.client import CONSOLE

STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
# Cores and seconds that the pool of the drill is judged by, whatever the machine has.
CORES = 4
_POOL_WINDOW = 2
_CONNECT_TIMEOUT = 2  # seconds, libpq's least
# Checks that ask the server, and the database that each connects to: the session of `sessions` is
# none of those that it judges.
_CONNECT_TO = {"pool_size": DATABASE, "pool_wait": CONSOLE, "sessions": "postgres"}
# Checks that keep something for their next run.
_KEEP = ("accept_queue", "pool_size", "pool_wait", "sessions")
# What nobody uses for so many seconds counts as leaked in a drill, where faults last seconds.
_UNUSED = ("--keep", "0", "--idle-for", "4", "--idle-in-transaction-for", "4", "-w", "3",
           "-c", "20")  # fmt: skip


class Service(NamedTuple):
    """A check on an endpoint: `via` is postgresql or pgbouncer; both legs are on their own host."""

    name: str
    check: str
    via: str
    leg: str
    arguments: tuple[str, ...]

    def command(self, lab: Lab, day: int) -> list[str]:
        """The command line of the installed executable on this lab; raises LabError without it.

        What a check remembers for a day it remembers for this `day` of the drill.
        """
        executable = Path(sys.executable).with_name(f"check_pgsock_{self.check}")
        if not executable.exists():
            raise LabError(f"{executable.name} is not installed beside {sys.executable}")
        server = lab.server(self.via)
        if self.check in _CONNECT_TO:
            where = ["--dsn", _dsn(server, _CONNECT_TO[self.check])]
        else:
            where = ["-p", str(server.port), "--leg", self.leg]
        if self.check == "pool_size":
            # It judges the most client backends of a day.
            where += ["--state-key", str(day)]
            where += ["--console", _dsn(lab.pgbouncer, CONSOLE)] if lab.pooled else []
        if self.check in _KEEP:
            where += ["--state-dir", str(_state(lab))]
        host = lab.client_host if self.leg == "client" else lab.server_host
        return host.command([str(executable), *where, *self.arguments])


SERVICES = (
    Service("saturation", "saturation", "postgresql", "server", ()),
    Service("saturation@pgbouncer", "saturation", "pgbouncer", "server",
            ("--limit", str(MAX_CLIENT_CONN))),
    Service("close_wait", "close_wait", "postgresql", "server", ()),
    Service("close_wait:client", "close_wait", "postgresql", "client", ()),
    Service("thrashing", "thrashing", "postgresql", "server", ("--window", "1")),
    Service("thrashing@pgbouncer", "thrashing", "pgbouncer", "server", ("--window", "1")),
    Service("leak", "leak", "postgresql", "server", _UNUSED),
    Service("leak@pgbouncer", "leak", "pgbouncer", "server", _UNUSED),
    # Drops are judged over a few seconds: those of one fault are none of the next.
    Service("accept_queue", "accept_queue", "postgresql", "server",
            ("--over", "5", "--accept-wait-critical", "60")),
    Service("workers:client", "workers", "postgresql", "client", ()),
    # A window as short as a fault tells too little of parallel statements.
    Service("pool_size", "pool_size", "postgresql", "server",
            ("--cores", str(CORES), "--since", str(_POOL_WINDOW), "--parallelism", "1")),
    # Ends of sessions are counted over a few seconds as well.
    Service("sessions", "sessions", "postgresql", "server",
            ("--database", DATABASE, "--over", "5", "--min-sessions", "20")),
    Service("pool_wait@pgbouncer", "pool_wait", "pgbouncer", "server", ("--over", "5")),
)  # fmt: skip


class Run(NamedTuple):
    """One run: monotonic seconds of its start and end, the service state, and the first line."""

    started: float
    ended: float
    state: str
    line: str


def run_service(service: Service, lab: Lab, day: int) -> Run:
    """Run the check once, on this `day` of the drill; raises LabError when what it leaves is no
    service state.
    """
    command = service.command(lab, day)
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            cwd=lab.home.path,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{service.name} cannot be run: {error}") from None
    line = done.stdout.partition("\n")[0]
    state = STATES[done.returncode] if 0 <= done.returncode < len(STATES) else ""
    # A crash of Python exits 1, too: the status line has to say the same.
    if done.stderr or not line.startswith(f"PGSOCK_{service.check.upper()} {state} - "):
        said = (done.stderr or line).strip().splitlines()[-1:] or ["nothing"]
        raise LabError(f"{service.name} ended with exit code {done.returncode} and said: {said[0]}")
    return Run(started, time.monotonic(), state, line.partition(" | ")[0])


def _dsn(server: Server, database: str) -> str:
    """How checks connect. They give up soon: the longer two runs take on a stopped server, the more
    polls leave a connection in CLOSE_WAIT beside them, and close_wait tells of more than a few.
    """
    return f"{server.dsn(database, MONITOR)} connect_timeout={_CONNECT_TIMEOUT}"


def _state(lab: Lab) -> Path:
    """The directory that a lab's checks keep their samples in."""
    path = lab.home.path / "state"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
