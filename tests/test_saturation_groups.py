"""check_pgsock_saturation by user, database, peer and process, against real servers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.accounts import account_of
from check_pgsock.pgsock.lab.hosts import LOCAL
from check_pgsock.pgsock.lab.pgbouncer import EXECUTABLE, PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.support import Completed

STRANGER = "daemon"  # neither root nor the servers' user
MOST = 10  # clients of one PgBouncer
REST = "close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n"


def run(port: int, *arguments: str, user: str | None = STRANGER) -> Completed:
    """Run the check."""
    return support.run("saturation", "-p", str(port), *arguments, user=user)


def slots(established: int, used: int) -> str:
    """The metrics that come first, of 17 usable slots."""
    return (
        f"established={established};13;15;0;17 slots_used={used};13;15;0;17 limit=17;;;0 "
        f"utilization={100 * used / 17:.1f}%;;;0 free={17 - used};;;0;17 "
    )


@pytest.fixture
def roles(pg: PostgresServer, make_pg: MakePg, sessions: OpenSessions) -> Iterator[PostgresServer]:
    """4 sessions of user app (1 over the Unix socket) and 2 of batch, on database shop; of a server
    on which there is no other.
    """
    server = make_pg(major=pg.version, settings={"max_connections": 20})
    server.execute("create role app login; create role batch login")
    server.execute("create database shop")
    sessions(server, 3, user="app", database="shop")
    sessions(server, 2, user="batch", database="shop")
    with server.administrator("shop") as local:
        local.query("select 1")
        # Backends of the sessions that made all this may still be ending.
        support.wait_until(
            lambda: "CLOSE_WAIT" not in support.tcp_states(server.port), "they have ended"
        )
        yield server


def test_users_and_databases_have_limits_of_their_own(roles: PostgresServer) -> None:
    by_user = ("--by", "user", "--group-limit", "app=4", "--group-limit", "batch=20")
    start = (
        "PGSOCK_SATURATION {} - 6 of 17 connection slots used (35 %), 5 connections on port "
        f"{roles.port}"
    )
    done = run(roles.port, "--limit", "17", *by_user)
    assert done == (
        0,
        f"{start.format('OK')}, user app has 3 of 4 sessions (75 %) | {slots(5, 6)}"
        f"fullest_group=75.0%;80;90;0 user_app=3;;;0;4 user_batch=2;;;0;20 {REST}",
        "",
    )
    # Its own Unix sessions count, too: 5 of TCP and one of the superuser's.
    by_database = ("--by", "database", "--group-limit", "shop=6")
    done = run(roles.port, "--limit", "17", *by_database)
    assert done == (
        2,
        f"{start.format('CRITICAL')}, database shop has 6 of 6 sessions (100 %) (fullest_group "
        f"outside range 0:90) | {slots(5, 6)}fullest_group=100.0%;80;90;0 db_shop=6;;;0;6 {REST}"
        "database shop: 6 of 6\n"
        "peer 127.0.0.1: 5 of database shop\npeer [local]: 1 of database shop\n"
        "user app: 3 of database shop\nuser batch: 2 of database shop\n"
        "user postgres: 1 of database shop\n"
        "activity: 6 idle\n",
        "",
    )
    others = ("--by", "user", "--group-limit", "app=30", "--group-limit", "*=2")
    done = run(roles.port, "--limit", "17", *others, "--fullest-group-critical", "120")
    assert done.out.splitlines()[0] == (
        f"{start.format('WARNING')}, user batch has 2 of 2 sessions (100 %) (fullest_group outside "
        f"range 0:80) | {slots(5, 6)}fullest_group=100.0%;80;120;0 user_app=3;;;0;30 {REST}"
    ).rstrip("\n")


def test_several_full_groups_are_named_by_how_full_they_are(roles: PostgresServer) -> None:
    limits = [f"--group-limit={one}" for one in ("app=3", "batch=0", "postgres=4")]
    done = run(roles.port, "--limit", "17", "--by", "user", *limits)
    first, *who = done.out.splitlines()
    assert (done.code, first.partition(" | ")[0], who[:3]) == (
        2,
        "PGSOCK_SATURATION CRITICAL - 6 of 17 connection slots used (35 %), 5 connections on port "
        f"{roles.port}, user batch has 2 of 0 sessions (none allowed), the fullest of 2 users that "
        "alert (fullest_group outside range 0:90)",
        ["user batch: 2 of 0", "user app: 3 of 3", "peer 127.0.0.1: 2 of user batch"],
    )
    assert " fullest_group=300.0%;80;90;0 user_app=3;;;0;3 user_batch=2;;;0;0 " in first


def test_users_and_databases_select_what_is_established(roles: PostgresServer) -> None:
    for arguments, count, where in (
        (("--user", "app"), 3, " of user app"),
        (("--exclude-user", "app"), 2, " of all users but app"),
        (("--database", "shop", "--user", "batch"), 2, " of user batch on database shop"),
        (("--user", "nobody"), 0, " of user nobody"),
    ):
        done = run(roles.port, "--limit", "40", *arguments)
        assert done == (
            0,
            f"PGSOCK_SATURATION OK - {count} of 40 connections ({100 * count / 40:.0f} %) on port "
            f"{roles.port}{where} | established={count};32;36;0;40 limit=40;;;0 "
            f"utilization={100 * count / 40:.1f}%;;;0 free={40 - count};;;0;40 close_wait=0;;;0\n",
            "",
        )


def test_peers_have_limits_of_their_own(roles: PostgresServer) -> None:
    port = roles.port
    by_peer = ("--limit", "50", "--by", "peer", "--group-limit", "127.0.0.0/8=5")
    done = run(port, *by_peer, "--leg", "client")
    label = "peer_127_0_"
    first, *who = done.out.splitlines()
    assert done.code == 2
    assert first.startswith(
        f"PGSOCK_SATURATION CRITICAL - 5 of 50 connections (10 %) to port {port}, peer 127.0.0.0/8 "
        "has 5 of 5 connections (100 %) (fullest_group outside range 0:90) | established=5;40;45;"
        f"0;50 limit=50;;;0 utilization=10.0%;;;0 free=45;;;0;50 fullest_group=100.0%;80;90;0 "
        f"{label}"
    )
    assert who[:2] == ["peer 127.0.0.0/8: 5 of 5", "peer 127.0.0.1: 5 of peer 127.0.0.0/8"]


def test_groups_that_nobody_knows(pgbouncer: PgBouncerServer, sessions: OpenSessions) -> None:
    sessions(pgbouncer, 2)
    done = run(pgbouncer.port, "--limit", "9", "--by", "user", "--group-limit", "app=4")
    assert (done.code, done.err) == (3, "")
    assert done.out.startswith("PGSOCK_SATURATION UNKNOWN - the users of sessions are not known: ")


@contextlib.contextmanager
def second(pooler: PgBouncerServer, most: int = MOST) -> Iterator[int]:
    """A further PgBouncer, for so many clients, on the port of one with so_reuseport; its process
    id.
    """
    text = pooler.ini.read_text(encoding="utf-8").splitlines()
    text = [f"max_client_conn = {most}" if "max_client_conn" in one else one for one in text]
    ini, log = pooler.ini.with_name("second.ini"), pooler.ini.with_name("second.log")
    lines = [one for one in text if not one.startswith("unix_socket_dir")]
    ini.write_text("\n".join([*lines, "unix_socket_dir ="]) + "\n", encoding="utf-8")
    ini.chmod(0o644)
    process = processes.spawn([EXECUTABLE, str(ini)], account_of("nobody"), log, LOCAL)
    try:
        support.wait_until(lambda: b"process up: " in log.read_bytes(), "the second is up")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def accepted_by(pid: int, port: int) -> int:
    """How many connections to `port` a process has accepted."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    inodes = {
        one[9] for one in fields if one[3] == "01" and int(one[1].rpartition(":")[2], 16) == port
    }
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(f"socket:[{inode}]" in links for inode in inodes)


def test_the_fullest_of_several_pgbouncers_is_judged(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    support.require("root")
    settings: dict[str, str | int] = {"so_reuseport": 1}
    with (
        PgBouncerServer(pg, settings=settings, max_client_conn=MOST) as pooler,
        second(pooler) as pid,
        contextlib.ExitStack() as stack,
    ):
        port, pids = pooler.port, (pooler.pid, pid)
        for _ in range(8):
            stack.enter_context(pooler.connect())
        counts = sorted((-accepted_by(one, port), one) for one in pids)
        most, fullest = -counts[0][0], counts[0][1]
        for user in (None, "nobody"):
            done = run(port, "--fullest-process-warning", "3", user=user)
            first, *lines = done.out.splitlines()
            assert (done.code, first) == (
                1,
                f"PGSOCK_SATURATION WARNING - 8 of 20 connections (40 %) on port {port}, pgbouncer "
                f"(process {fullest}) has {most} of its 10 (fullest_process outside range 0:3) | "
                "established=8;16;18;0;20 limit=20;;;0 utilization=40.0%;;;0 free=12;;;0;20 "
                f"fullest_process={most};3;9;0;10 {REST}".rstrip("\n"),
            )
            assert lines[:2] == [
                f"pgbouncer (process {one}): {-count} established" for count, one in counts
            ]
        done = run(port, "-v", user=None)
        assert (
            f"limit: 20 usable of max_client_conn 20, read from 10 in {pooler.ini}, 10 in "
            f"{pooler.ini.with_name('second.ini')}; whose server it is: they hold the listeners "
            f"(processes {', '.join(map(str, sorted(pids)))})"
        ) in done.out.splitlines()
        assert run(port, "--limit", "20") == (
            0,
            f"PGSOCK_SATURATION OK - 8 of 20 connections (40 %) on port {port} | "
            "established=8;16;18;0;20 limit=20;;;0 utilization=40.0%;;;0 free=12;;;0;20 "
            f"{REST}port {port} has 2 listeners at one address, of as many processes or fewer: "
            "which of them holds how many connections is seen by root and their own user alone, "
            "and their sum is judged\n",
            "",
        )


def test_each_of_several_pgbouncers_is_judged_by_what_it_can_hold(pg: PostgresServer) -> None:
    """Of 30 and of 100: the first is full while the sum of both is not half of their limit."""
    support.require("pgbouncer")
    support.require("root")
    with (
        PgBouncerServer(pg, settings={"so_reuseport": 1}, max_client_conn=4) as pooler,
        second(pooler, 40) as pid,
        contextlib.ExitStack() as stack,
    ):
        port, small = pooler.port, pooler.pid
        # The kernel shares them out by a hash of their ports.
        while accepted_by(small, port) < 4:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"\0")
            time.sleep(0.02)
        count = accepted_by(small, port) + accepted_by(pid, port)
        for user in (None, "nobody"):
            for limit, words in ((44, ()), (60, ("--limit", "60"))):
                done = run(port, *words, "-w", "~:", "-c", "~:", user=user)
                assert (done.code, done.out.splitlines()[0].partition(" | ")[0]) == (
                    2,
                    f"PGSOCK_SATURATION CRITICAL - {count} of {limit} connections "
                    f"({100 * count / limit:.0f} %) on port {port}, pgbouncer (process {small}) "
                    "has 4 of its 4 (fullest_process outside range 0:3)",
                )
                assert " fullest_process=4;3;3;0;4 " in done.out
        why = "which of them holds how many connections is seen by root and their own user alone"
        done = run(port, "--limit", "44", "--fullest-process-critical", "90%")
        assert (done.code, done.out.splitlines()[0]) == (
            3,
            f"PGSOCK_SATURATION UNKNOWN - fullest_process cannot be judged: {why}; without "
            "--fullest-process-critical the rest is judged",
        )
    done = run(pg.port, "--limit", "17", "--fullest-process-critical", "90%", user=None)
    assert (done.code, done.out.splitlines()[1:]) == (
        0, ["--fullest-process-critical does not apply: one process has the port, or none does"],
    )  # fmt: skip


def test_the_limit_of_a_pgbouncer_is_that_of_its_configuration(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    support.require("root")
    with PgBouncerServer(pg, max_client_conn=MOST) as pooler, pooler.connect():
        time.sleep(1.2)  # a file is as old as its process to within a second
        pooler.ini.write_text(pooler.ini.read_text().replace("max_client_conn = 10", "%include x"))
        pooler.ini.with_name("x").write_text("max_client_conn = 40\n")
        text = pooler.ini.read_text().replace("%include x", f"%include {pooler.ini.parent}/x")
        pooler.ini.write_text(text)
        done = run(pooler.port, user=None)
        assert done == (
            0,
            f"PGSOCK_SATURATION OK - 1 of 40 connections (2 %) on port {pooler.port} | "
            "established=1;32;36;0;40 limit=40;;;0 utilization=2.5%;;;0 free=39;;;0;40 "
            f"{REST}{pooler.ini} has changed since PgBouncer started: SHOW CONFIG tells what is in "
            "effect\n",
            "",
        )
        pooler.ini.with_name("x").unlink()
        done = run(pooler.port, user=None)
        assert done == (
            3,
            f"PGSOCK_SATURATION UNKNOWN - the limit of port {pooler.port} cannot be read: "
            f"max_client_conn of PgBouncer (process {pooler.pid}): /proc/{pooler.pid}/root"
            f"{pooler.ini.with_name('x')}: No such file or directory; name the usable slots with "
            "--limit N\n",
            "",
        )
