"""An application at work through PgBouncer, with a pool too small, right and too large: which check
fires, and what throughput the three have.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab.binaries import find_program
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import Installations
from tests.pool_load import measured
from tests.proving import Proof
from tests.support import Completed

CLIENTS = 16
# Transactions of 0.2 s, of which a tenth executes, and 0.6 s of thought between them.
WORK = """\
BEGIN;
SELECT pg_sleep(0.01) FROM one;
\\sleep 180 ms
SELECT pg_sleep(0.01) FROM one;
COMMIT;
\\sleep 600 ms
"""
# By the formula 2 cores allow 2 / 0.1: 19 at most. 16 clients in transactions for a quarter of
# their time need 10, to wait for a connection one time in 100.
CORES = 2
SIZES = {"too small": 1, "right": 14, "too large": 60}
FIRING = {"too small": "pool_wait", "right": "none", "too large": "pool_size"}


class Verdicts(NamedTuple):
    """What the two checks said while a pool was at work, and its transactions per second."""

    pool_size: Completed
    pool_wait: Completed
    throughput: float


@contextlib.contextmanager
def at_work(
    pgbench: str, pooler: PgBouncerServer, database: str, script: Path, seconds: float
) -> Iterator[subprocess.Popen[str]]:
    """pgbench on a pooler, for so long."""
    command = [
        pgbench, "--no-vacuum", f"--client={CLIENTS}", f"--file={script}", f"--time={seconds:.0f}",
        f"--host={pooler.host}", f"--port={pooler.port}", "--username=postgres",
        database,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        yield running
        running.wait(60)


def observe(
    pg: PostgresServer, pgbench: str, size: int, directory: Path, window: float
) -> Verdicts:
    """Let the application work through a pool of `size`, on a database of its own, and run both
    checks twice.
    """
    database = f"app{size}"
    pg.execute(f"CREATE DATABASE {database}")
    pg.execute("CREATE TABLE one AS SELECT 1 AS one", database)
    script = directory / f"work{size}.sql"
    script.write_text(WORK, encoding="utf-8")
    state = directory / f"state{size}"
    state.mkdir(mode=0o700)
    with (
        PgBouncerServer(pg, pool_mode="transaction", default_pool_size=size) as pooler,
        at_work(pgbench, pooler, database, script, window + 6) as running,
    ):
        console = pooler.dsn("pgbouncer", "admin")
        common = ["--state-dir", str(state)]
        sizing = ["-d", pg.dsn(database), "--console", console, "--cores", str(CORES)]
        sizing += ["--since", str(window - 1), "--parallelism", "1", *common]
        # Here three applications are at work; each is judged by itself.
        sizing += ["--full-load-warning", "~:"]
        time.sleep(3)
        support.run("pool_size", *sizing)
        support.run("pool_wait", "-d", console, *common)
        time.sleep(window)
        verdicts = (
            support.run("pool_size", *sizing),
            support.run("pool_wait", "-d", console, *common),
        )
        assert running.stdout is not None
        said = running.stdout.read()
    found = re.search(r"tps = ([\d.]+)", said)
    assert found is not None, said
    return Verdicts(*verdicts, float(found[1]))


@pytest.mark.parametrize(
    "window", [6, pytest.param(60, marks=pytest.mark.prove)], ids=["6s", "60s"]
)
def test_the_check_that_fires_is_that_of_the_fault(
    every_major: int, installations: Installations, window: float, tmp_path: Path, proof: Proof
) -> None:
    support.require("pgbouncer")
    binaries = installations.get(every_major)
    pgbench = find_program("pgbench", binaries)
    with PostgresServer(binaries, settings={"max_connections": 130}) as pg:
        with ThreadPoolExecutor() as threads:
            observed = {
                name: threads.submit(observe, pg, pgbench, size, tmp_path, window)
                for name, size in SIZES.items()
            }
        for name, size in SIZES.items():
            found = observed[name].result()
            fired = [
                check
                for check, done in (("pool_size", found.pool_size), ("pool_wait", found.pool_wait))
                if done.code
            ]
            said = f"{found.pool_size.out}{found.pool_wait.out}"
            assert (" ".join(fired) or "none", found.pool_size.err, found.pool_wait.err) == (
                FIRING[name], "", "",
            ), said  # fmt: skip
            values = {**measured(found.pool_size.out), **measured(found.pool_wait.out)}
            assert values["busy_ratio"] == pytest.approx(0.1, abs=0.03), said
            proof(
                f"a pool {name} ({size} connections, {window} s), PostgreSQL {every_major}",
                f"{fired[0] if fired else 'nothing'} fires; {found.throughput:.1f} transactions "
                f"per second, the longest wait {values['maxwait']:.2f} s, busy ratio "
                f"{values['busy_ratio']:.3f}",
                goal=f"{FIRING[name]} fires",
            )
