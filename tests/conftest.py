"""Fixtures of the functional tests: real servers, and the sessions on them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Union

import pytest

from check_pgsock.pgsock.lab.binaries import Binaries, embedded, installed
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from tests import support

MAX_CONNECTIONS = 20


def pytest_report_header() -> str:
    """Say by name what this machine lacks."""
    return f"this machine lacks: {', '.join(support.missing()) or 'nothing'}"


def pytest_unconfigure() -> None:
    """Remove what the helpers made."""
    support.clean_up()


class Installations:
    """PostgreSQL binaries by major version; the embedded ones are copied once."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._copies: dict[int, Binaries] = {}

    def get(self, major: int) -> Binaries:
        """The binaries of this major; skips the test where this machine has none."""
        support.require(f"postgresql-{major}")
        if major in support.postgres_directories():
            return installed(support.postgres_directories()[major])
        if major not in self._copies:
            self._copies[major] = self._stack.enter_context(embedded(major))
        return self._copies[major]


@pytest.fixture(scope="session")
def installations() -> Iterator[Installations]:
    """The PostgreSQL installations of this machine."""
    with contextlib.ExitStack() as stack:
        yield Installations(stack)


class Servers:
    """The servers that tests share: one of each major, kept until the session ends."""

    def __init__(self, found: Installations, stack: contextlib.ExitStack) -> None:
        self._found = found
        self._stack = stack
        self._running: dict[int, PostgresServer] = {}

    def get(self, major: int) -> PostgresServer:
        """The shared server of this major."""
        if major not in self._running:
            binaries = self._found.get(major)
            server = PostgresServer(binaries, settings={"max_connections": MAX_CONNECTIONS})
            self._running[major] = self._stack.enter_context(server)
        return self._running[major]


@pytest.fixture(scope="session")
def servers(installations: Installations) -> Iterator[Servers]:
    """The shared servers by major."""
    with contextlib.ExitStack() as stack:
        yield Servers(installations, stack)


@pytest.fixture(scope="session", params=[15, 18], ids=["pg15", "pg18"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PostgresServer:
    """A shared PostgreSQL 15 (the distribution's) and 18 (the wheel's), max_connections 20.

    Sockets in TIME_WAIT of earlier tests may be on its port: count those on a server of make_pg.
    """
    return servers.get(request.param)


@pytest.fixture(scope="session")
def shared_pgbouncer(pg: PostgresServer) -> Iterator[PgBouncerServer]:
    """A shared PgBouncer in front of `pg`; tests take `pgbouncer`."""
    support.require("pgbouncer")
    with PgBouncerServer(pg) as pooler:
        yield pooler


@pytest.fixture
def used_poolers() -> Iterator[list[PgBouncerServer]]:
    """Poolers that close their connections to PostgreSQL when the test's clients are gone."""
    poolers: list[PgBouncerServer] = []
    yield poolers
    for pooler in poolers:
        ports = pooler.server_ports()
        pooler.console("RECONNECT")
        gone = functools.partial(_are_gone, pooler.server.port, ports)
        support.wait_until(gone, f"the pool on port {pooler.server.port} closed")


@pytest.fixture
def pgbouncer(
    shared_pgbouncer: PgBouncerServer, used_poolers: list[PgBouncerServer]
) -> PgBouncerServer:
    """A shared PgBouncer in front of `pg`, whose pool is empty before and after the test."""
    used_poolers.append(shared_pgbouncer)
    return shared_pgbouncer


class MakePg(Protocol):
    """How make_pg is called."""

    def __call__(
        self,
        *,
        settings: Mapping[str, Setting] | None = None,
        arguments: Sequence[str] = (),
        major: int | None = None,
        port: int = 0,
        hba: Sequence[str] = (),
        user: str = "nobody",
    ) -> PostgresServer: ...


@pytest.fixture
def make_pg(installations: Installations) -> Iterator[MakePg]:
    """Start a server of this test's own: make_pg(settings=..., arguments=..., major=...).

    Without `major` it is the newest of this machine.
    """
    with contextlib.ExitStack() as stack:

        def make(
            *,
            settings: Mapping[str, Setting] | None = None,
            arguments: Sequence[str] = (),
            major: int | None = None,
            port: int = 0,
            hba: Sequence[str] = (),
            user: str = "nobody",
        ) -> PostgresServer:
            server = PostgresServer(
                installations.get(major or support.newest_major()),
                port=port,
                settings=settings,
                arguments=arguments,
                hba=hba,
                user=user,
            )
            return stack.enter_context(server)

        yield make


Server = Union[PostgresServer, PgBouncerServer]


class OpenSessions(Protocol):
    """How sessions is called."""

    def __call__(
        self, server: Server, count: int = 1, *, database: str = "postgres", user: str = "postgres"
    ) -> list[Session]: ...


@pytest.fixture
def sessions(used_poolers: list[PgBouncerServer]) -> Iterator[OpenSessions]:
    """Open sessions(server, count); after the test all are closed and gone from the server."""
    opened: list[tuple[Server, Session, int]] = []

    def open_sessions(
        server: Server, count: int = 1, *, database: str = "postgres", user: str = "postgres"
    ) -> list[Session]:
        new = []
        for _ in range(count):
            session = server.connect(database, user)
            opened.append((server, session, session.local_port))
            new.append(session)
        return new

    yield open_sessions
    ports: dict[int, list[int]] = {}
    for server, session, local_port in opened:
        session.close()
        if isinstance(server, PostgresServer):
            # A statement that still runs would keep its backend.
            server.terminate([session.backend_pid])
        ports.setdefault(server.port, []).append(local_port)
    for port, local_ports in ports.items():
        gone = functools.partial(_are_gone, port, local_ports)
        support.wait_until(gone, f"the sessions on port {port} closed")


def _are_gone(port: int, remote_ports: Sequence[int]) -> bool:
    return set(support.tcp_states(port, remote_ports)) <= {"TIME_WAIT"}
