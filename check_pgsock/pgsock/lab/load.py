"""Load on a throw-away server: what each check is there to notice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session


class HeldSessions:
    """A context manager: idle sessions, as many as asked for; none is left on exit."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._sessions: list[Session] = []

    def hold(self, count: int) -> None:
        """Open or close sessions until `count` are open."""
        while len(self._sessions) < count:
            self._sessions.append(self._server.connect())
        closed = [self._sessions.pop() for _ in range(len(self._sessions) - count)]
        for session in closed:
            session.close()
        _wait_for_end(self._server, [session.backend_pid for session in closed])

    def __enter__(self) -> HeldSessions:
        return self

    def __exit__(self, *_: object) -> None:
        self.hold(0)


class Orphans:
    """A context manager: backends whose client was killed under a running statement."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._pids: list[int] = []

    def make(self, count: int) -> None:
        """Kill clients under their statement until there are `count` orphans."""
        while len(self._pids) < count:
            session = self._server.connect()
            session.simple_query("select pg_sleep(600)")
            session.kill()
            self._pids.append(session.backend_pid)

    def end(self) -> None:
        """Terminate them, as a DBA would."""
        self._server.terminate(self._pids)
        _wait_for_end(self._server, self._pids)
        self._pids.clear()

    def __enter__(self) -> Orphans:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@contextlib.contextmanager
def reconnecting(server: PostgresServer, rate: float) -> Iterator[None]:
    """Open and close `rate` connections a second in the background."""
    stop = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        due = time.monotonic()
        while not stop.wait(max(due - time.monotonic(), 0)):
            due += 1 / rate
            try:
                server.connect().close()
            except (LabError, OSError) as error:
                failures.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise LabError(f"the load stopped, a connection was refused: {failures[0]}")


def transactions(
    server: PostgresServer, database: str, sessions: int, busy: float, idle: float, seconds: float
) -> None:
    """Run transactions in `sessions` sessions at once for `seconds`, then close these.

    Each statement takes `busy` seconds, and its transaction waits `idle` more for its client. The
    sessions' statistics are complete when this returns: a session writes them when it ends.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(server.connect(database)) for _ in range(sessions)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for session in opened:
                session.simple_query(f"begin; select pg_sleep({busy})")
            for session in opened:
                session.wait_ready()
            time.sleep(idle)
            for session in opened:
                session.query("commit")
    _wait_for_end(server, [session.backend_pid for session in opened])


def _wait_for_end(server: PostgresServer, pids: list[int], seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while alive := set(pids).intersection(server.process_ids()):
        if time.monotonic() > give_up:
            raise LabError(f"backends {sorted(alive)} do not end")
        time.sleep(0.01)
