"""Faults that are sessions held open: by many clients, by one process, idle or in a transaction."""

from __future__ import annotations

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab.application import Application
from check_pgsock.pgsock.lab.client_process import ClientProcess
from check_pgsock.pgsock.lab.faults.fault import DEFAULT, PGBOUNCER, POSTGRESQL, Fault, Wanted
from check_pgsock.pgsock.lab.faults.pace import Pace
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.wire import WireError
from check_pgsock.text import plural

_BOTH = (POSTGRESQL, PGBOUNCER)


class Healthy(Fault):
    """An application at work, directly and through PgBouncer: no check has anything to say."""

    name = "healthy"
    size = "4"
    size_unit = "sessions each way"

    def start(self) -> None:
        vias = _BOTH if self.lab.pooled else (POSTGRESQL,)
        self.stack.enter_context(Application(self.lab, self.count, vias))


class Saturate(Fault):
    """Idle sessions until there are so many in all, those of others included."""

    name = "saturate"
    size = "95%"
    vias = _BOTH

    def start(self) -> None:
        # Again and again: sessions that were ending when they were counted are gone after.
        while (missing := self.count - self.lab.established(self.via)) > 0:
            for _ in range(missing):
                self.hold(self.lab.connect(self.via))
                self.pause(0)


class Ramp(Fault):
    """Sessions that rise at a speed until one is refused, and fall at that speed when stopped."""

    name = "ramp"
    speed = 20.0
    vias = _BOTH

    def start(self) -> None:
        pace = Pace(self.rate)
        while self._rise():
            self.pause(pace.take_turn())

    def _rise(self) -> bool:
        try:
            session = self.lab.connect(self.via)
        except WireError as error:
            # errcodes.txt: too_many_connections; PgBouncer 1.18 uses a class of its own.
            if error.sqlstate == "53300" or "max_client_conn" in error.message:
                return False
            raise
        self.stack.callback(self.lab.ending.wait, 1 / self.rate)
        self.hold(session)
        return True


class Leak(Fault):
    """Sessions that nobody uses any more, with or without an open transaction."""

    name = "leak"
    kinds = ("idle", "idle-in-transaction")
    size = "10"
    vias = _BOTH
    note = "idle-in-transaction@pgbouncer: at most as many as the pool has server connections"

    def __init__(self, lab: Lab, wanted: Wanted = DEFAULT) -> None:
        super().__init__(lab, wanted)
        if self.kind == "idle-in-transaction" and self.via == PGBOUNCER:
            # Each holds one of them to its end: one more would wait in vain.
            pool = lab.pgbouncer.pool_size
            if wanted.size and self.count > pool:
                raise UsageError(
                    f"{self.label} holds a server connection for each session, and the pool has "
                    f"{pool}, not {self.count}: name a smaller size"
                )
            self.count = min(self.count, pool)

    def start(self) -> None:
        for _ in range(self.count):
            session = self.hold(self.lab.connect(self.via))
            session.query("select 1" if self.kind == "idle" else "begin; select 1")
            self.pause(0)


class Hoard(Fault):
    """One process of several alike that holds many sessions, where the others have two each."""

    name = "hoard"
    size = "20"
    vias = _BOTH
    siblings = 3
    sessions_of_sibling = 2

    def start(self) -> None:
        counts = (self.count, *(self.siblings * [self.sessions_of_sibling]))
        self._clients = [
            self.stack.enter_context(ClientProcess(self.lab, count, via=self.via))
            for count in counts
        ]

    def trouble(self) -> str | None:
        lost = sum(client.count_lost() for client in self._clients)
        whole = self.count + self.siblings * self.sessions_of_sibling
        return f"{lost} of {plural(whole, 'session')} lost" if lost else super().trouble()
