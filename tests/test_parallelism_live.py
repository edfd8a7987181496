"""avg_parallelism of loads whose truth is counted beside them, on every PostgreSQL.

The truth: the seconds that the clients waited for their statements, and those that parallel
workers existed, by the kernel's list of the postmaster's children, read 200 times a second.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import WireError
from check_pgsock.postgres.client import Client, connect
from check_pgsock.postgres.parallelism import (
    NONE_SEEN,
    Launched,
    Looks,
    add,
    launched,
    look,
    look_at_titles,
    parallelism,
)
from tests import restricted, support
from tests.conftest import Installations
from tests.pool_load import database
from tests.proving import Proof

WORKERS = 4
# Plans that are parallel whatever they cost. No worker may be wanting.
SETTINGS = {
    "max_worker_processes": 40,
    "max_parallel_workers": 30,
    "max_parallel_workers_per_gather": WORKERS,
    "parallel_setup_cost": 0,
    "parallel_tuple_cost": 0,
    "min_parallel_table_scan_size": 0,
}
# One row a page, and processes take pages one by one: all sleep until the last page is taken.
TABLE = """
CREATE TABLE pages (nap float8, filler text) WITH (parallel_workers = 10, autovacuum_enabled = off);
ALTER TABLE pages ALTER filler SET STORAGE PLAIN;
INSERT INTO pages SELECT 0.02, repeat('x', 6000) FROM generate_series(1, 200);
CREATE FUNCTION nap(seconds float8) RETURNS int LANGUAGE plpgsql PARALLEL SAFE COST 100000
    AS 'BEGIN PERFORM pg_sleep(seconds); RETURN 1; END';
"""
PARALLEL = "SELECT sum(nap(nap)) FROM pages"  # 0.8 s by WORKERS + 1
LONG = "SELECT sum(nap(nap * 2.5)) FROM pages"  # 2 s
RUNS = 15
LOOK_AT_TITLES = """
import os, sys
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65533, 65533, 65533); os.setresuid(65533, 65533, 65533)
from check_pgsock.deadline import Deadline
from check_pgsock.postgres.parallelism import look_at_titles
print(*look_at_titles(int(sys.argv[1]), {"app": 1, "postgres": 2}, Deadline(5)).items())
"""


class Load:
    """Clients of one database, and the truth about them: `with Load(...) as load: ...`."""

    def __init__(self, pg: PostgresServer, name: str) -> None:
        self._pg = pg
        self._name = name
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._executing = 0.0
        self._working = 0.0

    def __enter__(self) -> Load:
        self._start(self._count_workers)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, sql: str, settings: str = "", clients: int = 1, pause: float = 0.0) -> None:
        """Let so many clients execute `sql` again and again, with a pause after each."""
        for _ in range(clients):
            self._start(self._repeat, sql, settings, pause)

    def end(self) -> float:
        """End the load, each statement by itself, and tell its true parallelism."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return 1 + self._working / self._executing if self._executing else 0.0

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, sql: str, settings: str, pause: float) -> None:
        with self._pg.connect(self._name) as session:
            if settings:
                session.query(settings)
            while not self._ending.is_set():
                began = time.monotonic()
                session.query(sql)
                with self._lock:
                    self._executing += time.monotonic() - began
                self._ending.wait(pause)

    def _count_workers(self) -> None:
        kinds: dict[str, bool] = {}
        children = Path(f"/proc/{self._pg.pid}/task/{self._pg.pid}/children")
        before, number = time.monotonic(), 0
        while any(one.is_alive() for one in self._threads[1:]) or not self._ending.is_set():
            pids = children.read_text().split()
            for pid in pids:
                if not kinds.get(pid):  # (one that was just forked gets its title)
                    kinds[pid] = is_parallel_worker(pid)
            now = time.monotonic()
            self._working += number * (now - before)
            before, number = now, sum(kinds[pid] for pid in pids)
            time.sleep(0.004)


def is_parallel_worker(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        return title.startswith(b"postgres: parallel worker for PID ")
    return False


@pytest.fixture(scope="module")
def parallel_pg(every_major: int, installations: Installations) -> Iterator[PostgresServer]:
    """A server of each major, whose statements get as many workers as they ask for."""
    with PostgresServer(installations.get(every_major), settings=SETTINGS) as server:
        yield server


@pytest.fixture
def app(parallel_pg: PostgresServer) -> Iterator[str]:
    """Its database with the table of PARALLEL, without whose statements nothing is parallel."""
    with database(parallel_pg, "app") as name:
        parallel_pg.execute(TABLE, name)
        yield name


@contextlib.contextmanager
def client(pg: PostgresServer, user: str = "postgres") -> Iterator[Client]:
    """The one connection of a check's run, as long as a run takes."""
    one = connect(pg.dsn(user=user), "check_pgsock_test", Deadline(8))
    try:
        one.begin()
        yield one
    finally:
        one.close()


def oids(one: Client) -> dict[str, int]:
    """The databases' oids by name."""
    return {row["name"]: row["oid"] for row in one.query("statistics.sql", EVERY)}


EVERY: dict[str, object] = {"every": True, "names": []}


class Sums:
    """The looks of several runs at one database, by SQL and by titles."""

    def __init__(self, pg: PostgresServer, name: str) -> None:
        self.by_sql = self.by_titles = NONE_SEEN
        self._pg = pg
        self._name = name

    def take(self, runs: int) -> None:
        """Look as one run of the check does, several times."""
        for _ in range(runs):
            with client(self._pg) as one:
                names = oids(one)
                seen = look(one, Deadline(8)).get(names[self._name], NONE_SEEN)
                pid = one.query("server.sql")[0]["backend_pid"]
                titles = look_at_titles(pid, names, Deadline(8)).get(names[self._name], NONE_SEEN)
            self.by_sql = add((self.by_sql, seen))
            self.by_titles = add((self.by_titles, titles))


def commits(pg: PostgresServer, name: str) -> int:
    ((number,),) = pg.execute(f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'")
    return int(number or 0)


def test_a_load_of_known_width(parallel_pg: PostgresServer, app: str) -> None:
    """Coarsely: some looks meet the moment between two statements."""
    sums = Sums(parallel_pg, app)
    with Load(parallel_pg, app) as load:
        load.run(PARALLEL)
        time.sleep(0.3)
        sums.take(2)
        truth = load.end()
    assert truth == pytest.approx(WORKERS + 1, rel=0.15)
    assert sums.by_sql.leaders > 10
    assert parallelism(sums.by_sql) == pytest.approx(truth, rel=0.15)
    assert parallelism(sums.by_titles) == pytest.approx(truth, rel=0.15)


def test_a_load_without_workers(parallel_pg: PostgresServer, app: str) -> None:
    with Load(parallel_pg, app) as load:
        serial = "SET max_parallel_workers_per_gather = 0"
        load.run("SELECT sum(nap(nap / 4)) FROM pages", serial, clients=3)  # 1 s
        time.sleep(0.3)
        with client(parallel_pg) as one:
            before = launched(one)
            seen = look(one, Deadline(8), 3, 0.01)
            oid = oids(one)[app]
            assert seen == {oid: Looks(9, 9, 0)}
    with client(parallel_pg) as one:
        after = launched(one)
    if parallel_pg.version < 18:
        assert before is after is None
    else:
        assert before is not None
        assert after is not None
        assert before[oid] == after[oid] == Launched(0, 0)


def test_sessions_idle_in_transactions(parallel_pg: PostgresServer, app: str) -> None:
    with parallel_pg.connect(app) as one, parallel_pg.connect(app) as other:
        one.query("BEGIN")
        other.query("BEGIN")
        with pytest.raises(WireError):
            other.query("SELECT 1 / 0")
        with client(parallel_pg) as looking, parallel_pg.connect(app):
            assert look(looking, Deadline(8), 2, 0.01) == {oids(looking)[app]: Looks(0, 0, 0, 4)}


def test_who_may_not_see_other_roles_sessions_does_not_take_them_for_idle(
    parallel_pg: PostgresServer, app: str
) -> None:
    support.require("system-python")
    parallel_pg.execute("CREATE ROLE low LOGIN")
    parallel_pg.execute("CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats")
    try:
        with Load(parallel_pg, app) as load:
            load.run("SELECT sum(nap(nap * 5)) FROM pages")  # 4 s
            time.sleep(0.3)
            with client(parallel_pg, "low") as one:
                oid = oids(one)[app]
                seen = look(one, Deadline(8), 2, 0.01)[oid]
                assert (seen.leaders, seen.processes) == (0, 0)
                assert seen.hidden >= 2  # the leader at least, at each look
                assert parallelism(seen) is None
                pid = one.query("server.sql")[0]["backend_pid"]
                done = restricted.run_code(LOOK_AT_TITLES, str(pid), gives_up_root=True)
            with client(parallel_pg, "monitor") as one:
                assert look(one, Deadline(8), 2, 0.01) == {oid: Looks(2, 10, 0)}
    finally:
        parallel_pg.execute("DROP ROLE low; DROP ROLE monitor")
    assert done == (0, "(1, Looks(leaders=10, processes=50, hidden=0, idle=0))\n", "")


def test_sessions_whose_state_is_not_kept(parallel_pg: PostgresServer, app: str) -> None:
    with Load(parallel_pg, app) as load:
        load.run("SELECT pg_sleep(0.2)", "SET track_activities = off")
        time.sleep(0.3)
        with client(parallel_pg) as one:
            assert look(one, Deadline(8), 1) == {oids(one)[app]: Looks(0, 0, 1)}


def test_a_near_deadline_leaves_one_look(parallel_pg: PostgresServer, app: str) -> None:
    with parallel_pg.connect(app), client(parallel_pg) as one:
        began = time.monotonic()
        assert look(one, Deadline(0.9)) == {oids(one)[app]: NONE_SEEN}
        assert time.monotonic() - began < 0.5


def test_only_looks_see_workers_of_a_statement_that_goes_on_or_builds_an_index(
    parallel_pg: PostgresServer, app: str
) -> None:
    """What PostgreSQL 18's counters do not tell."""
    index = "CREATE INDEX ON pages (nap(nap)); DROP INDEX pages_nap_idx"
    parallel_pg.execute("ALTER FUNCTION nap IMMUTABLE", app)
    with Load(parallel_pg, app) as load:
        load.run(index, "SET max_parallel_maintenance_workers = 2")
        time.sleep(1)
        with client(parallel_pg) as one:
            oid = oids(one)[app]
            seen = look(one, Deadline(8))[oid]
        load.end()
    assert parallelism(seen) == pytest.approx(3, rel=0.2)
    with Load(parallel_pg, app) as load:
        load.run(LONG)
        time.sleep(0.5)
        with client(parallel_pg) as one:
            counters = launched(one)
            assert parallelism(look(one, Deadline(8), 2)[oid]) == WORKERS + 1
    assert counters is None or counters[oid] == Launched(0, 0)


@pytest.mark.prove
@pytest.mark.parametrize("load_of", ["known width", "a mix"])
def test_looks_and_counters_against_the_truth(
    parallel_pg: PostgresServer, app: str, load_of: str, proof: Proof
) -> None:
    """The mix is of many short statements and one parallel query at a time."""
    sums = Sums(parallel_pg, app)
    before = commits(parallel_pg, app)
    with Load(parallel_pg, app) as load:
        if load_of == "a mix":
            load.run("SELECT pg_sleep(0.02)", clients=8, pause=0.01)
            load.run(PARALLEL, pause=1)
        else:
            load.run(LONG)
        sums.take(RUNS)
        truth = load.end()
    name = f"parallelism of {load_of} on PostgreSQL {parallel_pg.version}"
    goal = 5 if load_of == "known width" else 15  # a run's looks see one moment of the mix
    for how, looks in (("looks by SQL", sums.by_sql), ("looks at titles", sums.by_titles)):
        found = parallelism(looks) or 0.0
        error = 100 * abs(found / truth - 1)
        measured = f"{found:.2f} where {truth:.2f} is true, by {looks.leaders} leaders"
        proof(f"{name}, {how}", measured, goal=f"within {goal} %", met=error <= goal)
    with client(parallel_pg) as one:
        counters = launched(one)
        oid = oids(one)[app]
    if counters is not None:
        workers = counters[oid].launched
        # Each worker commits two transactions of its own before it works (measured).
        statements = commits(parallel_pg, app) - before - 2 * workers
        found = 1 + workers / statements
        measured = f"{found:.2f} where {truth:.2f} is true, by {statements} commits"
        proof(f"{name}, 18's counters", measured)


def test_the_check_tells_how_many_workers_were_launched(
    parallel_pg: PostgresServer, app: str
) -> None:
    parallel_pg.execute(PARALLEL, app)
    options = ["-d", parallel_pg.dsn(app), "--cores", "4", "-v"]
    told = f"\nstatements on database {app} got the {WORKERS} parallel workers that they wanted "
    if parallel_pg.version < 18:
        assert told not in support.run("pool_size", *options).out
    else:
        support.wait_until(
            lambda: told in support.run("pool_size", *options).out, "the counters are flushed"
        )


def test_the_check_adds_up_the_looks_of_its_runs(
    parallel_pg: PostgresServer, app: str, tmp_path: Path
) -> None:
    """Those of one run are too few to be relied on."""
    options = ["-d", parallel_pg.dsn(app), "--cores", "4", "--since", "1", "-v"]
    options += ["--state-dir", str(tmp_path)]
    with Load(parallel_pg, app) as load:
        load.run(LONG)
        time.sleep(0.3)
        first, *_, last = [support.run("pool_size", *options).out for _ in range(4)]
        true = load.end()
    assert "parallelism 1 assumed: too few statements were seen" in first
    found = re.search(r"parallelism ([\d.]+) as seen on the database", last)
    assert found is not None, last
    assert float(found[1]) == pytest.approx(true, rel=0.2)
