"""The busy ratio against a load of known truth, and beside it what the counters alone say."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import Installations
from tests.known_load import Actor, truth
from tests.pool_load import measured
from tests.proving import Proof

SLEEP = "SELECT"
NO_TABLE = "SELECT pg_sleep(0.05) --"


def scripts(window: float) -> list[list[tuple[str, float]]]:
    """Statements and transactions, short and longer than the window."""
    return [
        [(SLEEP, window * 1.6)],
        [(SLEEP, window * 1.1)],  # one ends in the window
        [("BEGIN", 0), (SLEEP, window * 1.2), ("", window / 10), ("COMMIT", 0)],
        [("BEGIN", 0), (SLEEP, 0.1), ("", window * 1.3), ("COMMIT", 0)],
        [(SLEEP, window * 0.7), ("", window / 20)],
        [("BEGIN", 0), (SLEEP, 0.5), ("", 0.5), (SLEEP, 0.2), ("", 0.8), ("COMMIT", 0), ("", 0.3)],
        *[[("BEGIN", 0), (SLEEP, 0.1), ("", 0.3), ("COMMIT", 0), ("", 0.1)]] * 3,
    ]


def taken(state: Path) -> list[float]:
    """When the samples of database app were taken, by the server's clock."""
    with sqlite3.connect(state / "checks.sqlite") as connection:
        rows = connection.execute("SELECT key, data FROM sample ORDER BY id").fetchall()
    found = [json.loads(data)["statistics"] for key, data in rows if '"every"' in key]
    return [one["taken"] for one in found if one["name"] == "app"]


@pytest.mark.parametrize(
    "window", [8, pytest.param(60, marks=pytest.mark.prove)], ids=["8s", "60s"]
)
def test_the_busy_ratio_is_that_of_the_truth(
    every_major: int, installations: Installations, window: float, tmp_path: Path, proof: Proof
) -> None:
    state = tmp_path
    with PostgresServer(installations.get(every_major)) as pg:
        pg.execute("CREATE DATABASE app")
        pg.execute("CREATE TABLE one AS SELECT 1 AS one", "app")
        options = ["-d", pg.dsn("app"), "--cores", "4", "--state-dir", str(state)]
        options += ["--since", str(window - 1), "--pool-size", "5", "-v"]
        actors: list[Actor] = []
        try:
            actors = [Actor(pg, "app", script) for script in scripts(window)]
            # Sessions of a pool are long at work: each has a statement behind it.
            time.sleep(window * 1.75)
            assert support.run("pool_size", *options).code in (0, 1)
            time.sleep(window)
            done = support.run("pool_size", *options)
        finally:
            for one in actors:
                one.stop()
    assert (done.code, done.err) in ((0, ""), (1, "")), done.out
    start, end = taken(state)
    active, idle = truth(actors, start, end)
    true = active / (active + idle)
    said = measured(done.out)
    alone = re.search(r"of the counters alone, without what is in progress: ([\d.]+)", done.out)
    assert alone is not None
    counted = float(alone[1])
    proof(
        f"busy ratio over {window} s, PostgreSQL {every_major}",
        f"{said['busy_ratio']:.3f} where {true:.3f} is true; the counters alone {counted:.3f}",
        goal="within 0.03",
        met=abs(said["busy_ratio"] - true) <= 0.03,
    )
    assert abs(said["busy_sessions"] - active / (end - start)) < 0.3
    assert abs(said["idle_in_transaction"] - idle / (end - start)) < 0.3


def test_what_is_not_in_the_statistics_is_not_judged(
    installations: Installations, tmp_path: Path
) -> None:
    """From version 15 on the time of sessions that touch no table is not reported at all for long:
    six are in transactions all the time, mostly idle.
    """
    options = ["--cores", "4", "--state-dir", str(tmp_path), "--since", "2", "--pool-size", "9"]
    script = [("BEGIN", 0), (NO_TABLE, 0.05), ("", 0.5), ("COMMIT", 0)]
    with PostgresServer(installations.get(18)) as pg:
        pg.execute("CREATE DATABASE app")
        actors: list[Actor] = []
        try:
            actors = [Actor(pg, "app", script) for _ in range(6)]
            time.sleep(1)
            assert support.run("pool_size", "-d", pg.dsn("app"), *options).code in (0, 1)
            time.sleep(3)
            done = support.run("pool_size", "-d", pg.dsn("app"), *options)
        finally:
            for one in actors:
                one.stop()
    first, _, rest = done.out.partition("\n")
    assert (done.code, done.err) == (0, "")
    assert re.match(
        "PGSOCK_POOL_SIZE OK - pool of database app of 9 connections cannot be judged: "
        r"(the statistics have nothing of|busy ratio [01]\.\d+ over) \d\.\d s(, unreliable)? \|",
        first,
    )
    assert "pool_size_limit" not in first
    assert rest.startswith(
        "the busy ratio is unreliable: the statistics do not have what the sessions did in the "
        "window, but more or less; statements that touch no table come late\n"
    )
