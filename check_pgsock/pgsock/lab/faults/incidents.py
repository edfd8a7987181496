"""Faults that are events: a crash, a restart, a fail-over, statistics that begin anew."""

from __future__ import annotations

import os
import signal
import time

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.fault import Fault
from check_pgsock.pgsock.lab.lab import DATABASE
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.standby import Standby


class Crash(Fault):
    """A backend is killed: PostgreSQL ends all sessions, recovers, and forgets its statistics."""

    name = "crash"
    is_instant = True

    def start(self) -> None:
        server = self.lab.postgres
        self.stack.callback(_wait_until_it_serves, server)
        # Of the superuser: it finds a slot where applications find none.
        with server.administrator() as session:
            others = set(server.process_ids()) - {server.pid}
            os.kill(session.backend_pid, signal.SIGKILL)
            # The postmaster still serves until it hears of its child's death.
            self.wait_for(
                lambda: others.isdisjoint(server.process_ids()), "the end of PostgreSQL's processes"
            )
        self.wait_for(lambda: _serves(server), "PostgreSQL's recovery")


class Restart(Fault):
    """PostgreSQL is stopped ("fast") and started again, and whatever is not running is started."""

    name = "restart"
    is_instant = True

    def start(self) -> None:
        server = self.lab.postgres
        self.stack.callback(server.ensure_running)
        server.restart("fast")
        if self.lab.pooled:
            self.lab.pgbouncer.ensure_running()

    def _servers(self) -> list[Server]:
        return []


class ResetStatistics(Fault):
    """The statistics of the application's database are reset (pg_stat_reset)."""

    name = "reset-statistics"
    is_instant = True

    def start(self) -> None:
        before = self._since()
        self.lab.postgres.execute("select pg_stat_reset()", DATABASE)
        # PostgreSQL 14 shows a reset only when its statistics collector has written it.
        self.wait_for(lambda: self._since() != before, "the reset of the statistics")

    def _since(self) -> str | None:
        sql = f"select stats_reset from pg_stat_database where datname = '{DATABASE}'"
        ((since,),) = self.lab.postgres.execute(sql)
        return since


class Failover(Fault):
    """PostgreSQL dies, and a promoted standby takes over its address; then the old one is back."""

    name = "failover"

    def start(self) -> None:
        primary = self.lab.postgres
        self.stack.callback(self._put_back, primary)
        standby = self.stack.enter_context(Standby(primary, lambda: self.pause(0)))
        self.wait_for(standby.is_streaming, "the standby's streaming")
        primary.stop()
        self.lab.postgres = standby
        standby.promote()
        self.wait_for(standby.is_primary, "the standby's promotion")
        standby.move(primary.host)

    def _put_back(self, primary: PostgresServer) -> None:
        self.lab.postgres = primary
        primary.ensure_running()


def _serves(server: PostgresServer) -> bool:
    """Whether it takes connections, asked by one: while the postmaster recovers from the crash of
    a backend, its pid file says "ready" all the time.
    """
    try:
        return server.execute("select 1") == [("1",)]
    except (LabError, OSError):
        return False


def _wait_until_it_serves(server: PostgresServer, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not _serves(server):
        if time.monotonic() > give_up:
            raise LabError("PostgreSQL does not recover: start a new lab")
        time.sleep(0.01)
