"""`--limit sql`: who is asked, how often, and what holds while nobody answers."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import Installations, MakePg, OpenSessions
from tests.pool_load import fake_server
from tests.session_load import wait_for
from tests.support import Completed
from tests.test_saturation import line

LOGGED = {"log_connections": True, "max_connections": 20}
PREFIX = "PGSOCK_SATURATION"
OTHERS = (
    "the limit is the whole server's, and counted are this host's connections alone: those of "
    "other hosts take slots, too\n"
)
FULL = "FATAL:  sorry, too many clients already"


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory of nobody's."""
    with fresh_directory("pgsock-state-") as directory:
        accounts.own(directory, accounts.account_of("nobody"))
        yield directory


def run(port: int, state: Path, dsn: str, *more: str, **env: str) -> Completed:
    """The check of the client leg, as nobody."""
    options = ["--leg", "client", "-p", str(port), "--limit", "sql", "-d", dsn]
    options += ["--state-dir", str(state)]
    return support.run("saturation", *options, *more, user="nobody", env=env)


def asked(server: PostgresServer, role: str = "watch") -> int:
    """How often the role has logged in, by the server's log."""
    log = server.log.read_text(encoding="utf-8")
    return log.count(f"connection authorized: user={role} ")


def make_older(state: Path, seconds: float) -> None:
    """Let all that is kept be read so much earlier."""
    with contextlib.closing(sqlite3.connect(state / "checks.sqlite")) as store, store:
        store.execute("UPDATE sample SET at = at - ?", (seconds,))


def unknown(sentence: str, prefix: str = PREFIX) -> Completed:
    return Completed(3, f"{prefix} UNKNOWN - {sentence}\n", "")


def nothing_kept(sentence: str, prefix: str = PREFIX) -> Completed:
    return unknown(f"no limit is kept, and none can be read: {sentence}; or give --limit N", prefix)


def test_asked_once_an_hour_by_a_role_with_login_alone(
    every_major: int, make_pg: MakePg, state: Path, sessions: OpenSessions
) -> None:
    reserved = {"superuser_reserved_connections": 2, "rds.rds_superuser_reserved_connections": 1}
    if every_major >= 16:
        reserved["reserved_connections"] = 2
    server = make_pg(settings={**LOGGED, **reserved}, major=every_major)
    server.execute("CREATE ROLE watch LOGIN")
    sessions(server, 3)
    limit = 20 - sum(reserved.values())
    bounds = (int(limit * 0.8), int(limit * 0.9))
    expected = (
        0,
        line("OK", 3, limit, f"to port {server.port}", *bounds, slots=False) + OTHERS,
        "",
    )
    dsn = server.dsn("postgres", "watch")
    for _ in range(4):
        assert run(server.port, state, dsn) == expected
    assert asked(server) == 1
    make_older(state, 3590)
    assert run(server.port, state, dsn) == expected
    assert asked(server) == 1
    told = f"limit: {limit} usable of max_connections 20, read by --dsn 59 min ago"
    assert run(server.port, state, dsn, "-v").out.splitlines()[-1] == told
    make_older(state, 60)
    told = f"limit: {limit} usable of max_connections 20, read by --dsn now"
    assert run(server.port, state, dsn, "-v").out.splitlines()[-1] == told
    assert asked(server) == 2
    # From the future: the clock was set back.
    make_older(state, -7200)
    assert run(server.port, state, dsn) == expected
    assert asked(server) == 3


def test_a_host_of_applications_and_a_server_elsewhere(
    two_hosts: tuple[NamespaceHost, NamespaceHost], installations: Installations, state: Path
) -> None:
    """Sockets tell who holds how many connections, and not which limit the server has."""
    here, there = two_hosts
    binaries = installations.get(support.newest_major())
    hba = ["host all all 192.0.2.0/24 trust"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            PostgresServer(binaries, host=there, hba=hba, settings={**LOGGED})
        )
        for _ in range(4):
            stack.enter_context(server.connect(from_host=here))
        options = ["--leg", "client", "-p", str(server.port)]
        done = support.run("saturation", *options, on=here, user="nobody")
        assert done == unknown(
            f"the limit of port {server.port} cannot be read: the server of this client leg is not "
            "on this host; name the usable slots (or this host's share of them) with --limit N"
        )
        sql = ["--limit", "sql", "-d", server.dsn(), "--state-dir", str(state)]
        expected = line("OK", 4, 17, f"to port {server.port}", 13, 15, slots=False) + OTHERS
        for _ in range(2):
            done = support.run("saturation", *options, *sql, on=here, user="nobody")
            assert done == (0, expected, "")
        assert asked(server, "postgres") == 5


def test_slots_are_counted_beside_it_on_the_server_leg(
    pg: PostgresServer, sessions: OpenSessions, tmp_path: Path
) -> None:
    sessions(pg, 2)
    done = support.run("saturation", "-p", str(pg.port), "--limit", "sql", "-d", pg.dsn(),
                       "--state-dir", str(tmp_path))  # fmt: skip
    assert done == (0, line("OK", 2, 17, f"on port {pg.port}", 13, 15), "")


def test_another_dsn_or_endpoint_is_asked_itself(
    pg: PostgresServer, make_pg: MakePg, state: Path
) -> None:
    small = make_pg(settings={**LOGGED, "max_connections": 10}, major=pg.version)
    large = make_pg(settings={**LOGGED, "max_connections": 30}, major=pg.version)

    def limit(dsn: str, **env: str) -> int:
        done = run(small.port, state, dsn, **env)
        return int(done.out.partition(" limit=")[2].partition(";")[0])

    assert limit(small.dsn()) == 7
    assert limit(large.dsn()) == 27
    assert limit(small.dsn()) == 7
    assert limit("user=postgres host=127.0.0.1", PGPORT=str(small.port)) == 7
    assert limit("user=postgres host=127.0.0.1", PGPORT=str(large.port)) == 27
    assert (asked(small, "postgres"), asked(large, "postgres")) == (2, 2)
    # The leak of the same server has no question of its own.
    done = support.run(
        "leak", "--leg", "client", "-p", str(small.port), "--limit", "sql", "-d", small.dsn(),
        "--state-dir", str(state), user="nobody",
    )  # fmt: skip
    assert (done.code, done.out.partition(" | ")[2]) == (
        0,
        "leaked=0;1;3;0;7 silent=0;;;0 dead_peers=0;;;0 established=0;;;0 limit=7;;;0\n",
    )
    assert asked(small, "postgres") == 2


def test_a_server_that_is_down(pg: PostgresServer, make_pg: MakePg, state: Path) -> None:
    server = make_pg(settings=LOGGED, major=pg.version)
    server.stop()
    said = (
        "the database cannot be reached: connection to server at "
        f'"127.0.0.1", port {server.port} failed: Connection refused; see to the server, --dsn and '
        "the role's rights"
    )
    done = run(server.port, state, server.dsn())
    assert shortened(done, server) == shortened(nothing_kept(said), server)
    server.start()
    where = f"to port {server.port}"
    good = line("OK", 0, 17, where, 13, 15, slots=False)
    assert run(server.port, state, server.dsn()) == (0, good + OTHERS, "")
    server.stop()
    assert run(server.port, state, server.dsn()) == (0, good + OTHERS, "")
    make_older(state, 7500)
    kept = f"the limit is as it was 2 h 05 min ago, it cannot be read now: {said}\n"
    done = run(server.port, state, server.dsn())
    expected = Completed(0, good + kept + OTHERS, "")
    assert shortened(done, server) == shortened(expected, server)
    # The leak relies on what it was told to ask, too.
    server.restart()
    server.stop()
    other = f"{server.dsn()} application_name=other"
    done = support.run("leak", "--leg", "client", "-p", str(server.port), "--limit", "sql", "-d",
                       other, "--state-dir", str(state), user="nobody")  # fmt: skip
    assert shortened(done, server) == shortened(nothing_kept(said, "PGSOCK_LEAK"), server)


def shortened(done: Completed, server: PostgresServer) -> Completed:
    """Without the words that some versions of psycopg leave out."""
    at = f'connection to server at "127.0.0.1", port {server.port} failed: '
    return done._replace(out=done.out.replace(at, ""))


def test_a_server_that_never_answers(pg: PostgresServer, state: Path) -> None:
    """It takes half of the time at most: what is kept has to become a verdict."""
    dsn = "host=127.0.0.1 dbname=postgres user=postgres"
    assert run(1, state, dsn, PGPORT=str(pg.port)).code == 0
    with fake_server(None) as port:
        kept = nothing_kept("nothing was heard of it for # s, the time ran out while connecting to "
                            "the database; see to the server and --dsn")  # fmt: skip
        done = run(1, state, dsn, "-t", "2", PGPORT=str(port))
        assert done._replace(out=re.sub(r"\d\.\d s", "# s", done.out)) == kept
        with contextlib.closing(sqlite3.connect(state / "checks.sqlite")) as store, store:
            ((key,),) = store.execute("SELECT key FROM sample")
            silent = key.replace(str(pg.port), str(port))
            store.execute("UPDATE sample SET key = ?, at = at - 4000", (silent,))
        done = run(1, state, dsn, "-t", "2", PGPORT=str(port))
        assert done._replace(out=re.sub(r"\d\.\d s", "# s", done.out)) == (
            0,
            line("OK", 0, 17, "to port 1", 13, 15, slots=False)
            + "the limit is as it was 1 h 06 min ago, it cannot be read now: nothing was heard of "
            "it for # s, the time ran out while connecting to the database; see to the server and "
            f"--dsn\n{OTHERS}",
            "",
        )


def test_no_slot_left_is_critical(
    pg: PostgresServer, make_pg: MakePg, sessions: OpenSessions, state: Path
) -> None:
    settings = {"max_connections": 4, "superuser_reserved_connections": 1, "max_wal_senders": 0}
    server = make_pg(settings={**LOGGED, **settings}, major=pg.version)
    server.execute("CREATE ROLE watch LOGIN")
    where = f"to port {server.port}"
    opened = sessions(server, 3)
    reserved = {
        15: "remaining connection slots are reserved for non-replication superuser connections",
        18: "remaining connection slots are reserved for roles with the SUPERUSER attribute",
    }[pg.version]
    dsn = server.dsn("postgres", "watch")
    done = run(server.port, state, dsn)
    refused = f"no connection slot is left: FATAL:  {reserved}"
    assert done.code == 2
    assert shortened(done, server).out.splitlines()[0] == (
        f"{PREFIX} CRITICAL - 3 connections {where}, limit unknown ({refused}) | established=3;;;0 "
        "close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0"
    )
    gone = opened.pop()
    gone.close()
    support.wait_until(lambda: gone.backend_pid not in server.process_ids(), "a slot is free")
    good = line("OK", 2, 3, where, 2, 2, slots=False)
    assert run(server.port, state, dsn) == (0, good + OTHERS, "")
    # These are the superuser's, who has the reserved slot, too.
    sessions(server, 2)
    make_older(state, 4000)
    done = run(server.port, state, dsn)
    refused = f"no connection slot is left: {FULL}"
    assert done.code == 2
    sentence, _, perfdata = shortened(done, server).out.splitlines()[0].partition(" | ")
    assert sentence == (
        f"{PREFIX} CRITICAL - 4 of 3 connections (133 %) {where} (established outside range 0:2; "
        f"{refused})"
    )
    assert perfdata == (
        "established=4;2;2;0;3 limit=3;;;0 utilization=133.3%;;;0 free=0;;;0;3 close_wait=0;;;0 "
        "syn_recv=0;;;0 not_accepted=0;;;0"
    )
    assert done.out.splitlines()[1] == "the limit is as it was 1 h 06 min ago"


def test_the_limit_of_a_role_says_nothing_of_others(
    pg: PostgresServer, make_pg: MakePg, state: Path
) -> None:
    server = make_pg(settings=LOGGED, major=pg.version)
    server.execute("CREATE ROLE watch LOGIN CONNECTION LIMIT 0")
    done = run(server.port, state, server.dsn("postgres", "watch"))
    assert shortened(done, server) == nothing_kept(
        "the limit of the check's own role is used up: FATAL:  too many connections for role "
        '"watch"; raise it (ALTER ROLE ... CONNECTION LIMIT) or name another role with --dsn'
    )
    server.execute("ALTER ROLE watch CONNECTION LIMIT -1")
    server.execute("CREATE DATABASE small CONNECTION LIMIT 5")
    note = (
        "database small admits 5 connections (CONNECTION LIMIT), which are not judged: where all "
        "counted here are on it, give --limit 5\n"
    )
    good = line("OK", 0, 17, f"to port {server.port}", 13, 15, slots=False)
    for _ in range(2):
        done = run(server.port, state, server.dsn("small", "watch"))
        assert done == (0, good + note + OTHERS, "")
    # Where that of the database is used up others may have slots left.
    server.execute("ALTER DATABASE small CONNECTION LIMIT 0")
    full = (
        'no connection slot is left: FATAL:  too many connections for database "small", which is '
        "the limit of that alone; name another with --dsn"
    )
    make_older(state, 4000)
    kept = f"the limit is as it was 1 h 06 min ago, it cannot be read now: {full}\n"
    done = run(server.port, state, server.dsn("small", "watch"))
    assert shortened(done, server) == (0, good + kept + note + OTHERS, "")
    done = run(server.port, state, f"{server.dsn('small', 'watch')} connect_timeout=5")
    assert shortened(done, server) == nothing_kept(full)
    done = support.run(
        "leak", "--leg", "client", "-p", str(server.port), "--limit", "sql", "-d",
        f"{server.dsn('small', 'watch')} connect_timeout=6", "--state-dir", str(state),
        user="nobody",
    )  # fmt: skip
    assert shortened(done, server) == nothing_kept(full, "PGSOCK_LEAK")


def test_its_own_session_is_closed_whatever_becomes_of_it(
    pg: PostgresServer, make_pg: MakePg, state: Path
) -> None:
    server = make_pg(settings=LOGGED, major=pg.version)
    server.execute("CREATE ROLE watch LOGIN")
    server.execute("CREATE DATABASE asked")
    server.execute("REVOKE SELECT ON pg_catalog.pg_database FROM public", "asked")
    done = run(server.port, state, server.dsn("asked", "watch"))
    assert done == nothing_kept(
        "the database refused a query: permission denied for table pg_database; see to the "
        "server, --dsn and the role's rights"
    )
    wait_for(server, "asked", 2, 0, 0, 0, 0)


def test_poolers(pg: PostgresServer, state: Path) -> None:
    support.require("pgbouncer")
    for pool_mode in ("session", "transaction"):
        with PgBouncerServer(pg, pool_mode=pool_mode, max_client_conn=40) as pooler:
            where = f"to port {pooler.port}"
            assert run(pooler.port, state, pooler.dsn()) == nothing_kept(
                "--dsn leads through a pooler to a server, and either has a limit of its own; name "
                "the server itself, or PgBouncer's console (dbname=pgbouncer)"
            )
            good = line("OK", 0, 40, where, 32, 36, slots=False)
            for user in ("stats", "admin"):
                done = run(pooler.port, state, pooler.dsn("pgbouncer", user), "-v")
                told = "limit: 40 usable of max_client_conn 40, read by --dsn now\n"
                assert done == (0, good + OTHERS + told, "")
    with PgBouncerServer(pg, settings={"so_reuseport": 1}) as pooler:
        assert run(pooler.port, state, pooler.dsn("pgbouncer", "stats")) == nothing_kept(
            "PgBouncer shares its port between processes (so_reuseport), and its console tells of "
            "one; add their max_client_conn up"
        )


def test_without_a_place_to_keep_it(pg: PostgresServer) -> None:
    done = support.run("saturation", "-p", str(pg.port), "--limit", "sql", "-d", pg.dsn(),
                       user="nobody", env={"HOME": "/nonexistent"})  # fmt: skip
    assert done == unknown(
        "--limit sql keeps what it reads, and there is no directory to keep it in: make "
        "/var/lib/check_pgsock, owned by the user that runs the check, or name one with --state-dir"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-d", "dbname=x"], "--dsn is asked by --limit sql alone; add that, or drop it"),
        (["-d", "dbname=x", "--limit", "5"], "--dsn is asked by --limit sql alone; add that, or "
         "drop it"),
        (["--limit", "sql", "-p", "1", "-p", "2"], "several --port are one pool and need its size: "
         "name it with --limit N"),
        (["--limit", "sequel"], "argument --limit: 'sequel' is no whole number of 1 or more; see "
         "check_pgsock_saturation --help"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(options: list[str], sentence: str) -> None:
    assert support.run("saturation", *options) == unknown(sentence)


def test_a_saved_moment_has_no_server_to_ask(tmp_path: Path) -> None:
    saved = tmp_path / "net"
    saved.mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
    (saved / "tcp").write_text(head)
    done = support.run("saturation", "--limit", "sql", "--leg", "client", "--proc-root",
                       str(tmp_path))  # fmt: skip
    assert done == unknown(
        "--limit sql asks a server as it is now, and a saved moment is of another time; name the "
        "limit with --limit N"
    )


@pytest.mark.parametrize("kept", [{"slots": 20}, [], "20", {"slots": 20, "unheard": 1}])
def test_what_another_version_has_kept_is_asked_for_again(
    kept: object, pg: PostgresServer, state: Path
) -> None:
    good = (0, line("OK", 0, 17, f"to port {pg.port}", 13, 15, slots=False) + OTHERS, "")
    assert run(pg.port, state, pg.dsn()) == good
    with contextlib.closing(sqlite3.connect(state / "checks.sqlite")) as store, store:
        store.execute("UPDATE sample SET data = ?", (json.dumps(kept),))
    assert run(pg.port, state, pg.dsn()) == good


def test_psycopg_is_loaded_only_to_ask(pg: PostgresServer, tmp_path: Path) -> None:
    options = ["-p", str(pg.port), "--state-dir", str(tmp_path), "--leg", "client"]
    sql = ["--limit", "sql", "-d", pg.dsn()]
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "psycopg.py").write_text("raise ImportError('loaded')\n")
    environment = {"PYTHONPATH": f"{hidden}:{support.ROOT}"}
    done = support.run("saturation", *options, *sql, env=environment)
    assert done == nothing_kept(
        "psycopg cannot be loaded: loaded; see to its installation, or to the memory that ulimit "
        "-v leaves"
    )
    assert support.run("saturation", *options, *sql).code == 0
    for more in (sql, ["--limit", "20"]):
        assert support.run("saturation", *options, *more, env=environment).code == 0
