"""Fixtures of the functional tests: real servers, labs and hosts, and the sessions on them.

A test that takes `lab`, `two_host_lab` or `every_major` runs on every PostgreSQL: with `make test`
on 15 and 18, with `make prove` on 14 to 18, where it needs no mark of its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Union

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.binaries import Binaries, embedded, unpacked
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.namespaces import two_hosts as make_two_hosts
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.servers.postmaster import made_with
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.unix_sockets import UnixListener
from tests import proving, support
from tests.proving import Proof, Row

MAX_CONNECTIONS = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `make prove` gives."""
    parser.addoption(
        "--proofs",
        type=Path,
        metavar="FILE",
        help="keep results by the state of the tree, run only what has not passed on it, and end "
        "with a table",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep proofs where they are asked for."""
    if hasattr(config, "workerinput"):
        config.option.basetemp = None  # of pytest-xdist, for the home of this process
    path = config.getoption("--proofs")
    if path is not None:
        servers = os.environ.get("PGSOCK_TEST_PG_BINS", "")
        circumstances = (platform.python_version(), servers)
        config.pluginmanager.register(proving.Plugin(path, support.ROOT, *circumstances))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the directory that holds everything temporary, and outlives no test session: one for
    each process that runs tests.
    """
    if not session.config.getoption("numprocesses", None):
        support.enter_home()


def pytest_report_header() -> str:
    """Say by name what this machine lacks."""
    return f"this machine lacks: {', '.join(support.missing()) or 'nothing'}"


def pytest_unconfigure() -> None:
    """Remove what was made for all tests."""
    support.clean_up()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `every_major` on those of this tier."""
    if "every_major" in metafunc.fixturenames:
        proves = metafunc.config.getoption("markexpr").strip() == "prove"
        metafunc.parametrize(
            "every_major",
            [
                pytest.param(major, id=f"pg{major}", marks=_marks(major, proves))
                for major in support.ALL_MAJORS
            ],
            indirect=True,
            scope="session",
        )


def _marks(major: int, proves: bool) -> tuple[pytest.MarkDecorator, ...]:
    # One tier deselects what the other takes: 15 and 18 are in both.
    return (pytest.mark.prove,) if proves or major not in support.SOME_MAJORS else ()


class Installations:
    """PostgreSQL binaries by major version; those that must be copied are, once."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._found: dict[int, Binaries] = {}

    def get(self, major: int) -> Binaries:
        """The binaries of this major; skips the test where this machine has none."""
        support.require(f"postgresql-{major}")
        if major not in self._found:
            directory = support.postgres_directories().get(major)
            found = embedded(major) if directory is None else unpacked(directory)
            self._found[major] = self._stack.enter_context(found)
        return self._found[major]


@pytest.fixture(scope="session")
def installations() -> Iterator[Installations]:
    """The PostgreSQL installations of this machine."""
    with contextlib.ExitStack() as stack:
        yield Installations(stack)


@pytest.fixture(scope="session")
def every_major(request: pytest.FixtureRequest) -> int:
    """A PostgreSQL major: each that this tier takes, see pytest_generate_tests."""
    major = request.param
    assert isinstance(major, int)
    return major


@pytest.fixture(scope="module")
def lab(every_major: int, installations: Installations) -> Iterator[Lab]:
    """A lab on loopback for the tests of a module, on every major; each leaves it as it was."""
    with Lab(pg_bin=installations.get(every_major).directory) as running:
        yield running


@pytest.fixture(scope="module")
def two_host_lab(every_major: int, installations: Installations) -> Iterator[Lab]:
    """A lab with clients and servers on hosts of their own, otherwise as `lab`."""
    support.require("root")
    support.require("iproute2")
    with Lab(pg_bin=installations.get(every_major).directory, on_two_hosts=True) as running:
        yield running


@pytest.fixture
def two_hosts() -> Iterator[tuple[NamespaceHost, NamespaceHost]]:
    """Two hosts that reach each other, 192.0.2.1 and 192.0.2.2, without anything on them."""
    support.require("root")
    support.require("iproute2")
    with fresh_directory("pgsock-hosts-") as directory, make_two_hosts(directory) as hosts:
        yield hosts


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    """Say what was proven, for the table of `make prove`: see tests.proving."""
    missed = []

    def prove(what: str, measured: str, *, goal: str = "", met: bool = True) -> None:
        request.node.user_properties.append(("proof", tuple(Row(what, measured, goal, met))))
        if not met:
            missed.append(f"{what}: {measured}, the goal is {goal}")

    yield prove
    if missed:
        pytest.fail("; ".join(missed), pytrace=False)


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


@pytest.fixture(scope="session", autouse=True)
def _servers_made_in_one_go() -> Iterator[None]:
    """Start each PostgreSQL again while its listeners have a gap between their inodes.

    The kernel gives out inodes by processor: what runs beside the start may leave one, and only
    without it a stranger can prove whose the listeners are.
    """
    start = PostgresServer.start

    def start_in_one_go(self: PostgresServer, seconds: float = 30.0) -> None:
        start(self, seconds)
        for _ in range(10):
            if is_made_in_one_go(self):
                break
            self.stop("immediate")
            start(self, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PostgresServer, "start", start_in_one_go)
        yield


def is_made_in_one_go(server: PostgresServer) -> bool:
    """Whether a server's listeners, of TCP and of its Unix socket, have inodes without a gap."""
    with server.on.entered():
        reader = SocketReader("netlink", None, Deadline(5))
        listeners: list[Listener | UnixListener] = [*reader.listeners(server.port)]
        listeners += reader.unix_listeners()
    links = [os.readlink(one.path) for one in os.scandir(f"/proc/{server.pid}/fd")]
    own = [one for one in listeners if f"socket:[{one.inode}]" in links]
    return len(made_with(own[0], own)) == len(own)


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
