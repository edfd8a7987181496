"""The lab's servers: real, unprivileged, and gone without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import accounts, janitor, processes
from check_pgsock.pgsock.lab.binaries import embedded, embedded_installations, installed
from check_pgsock.pgsock.lab.directories import fresh_directory, traversable
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session, WireError
from tests.conftest import Installations, MakePg, OpenSessions
from tests.leftovers import system_v_keys
from tests.support import newest_major, require, tcp_states, wait_until

MAJORS = pytest.mark.parametrize("major", [15, 18])


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, installations: Installations) -> Iterator[Path]:
    """A directory that receives this test's servers alone, so that leftovers are seen."""
    for major in embedded_installations():
        installations.get(major)  # not into it: the session shares them
    with fresh_directory("pgsock-test-") as path:
        monkeypatch.setattr(tempfile, "tempdir", str(path))
        path.chmod(0o755)
        yield path


def expected_uid() -> int:
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()


def is_alive(pid: int) -> bool:
    """Whether it runs; the orphans of a killed postmaster are init's to reap."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@MAJORS
def test_server_and_pooler_leave_nothing(
    base: Path, installations: Installations, major: int
) -> None:
    require("pgbouncer")
    with PostgresServer(installations.get(major), settings={"max_connections": 7}) as server:
        assert server.version == major
        assert server.execute("show max_connections") == [("7",)]
        assert server.execute("show server_encoding") == [("UTF8",)]
        assert os.stat(f"/proc/{server.pid}").st_uid == expected_uid()
        assert server.data_directory.parent.parent == base
        with server.connect() as session, PgBouncerServer(server) as pooler:
            assert session.query("select 1, null, 'é'") == [("1", None, "é")]
            assert os.stat(f"/proc/{session.backend_pid}").st_uid == expected_uid()
            assert os.stat(f"/proc/{pooler.pid}").st_uid == expected_uid()
            with pooler.connect() as through:
                assert through.query("select inet_server_port()") == [(str(server.port),)]
            assert pooler.console("SHOW VERSION")[0].keys() == {"version"}
            assert pooler.server_ports() != []
            pooler_pid = pooler.pid
        assert not is_alive(pooler_pid)
        pids = janitor.working_below(server.data_directory)
        assert server.pid in pids
        data = server.data_directory
    assert not any(is_alive(pid) for pid in pids)
    assert janitor.working_below(data) == []
    assert os.listdir(base) == []
    assert tcp_states(server.port)["LISTEN"] == 0


def test_embedded_copy_is_removed_and_readable_by_all(base: Path) -> None:
    require("embedded-wheel")
    with embedded() as found:
        assert traversable(found.directory)
        assert os.listdir(base) != []
    assert os.listdir(base) == []


@MAJORS
def test_failed_start_leaves_nothing(base: Path, installations: Installations, major: int) -> None:
    server = PostgresServer(installations.get(major), settings={"max_connections": "many"})
    with pytest.raises(LabError, match="invalid value for parameter"), server:
        pass
    assert janitor.working_below(server.data_directory) == []
    assert os.listdir(base) == []


def test_an_interrupted_initdb_leaves_no_shared_memory(
    base: Path, installations: Installations
) -> None:
    server = PostgresServer(installations.get(newest_major()))
    keys = []

    def interrupt_once_it_has_some(*_: object) -> None:
        with contextlib.suppress(OSError):
            # sysv_shmem.c: the key is the inode of the data directory.
            key = ctypes.c_int32(server.data_directory.stat().st_ino).value
            if key in system_v_keys():
                keys.append(key)
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise ZeroDivisionError

    old = signal.signal(signal.SIGALRM, interrupt_once_it_has_some)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.005)
        with pytest.raises(ZeroDivisionError), server:
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(keys) == 1
    assert not system_v_keys().intersection(keys)
    assert os.listdir(base) == []


def test_failed_pooler_leaves_nothing(pg: PostgresServer, base: Path) -> None:
    require("pgbouncer")
    settings = {"pool_mode": "none"}
    with pytest.raises(LabError, match="PgBouncer did not start"):
        PgBouncerServer(pg, settings=settings).__enter__()
    assert os.listdir(base) == []


def test_taken_port_is_refused(base: Path, installations: Installations) -> None:
    require("pgbouncer")
    binaries = installations.get(newest_major())
    with PostgresServer(binaries) as server:
        with pytest.raises(LabError, match=r"did not start; .*could not bind"):
            PostgresServer(binaries, port=server.port).__enter__()
        with pytest.raises(LabError, match="PgBouncer does not listen"):
            PgBouncerServer(server, port=server.port).__enter__()
    assert os.listdir(base) == []


@MAJORS
def test_stopped_postmaster_with_running_statement_ends(make_pg: MakePg, major: int) -> None:
    server = make_pg(major=major)
    session = server.connect()
    session.simple_query("select pg_sleep(1000)")
    pids = janitor.working_below(server.data_directory)
    assert session.backend_pid in pids
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    session.kill()
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises(LabError, match="not running"):
        server.pid  # noqa: B018


def test_killed_postmaster_leaves_nothing(make_pg: MakePg) -> None:
    server = make_pg()
    session = server.connect()
    session.simple_query("select pg_sleep(1000)")
    pids = janitor.working_below(server.data_directory)
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    session.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "all of its processes ended")
    server.start()
    assert server.execute("select 1") == [("1",)]


@MAJORS
def test_arguments_are_on_the_command_line_and_settings_are_not(
    make_pg: MakePg, major: int
) -> None:
    server = make_pg(
        major=major,
        arguments=("-c", "max_connections=9"),
        settings={"max_connections": 30, "application_name": "it's"},
    )
    with open(f"/proc/{server.pid}/cmdline", "rb") as stream:
        words = stream.read().rstrip(b"\0").decode().split("\0")
    assert words[1:] == ["-D", str(server.data_directory), "-c", "max_connections=9"]
    assert server.execute("show max_connections") == [("9",)]
    assert server.execute("show application_name") == [("it's",)]


def test_restart_keeps_port_and_cluster(make_pg: MakePg) -> None:
    server = make_pg()
    server.execute("create table kept ()")
    port, pid = server.port, server.pid
    server.configure({"max_connections": 11})
    server.restart("fast")
    assert (server.port, server.pid != pid) == (port, True)
    assert server.execute("show max_connections") == [("11",)]
    assert server.execute("select count(*) from kept") == [("0",)]


@MAJORS
def test_title_names_the_client(make_pg: MakePg, major: int, sessions: OpenSessions) -> None:
    (session,) = sessions(make_pg(major=major))
    with open(f"/proc/{session.backend_pid}/cmdline", "rb") as stream:
        title = stream.read().rstrip(b"\0 ").decode()
    assert title == f"postgres: postgres postgres 127.0.0.1({session.local_port}) idle"


def test_sessions_end_as_asked(make_pg: MakePg) -> None:
    server = make_pg(settings={"max_connections": 20})
    clean, cut, killed, orphaned = (server.connect() for _ in range(4))
    ports = [s.local_port for s in (clean, cut, killed)]
    orphaned.simple_query("select pg_sleep(1000)")
    orphan = [orphaned.local_port]
    clean.close()
    cut.abort()
    killed.kill()
    orphaned.kill()
    gone = {"TIME_WAIT"}
    wait_until(lambda: set(tcp_states(server.port, ports)) <= gone, "the ended sessions gone")
    wait_until(lambda: tcp_states(server.port, orphan) == {"CLOSE_WAIT": 1}, "the orphan seen")
    server.terminate([orphaned.backend_pid])
    wait_until(lambda: not tcp_states(server.port, orphan), "the orphan gone")


def test_refusals_are_the_servers_words(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg(settings={"max_connections": 4, "superuser_reserved_connections": 0})
    (session, *_) = sessions(server, 4)
    with pytest.raises(WireError, match=r"53300 .*too many clients"):
        server.connect()
    with pytest.raises(WireError) as caught:
        session.query("select 1/0")
    assert (caught.value.sqlstate, caught.value.message) == ("22012", "division by zero")
    assert session.query("select 2; select 3") == [("2",), ("3",)]
    with pytest.raises(OSError, match="refused"):
        Session.connect("127.0.0.1", processes.free_port())


def test_no_binaries_is_one_sentence() -> None:
    with pytest.raises(LabError, match=r"^/nowhere holds no PostgreSQL: .*initdb in it$"):
        installed("/nowhere")


def test_root_and_strangers_are_refused() -> None:
    require("root")
    with pytest.raises(LabError, match="refuses to run as root"):
        accounts.account_of("root")
    with pytest.raises(LabError, match="there is no user 'nobody-at-all'"):
        accounts.account_of("nobody-at-all")
