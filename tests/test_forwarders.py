"""A listener that only forwards: never "0 of 97, OK", and never held to be one that is none."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.servers.forwarders import (
    POSSIBLE,
    PROBABLE,
    Forwarder,
    describe,
    find_forwarders,
)
from check_pgsock.servers.possible_forwarders import is_refuted
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.view import View
from tests import restricted, support
from tests.conftest import Installations, MakePg, OpenSessions
from tests.forwarding import docker_proxy, forwarder
from tests.made_up_proc import Fake, make_proc, tcp_table
from tests.moment import LOCAL4
from tests.test_listener_map import idle_user

CONTAINER = (
    "its connections are in another network namespace; run the check there or name it with "
    "--netns PID"
)
ELSEWHERE = (
    "the connections of the server behind it are on that server's own host and port; run the "
    "check there, or name its network namespace with --netns PID if it is on this host"
)
POSTGRES: Fake = ("postgres", 26, ["-D", "/data"])
WRITER: Fake = ("postgres", 26, ["postgres: background writer "])
DOCKER: Fake = ("docker-proxy", 0, docker_proxy("127.0.0.1", 5432))
DOCKER_6432: Fake = ("docker-proxy", 0, docker_proxy("127.0.0.1", 6432))
HAPROXY: Fake = ("haproxy", 99, ["-f", "/etc/haproxy/haproxy.cfg"])
ROOTLESS: Fake = ("rootlessport", 26, [])
BOUNCER: Fake = ("pgbouncer", 26, ["/etc/pgbouncer/pgbouncer.ini"])
SSH: Fake = ("ssh", 26, ["-N", "-L", "5432:db:5432", "gate"])
LOGIN: Fake = ("ssh", 26, ["gate"])
SSHD: Fake = ("sshd", 0, ["-D"])
TUNNEL: Fake = ("sshd", 26, ["sshd: app@notty"])
TUNNEL_PARENT: Fake = ("sshd", 0, ["sshd: app [priv]"])


@pytest.mark.parametrize(
    ("uid", "fakes", "expected"),
    [
        (0, [DOCKER], "docker-proxy"),
        (0, [SSHD, DOCKER_6432, DOCKER], "docker-proxy"),
        (0, [SSHD, DOCKER_6432], None),  # something of root's that is not known
        (26, [DOCKER], None),  # root does not open listeners of others
        (26, [POSTGRES, DOCKER, SSHD], None),
        (26, [SSH], "ssh"),
        (26, [POSTGRES, SSH], "ssh"),  # it names the port
        (26, [LOGIN], None),
        (0, [HAPROXY], "haproxy"),  # opened by root, like every haproxy's
        (0, [SSHD, POSTGRES, HAPROXY], "haproxy"),  # PostgreSQL never listens as root
        (0, [BOUNCER, HAPROXY], "haproxy"),
        (26, [POSTGRES, HAPROXY], None),
        (26, [ROOTLESS], "rootlessport"),
        (26, [ROOTLESS, BOUNCER], None),  # either may have it
        (26, [ROOTLESS, POSTGRES], None),
        (26, [ROOTLESS, ("python3", 26, [])], "rootlessport"),
        (26, [], None),
    ],
)
def test_whose_it_may_be_without_descriptors(
    tmp_path: Path, uid: int, fakes: list[Fake], expected: str | None
) -> None:
    view = make_proc(tmp_path, uid, fakes)
    found = first(find_forwarders(view, [Listener(LOCAL4, 5432, uid, 900, 1, 0, 128)]), PROBABLE)
    assert (None if found is None else found.process.command) == expected
    if found is not None:
        where = CONTAINER if expected in ("docker-proxy", "rootlessport") else ELSEWHERE
        assert describe(found) == (
            f"port 5432 at 127.0.0.1 is probably only forwarded here, by {expected} "
            f"(process {found.process.pid}): {where}"
        )


@pytest.mark.parametrize(
    ("uid", "fakes", "expected"),
    [
        (26, [LOGIN], ("ssh", False)),
        (26, [POSTGRES, LOGIN], ("ssh", True)),
        (26, [LOGIN, BOUNCER], ("ssh", True)),
        (26, [SSHD, LOGIN, ("postgres", 27, [])], ("ssh", False)),
        (26, [ROOTLESS, POSTGRES], ("rootlessport", True)),
        (26, [LOGIN, ROOTLESS, BOUNCER], ("rootlessport", True)),
        (26, [("haproxy", 26, []), POSTGRES], ("haproxy", True)),
        (26, [TUNNEL], ("sshd", False)),
        (0, [("nginx", 0, []), ("nginx", 33, [])], ("nginx", False)),
        (0, [("traefik", 0, [])], ("traefik", False)),
        # Not possible.
        (0, [LOGIN], None),
        (26, [SSHD, TUNNEL_PARENT, POSTGRES], None),
        (0, [SSHD, TUNNEL_PARENT], None),
        (26, [("ssh", 26, ["-N", "-L", "5433:db:5432", "gate"])], None),  # another port
        (26, [("ssh", 26, ["-oClearAllForwardings=yes", "gate", "-s", "sftp"])], None),
        (26, [("kubectl", 26, ["get", "pods"])], None),
        (26, [("nginx", 33, []), HAPROXY, POSTGRES], None),
        (26, [SSH], None),  # probable
    ],
)
def test_which_may_be_and_no_more(
    tmp_path: Path, uid: int, fakes: list[Fake], expected: tuple[str, bool] | None
) -> None:
    view = make_proc(tmp_path, uid, fakes)
    found = first(find_forwarders(view, [Listener(LOCAL4, 5432, uid, 900, 1, 0, 128)]), POSSIBLE)
    assert (None if found is None else (found.process.command, found.contested)) == expected
    if found is not None:
        where = CONTAINER if found.process.command == "rootlessport" else ELSEWHERE
        assert describe(found) == (
            f"port 5432 at 127.0.0.1 may only be forwarded here, by {found.process.command} "
            f"(process {found.process.pid}), which cannot be seen without root: then {where}"
        )


def test_each_listener_has_its_own(tmp_path: Path) -> None:
    view = make_proc(tmp_path, 26, [LOGIN])
    listeners = [Listener(address, 5432, 26, 900, 1, 0, 128) for address in (LOCAL4, bytes(4))]
    assert len(find_forwarders(view, listeners)) == 1  # one and the same
    assert find_forwarders(view, [listeners[0]._replace(inode=901)]) == []  # none there


def first(found: list[Forwarder], certainty: str) -> Forwarder | None:
    """The only one, if it is as certain as that."""
    assert len(found) <= 1
    return found[0] if found and found[0].certainty == certainty else None


def test_poolers_that_systemd_listens_for_keep_their_usual_port(tmp_path: Path) -> None:
    assert is_doubtful(tmp_path, 0, [BOUNCER, HAPROXY], 6432) is False


def postgres_on(port: int) -> Fake:
    """A postmaster whose command line names its port."""
    return "postgres", 26, ["-D", "/data", "-p", str(port)]


@pytest.mark.parametrize(
    ("fakes", "port", "expected"),
    [
        ([POSTGRES, WRITER, LOGIN], 5432, False),  # as on a host whose backups go over ssh
        ([POSTGRES, WRITER, LOGIN], 5433, True),
        ([postgres_on(5433), WRITER, LOGIN], 5433, False),
        ([postgres_on(5433), WRITER, LOGIN], 5432, True),
        ([BOUNCER, TUNNEL], 6432, False),
        ([BOUNCER, TUNNEL], 6433, True),
        ([POSTGRES, WRITER, ROOTLESS], 5432, True),  # the usual port is that of containers, too
        ([postgres_on(5432), WRITER, ROOTLESS], 5432, False),
        ([BOUNCER, POSTGRES, WRITER, ("haproxy", 26, [])], 5433, True),
        ([LOGIN], 5432, True),
    ],
)
def test_what_names_a_server_refutes_that_it_forwards(
    tmp_path: Path, fakes: list[Fake], port: int, expected: bool
) -> None:
    assert is_doubtful(tmp_path, 26, fakes, port) is expected


def is_doubtful(directory: Path, uid: int, fakes: list[Fake], port: int) -> bool:
    """Whether it is to be said that the listener may be the forwarder's among `fakes`."""
    made = make_proc(directory, uid, fakes, port)
    (directory / "net").mkdir()
    (directory / "net" / "tcp").write_text(tcp_table(port, uid), encoding="ascii")
    view = View(SocketReader("auto", str(directory), made.deadline), made.files, made.deadline)
    (found,) = find_forwarders(view, view.reader.listeners(port))
    assert found.certainty == POSSIBLE
    return not is_refuted(view, found)


def test_forwarders_elsewhere_are_not_meant(tmp_path: Path) -> None:
    view = make_proc(tmp_path, 0, [DOCKER])
    assert find_forwarders(view, [Listener(LOCAL4, 5432, 0, 901, 1, 0, 128)]) == []


@pytest.fixture
def forwarded(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations
) -> Iterator[tuple[PostgresServer, NamespaceHost, int]]:
    """A server on one host, and on the other a docker-proxy to it, with its process id."""
    front, back = two_hosts
    with PostgresServer(
        installations.get(support.newest_major()),
        host=back,
        settings={"max_connections": 20},
        hba=["host all all 192.0.2.0/24 trust"],
    ) as server:
        arguments = docker_proxy(front.address, server.port, back.address)
        ends = (front.address, server.port), (back.address, server.port)
        with forwarder("docker-proxy", arguments, *ends, host=front) as pid:
            yield server, front, pid


def ok(headline: str) -> str:
    """How the first line of a saturation that is OK begins."""
    return f"PGSOCK_SATURATION OK - {headline} | "


@contextlib.contextmanager
def through(server: PostgresServer, front: NamespaceHost) -> Iterator[None]:
    """A session through the forwarder."""
    with front.entered():
        session = Session.connect(front.address, server.port)
    with session:
        yield


def test_sessions_behind_a_forwarder_are_counted_where_they_are(
    forwarded: tuple[PostgresServer, NamespaceHost, int],
) -> None:
    server, front, pid = forwarded
    port = str(server.port)
    with through(server, front):
        for user, certainty in ((None, ""), ("daemon", "probably ")):
            sentence = (
                f"UNKNOWN - port {port} at 192.0.2.1 is {certainty}only forwarded here, by "
                f"docker-proxy (process {pid}): {CONTAINER}\n"
            )
            for check in ("saturation", "close_wait", "thrashing"):
                done = support.run(check, "-p", port, on=front, user=user)
                assert done == (3, f"PGSOCK_{check.upper()} {sentence}", "")
            done = support.run("saturation", "-p", port, "--limit", "97", on=front, user=user)
            assert done == (3, f"PGSOCK_SATURATION {sentence}", "")
            done = support.run(
                "saturation", "-p", port, "--limit", "97", "--leg", "client", on=front, user=user
            )
            # Of both ends on this host that one which the forwarder opened, and its client's.
            assert done.out.startswith(ok(f"2 of 97 connections (2 %) to port {port}"))
        where = str(server.pid)
        done = support.run("saturation", "-p", port, "--netns", where, on=front)
        assert done.out.startswith(ok(f"1 of 17 connections (6 %) on port {port}"))


def test_an_address_chooses_the_server_beside_a_forwarder(make_pg: MakePg) -> None:
    support.require("root")
    pg = make_pg(settings={"listen_addresses": "127.0.0.1"})
    arguments = docker_proxy("127.0.0.2", pg.port)
    with forwarder("docker-proxy", arguments, ("127.0.0.2", pg.port)) as pid:
        for user, certainty in ((None, ""), ("daemon", "probably ")):
            limit = ("--limit", "97", "-p", str(pg.port))
            done = support.run("saturation", *limit, user=user)
            assert done == (
                3,
                f"PGSOCK_SATURATION UNKNOWN - port {pg.port} at 127.0.0.2 is {certainty}only "
                f"forwarded here, by docker-proxy (process {pid}): {CONTAINER}\n",
                "",
            )
            done = support.run("saturation", *limit, "--address", "127.0.0.1", user=user)
            assert done.code == 0, done


def test_a_forwarder_that_went_over_to_another_user() -> None:
    support.require("root")
    port = processes.free_port()
    with forwarder("haproxy", ["-f", "x"], ("127.0.0.1", port), become="nobody") as pid:
        for user, certainty in ((None, ""), ("daemon", "probably ")):
            done = support.run("close_wait", "-p", str(port), user=user)
            assert done == (
                3,
                f"PGSOCK_CLOSE_WAIT UNKNOWN - port {port} at 127.0.0.1 is {certainty}only "
                f"forwarded here, by haproxy (process {pid}): {ELSEWHERE}\n",
                "",
            )


def test_a_name_without_the_listener_changes_nothing(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    support.require("root")
    sessions(pg, 2)
    port = processes.free_port()
    arguments = docker_proxy("127.0.0.1", pg.port)
    for user in ("nobody", "daemon"):  # the server's user, and a stranger
        with forwarder("docker-proxy", arguments, ("127.0.0.1", port), user=user):
            done = support.run("saturation", "-p", str(pg.port))
            assert done.out.startswith(ok(f"2 of 17 connections (12 %) on port {pg.port}"))
            done = support.run("close_wait", "-p", str(pg.port), user="daemon")
            # A program of the server's own user may have what it says that it has.
            assert done.code == (3 if user == "nobody" else 0)


def test_a_forwarder_that_nobody_can_tell() -> None:
    support.require("root")
    user, port = idle_user(), processes.free_port()
    # What its configuration file forwards is on no command line.
    ends = ("127.0.0.1", port), ("127.0.0.1", processes.free_port())
    with (
        socket.create_server(ends[1]),
        forwarder("ssh", ["-N", "gate"], *ends, user=user) as pid,
    ):
        limit = ("-p", str(port), "--limit", "97")
        named = f"forwarded here, by ssh (process {pid})"
        where = f"port {port} at 127.0.0.1"
        sentence = f"{where} is only {named}: {ELSEWHERE}"
        done = support.run("saturation", *limit)
        assert done == (3, f"PGSOCK_SATURATION UNKNOWN - {sentence}\n", "")
        sentence = (
            f"{where} may only be {named}, which cannot be seen without root: then {ELSEWHERE}"
        )
        done = support.run("saturation", *limit, user="daemon")
        assert done == (3, f"PGSOCK_SATURATION UNKNOWN - {sentence}\n", "")
        for check in ("close_wait", "thrashing"):
            done = support.run(check, "-p", str(port), user="daemon")
            assert done == (3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}\n", "")
        # There is something on it: then it is told, and doubted.
        with socket.create_connection(("127.0.0.1", port)):
            done = support.run("saturation", *limit, user="daemon")
            first, *notes = done.out.splitlines()
            assert first.startswith(ok(f"1 of 97 connections (1 %) on port {port}"))
            assert (done.code, notes) == (0, [sentence])
            done = support.run("close_wait", "-p", str(port), user="daemon")
            assert (done.code, done.out.splitlines()[1:]) == (0, [sentence])
            done = support.run(
                "thrashing", "-p", str(port), "--window", "0.2", "-w", "100", "-c", "100",
                user="daemon",
            )  # fmt: skip
            assert (done.code, done.out.splitlines()[1:]) == (0, [sentence])


def test_a_forwarder_of_the_servers_user_is_a_doubt_until_it_is_proven(make_pg: MakePg) -> None:
    support.require("root")
    user = idle_user()
    pg, other = make_pg(user=user), processes.free_port()
    with forwarder("ssh", ["repository", "backup"], ("127.0.0.1", other), user=user) as pid:
        limit = ("-p", str(pg.port), "--limit", "97")
        first, *notes = support.run("saturation", *limit, user="daemon").out.splitlines()
        assert first.startswith(ok(f"0 of 97 connections (0 %) on port {pg.port}"))
        assert notes == [
            f"port {pg.port} at 127.0.0.1 may only be forwarded here, by ssh (process {pid}), "
            f"which cannot be seen without root: then {ELSEWHERE}",
            support.uncounted(UNPROVEN).strip(),
        ]
        done = support.run("saturation", *limit)
        assert (done.code, len(done.out.splitlines())) == (0, 1)
        with pg.connect():  # whose title proves it
            done = support.run("saturation", *limit, user="daemon")
            assert (done.code, len(done.out.splitlines())) == (0, 1), done


UNPROVEN = "which PostgreSQL server owns its listener cannot be proven from here"


def test_ordinary_hosts_have_no_doubts(
    pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    support.require("root")
    with contextlib.ExitStack() as stack:
        for name, arguments, user in (
            ("sshd", ["-D"], None),
            ("sshd", ["-i"], "nobody"),
            ("nginx", ["-g", "daemon off;"], None),
            ("nginx", ["-g", "daemon off;"], "www-data"),
            ("haproxy", ["-f", "x"], "mail"),
            ("ssh", ["gate"], None),
            ("kubectl", ["get", "pods"], "nobody"),
        ):
            there = ("127.0.0.1", processes.free_port())
            stack.enter_context(forwarder(name, arguments, there, user=user))
        for server in (pg, pgbouncer):
            for check in ("saturation", "close_wait"):
                limit = ("--limit", "50") if check == "saturation" else ()
                done = support.run(check, "-p", str(server.port), *limit, user="daemon")
                notes = "".join(done.out.splitlines(keepends=True)[1:])
                assert (done.code, notes in ("", support.uncounted(UNPROVEN))) == (0, True), done


def test_where_processes_are_hidden_nothing_is_known_of_forwarders() -> None:
    support.require("root")
    port = processes.free_port()
    with forwarder("docker-proxy", docker_proxy("127.0.0.1", port), ("127.0.0.1", port)):
        code, out, err = restricted.run(
            restricted.HIDE_PROC, "saturation", "-p", str(port), "--limit", "97"
        )
    assert (code, err) == (0, "")
    assert out.startswith(ok(f"0 of 97 connections (0 %) on port {port}"))


def test_a_saved_moment_has_no_processes() -> None:
    with fresh_directory("pgsock-moment-") as directory:
        net = directory / "net"
        net.mkdir()
        (net / "tcp").write_text(tcp_table(5432, 0), encoding="ascii")
        done = support.run("close_wait", "-p", "5432", "--proc-root", str(directory))
    assert done.code == 0
