"""check_pgsock_pool_wait against a real PgBouncer: clients that wait for known times, or do not."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence

import pytest

from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import Servers
from tests.pool_load import masked, measured
from tests.support import Completed

PREFIX = "PGSOCK_POOL_WAIT"
NO_STATE = (
    "wait_ratio is not measured: it takes what earlier runs saw, and there is no directory to keep "
    "it in: make /var/lib/check_pgsock, owned by the user that runs the check, or name one with "
    "--state-dir\n"
)
FIRST_RUN = "first run: wait_ratio is measured from the second on\n"
MEANT = "check_pgsock_pool_size says what it may be\n"
ADVICE = {
    "transaction": f"shorter transactions, or a larger pool_size; {MEANT}",
    "session": "sessions hold them until their clients leave: fewer or shorter sessions, "
    f"transaction pooling, or a larger pool_size; {MEANT}",
}
STRANGER = "games"  # an unprivileged user of every distribution that no other server here has


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[PostgresServer]:
    """One PostgreSQL: what PgBouncer tells does not depend on its version."""
    support.require("pgbouncer")
    shared = servers.get(support.SOME_MAJORS[0])
    yield shared
    # Statements of poolers that are gone hold slots until they end.
    sleeping = "pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
    shared.execute(f"SELECT pg_terminate_backend(pid) FROM {sleeping}")
    support.wait_until(lambda: not shared.execute(f"SELECT FROM {sleeping}"), "they have ended")


@pytest.fixture
def state() -> Iterator[Sequence[str]]:
    """The option --state-dir for a directory that is nobody's."""
    with fresh_directory("pgsock-state-") as path:
        account = accounts.account_of("nobody")
        if account is not None:
            os.chown(path, account.uid, account.gid)
        yield "--state-dir", str(path)


def run(*arguments: str, user: str | None = "nobody") -> Completed:
    return support.run("pool_wait", *arguments, user=user)


def console(pooler: PgBouncerServer, *arguments: str) -> Completed:
    """The check as nobody, which asks as a stats_user."""
    return run("-d", f"host={pooler.host} port={pooler.port} user=stats", *arguments)


@contextlib.contextmanager
def clients(pooler: PgBouncerServer, count: int, seconds: float = 0) -> Iterator[list[Session]]:
    """So many clients, each with a statement of so many seconds under way."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(pooler.connect()) for _ in range(count)]
        for one in opened if seconds else ():
            one.simple_query(f"SELECT pg_sleep({seconds})")
        yield opened


def perfdata(maxwait: str, waiting: int, clients: int, ratio: bool = False, most: int = 100) -> str:
    mean = "wait_ratio=#;;;0 " if ratio else ""
    warning, critical = most * 80 // 100, most * 90 // 100
    return (
        f"maxwait={maxwait}s;1;5;0 cl_waiting={waiting};;;0 {mean}"
        f"clients={clients};{warning};{critical};0;{most}\n"
    )


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_three_clients_wait_for_a_pool_of_two(server: PostgresServer, mode: str) -> None:
    with (
        PgBouncerServer(server, pool_mode=mode, default_pool_size=2, user=STRANGER) as pooler,
        clients(pooler, 5, 30),
    ):
        begun = time.monotonic()
        support.wait_until(lambda: time.monotonic() > begun + 1.2, "a second")
        done = console(pooler)
        waited = time.monotonic() - begun
        assert (done.code, masked(done.out), done.err) == (
            1,
            f"{PREFIX} WARNING - pool postgres/postgres: 3 clients wait, the first for # s; 2 of 2 "
            "server connections in use; 5 of 100 client connections (maxwait outside range 0:1) | "
            f"{perfdata('#', 3, 5)}{NO_STATE}pool postgres/postgres: 3 clients wait, the first for "
            f"# s; 2 server connections: 2 in use; {ADVICE[mode]}",
            "",
        )
        first = measured(done.out)["maxwait"]
        assert 1.2 <= first <= waited
        # The sockets tell the same, to a stranger and to PgBouncer's own user, and it grows.
        for user, note in ((STRANGER, ""), ("nobody", NOT_ITS_OWN)):
            done = run("-p", str(pooler.port), user=user)
            assert (done.code, masked(done.out), done.err) == (1, _estimated(pooler, note), "")
            told = measured(done.out)["maxwait"]
            assert first < told <= time.monotonic() - begun
            first = told
        done = console(pooler, "-c", "1.5")
        assert done.code == 2
        assert measured(done.out)["maxwait"] > first


NOT_ITS_OWN = (
    "which server connections are the pooler's is seen by root and its own user alone: those of "
    "all programs of its user are taken for its own\n"
)
BOUNDS = "estimated from sockets: lower bounds; PgBouncer's console (--dsn) tells them, by pool\n"


def _estimated(pooler: PgBouncerServer, note: str) -> str:
    return (
        f"{PREFIX} WARNING - at least 3 clients wait on port {pooler.port}, the first for at least "
        "# s: estimated, 5 clients await an answer and 2 server connections are busy (maxwait "
        f"outside range 0:1) | maxwait=#s;1;5;0 cl_waiting=3;;;0 clients=5;;;0\n{BOUNDS}{note}"
    )


def test_nobody_waits(server: PostgresServer, state: Sequence[str]) -> None:
    with PgBouncerServer(server, pool_mode="transaction") as pooler:
        done = console(pooler, *state)
        assert (done.code, masked(done.out), done.err) == (
            0,
            f"{PREFIX} OK - no client waits: there is no pool yet; 0 of 100 client connections | "
            f"{perfdata('#', 0, 0)}{FIRST_RUN}",
            "",
        )
        with clients(pooler, 2, 1) as busy, clients(pooler, 1):
            done = console(pooler, *state)
            assert (done.code, masked(done.out), done.err) == (
                0,
                f"{PREFIX} OK - no client waits in 1 pool; # waited on average over # s; 3 of 100 "
                f"client connections | {perfdata('#', 0, 3, ratio=True)}",
                "",
            )
            done = run("-p", str(pooler.port))
            assert (done.code, masked(done.out), done.err) == (
                0,
                f"{PREFIX} OK - no client is seen to wait on port {pooler.port}: estimated, 2 "
                "clients await an answer and 2 server connections are busy | maxwait=#s;1;5;0 "
                f"cl_waiting=0;;;0 clients=3;;;0\n{BOUNDS}",
                "",
            )
            for one in busy:
                one.wait_ready()


def test_the_mean_is_the_truth_while_the_counter_stands_still(
    server: PostgresServer, state: Sequence[str]
) -> None:
    """Five clients, a pool of two, statements of 1.5 s: 2 x 0 + 2 x 1.5 + 1 x 3 s of waiting."""
    with PgBouncerServer(server, pool_mode="transaction", default_pool_size=2) as pooler:
        with clients(pooler, 2, 0.05) as first:
            for one in first:
                one.wait_ready()
        options = (*state, "--wait-ratio-warning", "1", "-w", "99", "-c", "99", "-vv")
        assert console(pooler, *options).code == 0
        before = counted(pooler)
        with clients(pooler, 5, 1.5) as waiting:
            begun = time.monotonic()
            time.sleep(1)
            least = 3 * (time.monotonic() - begun)
            halfway = console(pooler, *options)
            most = 3 * (time.monotonic() - begun)
            naive = counted(pooler) - before
            for one in waiting:
                one.wait_ready()
        done = console(pooler, *options)
    assert naive < 0.1  # of three seconds and more
    assert halfway.code == 1
    assert least - 0.05 <= waited_by(halfway) <= most + 0.05
    assert waited_by(done) == pytest.approx(6, abs=0.2)
    assert re.search(r"\ndatabase postgres: \S+ clients waited on average\n", done.out)


def waited_by(done: Completed) -> float:
    """The seconds that all clients together have waited, by the check."""
    found = re.search(r"\nwait_ratio is that of (\S+) s\n", done.out)
    assert found is not None
    return measured(done.out)["wait_ratio"] * float(found[1])


def counted(pooler: PgBouncerServer) -> float:
    """Seconds of total_wait_time of all databases."""
    return sum(int(row["total_wait_time"] or 0) for row in pooler.console("SHOW STATS")) / 10**6


RESTARTED = (
    "PgBouncer was restarted, or counters of it began anew, within the last # s: what it had "
    "counted since the run before is missing, wait_ratio is a lower bound\n"
)


def test_a_restart_and_a_reload(server: PostgresServer, state: Sequence[str]) -> None:
    """What was waited before it is not forgotten, nor subtracted from what was since."""
    with PgBouncerServer(server, pool_mode="transaction", default_pool_size=1) as pooler:
        _wait_for(pooler, 0.6)
        assert console(pooler, *state).code == 0
        pooler.reload()
        _wait_for(pooler, 0.6)
        done = console(pooler, *state, "-vv")
        assert RESTARTED not in masked(done.out)
        assert waited_by(done) == pytest.approx(0.6, abs=0.15)
        pooler.restart()
        done = console(pooler, *state)
        assert (done.code, masked(done.out), done.err) == (
            0,
            f"{PREFIX} OK - no client waits: there is no pool yet; at least # waited on average "
            "over # s; 0 of 100 client connections | "
            f"{perfdata('#', 0, 0, ratio=True)}{RESTARTED}",
            "",
        )
        assert waited_by(console(pooler, *state, "-vv")) == pytest.approx(0.6, abs=0.15)
        # The counters are past those of the process before by now.
        _wait_for(pooler, 1.5)
        done = console(pooler, *state, "-vv")
        assert waited_by(done) == pytest.approx(2.1, abs=0.3)
        assert RESTARTED in masked(done.out)


def test_a_restart_that_only_the_console_tells_of(
    server: PostgresServer, state: Sequence[str]
) -> None:
    """All counters of the next process are higher."""
    with PgBouncerServer(server, pool_mode="transaction", default_pool_size=1) as pooler:
        _wait_for(pooler, 0.4)
        assert console(pooler, *state).code == 0
        pooler.restart()
        for _ in range(2):
            _wait_for(pooler, 0.5)
        done = console(pooler, *state, "-vv")
        assert waited_by(done) == pytest.approx(1, abs=0.2)
        assert RESTARTED in masked(done.out)


def _wait_for(pooler: PgBouncerServer, seconds: float) -> None:
    """Let one client wait for so long."""
    with clients(pooler, 2, seconds) as both:
        for one in both:
            one.wait_ready()


def test_all_clients_that_are_allowed(server: PostgresServer) -> None:
    too_many = (
        "raise max_client_conn (and the limit of open files with it), or let these "
        "applications keep fewer connections\n"
    )
    with PgBouncerServer(server, max_client_conn=5) as pooler, clients(pooler, 5):
        done = console(pooler)
        assert (done.code, masked(done.out)) == (
            2,
            f"{PREFIX} CRITICAL - 5 of 5 client connections (max_client_conn): PgBouncer refuses "
            "further clients; no client waits in 1 pool (clients outside range 0:4) | "
            "maxwait=#s;1;5;0 cl_waiting=0;;;0 clients=5;4;4;0;5\n"
            f"{NO_STATE}pool postgres/postgres: 5 connected\n{too_many}",
        )
        # Also where others are chosen: it is of the process.
        done = console(pooler, "--user", "stats", "--clients-critical", "5")
        assert (done.code, masked(done.out)) == (
            1,
            f"{PREFIX} WARNING - 5 of 5 client connections (max_client_conn): PgBouncer refuses "
            "further clients; no client waits: there is no pool yet (clients outside range 0:4) | "
            "maxwait=#s;1;5;0 cl_waiting=0;;;0 clients=5;4;5;0;5\n"
            f"pool postgres/postgres: 5 connected\n{too_many}",
        )
        done = console(pooler, "--clients-warning", "5", "--clients-critical", "5")
        assert done.code == 0
        assert done.out.startswith(f"{PREFIX} OK - no client waits in 1 pool; 5 of 5 client conn")
        # The console lets in whom it would refuse elsewhere.
        done = run("-d", pooler.dsn())
        assert (done.code, done.out) == (
            2,
            f"{PREFIX} CRITICAL - no connection slot is left: FATAL:  no more connections allowed "
            "(max_client_conn)\n",
        )


def test_clients_that_are_too_many_and_not_all(server: PostgresServer) -> None:
    with PgBouncerServer(server, default_pool_size=1) as pooler, clients(pooler, 3, 30):
        done = console(pooler, "--clients-warning", "4:", "-w", "60", "-c", "60")
        assert done.code == 1
        assert done.out.splitlines()[2] == "pool postgres/postgres: 3 connected"
        assert "raise max_client_conn" not in done.out
        done = console(pooler, "--clients-warning", "2", "-w", "60", "-c", "60")
        assert (done.code, masked(done.out).splitlines()[0].partition(" | ")[0]) == (
            1,
            f"{PREFIX} WARNING - 3 of 100 client connections (max_client_conn); pool "
            "postgres/postgres: 2 clients wait, the first for # s; 1 of 1 server connection in use "
            "(clients outside range 0:2)",
        )
        assert done.out.splitlines()[2:4] == [
            "pool postgres/postgres: 3 connected",
            "raise max_client_conn (and the limit of open files with it), or let these "
            "applications keep fewer connections",
        ]


def test_the_session_is_closed_whatever_becomes_of_it(server: PostgresServer) -> None:
    """As where what PgBouncer tells cannot be read."""
    with PgBouncerServer(server) as pooler:
        with pooler.ini.with_name("users").open("ab") as users:
            users.write(b'"\xff" ""\n')
        pooler.reload()
        done = console(pooler)
        assert done.code == 3
        assert "has a name that is no UTF-8" in done.out

        def last() -> str:
            said = pooler.log.read_text(encoding="utf-8", errors="replace")
            return [line for line in said.splitlines() if "pgbouncer/stats@" in line][-1]

        support.wait_until(lambda: "closing because: " in last(), "the session has ended")
        assert "closing because: client close request" in last()


def test_paused_and_disabled_databases(server: PostgresServer) -> None:
    entry = f"host={server.host} port={server.port} dbname=postgres"
    paused = "database shop is paused: clients wait until RESUME\n"
    disabled = "database old is disabled: new clients are refused until ENABLE\n"
    with (
        PgBouncerServer(
            server, databases={"shop": entry, "old": entry}, pool_mode="transaction"
        ) as pooler,
        pooler.connect("shop") as client,
    ):
        pooler.console("PAUSE shop")
        pooler.console("DISABLE old")
        client.simple_query("SELECT 1")
        time.sleep(1.1)
        done = console(pooler)
        assert (done.code, masked(done.out)) == (
            1,
            f"{PREFIX} WARNING - pool shop/postgres: 1 client waits, the first for # s; 0 of 20 "
            "server connections in use; 1 of 100 client connections (maxwait outside range 0:1) | "
            f"{perfdata('#', 1, 1)}{paused}{disabled}{NO_STATE}pool shop/postgres: 1 client waits, "
            "the first for # s; no server connection; the database is paused: RESUME shop ends "
            "it\n",
        )
        done = console(pooler, "--database", "old")
        assert (done.code, masked(done.out)) == (
            0,
            f"{PREFIX} OK - no client waits: there is no pool yet; 1 of 100 client connections | "
            f"{perfdata('#', 0, 1)}{disabled}{NO_STATE}",
        )
        done = console(pooler, "--user", "postgres", "--database", "shop", "-w", "9")
        assert done.code == 0
        assert "1 client waits" in done.out
        pooler.console("RESUME shop")
        client.wait_ready()


def test_a_server_that_is_down(server: PostgresServer) -> None:
    """Clients that wait to log in: PgBouncer says maxwait 0."""
    databases = {"*": f"host=127.0.0.1 port={processes.free_port()}"}
    settings = {"server_login_retry": 9}
    with (
        PgBouncerServer(server, databases=databases, settings=settings) as pooler,
        socket.create_connection((pooler.host, pooler.port)) as connected,
    ):
        Session(connected).send_startup({"user": "postgres", "database": "shop"})
        time.sleep(3.1)
        (row,) = (row for row in pooler.console("SHOW POOLS") if row["database"] == "shop")
        assert (row["maxwait"], row["cl_waiting"]) == ("0", "1")
        done = console(pooler)
    assert (done.code, masked(done.out)) == (
        1,
        f"{PREFIX} WARNING - pool shop/postgres: 1 client waits, the first for at least # s; 0 of "
        "20 server connections in use; 1 of 100 client connections (maxwait outside range 0:1) | "
        f"{perfdata('#', 1, 1)}1 client waiting to log in: PgBouncer tells no maxwait of those, "
        f"since when they do is known to the second\n{NO_STATE}pool shop/postgres: 1 client "
        "waits, the first for at least # s; no server connection; the server refuses PgBouncer, "
        "cannot be reached or is slow to let in (PgBouncer's log says it; it tries again every "
        "# s, server_login_retry), or all databases are paused\n",
    )
    assert 2 <= measured(done.out)["maxwait"] <= 4


def test_processes_that_share_a_port(server: PostgresServer, state: Sequence[str]) -> None:
    settings = {"so_reuseport": 1}
    several = (
        "one of several PgBouncer processes, if others share its port (so_reuseport): it tells of "
        "itself alone\n"
    )
    with PgBouncerServer(server, settings=settings) as pooler:
        for _ in range(2):
            done = console(pooler, *state)
            assert (done.code, masked(done.out)) == (
                0,
                f"{PREFIX} OK - no client waits: there is no pool yet; 0 of 100 client connections "
                f"| {perfdata('#', 0, 0)}{several}",
            )
        done = console(pooler, *state, "--wait-ratio-warning", "1")
        assert (done.code, done.out.splitlines()[0]) == (
            3,
            f"{PREFIX} UNKNOWN - wait_ratio cannot be judged: PgBouncer processes share this port "
            "(so_reuseport), and the one that answered tells of itself alone: ask each by its own "
            "Unix socket; without --wait-ratio-warning the rest is judged",
        )
        over_unix = ("-d", f"host={pooler.socket_directory} port={pooler.port} user=stats")
        run(*over_unix, *state)
        assert measured(run(*over_unix, *state).out)["wait_ratio"] == 0


def test_who_may_ask_and_what_is_no_console(server: PostgresServer) -> None:
    with PgBouncerServer(server, users=("app",)) as pooler:
        at = f"host={pooler.host} port={pooler.port}"
        for dsn, sentence in (
            (
                f"{at} user=app",
                r"PgBouncer's console cannot be reached: FATAL:  not allowed: its user is in "
                r"neither stats_users nor admin_users of PgBouncer; add it to stats_users, which "
                r"suffices, and RELOAD",
            ),
            (pooler.dsn(), NO_CONSOLE),
            (server.dsn(), NO_CONSOLE),
            (
                f"{at} user=stats password=secret",
                r"--dsn holds a password, which every user can see in the list of processes; put "
                r"it into ~/.pgpass, a service file or the environment \(PGPASSWORD\)",
            ),
        ):
            done = run("-d", dsn)
            assert (done.code, done.err) == (3, "")
            assert re.fullmatch(rf"{PREFIX} UNKNOWN - {sentence}\n", done.out), done.out
        for arguments, what in ((("--database", "no"), "database"), (("--user", "no"), "user")):
            done = console(pooler, *arguments)
            assert (done.code, done.out) == (
                3,
                f"{PREFIX} UNKNOWN - PgBouncer knows no {what} no: see to --{what}; one that only "
                "the entry * lets in is known once somebody has connected\n",
            )


NO_CONSOLE = (
    r"what answers is PostgreSQL [^,]*, not PgBouncer's console; name PgBouncer's port with --dsn, "
    r"without a database or with dbname=pgbouncer"
)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-p", "6432", "-d", "x"), "--dsn is for PgBouncer's console; drop it, or --port"),
        (("-p", "6432", "--user", "x"), "--user is for PgBouncer's console; drop it, or --port"),
        (
            ("-p", "6432", "--clients-warning", "9"),
            "--clients-warning takes PgBouncer's console; drop it, or --port",
        ),
        (
            ("--user", "x", "--wait-ratio-critical", "9"),
            "--wait-ratio-critical: SHOW STATS tells of databases, not of users; drop --user",
        ),
        (
            ("--netns", "self"),
            "--source, --moment, --proc-root and --netns are for sockets; name --port",
        ),
    ],
)
def test_what_does_not_go_together(arguments: Sequence[str], sentence: str) -> None:
    assert run(*arguments) == (3, f"{PREFIX} UNKNOWN - {sentence}\n", "")


def test_ports_that_are_no_poolers(server: PostgresServer) -> None:
    done = run("-p", str(server.port))
    assert done.code == 3
    assert re.fullmatch(
        rf"{PREFIX} UNKNOWN - on port {server.port} listens (probably )?process \d+ \(\w+\), no "
        r"pooler: name the pooler's port\n",
        done.out,
    )
    port = processes.free_port()
    done = run("-p", str(port))
    assert (done.code, done.out) == (
        3,
        f"{PREFIX} UNKNOWN - nothing listens on port {port}; is the pooler down or the port "
        "another (--port)?\n",
    )


def test_server_connections_over_unix_sockets(server: PostgresServer) -> None:
    """They have no clocks: where their number decides, it is not known."""
    entry = {"*": f"host={server.socket_directory} port={server.port}"}
    with (
        PgBouncerServer(
            server, databases=entry, pool_mode="transaction", default_pool_size=2
        ) as pooler,
        clients(pooler, 2, 30),
    ):
        support.wait_until(lambda: len(pooler.server_ports()) == 2, "both are served")
        time.sleep(0.2)
        done = run("-p", str(pooler.port), "--cl-waiting-warning", "1")
        assert (done.code, masked(done.out)) == (
            3,
            f"{PREFIX} UNKNOWN - how many clients wait on port {pooler.port} is not known, 0 to 2, "
            "the first for up to # s: 2 server connections over Unix sockets, which have no "
            "clocks, may be busy; ask PgBouncer's console (--dsn)\n",
        )
        with clients(pooler, 1, 30):
            time.sleep(0.2)
            done = run("-p", str(pooler.port), "-w", "60", "-c", "60")
    assert (done.code, masked(done.out)) == (
        0,
        f"{PREFIX} OK - at least 1 client waits on port {pooler.port}, the first for at least # s: "
        "estimated, 3 clients await an answer and up to 2 server connections may be busy | "
        f"maxwait=#s;60;60;0 cl_waiting=1;;;0 clients=3;;;0\n{BOUNDS}2 server connections over "
        "Unix sockets, which have no clocks: taken for busy\n",
    )
