"""The demo: the checks against a real PostgreSQL whose load is driven up and back."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from check_pgsock.pgsock.lab import binaries, load
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.text import plural

MAX_CONNECTIONS = 20
STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Interrupted(Exception):
    """A signal asked for the end."""


class Signals:
    """A context manager that takes note of the signals that ask for the end.

    Its handler raises nothing: what is started and what is to be removed stay in step.
    """

    def __init__(self) -> None:
        self.received = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._stack.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.received:
            raise Interrupted

    def _note(self, number: int, _: object) -> None:
        self.received = number


class Stage:
    """Runs the checks on the demo's server and says what they show."""

    def __init__(self, server: PostgresServer, state_directory: str, signals: Signals) -> None:
        self.server = server
        self.state_directory = state_directory
        self.wrong = 0
        self._signals = signals

    def title(self, text: str) -> None:
        """Announce a check."""
        print(f"\n== {text}", flush=True)

    def show(self, described: str, expected: str, check: str, *arguments: str) -> None:
        """Run a check under the present load, and compare its service state."""
        self._signals.check()
        print(f"\n   load: {described}", flush=True)
        print(f"   $ {shlex.join([check, *arguments])}", flush=True)
        done = self.run(check, *arguments)
        for line in done.stdout.splitlines() or [""]:
            print(f"   {line}")
        state = STATES[done.returncode] if 0 <= done.returncode < 4 else "no service state"
        # A crash of Python exits 1, too: the status line has to say the same.
        said = done.stdout.startswith(f"{check[len('check_') :].upper()} {state} - ")
        right = said and state == expected
        verdict = "as expected" if right else f"WRONG, expected {expected}"
        self.wrong += not right
        print(f"   exit code {done.returncode}: {state}, {verdict}", flush=True)

    def run(self, check: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a check; raises LabError if that fails."""
        executable = Path(sys.executable).with_name(check)
        try:
            done = subprocess.run(
                [str(executable), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=30,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{executable} cannot be run: {error}") from None
        self._signals.check()
        return done


def saturation(stage: Stage) -> None:
    """Connections against the limit, which the check finds by itself."""
    stage.title("saturation: established connections against the usable slots")
    check = ("check_pgsock_saturation", "-p", str(stage.server.port))
    with load.HeldSessions(stage.server) as sessions:
        steps = ((2, "OK"), (14, "WARNING"), (16, "CRITICAL"), (1, "OK"))
        for count, expected in steps:
            sessions.hold(count)
            described = plural(count, "session")
            stage.show(f"{described} on max_connections {MAX_CONNECTIONS}", expected, *check)


def close_wait(stage: Stage) -> None:
    """Backends that go on for a client that is gone."""
    stage.title("close_wait: clients killed while their statement runs")
    check = ("check_pgsock_close_wait", "-p", str(stage.server.port), "-w", "0", "-c", "2")
    with load.Orphans(stage.server) as orphans:
        stage.show("no client was killed", "OK", *check)
        for count, expected in ((2, "WARNING"), (4, "CRITICAL")):
            orphans.make(count)
            stage.show(f"{count} clients killed under a running statement", expected, *check)
        orphans.end()
        stage.show("their backends terminated", "OK", *check)


def thrashing(stage: Stage) -> None:
    """Connections that are closed and opened again instead of being kept."""
    stage.title("thrashing: connections closed per second")
    check = ("check_pgsock_thrashing", "-p", str(stage.server.port), "--window", "2")
    stage.show("no client", "OK", *check)
    for rate, expected in ((25, "WARNING"), (90, "CRITICAL")):
        with load.reconnecting(stage.server, rate):
            time.sleep(0.2)
            stage.show(f"{rate} connections a second opened and closed", expected, *check)
    stage.show("the pool keeps its connections again", "OK", *check)


def pool_size(stage: Stage) -> None:
    """A pool larger than its busy sessions can use."""
    stage.title("pool_size: a pool of 4 on one core")
    stage.server.execute("create database shop")
    check = ["check_pgsock_pool_size", "--dsn", stage.server.dsn("shop"), "--cores", "1"]
    check += ["--pool-size", "4", "--min-window", "1", "--state-dir", stage.state_directory]
    waiting = "sessions that wait for their application inside transactions"
    steps = (
        (0.02, 0.3, "OK", waiting),
        (0.2, 0.0, "WARNING", "sessions that are busy all the time"),
        (0.02, 0.3, "OK", waiting),
    )
    for number, (busy, idle, expected, described) in enumerate(steps, 1):
        # A service of its own each: its first run keeps the sample that its second starts from.
        service = [*check, "--state-key", f"step {number}"]
        stage.run(*service)
        load.transactions(stage.server, "shop", 4, busy, idle, 2.5)
        stage.show(f"4 {described}", expected, *service)


DEMONSTRATIONS: dict[str, Callable[[Stage], None]] = {
    "saturation": saturation,
    "close_wait": close_wait,
    "thrashing": thrashing,
    "pool_size": pool_size,
}


def demonstrate(names: Sequence[str], pg_bin: str | None, signals: Signals) -> int:
    """Show the named checks on a server of their own; return how many verdicts were wrong.

    Raises LabError when the server or a check cannot be run, Interrupted after a signal; whatever
    happens, the server is ended and all files are removed.
    """
    with contextlib.ExitStack() as stack:
        if pg_bin is None:
            installation = stack.enter_context(binaries.embedded())
        else:
            installation = binaries.installed(pg_bin)
        settings = {"max_connections": MAX_CONNECTIONS}
        server = stack.enter_context(PostgresServer(installation, settings=settings))
        where = f"127.0.0.1:{server.port}, max_connections {MAX_CONNECTIONS}"
        print(f"PostgreSQL {server.version} on {where}, run for this demo alone", flush=True)
        state_directory = tempfile.TemporaryDirectory(prefix="pgsock-demo-")
        stage = Stage(server, stack.enter_context(state_directory), signals)
        for name in names:
            DEMONSTRATIONS[name](stage)
        return stage.wrong


def main() -> int:
    """Entry point of `python -m check_pgsock.pgsock.lab.demo`."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("check", nargs="*", help=f"of {', '.join(DEMONSTRATIONS)} (default: all)")
    parser.add_argument(
        "--pg-bin", metavar="DIR", help="PostgreSQL's bin directory (default: the embedded one)"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.check if name not in DEMONSTRATIONS]:
        parser.error(f"there is no check '{unknown[0]}'")
    begun = time.monotonic()
    with Signals() as signals:
        try:
            wrong = demonstrate(options.check or list(DEMONSTRATIONS), options.pg_bin, signals)
        except LabError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        except Interrupted:
            print("\ninterrupted; the server is stopped and removed")
            return 128 + signals.received
    seen = "as expected" if not wrong else f"as expected but {wrong}"
    spent = time.monotonic() - begun
    print(f"\nall verdicts {seen}; the server is stopped and removed; took {spent:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
