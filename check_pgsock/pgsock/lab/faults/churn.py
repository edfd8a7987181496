"""Connections that come and go at a steady rate, in every way in which they end."""

from __future__ import annotations

import socket
from collections.abc import Callable

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.fault import PGBOUNCER, POSTGRESQL, Fault
from check_pgsock.pgsock.lab.faults.pace import Pace
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.wire import NoTlsError, Session, WireError

# A role that does not exist.
_STRANGER = "stranger"
# Connections that may be under way at once: where each takes 10 ms, 800 per second.
_THREADS = 8
# Seconds; short, so that a server that does not answer keeps nobody from stopping the fault.
_TIMEOUT = 2.5


def _plain(server: Server) -> None:
    _connect(server).close()


def _tls(server: Server) -> None:
    try:
        _connect(server, tls=True).close()
    except NoTlsError:
        raise UsageError(
            f"{server.title} takes no TLS here: that needs openssl for a certificate, and a "
            "server that is built with TLS (--pg-bin)"
        ) from None


def _reset(server: Server) -> None:
    _connect(server).abort()


def _failed_login(server: Server) -> None:
    try:
        _connect(server, _STRANGER).close()
    except WireError as error:
        # errcodes.txt: class 28, invalid authorization; PgBouncer 1.18 says protocol_violation.
        if error.sqlstate.startswith("28") or "authentication failed" in error.message:
            return
        raise
    raise LabError(f"the login of '{_STRANGER}' does not fail: drop that role")


def _slow_closer(server: Server) -> None:
    _connect(server).close_after_server()


def _probe(server: Server) -> None:
    socket.create_connection((server.host, server.port), _TIMEOUT).close()


def _connect(server: Server, user: str = APPLICATION, *, tls: bool = False) -> Session:
    return Session.connect(server.host, server.port, user, DATABASE, timeout=_TIMEOUT, tls=tls)


_WAYS: dict[str, Callable[[Server], None]] = {
    "plain": _plain,
    "tls": _tls,
    "reset": _reset,
    "failed-login": _failed_login,
    "slow-closer": _slow_closer,
    "probe": _probe,
}


class Churn(Fault):
    """Clients that connect and disconnect all the time."""

    name = "churn"
    kinds = tuple(_WAYS)
    speed = 60.0
    vias = (POSTGRESQL, PGBOUNCER)
    note = "tls needs @pgbouncer, or a server built with TLS: --pg-bin, the embedded one is not"

    def trouble(self) -> str | None:
        if self._refusal is not None:
            return f"its connections are refused: {self._refusal}"
        return super().trouble()

    def start(self) -> None:
        self._refusal: str | None = None
        come_and_go, server = _WAYS[self.kind], self.lab.server(self.via)
        with self.lab.client_host.entered():
            try:
                come_and_go(server)  # what cannot be done fails here
            except OSError as error:
                why = f"{server.title} takes no connection ({error}): is another fault on?"
                raise LabError(why) from None
        pace = Pace(self.rate)

        def work() -> None:
            with self.lab.client_host.entered():
                while True:
                    self.pause(pace.take_turn())
                    # Clients come again when they were refused: after a restart it goes on.
                    try:
                        come_and_go(server)
                        self._refusal = None
                    except (LabError, OSError) as error:
                        self._refusal = str(error)
                        pace.forget()

        for _ in range(_THREADS):
            self.in_background(work)
