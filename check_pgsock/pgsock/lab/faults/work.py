"""Faults that are work: for a pool too large or too small, by parallel workers, without an end."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.fault import Fault
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, Lab
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.text import plural

# It sleeps: the session is active all the time, and the processors are free for those who watch.
# It reads a table: a session writes no statistics after transactions that touch none.
_STATEMENT = "select pg_sleep({seconds}) from (select from pg_class limit 1) as one"


class _Pool(Fault):
    """A pool of PgBouncer that has another size, and a load."""

    needs_pgbouncer = True

    def _load(self, pool_size: int, clients: int, seconds: float, column: str, least: int) -> None:
        """Run statements of `seconds` in `clients` clients of a pool, until SHOW POOLS has so many
        in `column`.
        """
        self.stack.enter_context(_pool_size(self.lab, pool_size))
        self.stack.callback(_wait, self._is_drained, "clients of a killed pgbench")
        self._bench = _Pgbench(self.lab, self.name, clients, _STATEMENT.format(seconds=seconds))
        self.stack.enter_context(self._bench)

        def is_there() -> bool:
            self._bench.check()
            return _in_pool(self.lab, column) >= least

        self.wait_for(is_there, f"{column} of {least}")

    def trouble(self) -> str | None:
        lost = self._bench.count_lost()
        return f"{lost} of {plural(self._bench.clients, 'client')} lost" if lost else None

    def _is_drained(self) -> bool:
        """Whether nothing of a killed pgbench is left in PgBouncer's queue and in PostgreSQL.

        PgBouncer does not notice that a waiting client is gone: it runs its statement when it is
        its turn. Those are cancelled here, or it would go on for as long as the last one waits.
        """
        running = self.lab.postgres.execute(
            "select pg_cancel_backend(pid) from pg_stat_activity"
            f" where application_name = '{self.name}' and state = 'active'"
        )
        clients = self.lab.pgbouncer.console("SHOW CLIENTS")
        return not running and all(c.get("application_name") != self.name for c in clients)


class Oversize(_Pool):
    """A pool of PgBouncer that is too large, and all its sessions busy all the time."""

    name = "oversize"
    size = "20"

    def start(self) -> None:
        if self.count > self.lab.slots:
            raise LabError(
                f"a pool of {self.count} does not fit into PostgreSQL's {self.lab.slots} slots: "
                "name a smaller size"
            )
        # With one client more than sessions, one waits for the next session that is free: none is
        # idle, and no client waits for longer than a statement takes.
        self._load(self.count, self.count + 1, 0.05, "sv_active", self.count)


class Undersize(_Pool):
    """A pool of PgBouncer with one session, and many clients that wait for it."""

    name = "undersize"
    size = "8"
    size_unit = "clients"

    def start(self) -> None:
        # Each waits for a statement of all others: 2.1 s with 8 clients.
        self._load(1, self.count, 0.3, "cl_waiting", self.count - 1)


class Parallel(Fault):
    """One session whose statements have so many parallel workers, one after the other."""

    name = "parallel"
    size = "4"
    size_unit = "workers"

    # Seconds of a statement: short, as statistics are written between two; longer by far than
    # workers take to start.
    _SECONDS = 0.8

    def start(self) -> None:
        server = self.lab.postgres
        possible = _possible_workers(server)
        if self.count > possible:
            raise LabError(
                f"PostgreSQL has {possible} parallel workers at most (max_worker_processes), not "
                f"{self.count}: name a smaller size"
            )
        session = self.stack.enter_context(self.lab.connect())
        self.stack.callback(server.execute, "drop table if exists in_parallel", DATABASE)
        session.query(
            # It is left where the server was dead at the end.
            "drop table if exists in_parallel;"
            f" create table in_parallel with (parallel_workers = {self.count})"
            " as select generate_series(1, 50000) as number;"
            f" set max_parallel_workers_per_gather = {self.count};"
            " set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set jit = off"
        )
        self.in_background(lambda: self._work(session))
        sql = f"select count(*) from pg_stat_activity where leader_pid = {session.backend_pid}"
        self.wait_for(
            lambda: server.execute(sql) == [(str(self.count),)], f"{self.count} parallel workers"
        )

    def _work(self, session: Session) -> None:
        steps = 200
        while not self.ending.is_set():
            begun = time.monotonic()
            session.query(
                "select count(*) from in_parallel,"
                f" lateral generate_series(number, number + {steps})"
            )
            taken = time.monotonic() - begun
            # As fast as the machine is.
            steps = max(int(steps * self._SECONDS / taken), 1)


class LongTransactions(Fault):
    """Sessions with one statement in one transaction that does not end."""

    name = "long-transactions"
    size = "5"

    def start(self) -> None:
        server = self.lab.postgres
        pids = []
        for _ in range(self.count):
            session = self.hold(self.lab.connect())
            pids.append(str(session.backend_pid))
            # Its client's end does not end a statement.
            self.stack.callback(_end_backend, server, session.backend_pid)
            session.simple_query("begin; select pg_sleep(1000000)")
            self.pause(0)
        sql = (
            "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
            f" and pid in ({', '.join(pids)})"
        )
        self.wait_for(
            lambda: server.execute(sql) == [(str(self.count),)], f"{self.count} statements"
        )


class _Pgbench:
    """A context manager: pgbench, with `sql` again and again in `clients` clients of PgBouncer;
    its sessions bear `name`.
    """

    def __init__(self, lab: Lab, name: str, clients: int, sql: str) -> None:
        self._lab = lab
        self._name = name
        self.clients = clients
        self._sql = sql
        self._log = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def count_lost(self) -> int:
        """How many of its clients have ended; all of them once it has ended itself."""
        if self._process is None or self._process.poll() is not None:
            return self.clients
        # "client 3 aborted in command 0 (SQL) of script 0; ..."
        aborted = re.findall(rb"client (\d+) .*?aborted in ", self._log.read_bytes())
        return len(set(aborted))

    def check(self) -> None:
        """Raise LabError, with what it said, when it has ended, or goes on with fewer clients."""
        if self.count_lost():
            raise LabError(f"pgbench lost clients; {processes.tail(self._log)}")

    def __enter__(self) -> _Pgbench:
        with contextlib.ExitStack() as stack:
            directory = fresh_directory("pgsock-pgbench-", parent=self._lab.home.path)
            script = stack.enter_context(directory) / "script"
            script.write_text(f"{self._sql};\n", encoding="ascii")
            self._log = script.with_name("log")
            dsn = self._lab.pgbouncer.dsn(DATABASE, APPLICATION)
            # There are no tables to vacuum, and one thread does for all clients.
            command = [self._lab.program("pgbench"), "--no-vacuum", "--protocol=simple",
                       f"--client={self.clients}", f"--file={script}", "--time=1000000",
                       f"{dsn} application_name={self._name}"]  # fmt: skip
            host = self._lab.client_host
            self._process = processes.spawn(command, None, self._log, host)
            stack.callback(processes.end, self._process, signal.SIGTERM, 2)
            stack.callback(self.check)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def _pool_size(lab: Lab, size: int) -> Iterator[None]:
    """Give every pool of PgBouncer this size, and in the end its old one; return when none is
    larger.
    """
    settings, before = lab.pgbouncer.settings, lab.pgbouncer.pool_size
    settings["default_pool_size"] = size
    try:
        lab.pgbouncer.reload()
        if size < before:
            # By itself PgBouncer closes what is idle only: a busy pool stays as large as it is.
            # (Never under a load: a login under way would be closed as one that failed.)
            lab.pgbouncer.console("RECONNECT")
        yield
    finally:
        settings["default_pool_size"] = before
        lab.pgbouncer.reload()
        states = [f"sv_{state}" for state in ("active", "idle", "used")]
        _wait(lambda: sum(_in_pool(lab, state) for state in states) <= before, "too many sessions")


def _in_pool(lab: Lab, column: str) -> int:
    """A column of SHOW POOLS for the application's pool; 0 where there is none yet."""
    wanted = (DATABASE, APPLICATION)
    pools = lab.pgbouncer.console("SHOW POOLS")
    return sum(int(p[column] or 0) for p in pools if (p["database"], p["user"]) == wanted)


def _possible_workers(server: PostgresServer) -> int:
    """The parallel workers that the server can have at once: the launcher of logical replication
    is a worker process, too.
    """
    ((possible,),) = server.execute(
        "select least(current_setting('max_parallel_workers')::int,"
        " current_setting('max_worker_processes')::int - count(*))"
        " from pg_stat_activity where backend_type = 'logical replication launcher'"
    )
    return int(possible or 0)


def _end_backend(server: PostgresServer, pid: int) -> None:
    server.terminate([pid])
    _wait(lambda: pid not in server.process_ids(), f"backend {pid}")


def _wait(is_gone: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not is_gone():
        if time.monotonic() > give_up:
            raise LabError(f"there are still {what}: start another lab")
        time.sleep(0.01)
