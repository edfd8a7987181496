"""No false verdict: every check, again and again, beside PostgreSQL and PgBouncer at work.

An application of two processes (pgbench) works, directly and through PgBouncer; one of them is
restarted in between; then all is silent but for a pool that keeps its sessions, as at night.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, MAX_CLIENT_CONN, Lab
from tests import support
from tests.conftest import Installations
from tests.proving import Proof

STRANGER = "daemon"
# Rounds at work before the restart, after it, and in silence. With four pools, 200 in all.
ROUNDS, FULL_ROUNDS = (1, 1, 1), (20, 15, 15)
CLIENTS = 6  # of each process and endpoint
# The sessions that the application's pools hold: idle as a rule when there is nothing to do.
KEEP = str(2 * CLIENTS + 4)
SILENT = 1.0  # seconds that count as long


class Check(NamedTuple):
    """One check as a service has it; as root where it takes rights to see who holds what."""

    name: str
    arguments: tuple[str, ...]
    is_root: bool = False


def checks(lab: Lab, state: Path) -> list[Check]:
    """The checks with their default thresholds, on each endpoint and leg."""
    postgres, pooler = ("-p", str(lab.postgres.port)), ("-p", str(lab.pgbouncer.port))
    limit, slots = ("--limit", str(MAX_CLIENT_CONN)), ("--limit", str(lab.slots))
    keeps = ("--state-dir", str(state))
    unused = (*keeps, "--keep", KEEP, "--idle-for", str(SILENT))
    client = ("--leg", "client")
    return [
        Check("saturation", postgres),
        Check("saturation", (*postgres, *slots, "--by", "user", "--group-limit", "app=40")),
        Check("saturation", (*pooler, *limit)),
        Check("close_wait", postgres),
        Check("close_wait", pooler),
        Check("close_wait", (*postgres, *client, "--min-age", "300")),
        Check("thrashing", postgres),
        Check("thrashing", pooler),
        Check("leak", (*postgres, *unused)),
        Check("leak", (*pooler, *limit, *unused)),
        Check("leak", (*postgres, *client, *slots, *unused)),
        Check("accept_queue", (*postgres, *keeps)),
        Check("accept_queue", (*pooler, *keeps)),
        Check("workers", postgres),
        Check("workers", (*postgres, *client), True),
    ]


class Application:
    """One process of an application: pgbench, directly on PostgreSQL or through PgBouncer."""

    def __init__(self, lab: Lab, via: str, tls: bool, directory: Path) -> None:
        script = directory / "work.sql"
        script.write_text(
            "begin;\nselect count(*) from pg_class;\n\\sleep 5 ms\ncommit;\n\\sleep 50 ms\n",
            encoding="ascii",
        )
        mode = "require" if tls else "disable"
        self._lab = lab
        self._log = directory / "log"
        self._command = [
            lab.program("pgbench"), "--no-vacuum", f"--client={CLIENTS}", f"--file={script}",
            "--time=1000000", f"{lab.server(via).dsn(DATABASE, APPLICATION)} sslmode={mode}",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = processes.spawn(self._command, None, self._log, self._lab.client_host)

    def stop(self) -> None:
        if self._process is not None:
            processes.end(self._process, signal.SIGTERM, 5)

    def is_at_work(self) -> bool:
        return self._process is not None and self._process.poll() is None


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory that belongs to the stranger."""
    with fresh_directory("pgsock-state-") as path:
        accounts.own(path, accounts.account_of(STRANGER))
        yield path


def run(one: Check) -> str:
    """The first line of one run; the exit code must say the same."""
    done = support.run(one.name, *one.arguments, user=None if one.is_root else STRANGER)
    line = done.out.partition("\n")[0]
    assert done.err == ""
    words = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
    assert line.startswith(f"PGSOCK_{one.name.upper()} {words[done.code]} - ")
    return line


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("major", "rounds"),
    [
        pytest.param(18, ROUNDS, id="pg18-few"),
        pytest.param(14, FULL_ROUNDS, id="pg14-full", marks=pytest.mark.prove),
        pytest.param(18, FULL_ROUNDS, id="pg18-full", marks=pytest.mark.prove),
    ],
)
def test_no_false_verdict(
    installations: Installations, major: int, rounds: tuple[int, int, int], tls: bool, state: Path,
    proof: Proof,
) -> None:  # fmt: skip
    support.require("pgbouncer")
    support.require("system-python")
    binaries = installations.get(major)
    if tls and not binaries.has_tls():
        pytest.skip("this PostgreSQL is built without TLS")
    wrong: list[str] = []
    count = 0
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(pg_bin=binaries.directory))
        made = [
            Application(lab, via, tls, stack.enter_context(fresh_directory("pgsock-bench-")))
            for via in ("postgresql", "postgresql", "pgbouncer")
        ]
        threads = stack.enter_context(ThreadPoolExecutor(4))
        all_checks = checks(lab, state)

        def look(times: int) -> None:
            nonlocal count
            for _ in range(times):
                wrong.extend(line for line in threads.map(run, all_checks) if " OK - " not in line)
                count += len(all_checks)

        for one in made:
            stack.callback(one.stop)
            one.start()
        support.wait_until(lambda: lab.established() >= 2 * CLIENTS, "the application at work", 20)
        look(rounds[0])
        made[0].stop()
        made[0].start()
        look(rounds[1])
        assert all(one.is_at_work() for one in made)
        for one in made:
            one.stop()
        pool = [stack.enter_context(lab.connect()) for _ in range(2 * CLIENTS)]
        for session in pool:
            session.query("select 1")
        look(rounds[2])
    kind = "TLS" if tls else "plain"
    proof(
        f"no false verdict beside a healthy pool, PostgreSQL {major}, {kind}",
        f"{len(wrong)} of {count} runs{''.join(f'; {line[:160]}' for line in wrong[:3])}",
        goal="none",
        met=not wrong,
    )
