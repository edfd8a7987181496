"""check_pgsock_workers against real servers and client processes: whole output and exit code."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab.binaries import find_program
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.cgroups import cgroups, enter
from tests.conftest import Installations, MakePg, OpenSessions, Server
from tests.moment import MOMENT
from tests.proving import Proof

# Neither root nor the servers' user.
STRANGER = "daemon"
REMEDY = (
    "run the check as root, as the user of these processes, or with CAP_SYS_PTRACE and "
    "CAP_DAC_READ_SEARCH"
)
_RUNS = 40  # against a healthy pool of each major
# A program that holds sessions, and says when it has them.
_PROGRAM = """
import os, sys
from check_pgsock.pgsock.lab.wire import Session
host, port, count = sys.argv[1:4]
opened = [Session.connect(host, int(port)) for _ in range(int(count))]
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def processes(server: Server, *counts: int, name: str = "app") -> Iterator[list[int]]:
    """Processes of one program, one with each of `counts` sessions; yields their ids. They and
    their sessions are gone after.
    """
    before = support.tcp_states(server.port)["ESTABLISHED"]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(fresh_directory("pgsock-workers-"))
        program = directory / f"{name}.py"
        program.write_text(_PROGRAM, encoding="utf-8")
        started = []
        for count in counts:
            command = [sys.executable, str(program), server.host, str(server.port), str(count)]
            one = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=support.environment(support.ROOT),
                cwd=directory,
                start_new_session=True,
            )
            started.append(stack.enter_context(one))
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        yield [one.pid for one in started]
    support.wait_until(
        lambda: support.tcp_states(server.port)["ESTABLISHED"] <= before, "their sessions are gone"
    )


def called(pid: int) -> str:
    """A process as the check calls it."""
    command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return f"process {pid} ({command})"


class Crowd(NamedTuple):
    """A server with five client processes: four of one program, and another."""

    server: PostgresServer
    siblings: list[int]
    other: int

    @property
    def held(self) -> str:
        """Who holds the connections, in a headline."""
        return f"{called(self.siblings[0])} holds 24 of 30 connections (80 %) of 4 workers"

    @property
    def who(self) -> str:
        """Who holds the connections, in lines."""
        counts = zip([*self.siblings, self.other], (24, 2, 2, 2, 1))
        return "".join(f"{called(pid)}: {count} established\n" for pid, count in counts)


@pytest.fixture(scope="module")
def crowd(every_major: int, installations: Installations) -> Iterator[Crowd]:
    """One process holds 24 sessions, its siblings 2 each, and something else 1."""
    binaries = installations.get(every_major)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer(binaries, settings={"max_connections": 60}))
        siblings = stack.enter_context(processes(server, 24, 2, 2, 2))
        (other,) = stack.enter_context(processes(server, 1, name="report"))
        yield Crowd(server, siblings, other)


@pytest.fixture(scope="module")
def newest(installations: Installations) -> Iterator[PostgresServer]:
    """A server for what is the same on all majors."""
    binaries = installations.get(support.newest_major())
    hba = ["host all all 127.0.0.0/8 trust"]
    with PostgresServer(binaries, settings={"max_connections": 60}, hba=hba) as server:
        yield server


def of_sessions(idle: int, cpu_bound: bool = True) -> str:
    """The perfdata of a PostgreSQL server's sessions where all are idle."""
    return (
        f"active=0;;;0 waiting=0;;;0 idle={idle};;;0 idle_in_transaction=0;;;0 "
        f"sessions={idle};;;0 utilization=0.0%;;;0;100{' cpu_bound=0;;;0' * cpu_bound}\n"
    )


# One process hoards.


def test_a_hoarding_process_is_named_on_the_client_leg(crowd: Crowd) -> None:
    port = crowd.server.port
    arguments = ("-p", str(port), "--leg", "client")
    perfdata = "workers=5;;;0\n"
    done = support.run("workers", *arguments)
    assert done == (
        1,
        f"PGSOCK_WORKERS WARNING - {crowd.held} to port {port} (spread outside range 0:4) | "
        f"busiest_worker=80.0%;;;0;100 spread=12.0;4;;0 {perfdata}{crowd.who}",
        "",
    )
    done = support.run("workers", *arguments, "-w", "50", "-c", "75", "--spread-warning", "12")
    assert done == (
        2,
        f"PGSOCK_WORKERS CRITICAL - {crowd.held} to port {port} "
        "(busiest_worker outside range 0:75) | "
        f"busiest_worker=80.0%;50;75;0;100 spread=12.0;12;;0 {perfdata}{crowd.who}",
        "",
    )
    done = support.run("workers", *arguments, "--min-connections", "25")
    assert done == (
        0,
        f"PGSOCK_WORKERS OK - 31 connections of 5 workers to port {port}, too few to judge | "
        f"busiest_worker=80.0%;;;0;100 spread=12.0;;;0 {perfdata}",
        "",
    )


def test_a_hoarding_process_is_named_on_the_server_leg(crowd: Crowd) -> None:
    port = crowd.server.port
    done = support.run("workers", "-p", str(port), "--window", "0.1")
    assert done == (
        1,
        "PGSOCK_WORKERS WARNING - 0 of 31 sessions active, 0 waiting (utilization 0 %) on port "
        f"{port}; {crowd.held} (spread outside range 0:4) | busiest_worker=80.0%;;;0;100 "
        f"spread=12.0;4;;0 workers=5;;;0 {of_sessions(31)}{crowd.who}sessions: 31 idle\n",
        "",
    )


def test_a_stranger_compares_addresses_and_says_so(crowd: Crowd) -> None:
    support.require("root")
    port = crowd.server.port
    arguments = ("-p", str(port), "--window", "0.1", "-w", "50")
    done = support.run("workers", *arguments, "-v", user=STRANGER)
    assert done == (
        0,
        "PGSOCK_WORKERS OK - 0 of 31 sessions active, 0 waiting (utilization 0 %) on port "
        f"{port} | busiest_worker=100.0%;;;0;100 spread=1.0;;;0 workers=1;;;0 {of_sessions(31)}"
        "not compared: the processes of 31 connections from this host, which cannot be seen from "
        "here\n"
        "peer 127.0.0.1: 31 established\n"
        "sessions: 31 idle\n",
        "",
    )


def test_a_stranger_cannot_tell_the_processes_of_an_application(crowd: Crowd) -> None:
    support.require("root")
    port = crowd.server.port
    done = support.run("workers", "-p", str(port), "--leg", "client", user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_WORKERS UNKNOWN - which processes hold the 31 connections to port {port} cannot "
        f"be seen, nor do cgroups tell like ones apart: {REMEDY}\n",
        "",
    )


def test_a_recording_leads_to_the_same_verdict(crowd: Crowd, tmp_path: Path) -> None:
    port = crowd.server.port
    path = tmp_path / "moment.zip"
    assert support.run("pgsock", "record", str(path)).code == 0
    named = [crowd.siblings[0], crowd.other]
    for arguments in ([], ["--leg", "client"]):
        done = support.run("workers", "-p", str(port), *arguments, "--source", str(path))
        first, taken, told, *rest = done.out.splitlines()
        # Without command lines the report is one of five that are alike.
        held = f"{called(named[0])} holds 24 of 31 connections (77 %) of 5 workers"
        assert done.code == 1
        assert held in first
        assert taken.startswith("as recorded at ")
        assert told == (
            "no command lines were recorded: programs are told apart by name and user alone"
        )
        assert rest[0] == f"{called(named[0])}: 24 established"
        assert ("cpu_bound" in first, "sessions=31;" in first) == (False, not arguments)


# What is as it should be.


def test_even_workers_beside_another_program_are_ok(newest: PostgresServer) -> None:
    with processes(newest, 4, 4, 4), processes(newest, 1, name="psql"):
        arguments = ("-p", str(newest.port), "--leg", "client", "--min-connections", "4")
        done = support.run("workers", *arguments)
    first, _, rest = done.out.partition(" holds ")
    assert (done.code, first[: first.index("process")]) == (0, "PGSOCK_WORKERS OK - ")
    assert rest == (
        f"4 of 12 connections (33 %) of 3 workers to port {newest.port} | "
        "busiest_worker=33.3%;;;0;100 spread=1.0;4;;0 workers=4;;;0\n"
    )


def test_one_process_with_a_large_pool_is_ok(newest: PostgresServer) -> None:
    with processes(newest, 30), processes(newest, 1, name="psql"):
        done = support.run("workers", "-p", str(newest.port), "--leg", "client", "-w", "1")
    assert done == (
        0,
        f"PGSOCK_WORKERS OK - 31 connections of 2 workers to port {newest.port}, none like "
        "another | busiest_worker=100.0%;;;0;100 spread=1.0;;;0 workers=2;;;0\n",
        "",
    )


def test_nobody_connected(newest: PostgresServer) -> None:
    support.wait_until(lambda: not support.tcp_states(newest.port)["ESTABLISHED"], "all gone")
    nothing = "busiest_worker=0.0%;;;0;100 spread=1.0;;;0 workers=0;;;0"
    done = support.run("workers", "-p", str(newest.port), "--leg", "client", user=STRANGER)
    expected = f"PGSOCK_WORKERS OK - 0 connections to port {newest.port} | {nothing}\n"
    assert done == (0, expected, "")
    # All labels are there that a session would bring.
    done = support.run("workers", "-p", str(newest.port), "--window", "0.1")
    assert done == (
        0,
        f"PGSOCK_WORKERS OK - 0 of 0 sessions active, 0 waiting on port {newest.port} | "
        f"{nothing} {of_sessions(0)}",
        "",
    )


UNPROVEN = "whose server it is cannot be proven from here (root and its user can)"


def test_a_stranger_and_one_of_two_servers(make_pg: MakePg) -> None:
    """Nothing proves whose a port is without TCP connections whose titles have an address."""
    support.require("root")
    make_pg(user="news")
    server = make_pg(user="news", settings={"log_hostname": True})
    arguments = ("-p", str(server.port), "--window", "0.1")
    where = f"on port {server.port}"
    with server.administrator():
        done = support.run("workers", *arguments, user=STRANGER)
        assert done == (
            0,
            f"PGSOCK_WORKERS OK - 0 connections {where} | busiest_worker=0.0%;;;0;100 "
            "spread=1.0;;;0 workers=0;;;0\n"
            f"sessions over Unix sockets are not seen: {UNPROVEN}\n",
            "",
        )
        for label in ("active", "waiting", "utilization"):
            done = support.run("workers", *arguments, f"--{label}-warning", "10", user=STRANGER)
            assert (done.code, done.out.partition("\n")[0]) == (
                3,
                f"PGSOCK_WORKERS UNKNOWN - {label} cannot be judged: {UNPROVEN}; without "
                f"--{label}-warning the rest is judged",
            )
    with server.connect():
        done = support.run("workers", *arguments, user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_WORKERS UNKNOWN - which processes hold the 1 connection {where} cannot be seen, "
        f"and {UNPROVEN}: {REMEDY}\n",
        "",
    )


# Poolers.

NO_UTILIZATION = (
    "utilization cannot be judged: it is that of the sessions of a PostgreSQL server, on its "
    "server leg; without --utilization-warning the rest is judged"
)


@pytest.fixture
def poolers(newest: PostgresServer) -> Iterator[tuple[PgBouncerServer, PgBouncerServer]]:
    """Two PgBouncers on one port, the first with 22 clients, the second with 2; and a third one
    that listens there at another address.
    """
    support.require("pgbouncer")
    with contextlib.ExitStack() as stack:
        settings = {"so_reuseport": 1}
        first = stack.enter_context(PgBouncerServer(newest, settings=settings))
        second = stack.enter_context(PgBouncerServer(newest, port=first.port, settings=settings))
        elsewhere = {"listen_addr": "127.0.0.2"}
        stack.enter_context(PgBouncerServer(newest, port=first.port, settings=elsewhere))
        sessions = {}
        for _ in range(80):
            session = stack.enter_context(first.connect())
            sessions[session.local_port] = session
        for pooler, most in ((first, 22), (second, 2)):
            ports = [int(row["port"] or 0) for row in pooler.console("SHOW CLIENTS")]
            mine = [port for port in ports if port in sessions]
            for port in mine[most:]:
                sessions.pop(port).close()
        both = set(sessions)
        assert len(both) == 24
        support.wait_until(
            lambda: support.tcp_states(first.port)["ESTABLISHED"] == 24, "the others are closed"
        )
        yield first, second


def test_two_poolers_on_one_port(poolers: tuple[PgBouncerServer, PgBouncerServer]) -> None:
    port = poolers[0].port
    busiest, other = (called(one.pid) for one in poolers)
    # As root and as the poolers' own user; whatever its name, cgroup and command line.
    for user in (None, "nobody"):
        done = support.run("workers", "-p", str(port), user=user)
        first, *lines = done.out.splitlines()
        assert (done.code, first) == (
            1,
            f"PGSOCK_WORKERS WARNING - {busiest} holds 22 of 24 connections (92 %) of 2 workers "
            f"on port {port} (spread outside range 0:4) | busiest_worker=91.7%;;;0;100 "
            "spread=11.0;4;;0 workers=3;;;0",
        )
        assert lines[:2] == [f"{busiest}: 22 established", f"{other}: 2 established"]
        assert re.fullmatch(r"process \d+ \(pgbouncer\): 0 established", lines[2])
    support.require("root")
    done = support.run("workers", "-p", str(port), user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_WORKERS UNKNOWN - which processes hold the 24 connections on port {port} cannot "
        f"be seen, nor do cgroups tell like ones apart: {REMEDY}\n",
        "",
    )
    # What poolers do not tell does not hide what is too much.
    done = support.run("workers", "-p", str(port), "--utilization-warning", "90")
    assert (done.code, done.out.splitlines()[1]) == (1, NO_UTILIZATION)
    loose = ("--spread-warning", "20", "--utilization-warning", "90")
    done = support.run("workers", "-p", str(port), *loose)
    expected = f"PGSOCK_WORKERS UNKNOWN - {NO_UTILIZATION}"
    assert (done.code, done.out.partition("\n")[0]) == (3, expected)


def test_one_pooler_in_front_of_postgresql_is_ok(
    newest: PostgresServer,
) -> None:
    support.require("pgbouncer")
    with contextlib.ExitStack() as stack:
        pgbouncer = stack.enter_context(PgBouncerServer(newest))
        for _ in range(6):
            stack.enter_context(pgbouncer.connect()).query("begin")
        arguments = ("--min-connections", "2", "-w", "50", "--window", "0.1")
        done = support.run("workers", "-p", str(newest.port), *arguments)
        assert done == (
            0,
            "PGSOCK_WORKERS OK - 0 of 6 sessions active, 0 waiting (utilization 0 %) on port "
            f"{newest.port} | busiest_worker=100.0%;;;0;100 spread=1.0;;;0 workers=1;;;0 "
            "active=0;;;0 waiting=0;;;0 idle=0;;;0 idle_in_transaction=6;;;0 sessions=6;;;0 "
            "utilization=0.0%;;;0;100 cpu_bound=0;;;0\n",
            "",
        )
        done = support.run("workers", "-p", str(pgbouncer.port), *arguments)
        assert done == (
            0,
            f"PGSOCK_WORKERS OK - 6 connections of 1 worker on port {pgbouncer.port} | "
            "busiest_worker=100.0%;;;0;100 spread=1.0;;;0 workers=1;;;0\n",
            "",
        )


# Who may not see processes, and cgroups in their place.


def test_cgroups_tell_like_workers_apart_for_a_stranger() -> None:
    name = f"pgsock-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        units = stack.enter_context(cgroups(f"{name}@1.service", f"{name}@2.service"))
        listeners = []
        port = 0
        for unit in units:
            enter(unit)
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(50)
            listener.settimeout(0)
            port = listener.getsockname()[1]
            listeners.append(listener)
        wanted = [20, 3]
        while any(wanted):
            client = socket.create_connection(("127.0.0.1", port))
            for at, listener in enumerate(listeners):
                with contextlib.suppress(BlockingIOError):
                    accepted = listener.accept()[0]
                    if wanted[at]:
                        wanted[at] -= 1
                        stack.enter_context(client)
                        stack.enter_context(accepted)
                    else:
                        client.close()
                        accepted.close()
        done = support.run("workers", "-p", str(port), user=STRANGER)
    first, second = (f"cgroup /{unit.name}" for unit in units)
    assert done == (
        1,
        f"PGSOCK_WORKERS WARNING - {first} holds 20 of 23 connections (87 %) of 2 workers on port "
        f"{port} (spread outside range 0:4) | busiest_worker=87.0%;;;0;100 spread=6.67;4;;0 "
        "workers=2;;;0\n"
        "processes cannot be seen from here: cgroups are compared\n"
        f"{first}: 20 established\n{second}: 3 established\n",
        "",
    )


def test_what_no_process_has_accepted_is_nobodys() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=9))
        port = listener.getsockname()[1]
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        done = support.run("workers", "-p", str(port), user=STRANGER)
    assert done == (
        0,
        f"PGSOCK_WORKERS OK - 0 connections on port {port} | busiest_worker=0.0%;;;0;100 "
        "spread=1.0;;;0 workers=0;;;0\n"
        "3 connections not accepted yet, and no worker's\n",
        "",
    )


# What sessions of PostgreSQL do, against pg_stat_activity.

STATES = {"active": 3, "waiting": 2, "idle": 4, "idle in transaction": 2}


def count_states(pg: PostgresServer) -> dict[str, int]:
    """Client sessions by state, but for the one that asks."""
    rows = pg.execute(
        "select case when wait_event_type = 'Lock' then 'waiting' else state end, count(*) "
        "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() "
        "and state is not null group by 1"
    )
    return {str(state): int(number or 0) for state, number in rows}


def connect_from(pg: PostgresServer, address: str, **parameters: str) -> Session:
    """A session from a local address."""
    session = Session(socket.create_connection((pg.host, pg.port), 10, (address, 0)))
    try:
        session.send_startup({"user": "postgres", "database": "postgres", **parameters})
        session.wait_ready()
    except BaseException:
        session.kill()
        raise
    return session


@pytest.fixture
def busy(pg: PostgresServer, sessions: OpenSessions) -> Iterator[PostgresServer]:
    """The sessions of STATES, one of those that are idle over a Unix socket, and a walsender."""
    pg.execute("create table if not exists locked_up (n int)")
    *_, holder, other = sessions(pg, 5)
    holder.query("begin; lock table locked_up in access exclusive mode")
    other.query("begin; select 1")
    for session in sessions(pg, 3):
        session.simple_query("select pg_sleep(3600)")
    for session in sessions(pg, 2):
        session.simple_query("select * from locked_up")
    with pg.administrator(), connect_from(pg, "127.0.0.1", replication="true") as walsender:
        ((_, _, position, _),) = walsender.query("IDENTIFY_SYSTEM")
        walsender.simple_query(f"START_REPLICATION PHYSICAL {position}")
        streams = "select 1 from pg_stat_replication where state = 'streaming'"
        support.wait_until(lambda: bool(pg.execute(streams)), "the walsender streams")
        support.wait_until(lambda: count_states(pg) == STATES, "the sessions are as they should be")
        yield pg
        assert count_states(pg) == STATES


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_a_stranger_tells_what_the_sessions_do(busy: PostgresServer, source: str) -> None:
    arguments = ("-p", str(busy.port), "--window", "0.2", "--source", source)
    done = support.run("workers", *arguments, "--waiting-warning", "1", user=STRANGER)
    first, *rest = done.out.splitlines()
    assert (done.code, first) == (
        1,
        "PGSOCK_WORKERS WARNING - 3 of 11 sessions active, 2 waiting (utilization 45 %) on port "
        f"{busy.port} (waiting outside range 0:1) | busiest_worker=100.0%;;;0;100 spread=1.0;;;0 "
        "workers=2;;;0 active=3;;;0 waiting=2;1;;0 idle=4;;;0 idle_in_transaction=2;;;0 "
        "sessions=11;;;0 utilization=45.5%;;;0;100 cpu_bound=0;;;0",
    )
    assert rest[-3:] == [
        "peer 127.0.0.1: 10 established",
        "peer [local]: 1 established",
        "sessions: 3 active, 2 waiting, 4 idle, 2 idle in transaction",
    ]
    done = support.run("workers", *arguments, "--utilization-critical", "40", user=STRANGER)
    assert done.code == 2
    assert "(utilization outside range 0:40)" in done.out


def test_a_backend_that_computes_is_cpu_bound(
    newest: PostgresServer, sessions: OpenSessions
) -> None:
    support.require("root")  # which may give it a processor, however busy the machine is
    (session,) = sessions(newest)
    os.setpriority(os.PRIO_PROCESS, session.backend_pid, -20)
    session.simple_query("select count(*) from generate_series(1, 1e12)")
    done = support.run("workers", "-p", str(newest.port), "--window", "0.5", "-v", user=STRANGER)
    first, *rest = done.out.splitlines()
    assert done.code == 0
    assert first.endswith("active=1;;;0 waiting=0;;;0 idle=0;;;0 idle_in_transaction=0;;;0 "
                          "sessions=1;;;0 utilization=100.0%;;;0;100 cpu_bound=1;;;0")  # fmt: skip
    assert rest[-1] == "sessions: 1 active; 1 of them cpu bound"


def test_without_states_in_titles_the_sockets_tell(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg(settings={"update_process_title": False})
    for session in sessions(server, 2):
        session.query("begin; select pg_sleep(0.05)")  # within a tick, the order is not known
    for session in sessions(server, 3):
        session.simple_query("select pg_sleep(3600)")
    arguments = ("-p", str(server.port), "--window", "0.1")
    done = support.run("workers", *arguments, user=STRANGER)
    told = done.out.splitlines()
    assert done.code == 0
    assert told[0].endswith("active=3;;;0 waiting=0;;;0 idle=2;;;0 idle_in_transaction=0;;;0 "
                            "sessions=5;;;0 utilization=60.0%;;;0;100 cpu_bound=0;;;0")  # fmt: skip
    assert told[1] == (
        "what 5 sessions do is told by their sockets alone: in a transaction counts as idle, "
        "waiting as active"
    )


def test_addresses_are_judged_only_where_that_is_asked_for(newest: PostgresServer) -> None:
    with contextlib.ExitStack() as stack:
        for address in ("127.0.0.2",) * 5 + ("127.0.0.3",):
            stack.enter_context(connect_from(newest, address))
        arguments = ("-p", str(newest.port), "--window", "0.1", "--min-connections", "5",
                     "--spread-warning", "2")  # fmt: skip
        for wanted, state, reason in (
            ((), "OK", ""),
            (("-w", "80"), "WARNING", " (busiest_worker outside range 0:80)"),
        ):
            done = support.run("workers", *arguments, *wanted, user=STRANGER)
            assert done.code == len(wanted) // 2
            assert done.out.partition(" | ")[0] == (
                f"PGSOCK_WORKERS {state} - 0 of 6 sessions active, 0 waiting (utilization 0 %) on "
                f"port {newest.port}; peer 127.0.0.2 holds 5 of 6 connections (83 %) of 2 peers"
                f"{reason}"
            )


def test_over_a_unix_socket(newest: PostgresServer) -> None:
    path = f"{newest.socket_directory}/.s.PGSQL.{newest.port}"
    with newest.administrator() as session, newest.administrator():
        session.query("begin")
        done = support.run("workers", "--socket", path, "--window", "0.1")
        first, *_ = done.out.splitlines()
        assert (done.code, first) == (
            0,
            f"PGSOCK_WORKERS OK - 0 of 2 sessions active, 0 waiting (utilization 0 %) on socket "
            f"{path} | busiest_worker=100.0%;;;0;100 spread=1.0;;;0 workers=1;;;0 active=0;;;0 "
            "waiting=0;;;0 idle=1;;;0 idle_in_transaction=1;;;0 sessions=2;;;0 "
            "utilization=0.0%;;;0;100 cpu_bound=0;;;0",
        )
        support.require("root")
        done = support.run("workers", "--socket", path, user=STRANGER)
        assert done == (
            3,
            f"PGSOCK_WORKERS UNKNOWN - which processes hold the 2 connections on socket {path} "
            f"cannot be seen, and {UNPROVEN}: {REMEDY}\n",
            "",
        )


# What cannot be.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--proc-root", str(MOMENT)),
            "--proc-root holds no processes, so whose the connections are cannot be told: run the "
            "check where they are, or on a recording (--source FILE)",
        ),
        (
            ("--window", "3", "-t", "3"),
            "--window 3 is not below --timeout 3; lower the one or raise the other",
        ),
        (("--window", "0.05"), "--window 0.05 is too short; at least 0.1"),
        (
            ("-w", "75%"),
            "'75%': busiest_worker is judged in absolute numbers, without %; see "
            "check_pgsock_workers --help",
        ),
        (
            ("--min-connections", "0"),
            "argument --min-connections: '0' is no whole number of 1 or more; see "
            "check_pgsock_workers --help",
        ),
    ],
)
def test_what_cannot_be_is_unknown(arguments: tuple[str, ...], sentence: str) -> None:
    done = support.run("workers", *arguments)
    assert done == (3, f"PGSOCK_WORKERS UNKNOWN - {sentence}\n", "")


# A healthy pool.


@pytest.mark.prove
def test_no_false_verdict_under_pgbench(
    every_major: int, installations: Installations, proof: Proof
) -> None:
    """Two processes of one application at full speed, each with the same pool, one of them
    restarted in between.
    """
    binaries = installations.get(every_major)
    verdicts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer(binaries, settings={"max_connections": 80}))
        directory = stack.enter_context(fresh_directory("pgsock-workers-"))
        script = directory / "work.sql"
        script.write_text("select count(*) from pg_class;\n", encoding="ascii")
        command = [find_program("pgbench", binaries), "--no-vacuum", "--client=24", "--jobs=1",
                   "--time=600", f"--file={script}", f"--host={server.host}",
                   f"--port={server.port}", "--username=postgres", "postgres"]  # fmt: skip

        def start() -> subprocess.Popen[bytes]:
            one = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(one.wait)
            stack.callback(one.kill)
            return one

        def wait() -> None:
            support.wait_until(
                lambda: support.tcp_states(server.port)["ESTABLISHED"] == 48, "both at work", 20
            )

        first, _ = start(), start()
        wait()
        for number in range(_RUNS):
            if number == _RUNS // 2:
                first.kill()
                first.wait()
                start()
                wait()
            leg = ("--leg", "client") if number % 2 else ("--window", "0.1")
            done = support.run("workers", "-p", str(server.port), *leg)
            verdicts[done.out.partition(" - ")[0]] += 1
    proof(
        f"workers, {_RUNS} runs under pgbench, PostgreSQL {every_major}",
        f"{verdicts['PGSOCK_WORKERS OK']} OK",
        goal=f"{_RUNS} OK",
        met=verdicts == {"PGSOCK_WORKERS OK": _RUNS},
    )
