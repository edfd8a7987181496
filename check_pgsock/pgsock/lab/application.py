"""An application at work: a pool of sessions with short transactions, as every check likes it."""

from __future__ import annotations

import threading

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.wire import Session

# Seconds that a session waits for its application within a transaction, between two, and after
# its connection was refused or lost.
_WITHIN, _BETWEEN, _RETRY = 0.2, 0.1, 0.3


class Application:
    """A context manager: `sessions` of them through each of `vias`; lost ones connect anew."""

    def __init__(self, lab: Lab, sessions: int, vias: tuple[str, ...]) -> None:
        self._lab = lab
        self._ending = threading.Event()
        self._vias = vias * sessions
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Application:
        try:
            for via in self._vias:
                work = (via, self._lab.connect(via))
                self._threads.append(threading.Thread(target=self._work, args=work))
                self._threads[-1].start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _work(self, via: str, first: Session) -> None:
        session: Session | None = first
        while not self._ending.is_set():
            try:
                with session or self._lab.connect(via) as session:
                    self._transact(session)
            except (LabError, OSError):
                self._ending.wait(_RETRY)
            session = None

    def _transact(self, session: Session) -> None:
        while not self._ending.is_set():
            session.query("begin; select count(*) from pg_class")
            self._ending.wait(_WITHIN)
            session.query("commit")
            self._ending.wait(_BETWEEN)
