"""check_pgsock_leak against real servers: whole output and exit code."""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.faults.clients import Vanish
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import MakePg, OpenSessions, Servers
from tests.moment import MOMENT
from tests.proving import Proof
from tests.support import Completed

# Another unprivileged user than the servers': it may read none of their files.
STRANGER = "daemon"
IDLE_FOR = 0.4  # seconds
SHORT = ("--idle-for", str(IDLE_FOR), "--idle-in-transaction-for", str(IDLE_FOR))
REST = IDLE_FOR + 0.1
NO_DIRECTORY = (
    "no directory to keep it in: make /var/lib/check_pgsock, owned by the user that runs the "
    "check, or name one with --state-dir"
)


def run(*arguments: object, user: str | None = STRANGER) -> Completed:
    """Run the check; times of the longest and process ids of backends are masked."""
    done = support.run("leak", *map(str, arguments), user=user)
    text = re.sub(r"for up to \d+(\.\d+)? (s|min)", "for up to #", done.out)
    return Completed(done.code, re.sub(r"backend \d+", "backend #", text), done.err)


def line(
    state: str, leaked: int, silent: int, established: int, where: str, said: str = "",
    *, bounds: str = "4;8;0;17", in_transaction: int | None = 0, dead: int = 0,
    limit: int | None = 17, keep: int | None = None,
) -> str:  # fmt: skip
    """The whole first line; `said` is what follows the place."""
    noun = "connection" if established == 1 else "connections"
    text = (
        f"PGSOCK_LEAK {state} - {leaked} of {established} {noun} leaked {where}{said} | "
        f"leaked={leaked};{bounds} silent={silent};;;0"
    )
    if in_transaction is not None:
        text += f" idle_in_transaction={in_transaction};;;0"
    text += f" dead_peers={dead};;;0 established={established};;;0"
    for label, value in (("limit", limit), ("keep", keep)):
        if value is not None:
            text += f" {label}={value};;;0"
    return f"{text}\n"


def counts_all(why: str = NO_DIRECTORY) -> str:
    return (
        "all silent connections count: whether they are the pool's own is told by --keep N, or by "
        f"earlier runs ({why})\n"
    )


def unknown(sentence: str) -> tuple[int, str, str]:
    """The whole of a run that measured nothing."""
    return 3, f"PGSOCK_LEAK UNKNOWN - {sentence}\n", ""


SAID = "silent for more than 0.4 s"
IN_TRANSACTION = "idle in transaction for more than 0.4 s"
WHOSE = "user postgres on postgres from 127.0.0.1, for up to # (backend #)"


@contextlib.contextmanager
def at_work(sessions: list[Session]) -> Iterator[None]:
    """Within it these sessions have short transactions, one session after the other: each is
    silent for less than a second, also on a busy machine.
    """
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            for one in sessions:
                one.query("begin; select 1")
                one.query("commit")
            ending.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@pytest.fixture
def server(servers: Servers) -> PostgresServer:
    """The shared server of the newest major, where the major does not matter."""
    return servers.get(support.newest_major())


@pytest.fixture
def state() -> Iterator[str]:
    """A state directory of the stranger's."""
    with fresh_directory("pgsock-state-") as directory:
        path = directory / "state"
        path.mkdir(mode=0o700)
        accounts.own(path, accounts.account_of(STRANGER))
        yield str(path)


def test_leaks_among_working_sessions(pg: PostgresServer, sessions: OpenSessions) -> None:
    where = f"on port {pg.port}"
    silent, in_transaction = "silent for more than 1.0 s", "idle in transaction for more than 1.0 s"
    arguments = (
        "-p",
        pg.port,
        "--idle-for",
        1,
        "--idle-in-transaction-for",
        1,
        "--limit",
        17,
        "-w",
        3,
        "-c",
        5,
    )
    with at_work(sessions(pg, 4)):
        assert run(*arguments) == (0, line("OK", 0, 0, 4, where, bounds="3;5;0;17"), "")
        idle = sessions(pg, 3)
        lost = sessions(pg, 1)
        lost[0].query("begin; select 1")
        time.sleep(1.1)
        said = f": 3 {silent}, 1 {in_transaction} (leaked outside range 0:3)"
        expected = line(
            "WARNING", 4, 3, 8, where, said, in_transaction=1, bounds="3;5;0;17"
        ) + (f"{counts_all()}{WHOSE}: 1 idle in transaction\n{WHOSE}: 3 silent\n")  # fmt: skip
        assert run(*arguments) == (1, expected, "")
        failed = sessions(pg, 2)
        for session in failed:
            with contextlib.suppress(Exception):
                session.query("begin; select 1/0")
        time.sleep(1.1)
        said = f": 3 {silent}, 3 {in_transaction} (leaked outside range 0:5)"
        expected = line(
            "CRITICAL", 6, 3, 10, where, said, in_transaction=3, bounds="3;5;0;17"
        ) + (f"{counts_all()}{WHOSE}: 3 idle in transaction\n{WHOSE}: 3 silent\n")  # fmt: skip
        assert run(*arguments) == (2, expected, "")
        for session in (*idle, *lost, *failed):
            session.close()
        support.wait_until(lambda: support.tcp_states(pg.port)["ESTABLISHED"] == 4, "closed")
        assert run(*arguments) == (0, line("OK", 0, 0, 4, where, bounds="3;5;0;17"), "")


@pytest.mark.prove
def test_forty_leaks_among_fifty_working_sessions(
    make_pg: MakePg, every_major: int, sessions: OpenSessions, proof: Proof
) -> None:
    server = make_pg(major=every_major, settings={"max_connections": 100})
    where = f"on port {server.port}"
    arguments = ("-p", server.port, "--idle-for", 2, "--idle-in-transaction-for", 2, "-v")
    working = sessions(server, 50)
    with at_work(working[:25]), at_work(working[25:]):
        sessions(server, 30)
        for session in sessions(server, 10):
            session.query("begin; select 1")
        time.sleep(2.1)
        wrong = 0
        for user in (None, STRANGER) * 10:
            done = run(*arguments, "--limit", 97, user=user)
            wrong += not done.out.startswith(
                f"PGSOCK_LEAK WARNING - 40 of 90 connections leaked {where}: 30 silent for more "
                "than 2.0 s, 10 idle in transaction for more than 2.0 s (leaked outside range "
                "0:24) | leaked=40;24;48;0;97 silent=30;;;0 idle_in_transaction=10;;;0 "
                "dead_peers=0;;;0 established=90;;;0 limit=97;;;0\n"
            )
    proof(
        f"leaks, PostgreSQL {every_major}: 30 idle and 10 in transaction among 50 at work",
        f"{20 - wrong} of 20 runs say so",
        goal="all",
        met=wrong == 0,
    )


@pytest.mark.prove
def test_no_false_verdict_of_a_healthy_pool(
    make_pg: MakePg, sessions: OpenSessions, tmp_path: Path, proof: Proof
) -> None:
    """Under work, through a restart of the application, and through a night: 20 of 37 sessions,
    beside which 10 are never used.
    """
    server = make_pg(settings={"max_connections": 40})
    arguments = ("-p", server.port, "--idle-for", 1, "--idle-in-transaction-for", 1, "-w", 4)
    state = ("--state-dir", tmp_path)
    spare = sessions(server, 10)
    pool = sessions(server, 20)
    runs: list[str] = []

    def check(count: int) -> None:
        for _ in range(count):
            runs.append(run(*arguments, *state, user=None).out)

    with at_work(pool[:10]), at_work(pool[10:]):
        check(1)
        prefill(tmp_path, [(n / 12, 30, 20) for n in range(288, 0, -1)])
        check(79)
    for session in (*spare, *pool):
        session.close()
    check(10)
    spare, pool = sessions(server, 10), sessions(server, 20)
    with at_work(pool[:10]), at_work(pool[10:]):
        check(60)
    time.sleep(1.1)
    check(50)
    wrong = [one for one in runs[1:] if not one.startswith("PGSOCK_LEAK OK - 0 of ")]
    proof(
        "leaks: a healthy pool at work, through a restart of its application and a night",
        f"{len(wrong)} false verdicts in {len(runs)} runs",
        goal="none",
        met=len(runs) == 200 and not wrong,
    )


@pytest.mark.parametrize("major", [15, 18])
def test_replication_is_no_leak(make_pg: MakePg, major: int, sessions: OpenSessions) -> None:
    server = make_pg(major=major, settings={"wal_level": "logical"})
    server.execute("create publication held")
    server.execute("select pg_create_logical_replication_slot('held', 'pgoutput')")
    server.execute("create role listener login")
    ((at,),) = server.execute("select pg_current_wal_flush_lsn()")
    with contextlib.ExitStack() as stack:
        for database in ("", "postgres"):
            for command in ("", "START_REPLICATION"):
                connected = socket.create_connection((server.host, server.port), 5)
                walsender = Session(connected)
                stack.callback(walsender.kill)
                mode = {"replication": "database", "database": database} if database else {}
                walsender.send_startup({"user": "postgres", "replication": "true", **mode})
                walsender.wait_ready()
                if command:
                    slot = "SLOT held LOGICAL 0/0 (proto_version '1', publication_names 'held')"
                    walsender.simple_query(f"{command} {slot if database else at}")
        (listening,) = sessions(server, 1, user="listener")
        listening.query("listen news")
        sessions(server, 1)
        time.sleep(REST)
        arguments = ("-p", server.port, *SHORT, "--limit", 97, "--keep", 0)
        doubt = "not judged, since its title may be a walsender's: 2 sessions\n"
        where = f"on port {server.port}"
        expected = line("OK", 2, 2, 2, where, f": 2 {SAID}", bounds="24;48;0;97", limit=97, keep=0)
        assert run(*arguments) == (0, expected + doubt, "")
        place = f"{where} of all users but listener"
        expected = line("OK", 1, 1, 1, place, f": 1 {SAID}", bounds="24;48;0;97", limit=97, keep=0)
        assert run(*arguments, "--exclude-user", "listener") == (0, expected + doubt, "")
        place = f"{where} of user listener on database postgres"
        expected = line("OK", 1, 1, 1, place, f": 1 {SAID}", bounds="24;48;0;97", limit=97, keep=0)
        chosen = ("--user", "listener", "--database", "postgres")
        assert run(*arguments, *chosen) == (0, expected + doubt, "")


def test_what_the_pool_keeps(server: PostgresServer, sessions: OpenSessions) -> None:
    sessions(server, 6)
    time.sleep(REST)
    where = f"on port {server.port}"
    arguments = ("-p", server.port, *SHORT, "--limit", 17)
    for keep, leaked in ((0, 6), (1, 5), (6, 0), (9, 0)):
        state, code = ("WARNING", 1) if leaked > 4 else ("OK", 0)
        own = f" ({6 - leaked} of them the pool's own)" if keep else ""
        reason = " (leaked outside range 0:4)" if code else ""
        who = f"{WHOSE}: 6 silent\n" if code else ""
        expected = line(state, leaked, 6, 6, where, f": 6 {SAID}{own}{reason}", keep=keep) + who
        # Nothing is asked of earlier runs.
        nowhere = ("--state-dir", "/nonexistent/state")
        assert run(*arguments, "--keep", keep, *nowhere) == (code, expected, "")
    done = run(*arguments, *nowhere)
    assert (done.code, done.out.split(" - ")[1][:53]) == (
        3, "the state directory /nonexistent/state is not there; ",
    )  # fmt: skip


def test_without_a_limit(servers: Servers, sessions: OpenSessions) -> None:
    """As a stranger none can be read of 15."""
    support.require("root")  # else the stranger is the server's own user
    server = servers.get(15)
    sessions(server, 6)
    (lost,) = sessions(server, 1)
    lost.query("begin")
    time.sleep(REST)
    arguments = ("-p", server.port, *SHORT)
    why = (
        "its command line does not set max_connections, pg_control: Permission denied, postgres "
        "-C may not be run or does not answer, the backlog does not tell it on version 15"
    )
    where = f"on port {server.port}"
    said = f": 6 {SAID} (not judged), 1 {IN_TRANSACTION}"
    expected = line("OK", 1, 6, 7, where, said, bounds="5;20;0", limit=None, in_transaction=1)
    note = (
        f"silent connections are not judged: no limit is known ({why}); name it (--limit N), or "
        "how many the pool keeps (--keep N)\n"
    )
    assert run(*arguments) == (0, expected + note, "")
    said = f": 6 {SAID} (1 of them the pool's own), 1 {IN_TRANSACTION} (leaked outside range 0:5)"
    expected = line(
        "WARNING", 6, 6, 7, where, said, bounds="5;20;0", limit=None, in_transaction=1, keep=1
    )
    who = f"{WHOSE}: 1 idle in transaction\n{WHOSE}: 6 silent\n"
    assert run(*arguments, "--keep", 1) == (1, expected + who, "")
    # A share of what is not known cannot be judged.
    for bound in (("-w", "30%"), ("-c", "30%:"), ("-w", "3", "-c", "60%")):
        assert run(*arguments, "--keep", 1, *bound) == unknown(
            f"the limit of port {server.port} cannot be read: {why}; name the usable slots with "
            "--limit N"
        )
    done = run(*arguments, "--keep", 1, "-w", "6", "-c", "9")
    assert (done.code, done.out.split(" | leaked=6;6;9;0 ")[1][:9]) == (0, "silent=6;")
    # Several ports are several servers.
    done = run("-p", server.port, "-p", 1, *SHORT, "--no-listener", "ok")
    assert done.out.startswith(f"PGSOCK_LEAK OK - 1 of 7 connections leaked on ports {server.port}")


def test_several_ports_have_a_limit_if_it_is_named(
    pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    sessions(pg, 2)
    time.sleep(REST)
    both = ("-p", pg.port, "-p", pgbouncer.port, *SHORT)
    done = run(*both)
    where = f"on ports {pg.port}, {pgbouncer.port}"
    expected = line(
        "OK",
        0,
        2,
        2,
        where,
        f": 2 {SAID} (not judged)",
        bounds="5;20;0",
        limit=None,
        in_transaction=None,
    ) + (
        "silent connections are not judged: no limit is known (several --port are one pool); name "
        "it (--limit N), or how many the pool keeps (--keep N)\n"
    )
    assert done == (0, expected, "")
    expected = line("OK", 2, 2, 2, where, f": 2 {SAID}", in_transaction=None)
    assert run(*both, "--limit", 17) == (0, expected + counts_all(), "")


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run("-p", port, "--no-listener", "critical", "-w", "30%")
    reason = f" (nothing listens on port {port})"
    expected = line(
        "CRITICAL", 0, 0, 0, f"on port {port}", reason, bounds=";;0", limit=None,
        in_transaction=None,
    )  # fmt: skip
    assert (done.code, done.out.partition("\n")[0] + "\n", done.err) == (2, expected, "")


def test_behind_a_pooler_idle_is_told_by_the_clocks_alone(
    pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    """Question and answer come within a tick of the clock; at work are those that wait."""
    idle = sessions(pgbouncer, 3)
    for session in idle:
        session.query("select 1")
    idle[0].query("begin")
    for session in sessions(pgbouncer, 2):
        session.query("begin")
        session.simple_query("select pg_sleep(30)")
    time.sleep(REST)
    arguments = ("-p", pgbouncer.port, *SHORT, "--limit", 8, "--keep", 0)
    where = f"on port {pgbouncer.port}"
    expected = line(
        "WARNING", 3, 3, 5, where, f": 3 {SAID} (leaked outside range 0:2)",
        bounds="2;4;0;8", limit=8, keep=0, in_transaction=None,
    )  # fmt: skip
    who = "from 127.0.0.1, for up to #: 3 silent\n"
    assert run(*arguments) == (1, expected + who, "")
    # From there to the database: the pooler's own connections, of which titles tell.
    port = pgbouncer.server.port
    done = run("-p", port, *SHORT, "--limit", 17, "--keep", 9, "--leg", "client")
    said = f": 2 {SAID} (2 of them the pool's own), 1 {IN_TRANSACTION}"
    expected = line("OK", 1, 2, 5, f"to port {port}", said, in_transaction=1, keep=9)
    assert done == (0, expected, "")


def test_the_client_leg_of_a_server_elsewhere(sessions: OpenSessions) -> None:
    """No titles: answers by a listener that is no server."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        for _ in range(3):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            accepted = stack.enter_context(listener.accept()[0])
            client.sendall(b"x" * 40)
            accepted.recv(40)
            time.sleep(0.01)
            accepted.sendall(b"x" * 400)
        time.sleep(REST)
        where = f"to port {port}"
        arguments = ("-p", port, "--leg", "client", *SHORT)
        said = f": 3 {SAID} (1 of them the pool's own)"
        expected = line(
            "OK", 2, 3, 3, where, said, bounds="5;20;0", limit=None, keep=1, in_transaction=None
        )
        assert run(*arguments, "--keep", 1) == (0, expected, "")


LONG = "n" * 63
UNPROVEN = "whose server it is cannot be proven from here (root and its user can)"


def untold(count: int) -> str:
    return (
        "whether they are idle or idle in transaction is not known, and they count as idle: "
        f"{count} connections\n"
    )


def blind_to_transactions(count: int, where: str, why: str) -> tuple[int, str, str]:
    return unknown(
        f"whether {count} connections {where}, idle for more than 0.4 s, are idle in transaction "
        f"is not known: {why}; a longer --idle-in-transaction-for judges them as idle"
    )


def test_transactions_behind_titles_that_do_not_tell(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    """With log_hostname a title has no address, and to a stranger the longest may be cut."""
    support.require("root")
    server = make_pg(settings={"log_hostname": True, "cluster_name": LONG}, user="lp")
    server.execute(f"create role {LONG} login")
    server.execute(f"create database {LONG}")
    for session in sessions(server, 5, user=LONG, database=LONG):
        session.query("begin; select pg_sleep(0.05)")  # no answer within the tick of its question
    time.sleep(REST)
    where = f"on port {server.port}"
    arguments = ("-p", server.port, *SHORT, "--limit", 27, "--keep", 20)
    said = f": 5 {IN_TRANSACTION} (leaked outside range 0:4)"
    bounds = {"limit": 27, "keep": 20}
    done = run(*arguments, "-w", 2, "-c", 4, user="lp")
    first = line("CRITICAL", 5, 0, 5, where, said, in_transaction=5, bounds="2;4;0;27", **bounds)
    assert (done.code, done.out.partition("\n")[0] + "\n") == (2, first)
    assert run(*arguments, "-w", 2, "-c", 4) == blind_to_transactions(
        5, where,
        "their titles do not tell it (they may be cut, which root and the server's user can see, "
        "or update_process_title is off)",
    )  # fmt: skip
    said = f": 5 {SAID} (5 of them the pool's own)"
    loose = line("OK", 0, 5, 5, where, said, in_transaction=None, bounds="6;9;0;27", **bounds)
    assert run(*arguments, "-w", 6, "-c", 9) == (0, loose + untold(5), "")
    # Those over Unix sockets are named if their titles tell them, and as missing if not.
    with server.administrator() as idle:
        idle.query("select 1")
        done = run(*arguments, "-w", 6, "-c", 9)
        assert "over Unix sockets are not shown" not in done.out
        assert " established=6;" in done.out


def test_sessions_over_unix_sockets_whose_titles_may_be_cut(make_pg: MakePg) -> None:
    support.require("root")
    server = make_pg(settings={"cluster_name": LONG}, user="man")
    server.execute(f"create database {LONG}")
    with server.administrator(LONG), server.administrator(LONG):
        arguments = ("-p", server.port, "--limit", 17, "--keep", 0)
        where = f"on port {server.port}"
        unseen = (
            "up to 2 sessions over Unix sockets are not shown: of as many backends neither a title "
            "(it may be cut) nor a TCP connection tells what they are, which root and the server's "
            "user can see\n"
        )
        assert run(*arguments) == (0, line("OK", 0, 0, 0, where, keep=0) + unseen, "")
        assert " established=2;" in run(*arguments, user=None).out


def test_a_stranger_and_one_of_two_servers(make_pg: MakePg, sessions: OpenSessions) -> None:
    """Nothing proves whose a port is without TCP connections whose titles have an address."""
    support.require("root")
    make_pg(user="games")
    server = make_pg(settings={"log_hostname": True}, user="games")
    where = f"on port {server.port}"
    arguments = ("-p", server.port, *SHORT, "--limit", 17)
    unseen = f"sessions over Unix sockets are not seen: {UNPROVEN}\n"
    with server.administrator():
        expected = line("OK", 0, 0, 0, where, keep=0, in_transaction=None)
        assert run(*arguments, "--keep", 0) == (0, expected + unseen, "")
        assert " established=1;" in run("-p", server.port, "--keep", 0, user="games").out
        # They are no part of what is selected by address, nor of a client's leg.
        for other in (("--peer", "10.0.0.0/8"), ("--leg", "client")):
            assert "not seen" not in run(*arguments, "--keep", 0, *other).out
    for session in sessions(server, 3):
        session.query("begin")
    time.sleep(REST)
    assert run(*arguments, "--keep", 9, "-w", 2) == blind_to_transactions(3, where, UNPROVEN)
    said = f": 3 {SAID} (3 of them the pool's own)"
    expected = line("OK", 0, 3, 3, where, said, keep=9, in_transaction=None)
    assert run(*arguments, "--keep", 9) == (0, expected + unseen + untold(3), "")


def test_without_states_in_titles(make_pg: MakePg, sessions: OpenSessions) -> None:
    server = make_pg(settings={"update_process_title": False})
    for session in sessions(server, 3):
        session.query("begin; select pg_sleep(0.05)")
    time.sleep(REST)
    where = f"on port {server.port}"
    arguments = ("-p", server.port, *SHORT, "--limit", 17, "--keep", 9, "-w", 2, "-c", 9)
    for user in (None, STRANGER):
        done = run(*arguments, user=user)
        assert done == blind_to_transactions(
            3, where,
            "their titles do not tell it (they may be cut, which root and the server's user can "
            "see, or update_process_title is off)",
        )  # fmt: skip
        done = run(*arguments, "--idle-in-transaction-for", 900, user=user)
        said = f": 3 {SAID} (3 of them the pool's own)"
        expected = line("OK", 0, 3, 3, where, said, keep=9, in_transaction=None, bounds="2;9;0;17")
        assert done == (0, expected + untold(3), "")


def test_sessions_over_a_unix_socket_are_told_by_earlier_runs(
    pg: PostgresServer, sessions: OpenSessions, state: str
) -> None:
    with pg.administrator() as idle, pg.administrator() as lost, pg.administrator() as used:
        sessions(pg, 1)  # by which a stranger knows whose port it is
        lost.query("begin")
        where = f"on port {pg.port}"
        arguments = ("-p", pg.port, *SHORT, "--limit", 17, "--keep", 0)
        assert idle.query("select 1") == used.query("select 1")
        time.sleep(REST)
        expected = line("OK", 1, 1, 4, where, f": 1 {SAID}", keep=0)
        untold = (
            "not judged, since for how long they are idle is told by earlier runs alone (Unix "
            "sockets, procfs; see --state-dir): 3 sessions\n"
        )
        assert run(*arguments) == (0, expected + untold, "")
        assert run(*arguments, "--state-dir", state) == (0, expected, "")
        time.sleep(REST)
        used.query("select 1")
        said = f": 2 {SAID}, 1 {IN_TRANSACTION}"
        expected = line("OK", 3, 2, 4, where, said, in_transaction=1, keep=0)
        assert run(*arguments, "--state-dir", state) == (0, expected, "")


def test_a_unix_socket_by_itself(server: PostgresServer, tmp_path: Path) -> None:
    support.require("root")
    path = f"{server.socket_directory}/.s.PGSQL.{server.port}"
    where = f"on socket {path}"
    arguments = ("--socket", path, *SHORT, "--limit", 17, "--keep", 0)
    assert run(*arguments, user=None) == (0, line("OK", 0, 0, 0, where, keep=0), "")
    with server.administrator():
        time.sleep(REST)
        blind = (
            f"for how long 1 connection {where} had nothing to do is not known, and there may be a "
            "leak among them"
        )
        assert run(*arguments) == unknown(
            f"{blind} (over TCP that takes netlink; over a Unix socket, to see whose backends they "
            "are)"
        )
        assert run(*arguments, user=None) == unknown(
            f"{blind} (Unix sockets and procfs have no clocks, and earlier runs cannot tell: "
            f"{NO_DIRECTORY})"
        )
        kept = ("--state-dir", tmp_path)
        expected = line("OK", 0, 0, 1, where, keep=0)
        assert run(*arguments, *kept, user=None) == (0, expected, "")
        time.sleep(REST)
        expected = line("OK", 1, 1, 1, where, f": 1 {SAID}", keep=0)
        assert run(*arguments, *kept, user=None) == (0, expected, "")


def test_by_procfs_titles_and_earlier_runs_tell(
    server: PostgresServer, sessions: OpenSessions, state: str
) -> None:
    sessions(server, 2)
    time.sleep(REST)
    arguments = ("-p", server.port, *SHORT, "--limit", 17, "--keep", 0, "--source", "procfs")
    where = f"on port {server.port}"
    assert run(*arguments) == unknown(
        f"for how long 2 connections {where} had nothing to do is not known, and there may be a "
        "leak among them (Unix sockets and procfs have no clocks, and earlier runs cannot tell: "
        f"{NO_DIRECTORY})"
    )
    expected = line("OK", 0, 0, 2, where, keep=0)
    assert run(*arguments, "--state-dir", state) == (0, expected, "")
    time.sleep(REST)
    expected = line("OK", 2, 2, 2, where, f": 2 {SAID}", keep=0)
    assert run(*arguments, "--state-dir", state) == (0, expected, "")


def test_saved_moments(server: PostgresServer, sessions: OpenSessions) -> None:
    done = run("--proc-root", MOMENT, "--limit", 17)
    assert done == unknown(
        "for how long 1 connection on port 5432 had nothing to do is not known, and there may be a "
        "leak among them (over TCP that takes netlink; over a Unix socket, to see whose backends "
        "they are)"
    )
    sessions(server, 2)
    time.sleep(REST)
    with fresh_directory("pgsock-leak-") as directory:
        accounts.own(directory, accounts.account_of(STRANGER))
        file = f"{directory}/moment.zip"
        made = support.run("pgsock", "record", file, user=STRANGER)
        assert made.code == 0, made
        done = run("-p", server.port, *SHORT, "--limit", 17, "--source", file)
    first, *rest = done.out.splitlines(keepends=True)
    assert first == line("OK", 2, 2, 2, f"on port {server.port}", f": 2 {SAID}")
    assert rest[-1] == counts_all("a saved moment has none")


def prefill(path: Path, samples: list[tuple[float, int, int]]) -> None:
    """Put samples of earlier runs beside what the last run kept: hours ago, total, in use."""
    with contextlib.closing(sqlite3.connect(path / "checks.sqlite")) as store:
        ((key,),) = store.execute(
            "select distinct key from sample where key not like '%sessions%'"
        ).fetchall()
        store.execute("delete from sample where key = ?", (key,))
        store.executemany(
            "insert into sample (key, at, data) values (?, ?, ?)",
            [(key, time.time() - hours * 3600, f"[{total},{used}]")
             for hours, total, used in samples],
        )  # fmt: skip
        store.commit()


def test_history_tells_growth_from_a_pool(
    server: PostgresServer, sessions: OpenSessions, tmp_path: Path
) -> None:
    """Twelve sessions, all of them silent: what they are depends on what was before."""
    sessions(server, 12)
    time.sleep(REST)
    state = tmp_path
    where = f"on port {server.port}"
    arguments = ("-p", server.port, *SHORT, "--limit", 17, "--state-dir", state)
    who = f"user postgres on postgres from 127.0.0.1 by {support.own_command()} (#), for up to # "
    who += "(backend #): 12 silent\n"

    def judged(state: str, leaked: int, notes: str = "") -> tuple[int, str, str]:
        own = f" ({12 - leaked} of them the pool's own)" if leaked < 12 else ""
        reason = {"OK": "", "WARNING": " (leaked outside range 0:4)"}.get(
            state, " (leaked outside range 0:8)"
        )
        code = ("OK", "WARNING", "CRITICAL").index(state)
        said = f": 12 {SAID}{own}{reason}"
        return code, line(state, leaked, 12, 12, where, said) + notes + (who if code else ""), ""

    def check() -> Completed:
        done = run(*arguments, user=None)
        return Completed(done.code, re.sub(r"\(\d+\), for up", "(#), for up", done.out), done.err)

    reach = "they reach back 0.0 s of the 1 h 00 min needed"
    assert check() == judged("CRITICAL", 12, counts_all(reach))
    five = 1 / 12
    day = [24 - n * five for n in range(1, 288)]
    histories = {
        "a night of silence after a day of work": (
            [(ago, 12, 12 if ago > 8 else 0) for ago in day], "OK", 0,
        ),
        "the last one used is taken first": ([(ago, 12, 4) for ago in day[-24:]], "OK", 0),
        "a restart": (
            [(ago, 0 if 1 < ago < 1.2 else 12, 0 if 1 < ago < 1.2 else 4) for ago in day], "OK", 0,
        ),
        "it grows by day": (
            [(ago, 12 if ago > 10 else 5, 12 if ago > 10 else 3) for ago in day], "OK", 0,
        ),
        "growth over hours": (
            [(ago, 6 if ago > 12 else 12 - int(ago / 2), 6) for ago in day], "WARNING", 6,
        ),
        "many at once": ([(ago, 12 if ago < 2 else 3, 3) for ago in day], "CRITICAL", 9),
    }  # fmt: skip
    for name, (samples, expected, leaked) in histories.items():
        prefill(state, samples)
        assert check() == judged(expected, leaked), name
    rest = run(*arguments, "-v", user=None).out.splitlines()[1:]
    assert "the pool's usual size by earlier runs: 3 connections" in rest
    # The administrator's word goes before.
    done = run(*arguments, "--keep", 12, user=None)
    said = f": 12 {SAID} (12 of them the pool's own)"
    assert done == (0, line("OK", 0, 12, 12, where, said, keep=12), "")


def test_a_vanished_host(two_host_lab: Lab) -> None:
    server = two_host_lab.server_host
    with Vanish(two_host_lab):
        port = two_host_lab.postgres.port
        arguments = ("-p", str(port), "--limit", "47", "-w", "2")

        def check() -> Completed:
            return support.run("leak", *arguments, user=STRANGER, on=server)

        support.wait_until(lambda: "dead_peers=5;" in check().out, "five dead peers", 8)
        done = check()
    first, *rest = done.out.splitlines()
    assert (done.code, first, done.err) == (
        1,
        line(
            "WARNING", 5, 0, 5, f"on port {port}",
            ": 5 suspected dead peers (leaked outside range 0:2)", bounds="2;23;0;47", dead=5,
            limit=47,
        ).rstrip("\n"),
        "",
    )  # fmt: skip
    (who,) = [re.sub(r"\d+\.\d s \(backend \d+\)", "# (backend #)", one) for one in rest]
    client = two_host_lab.client_host.address
    assert who == (
        f"user app on app from {client}, for up to # (backend #): 5 with a suspected dead peer"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--idle-for", "0"), "argument --idle-for: '0' is no time in seconds, above 0, at most "
         "2592000"),
        (("--idle-in-transaction-for", "x"),
         "argument --idle-in-transaction-for: 'x' is no number"),
        (("--keep", "-1"), "argument --keep: '-1' is no whole number of 1 or more"),
        (("--user", ""), "argument --user: '' is no name of a user or a database"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: tuple[str, ...], sentence: str) -> None:
    assert run(*arguments) == unknown(f"{sentence}; see check_pgsock_leak --help")


def test_the_help_names_the_defaults_without_a_limit() -> None:
    text = " ".join(support.run("leak", "--help").out.split())
    for option, share, alone in (("warning", "25%", 5), ("critical", "50%", 20)):
        assert (
            f"{option} range of leaked, connections that nobody uses; % is of the limit; where "
            f"that is not known, the default is {alone} (default: {share})"
        ) in text
