"""check_pgsock_thrashing by destroy events, on real servers, as user nobody."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.accounts import account_of, own
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.processes import free_port
from check_pgsock.pgsock.lab.wire import Session, WireError
from tests.conftest import MakePg, OpenSessions
from tests.watching import Check, abort, counts, listening, masked, thrash

WINDOW = ("--window", "1", "-v")
QUIET = "opened_rate=0/s;;;0 cycle_rate=0/s;;;0 probe_rate=0/s;;;0"


def cycle(server: PostgresServer, count: int) -> None:
    """Connect and close, one after the other."""
    for _ in range(count):
        server.connect().close()


def test_ok_without_any_churn(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg()
    sessions(server, 3)
    done = thrash("-p", str(server.port), *WINDOW)
    assert masked(done) == [
        f"PGSOCK_THRASHING OK - 0/s connections closed per second (0/s opened) "
        f"on port {server.port} | closed_rate=0/s;10;50;0 {QUIET} "
        "established=3;;;0 time_wait=0;;;0",
        "counted in T s: 0 closed, 0 opened; of the closed 0 probes, 0 lost",
        "TIME_WAIT: 0",
    ]
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("critical", "state", "code"), [("50", "WARNING", 1), ("20", "CRITICAL", 2)]
)
def test_thrashing(pg: PostgresServer, critical: str, state: str, code: int) -> None:
    with Check("-p", str(pg.port), *WINDOW, "-c", critical) as check:
        cycle(pg, 30)
    done = check.result()
    bound = critical if code == 2 else "10"
    assert masked(done, time_wait=False) == [
        f"PGSOCK_THRASHING {state} - 30/s connections closed per second (30/s opened) "
        f"on port {pg.port} (closed_rate outside range 0:{bound}) | "
        f"closed_rate=30/s;10;{critical};0 opened_rate=30/s;;;0 cycle_rate=30/s;;;0 "
        "probe_rate=0/s;;;0 established=0;;;0 time_wait=N;;;0",
        "peer 127.0.0.1: 30 closed",
        "counted in T s: 30 closed, 30 opened; of the closed 0 probes, 0 lost",
    ]
    assert (done.code, done.err) == (code, "")


def test_client_leg_counts_its_own_end_once(pg: PostgresServer) -> None:
    with Check("-p", str(pg.port), "--leg", "client", *WINDOW) as check:
        cycle(pg, 20)
    done = check.result()
    assert masked(done, time_wait=False) == [
        "PGSOCK_THRASHING WARNING - 20/s connections closed per second (20/s opened) "
        f"to port {pg.port} (closed_rate outside range 0:10) | "
        "closed_rate=20/s;10;50;0 opened_rate=20/s;;;0 cycle_rate=20/s;;;0 probe_rate=0/s;;;0 "
        "failed_connect_rate=0/s;;;0 established=0;;;0 time_wait=N;;;0",
        "peer 127.0.0.1: 20 closed",
        "counted in T s: 20 closed, 20 opened; of the closed 0 probes, 0 lost; 0 failed connects",
    ]
    assert (done.code, done.err) == (1, "")


@pytest.mark.parametrize("leg", ["server", "client"])
def test_every_kind_of_disconnect_is_one_close(
    make_pg: MakePg, sessions: OpenSessions, leg: str
) -> None:
    server = make_pg(settings={"max_connections": 10, "superuser_reserved_connections": 0})
    closed, reset, killed, ended, busy = sessions(server, 5)
    with Check("-p", str(server.port), "--leg", leg, "--window", "2", "-v") as check:
        closed.close()
        reset.abort()
        killed.kill()
        server.terminate([ended.backend_pid])
        with pytest.raises((WireError, OSError)):
            ended.wait_ready()
        ended.close()
        busy.simple_query("select pg_sleep(0.3)")
        time.sleep(0.1)
        busy.kill()
        time.sleep(0.5)
        with pytest.raises(WireError, match="does not exist"):
            server.connect(user="stranger")
        sessions(server, 10)
        with pytest.raises(WireError, match="too many clients"):
            server.connect()
    found = counts(check.result())
    assert found == {"closed": 7, "opened": 12, "probes": 0, "lost": 0} | (
        {"failed": 0} if leg == "client" else {}
    )


def test_tls(make_pg: MakePg) -> None:
    with fresh_directory("pgsock-tls-") as directory:
        key, certificate = make_certificate(directory)
        tls: dict[str, Setting] = {
            "ssl": True,
            "ssl_key_file": str(key),
            "ssl_cert_file": str(certificate),
        }
        server = make_pg(settings=tls, major=15)  # the wheel's is built without TLS
        with Check("-p", str(server.port), "--window", "2", "-v") as check:
            for _ in range(5):
                psql = [server.binaries.path("psql"), "-Atc", "select ssl from pg_stat_ssl"]
                dsn = f"{server.dsn()} sslmode=require"
                out = subprocess.run([*psql, dsn], capture_output=True, text=True, check=True)
                assert "t" in out.stdout.split()
    assert counts(check.result()) == {"closed": 5, "opened": 5, "probes": 0, "lost": 0}


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A key and a certificate that the server's user can read."""
    key, certificate = directory / "server.key", directory / "server.crt"
    request = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command = [*request, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    own(key, account_of("nobody"))
    return key, certificate


@pytest.mark.parametrize(("leg", "word"), [("server", "on"), ("client", "to")])
def test_probes(make_pg: MakePg, leg: str, word: str) -> None:
    server = make_pg()
    args = ("-p", str(server.port), "--leg", leg, "--window", "1.5", "-v", "-w", "5")
    with Check(*args) as check, Check(*args, "--ignore-probes") as ignoring:
        cycle(server, 3)
        for _ in range(10):
            socket.create_connection((server.host, server.port)).close()
            time.sleep(0.01)
    done = check.result()
    failed = "failed_connect_rate=0/s;;;0 " if leg == "client" else ""
    assert masked(done, time_wait=False)[:2] == [
        "PGSOCK_THRASHING WARNING - 13/s connections closed per second (13/s opened) "
        f"{word} port {server.port} (closed_rate outside range 0:5) | "
        "closed_rate=13/s;5;50;0 opened_rate=13/s;;;0 cycle_rate=13/s;;;0 probe_rate=10/s;;;0 "
        f"{failed}established=0;;;0 time_wait=N;;;0",
        "peer 127.0.0.1: 13 closed",
    ]
    assert done.code == 1
    done = ignoring.result()
    elapsed = counts(done).elapsed
    line, *rest = done.out.splitlines()
    match = re.fullmatch(
        r"PGSOCK_THRASHING OK - (\d\.\d) connections closed per second \(\1 opened, (\d\.\d) "
        rf"probes not counted\) {word} port {server.port} \| closed_rate=([\d.]+);5;50;0 "
        r"opened_rate=\3;;;0 cycle_rate=\3;;;0 probe_rate=([\d.]+);;;0 "
        r"(?:failed_connect_rate=0.0;;;0 )?established=0;;;0 time_wait=\d+;;;0",
        line,
    )
    assert match is not None, line
    assert [round(float(number) * elapsed, 1) for number in match.groups()[2:]] == [3, 10]
    assert rest[0] == "peer 127.0.0.1: 3 closed"
    assert done.code == 0


def test_failed_connects_are_no_closes() -> None:
    port = free_port()
    with Check("-p", str(port), "--leg", "client", *WINDOW) as check:
        for _ in range(7):
            with contextlib.suppress(OSError):  # with a timeout a connect does not block
                socket.create_connection(("127.0.0.1", port), timeout=1)
    done = check.result()
    assert masked(done) == [
        "PGSOCK_THRASHING OK - 0/s connections closed per second (0/s opened) "
        f"to port {port} | closed_rate=0/s;10;50;0 {QUIET} failed_connect_rate=7/s;;;0 "
        "established=0;;;0 time_wait=0;;;0",
        "counted in T s: 0 closed, 0 opened; of the closed 0 probes, 0 lost; 7 failed connects",
        "TIME_WAIT: 0",
    ]
    assert (done.code, done.err) == (0, "")


def test_aborts_that_no_look_saw_are_not_counted_and_said_at_vv() -> None:
    with listening(socket.AF_INET, "127.0.0.1") as port:
        args = ("-p", str(port), "--leg", "client", "--window", "1", "-vv")
        with Check(*args) as check:
            abort(socket.create_connection(("127.0.0.1", port)))
        done = check.result()
    assert done.code == 0
    match = re.search(r"^(\d+) sockets? of this host reset or failed to connect, ", done.out, re.M)
    assert match is not None
    assert int(match[1]) >= 1


def test_pool_that_restarts_does_not_cycle(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg()
    args = ("-p", str(server.port), "-w", "5", "--judge", "cycles", *WINDOW)
    held = sessions(server, 15)
    with Check(*args) as check:
        for session in held:
            session.close()
    done = check.result()
    assert masked(done, time_wait=False) == [
        "PGSOCK_THRASHING OK - 0/s connections cycled per second (15/s closed, 0/s opened) "
        f"on port {server.port} | closed_rate=15/s;;;0 opened_rate=0/s;;;0 cycle_rate=0/s;5;50;0 "
        "probe_rate=0/s;;;0 established=0;;;0 time_wait=N;;;0",
        "peer 127.0.0.1: 15 closed",
        "counted in T s: 15 closed, 0 opened; of the closed 0 probes, 0 lost",
    ]
    assert done.code == 0
    with Check(*args) as check:
        cycle(server, 15)
    done = check.result()
    assert masked(done, time_wait=False)[0] == (
        "PGSOCK_THRASHING WARNING - 15/s connections cycled per second (15/s closed, 15/s opened) "
        f"on port {server.port} (cycle_rate outside range 0:5) | closed_rate=15/s;;;0 "
        "opened_rate=15/s;;;0 cycle_rate=15/s;5;50;0 probe_rate=0/s;;;0 established=0;;;0 "
        "time_wait=N;;;0"
    )
    assert done.code == 1


def test_both_legs_of_a_pooler(pgbouncer: PgBouncerServer, pg: PostgresServer) -> None:
    pgbouncer.connect().close()  # its connection to the server is kept from here on
    database = ("-p", str(pg.port), "--leg", "client", *WINDOW)
    with Check("-p", str(pgbouncer.port), *WINDOW) as clients, Check(*database) as servers:
        for _ in range(20):
            with pgbouncer.connect() as session:
                session.query("select 1")
    assert counts(clients.result()) == {"closed": 20, "opened": 20, "probes": 0, "lost": 0}
    assert counts(servers.result())["closed"] == 0


def test_listener_that_restarts_is_no_close(make_pg: MakePg) -> None:
    server = make_pg()
    with Check("-p", str(server.port), "--window", "2", "-v") as check:
        server.stop()
    assert counts(check.result()) == {"closed": 0, "opened": 0, "probes": 0, "lost": 0}


def test_time_wait_of_the_fullest_destination() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as stream:
        lowest, highest = map(int, stream.read().split())
    size = highest - lowest + 1
    with listening(socket.AF_INET, "127.0.0.1") as port, Check(
        "-p", str(port), "--leg", "client", "-w", "100", "--time-wait-warning", "0.05%",
        "--time-wait-critical", "50%", *WINDOW,
    ) as check:  # fmt: skip
        for number in range(30):
            here = "127.0.0.2" if number < 4 else "127.0.0.1"
            with socket.create_connection(("127.0.0.1", port), 5, (here, 0)) as connection:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
    done = check.result()
    bound = size // 2000
    assert masked(done) == [
        "PGSOCK_THRASHING WARNING - 30/s connections closed per second (30/s opened) "
        f"to port {port} (time_wait outside range 0:{bound}) | closed_rate=30/s;100;50;0 "
        "opened_rate=30/s;;;0 cycle_rate=30/s;;;0 probe_rate=30/s;;;0 "
        "failed_connect_rate=0/s;;;0 established=0;;;0 "
        f"time_wait=26;{bound};{size // 2};0;{size}",
        "peer 127.0.0.1: 30 closed",
        "peer 127.0.0.1: 30 in TIME_WAIT",
        "counted in T s: 30 closed, 30 opened; of the closed 30 probes, 0 lost; 0 failed connects",
        f"TIME_WAIT: 30, of which 26 from 127.0.0.1 to 127.0.0.1 port {port}",
    ]
    assert done.code == 1


def test_sessions_that_stay_are_opened_not_closed(make_pg: MakePg) -> None:
    server = make_pg()
    with contextlib.ExitStack() as stack:
        with Check("-p", str(server.port), *WINDOW) as check:
            for _ in range(4):
                stack.enter_context(
                    Session.connect(server.host, server.port, "postgres", "postgres")
                )
        found = counts(check.result())
    assert found == {"closed": 0, "opened": 4, "probes": 0, "lost": 0}
