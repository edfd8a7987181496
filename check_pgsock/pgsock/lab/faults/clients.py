"""Faults that clients leave on the server: killed, not reading, not waiting, vanished."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from check_pgsock.pgsock.lab.client_process import ClientProcess
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.fault import Fault
from check_pgsock.pgsock.lab.faults.pace import Pace
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE
from check_pgsock.pgsock.lab.server_sockets import accept_queue, ends_of
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Socket
from check_pgsock.text import plural

# Seconds until nothing of a fault must be left on the server.
_END = 2.5

_LONG = "select pg_sleep(86400)"
# Rows without end, as they are read: as fast as they go, and 20 per second. (A set in FROM would
# be written to a temporary file first.)
_FLOOD = "select repeat('x', 8000), generate_series(1, 1000000000)"
_TRICKLE = "select pg_sleep(0.05), repeat('x', 10000), generate_series(1, 1000000000)"

# timer_active in /proc/net/tcp (Documentation/networking/proc_net_tcp.rst).
_RETRANSMIT, _ZERO_WINDOW_PROBE = 1, 4


class _SeenOnServer(Fault):
    """A fault of connections that is there when the server's ends of them say so, and as long as
    the `_backends` are that have them.
    """

    _backends: frozenset[int] = frozenset()

    def trouble(self) -> str | None:
        gone = len(self._backends.difference(self.lab.postgres.process_ids()))
        if gone:
            return f"{gone} of {plural(len(self._backends), 'backend')} gone"
        return super().trouble()

    def _wait_for_ends(
        self, ports: Collection[int], is_so: Callable[[Socket], bool], what: str
    ) -> None:
        """Wait until there is a server's end of each of `ports`, and it is as `is_so` says."""
        wanted = set(ports)
        self.wait_for(
            lambda: wanted == {end.remote_port for end in self._ends(wanted) if is_so(end)},
            f"{len(wanted)} {what}",
        )

    def _ends(self, ports: Collection[int]) -> list[Socket]:
        return ends_of(self.lab.postgres, self.lab.client_host, ports)

    def _end_backends(self, pids: Collection[int]) -> None:
        """Terminate these backends, as a DBA would, and wait for their end."""
        self.lab.postgres.terminate(pids)
        _wait_until(lambda: not set(pids).intersection(self.lab.postgres.process_ids()), "backends")

    @contextlib.contextmanager
    def _statements(self, sql: str) -> Iterator[list[Session]]:
        """Sessions that run `sql`; at the end they are cut off, and their backends terminated."""
        sessions: list[Session] = []
        try:
            for _ in range(self.count):
                try:
                    sessions.append(self.lab.connect())
                except OSError as error:
                    raise _no_connection(error) from None
                sessions[-1].simple_query(sql)
                self.pause(0)
            self._backends = frozenset(session.backend_pid for session in sessions)
            yield sessions
        finally:
            _cut_off(sessions)
            self._end_backends([session.backend_pid for session in sessions])


class Orphan(_SeenOnServer):
    """Backends whose client was killed while its statement ran."""

    name = "orphan"
    size = "8"

    def start(self) -> None:
        client = self.stack.enter_context(ClientProcess(self.lab, self.count, _LONG))
        self._backends = frozenset(client.backend_pids)
        self.stack.callback(self._end_backends, client.backend_pids)
        ports = self._client_ports(client.backend_pids)
        client.kill()
        self._wait_for_ends(
            ports, lambda end: end.state == CLOSE_WAIT and end.inode != 0, "orphaned backends"
        )

    def _client_ports(self, pids: list[int]) -> set[int]:
        numbers = ", ".join(map(str, pids))
        try:
            rows = self.lab.postgres.execute(
                f"select client_port from pg_stat_activity where pid in ({numbers})"
            )
        except OSError as error:
            raise _no_connection(error) from None
        return {int(port or 0) for (port,) in rows}


class SlowReader(_SeenOnServer):
    """Clients that ask for a large result and do not read it."""

    name = "slow-reader"
    size = "8"

    def start(self) -> None:
        # The kernel closes the window of who does not read: no buffer has to be made small.
        # (One made small later drops what was promised, and the server retransmits instead.)
        sessions = self.stack.enter_context(self._statements(_FLOOD))
        self._wait_for_ends(
            {session.local_port for session in sessions},
            lambda end: end.timer == _ZERO_WINDOW_PROBE and end.send_queue > 0,
            "blocked backends",
        )


class Stall(_SeenOnServer):
    """Clients that connect to a stopped postmaster: the kernel takes them, nobody answers."""

    name = "stall"
    kinds = ("patient", "giving-up")
    size = "60"
    size_unit = "connections"
    speed = 60.0

    def start(self) -> None:
        """The clients come at the speed. Once all are there, the patient ones wait; of the others
        at a quarter of it the longest waiting gives up and a new one comes, until the accept
        queue is full of those that gave up: nothing is ESTABLISHED then.

        Raises LabError when the accept queue takes fewer than all.
        """
        gave_up: set[int] = set()
        # From the last to the first: the clients are cut off before the server goes on, so that
        # it finds each dead at the first read and begins no session; it works off all of them.
        self.stack.callback(self._wait_until_accepted, gave_up)
        self.stack.enter_context(self._stopped_postmaster())
        waiting = self.stack.enter_context(self._clients())
        ports = [session.local_port for session in waiting]
        self._wait_for_ends(
            ports, lambda e: e.state == ESTABLISHED and e.inode == 0, "connections not accepted"
        )
        if self.kind == "giving-up":
            self.in_background(lambda: self._give_up_in_turn(waiting, gave_up))
            self._wait_for_ends(
                ports[:1], lambda e: e.state == CLOSE_WAIT and e.inode == 0, "client that gave up"
            )

    @contextlib.contextmanager
    def _clients(self) -> Iterator[deque[Session]]:
        waiting: deque[Session] = deque()
        pace = Pace(self.rate)
        try:
            while len(waiting) < self.count:
                self.pause(pace.take_turn())
                if not self._arrive(waiting, 1.0):
                    raise LabError(
                        f"the server's accept queue takes {len(waiting)} of {self.count} "
                        "connections: ask for fewer, or for a lab with a larger max_connections"
                    )
            yield waiting
        finally:
            _cut_off(waiting)

    def _give_up_in_turn(self, waiting: deque[Session], gave_up: set[int]) -> None:
        pace = Pace(self.rate / 4)
        while True:
            self.pause(pace.take_turn())
            if waiting:
                session = waiting.popleft()
                gave_up.add(session.local_port)
                session.kill()
            self._arrive(waiting, min(0.5 / self.rate, 1.0))

    def _arrive(self, waiting: deque[Session], patience: float) -> bool:
        """Whether a client got a connection within its `patience` (seconds)."""
        server = self.lab.postgres
        try:
            with self.lab.client_host.entered():
                connected = socket.create_connection((server.host, server.port), patience)
        except socket.timeout:
            return False
        except OSError as error:
            raise _no_connection(error) from None
        waiting.append(Session(connected))
        waiting[-1].send_startup({"user": APPLICATION, "database": DATABASE})
        return True

    @contextlib.contextmanager
    def _stopped_postmaster(self) -> Iterator[None]:
        pid = self.lab.postgres.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            while not _is_stopped(pid):
                self.pause(0.001)
            yield
        finally:
            # Whoever is the postmaster by now: one that goes on anyway is not harmed.
            with contextlib.suppress(LabError):
                os.kill(self.lab.postgres.pid, signal.SIGCONT)

    def trouble(self) -> str | None:
        pid = self.lab.postgres.process_id
        if pid is None or not _is_stopped(pid):
            return "the postmaster is not stopped any more"
        return super().trouble()

    def _wait_until_accepted(self, gave_up: set[int]) -> None:
        def is_back() -> bool:
            left = [end for end in self._ends(gave_up) if end.state == CLOSE_WAIT]
            return not left and accept_queue(self.lab.postgres) == 0

        _wait_until(is_back, "connections that were not accepted")


class Vanish(_SeenOnServer):
    """The clients' host disappears from the network while the server sends to it."""

    name = "vanish"
    size = "5"
    needs_two_hosts = True

    def start(self) -> None:
        sessions = self.stack.enter_context(self._statements(_TRICKLE))
        for session in sessions:
            session.socket.recv(1)  # its rows flow
        self.in_background(lambda: self._read(sessions))
        self.stack.enter_context(self._vanished_client_host())
        self._wait_for_ends(
            {session.local_port for session in sessions},
            lambda end: end.timer == _RETRANSMIT and end.retransmits > 0 and end.send_queue > 0,
            "connections with retransmits",
        )

    def _read(self, sessions: list[Session]) -> None:
        with selectors.DefaultSelector() as selector:
            for session in sessions:
                selector.register(session.socket, selectors.EVENT_READ, session.socket)
            while True:
                for key, _ in selector.select(0.1):
                    if not key.data.recv(65536):
                        raise LabError("the server ended a session")
                self.pause(0)

    @contextlib.contextmanager
    def _vanished_client_host(self) -> Iterator[None]:
        client, server = self.lab.client_host, self.lab.server_host
        assert isinstance(client, NamespaceHost)
        assert isinstance(server, NamespaceHost)
        try:
            client.disappear(server)
            yield
        finally:
            client.reappear(server)


def _is_stopped(pid: int) -> bool:
    """Whether a process is in state T (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        raise LabError("the postmaster ended instead of being stopped") from None
    return text.rpartition(")")[2].split()[0] == "T"


def _no_connection(error: OSError) -> LabError:
    return LabError(f"PostgreSQL takes no connection ({error}): is another fault on?")


def _cut_off(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.abort()


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait, at the end of a fault, until what it left is gone."""
    give_up = time.monotonic() + _END
    while not is_so():
        if time.monotonic() > give_up:
            raise LabError(f"{what} are left: start a new lab")
        time.sleep(0.01)
