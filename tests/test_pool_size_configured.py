"""check_pgsock_pool_size against configured pools, as PgBouncer's console and its file have them,
of several poolers, of session pooling, and all pools together.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.pool_load import (
    FIRST_RUN,
    NO_STATE,
    PREFIX,
    TAIL,
    database,
    load,
    measured,
    run,
    unknown,
)

CORES = ("--cores", "3.25", "--parallelism", "1", "--since", "0.5")
NOBODY_THERE = "no other session is on database {} now\n"


def sentence(state: str, what: str, size: int, advice: str, *more: str) -> str:
    """The whole output for a pool that may be up to 6; `more` are the lines below."""
    over = "" if state == "OK" else " (pool_size outside range 0:6)"
    return (
        f"{PREFIX} {state} - {what} may be # 6, it is {size}{advice}; busy ratio # over # s{over} "
        f"| pool_size={size};6;;0 pool_size_limit=6;;;0 pool_size_needed=#;;;0 busy_ratio=#;;;0;1 "
        f"parallelism=#;;;1 full_load=#%;;;0 {TAIL}{''.join(more)}"
    )


def test_the_console_and_the_file_tell_what_to_lower(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    with (
        database(pg) as name,
        PgBouncerServer(
            pg,
            pool_mode="transaction",
            default_pool_size=60,
            databases={name: f"host={pg.host} port={pg.port} user=postgres"},
        ) as pooler,
    ):
        load(pg, name, 0.8, 0.8)
        told = NOBODY_THERE.format(name)
        console = ("--console", pooler.dsn("pgbouncer", "stats"))
        pool, advice = f"pool {name}/postgres", ": lower default_pool_size"
        # Until 1.23 SHOW USERS does not have it.
        cap = "the console does not tell a max_user_connections of [users]\n"
        done = run("-d", pg.dsn(name), *CORES, *console)
        cap = cap if cap in done.out else ""
        assert done == (1, sentence("WARNING", pool, 60, advice, NO_STATE, cap, told), "")
        done = run("-d", pg.dsn(name), *CORES, "--ini", str(pooler.ini), user=None)
        assert done == (1, sentence("WARNING", pool, 60, advice, NO_STATE, told), "")
        three = "the pool's size is 60 connections by the console, times 3 poolers\n"
        done = run("-d", pg.dsn(name), *CORES, *console, "--poolers", "3")
        expected = sentence("WARNING", pool, 180, advice, NO_STATE, three, cap, told)
        assert done == (1, expected, "")
        pooler.settings["default_pool_size"] = 6
        pooler.reload()
        done = run("-d", pg.dsn(name), *CORES, *console)
        assert done == (0, sentence("OK", pool, 6, "", NO_STATE, cap), "")


def test_what_no_pool_leads_to_is_unknown(pg: PostgresServer, tmp_path: Path) -> None:
    support.require("pgbouncer")
    other = {"other": f"host={pg.host} port={pg.port}"}
    with PgBouncerServer(pg, databases=other, users=("nosy",)) as pooler:
        where = ("-d", pg.dsn(), *CORES)
        done = run(*where, "--console", pooler.dsn("pgbouncer", "stats"))
        assert "\nno entry in the console leads to database postgres now\n" in done.out
        done = run(*where, "--ini", str(pooler.ini), user=None)
        assert done == unknown(
            "the size of the pool of database postgres is not known: no entry in "
            f"{pooler.ini} leads to database postgres; name it with --pool-size"
        )
        refused = run(*where, "--console", pooler.dsn("pgbouncer", "nosy"))
        assert refused.code == 3
        assert "its user is in neither stats_users nor admin_users of PgBouncer" in refused.out
        server = run(*where, "--console", pg.dsn())
        assert server.code == 3
        assert "not PgBouncer's console; name PgBouncer's port with --console" in server.out
    secret = run(*where, "--console", "password=x")
    assert secret.code == 3
    assert " UNKNOWN - --console holds a password, " in secret.out
    support.require("root")
    closed = tmp_path / "pgbouncer.ini"
    closed.write_text("[pgbouncer]\n", encoding="ascii")
    closed.chmod(0o600)
    done = run(*where, "--ini", str(closed))
    assert done.code == 3
    assert "pgbouncer.ini: Permission denied: it needs the right to read it" in done.out


@pytest.mark.parametrize(
    "arguments", [("--pool-size", "5", "--ini", "/x"), ("--console", "host=x", "--pool-size", "5")]
)
def test_a_size_has_one_source(arguments: tuple[str, ...]) -> None:
    named = [one for one in ("--pool-size", "--console", "--ini") if one in arguments]
    assert run(*arguments) == unknown(
        f"{' and '.join(named)} each say how large a pool is; name one of them"
    )


def test_session_pooling_holds_all_sessions(pg: PostgresServer, sessions: OpenSessions) -> None:
    support.require("pgbouncer")
    with (
        database(pg) as name,
        PgBouncerServer(
            pg,
            pool_mode="session",
            default_pool_size=10,
            databases={name: f"host={pg.host} port={pg.port}"},  # of a server with other tests
        ) as pooler,
    ):
        load(pg, name, 0.8, 0.8)
        sessions(pg, 4, database=name)
        where = ("-d", pg.dsn(name), *CORES)
        console = ("--console", pooler.dsn("pgbouncer", "stats"))
        for given in (("--pool-size", "10", "--pool-mode", "session"), ("--ini", str(pooler.ini))):
            done = support.run("pool_size", *where, *given)
            assert done.code == 0
            assert ", it is 10; busy ratio of whole sessions 0." in done.out
            assert measured(done.out)["pool_size_needed"] == 4
        by_transaction = support.run("pool_size", *where, *console, "--pool-mode", "transaction")
        assert "whole sessions" not in by_transaction.out


def test_a_pool_of_the_check_or_of_nobody_does_not_count(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    with (
        roles(pg, "shop_app", "shop_dba"),
        database(pg) as name,
        PgBouncerServer(
            pg,
            pool_mode="transaction",
            default_pool_size=5,
            databases={name: f"host={pg.host} port={pg.port}"},
            users=("shop_app", "shop_dba"),
        ) as pooler,
        Session.connect(pooler.host, pooler.port, "shop_app", name) as client,
    ):
        load(pg, name, 0.8, 0.8)
        client.query("SELECT 1")
        given = (*CORES, "--console", pooler.dsn("pgbouncer", "stats"), "-v")
        # Through the pooler: that makes a pool, of postgres.
        assert (
            f"pool {name}/shop_app may be "
            in support.run("pool_size", "-d", pooler.dsn(name), *given).out
        )
        own = support.run("pool_size", "-d", pg.dsn(name), *given).out
        assert (f"pool {name}/shop_app may be " in own, measured(own)["pool_size"]) == (True, 5)
        left = "\nnot counted, for nobody uses them now, or the check alone: "
        assert f"{left}{name}/postgres\n" in own
        with Session.connect(pooler.host, pooler.port, "shop_dba", name) as stray:
            stray.query("SELECT 1")
            both = support.run("pool_size", "-d", pg.dsn(name), *given).out
        assert measured(both)["pool_size"] == 10
        pools = f"{name}/shop_app 5, {name}/shop_dba 5"
        assert f"\n10 connections are those of 2 pools by the console: {pools}\n" in both
        pooler.console(f"RECONNECT {name}")
        support.wait_until(
            lambda: all(row["sv_idle"] == "0" for row in pooler.console("SHOW POOLS")),
            "idle server connections are closed",
        )
        alone = support.run("pool_size", "-d", pg.dsn(name), *given).out
        assert measured(alone)["pool_size"] == 5
        assert f"{left}{name}/postgres, {name}/shop_dba\n" in alone


@contextlib.contextmanager
def roles(pg: PostgresServer, *names: str) -> Iterator[None]:
    """Roles that may log in."""
    for name in names:
        pg.execute(f"CREATE ROLE {name} LOGIN")
    try:
        yield
    finally:
        for name in names:
            pg.execute(f"DROP ROLE {name}")


def test_clients_that_wait_for_a_session_are_needed(pg: PostgresServer) -> None:
    """The server has no more sessions than the pool has connections, however many wait."""
    support.require("pgbouncer")
    with (
        database(pg) as name,
        PgBouncerServer(
            pg,
            pool_mode="session",
            default_pool_size=2,
            databases={name: f"host={pg.host} port={pg.port}"},
        ) as pooler,
        contextlib.ExitStack() as stack,
    ):
        load(pg, name, 0.8, 0.8)
        for _ in range(3):
            connected = socket.create_connection((pooler.host, pooler.port), 5)
            client = Session(stack.enter_context(connected))
            client.send_startup({"user": "postgres", "database": name})
            client.simple_query("SELECT 1")
        support.wait_until(
            lambda: any(row["cl_waiting"] == "1" for row in pooler.console("SHOW POOLS")),
            "a client waits",
        )
        console = ("--console", pooler.dsn("pgbouncer", "stats"))
        done = support.run("pool_size", "-d", pg.dsn(name), *CORES, *console)
        assert ", it is 2: raise default_pool_size; busy ratio of whole sessions " in done.out
        assert (done.code, measured(done.out)["pool_size_needed"]) == (0, 3)


def test_a_pooler_that_leads_to_another_port(pg: PostgresServer) -> None:
    support.require("pgbouncer")
    with (
        database(pg) as name,
        PgBouncerServer(
            pg,
            databases={
                name: f"host=localhost port={pg.port}",
                "other": f"host=localhost port=1 dbname={name}",
            },
        ) as pooler,
    ):
        load(pg, name, 0.8, 0.8)
        by_socket = f"host={pg.socket_directory} port={pg.port} dbname={name} user=postgres"
        where = ("-d", by_socket, *CORES, "--ini", str(pooler.ini), "--pool-mode", "transaction")
        done = support.run("pool_size", *where)
        assert measured(done.out)["pool_size"] == 20
        assert "not known: all are counted" not in done.out
        pooler.databases = {name: "host=localhost port=1"}
        pooler.reload()
        done = support.run("pool_size", *where)
        assert (
            f"\n{name}: port 1, and this server's is {pg.port}: another server, unless a proxy or "
            "a tunnel is between\n"
        ) in done.out


def test_two_databases_each_fine_and_together_too_large(
    make_pg: MakePg, pg: PostgresServer
) -> None:
    pg = make_pg(major=pg.version)  # all of whose databases are this test's
    with database(pg, "app_a") as one, database(pg, "app_b") as two:
        load(pg, one, 0.8, 0.8)
        load(pg, two, 0.8, 0.8)
        named = ("--database", one, "--database", two, "--pool-size", "4")
        done = support.run("pool_size", "-d", pg.dsn(), *CORES, *named)
        values = measured(done.out)
        assert done.code == 1
        assert values["limit_app_a"] >= 5 <= values["limit_app_b"]
        assert 110 < values["full_load"] < 135
        assert "(full_load outside range 0:105)" in done.out
        assert re.search(
            r"\nall pools in full use come to 4\.\d processes at work, 1[123]\d % of the 3\.25 "
            r"that the server can run: app_[ab] 2\.\d, app_[ab] [12]\.\d\n",
            done.out,
        )
        off = support.run("pool_size", "-d", pg.dsn(), *CORES, *named, "--full-load-warning", "~:")
        assert off.code == 0
        # One of them is judged by itself, whatever the other does.
        done = support.run("pool_size", "-d", pg.dsn(one), *CORES, "--pool-size", "4")
        assert done.code == 0


def test_an_idle_night_with_one_monitor(pg: PostgresServer, tmp_path: Path) -> None:
    """Its statements are all that there is, and no reason to judge a pool of 20 by them."""
    with database(pg) as name:
        pg.execute("CREATE TABLE one AS SELECT 1 AS one", name)
        options = ["-d", pg.dsn(name), *CORES, "--pool-size", "20", "--since", "1"]
        options += ["--state-dir", str(tmp_path)]
        first = run(*options, user=None)
        assert (first.code, first.out.splitlines()[1:]) == (0, [FIRST_RUN.strip()])
        with pg.connect(name) as monitor:
            for _ in range(3):
                for _ in range(4):
                    monitor.query("SELECT count(*) FROM one")
                    time.sleep(0.3)
                done = run(*options, user=None)
                assert done.code == 0
                assert f"too little activity to judge the pool of database {name} of 20" in done.out
                assert "pool_size_limit" not in done.out


def test_a_database_made_and_dropped_between_runs(make_pg: MakePg, tmp_path: Path) -> None:
    pg = make_pg()
    options = ["-d", pg.dsn(), *CORES, "--pool-size", "2", "--since", "1", "--database", "all"]
    options += ["--state-dir", str(tmp_path)]
    assert run(*options, user=None).code == 0
    pg.execute("CREATE DATABASE new")
    load(pg, "new", 0.8, 0)
    time.sleep(0.5)
    assert run(*options, user=None).code == 0
    pg.execute("DROP DATABASE new")
    time.sleep(0.5)
    done = run(*options, user=None)
    assert done.code == 0
    assert "new" not in done.out
    assert run(*options[:-4], "--state-dir", str(tmp_path), "--database", "new") == unknown(
        "the server has no database new; see to --database"
    )
