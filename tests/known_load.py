"""A load whose truth is known: sessions that execute and are idle in transactions by a script, and
note when they did.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import WireError

ACTIVE, IDLE = "active", "idle in transaction"


class Span(NamedTuple):
    """What a session did, seconds since 1970."""

    state: str
    start: float
    end: float


class Actor:
    """A session that repeats a script until it is stopped; `spans` is what it did.

    A script's steps are (SQL, seconds): the statement takes so long, and leaves the session in a
    transaction or not; without SQL the session waits so long.
    """

    def __init__(
        self, server: PostgresServer, database: str, script: Sequence[tuple[str, float]]
    ) -> None:
        self.spans: list[Span] = []
        self._server = server
        self._session = server.connect(database)
        self._session.socket.settimeout(300)
        self._script = script
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._act)
        self._thread.start()

    def stop(self) -> None:
        """End it, whatever it does."""
        self._stopped.set()
        self._server.terminate([self._session.backend_pid])
        self._thread.join()
        self._session.close()

    def _act(self) -> None:
        in_transaction = False
        while not self._stopped.is_set():
            for sql, seconds in self._script:
                state = ACTIVE if sql else IDLE
                if sql or in_transaction:
                    self.spans.append(Span(state, time.time(), math.inf))
                if sql:
                    try:
                        self._session.query(
                            f"{sql} pg_sleep({seconds}) FROM one" if seconds else sql
                        )
                    except (OSError, WireError):
                        return
                    in_transaction = (in_transaction or sql == "BEGIN") and sql != "COMMIT"
                elif self._stopped.wait(seconds):
                    return
                if self.spans and self.spans[-1].end == math.inf:
                    self.spans[-1] = self.spans[-1]._replace(end=time.time())


def truth(actors: Iterable[Actor], start: float, end: float) -> tuple[float, float]:
    """The seconds of all sessions, executing and idle in transactions, between two moments."""
    spent = {ACTIVE: 0.0, IDLE: 0.0}
    for actor in actors:
        for span in actor.spans:
            spent[span.state] += max(min(span.end, end) - max(span.start, start), 0.0)
    return spent[ACTIVE], spent[IDLE]
