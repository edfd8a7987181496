"""check_pgsock_pool_size against real servers: whole output and exit code, in all four states."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.pool_load import (
    FIRST_RUN,
    NO_STATE,
    PREFIX,
    TAIL,
    counters,
    database,
    judged,
    load,
    masked,
    measured,
    reset,
    run,
    unknown,
)


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state directory of our own."""
    return str(tmp_path)


def test_ok_warning_critical_on_the_limit(pg: PostgresServer) -> None:
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        options = ["-d", pg.dsn(name), "--cores", "3.25"]  # 6.5 by a ratio of 0.5
        nobody = f"no other session is on database {name} now\n"
        notes = NO_STATE
        assert run(*options, "--pool-size", "6") == (0, judged("OK", name, 6, 6, notes=notes), "")
        done = run(*options, "--pool-size", "7")
        assert done == (1, judged("WARNING", name, 7, 6, notes=notes, who=nobody), "")
        done = run(*options, "--pool-size", "13", "-c", "200%")
        assert done.code == 2
        assert f"{PREFIX} CRITICAL - pool of database {name} may be " in done.out
        assert " | pool_size=13;6;12;0 pool_size_limit=6;;;0 " in done.out
        # With the driver of our own Python, to the Unix socket, as root.
        dsn = f"host={pg.socket_directory} port={pg.port} dbname={name} user=postgres"
        done = run("-d", dsn, "--cores", "3.25", "--pool-size", "7", user=None)
        assert done == (1, judged("WARNING", name, 7, 6, notes=notes, who=nobody), "")
        done = run(*options, "--pool-size", "6", "--io-limit", "1", "--parallelism", "1.5")
        assert done == (1, judged("WARNING", name, 6, 1, notes=notes, who=nobody), "")


def test_all_of_the_time_executing(pg: PostgresServer) -> None:
    with database(pg) as name:
        load(pg, name, 0.8, 0)
        options = ["--cores", "4.5", "--pool-size", "4", "--since", "0.5"]
        done = support.run("pool_size", "-d", pg.dsn(name), *options, "--full-load-warning", "~:")
        assert masked(done.out) == judged("OK", name, 4, 4, notes=NO_STATE)
        assert 0.98 <= measured(done.out)["busy_ratio"] <= 1


def test_idle_transactions_alone_set_no_limit_worth_it(pg: PostgresServer) -> None:
    with database(pg) as name:
        load(pg, name, 0, 0.8)
        done = run("-d", pg.dsn(name), "--cores", "4", "--pool-size", "99")
        values = measured(done.out.replace("#", "0"))
        # BEGIN and COMMIT themselves execute for some microseconds.
        assert done.code == 0
        assert values["pool_size_limit"] > 99


def test_too_little_activity_and_first_and_second_run(pg: PostgresServer, state: str) -> None:
    with database(pg) as name:
        options = ["-d", pg.dsn(name), "--cores", "3.25", "--pool-size", "7", "--state-dir", state]
        little = (
            f"{PREFIX} OK - too little activity to judge the pool of database {name} of 7 "
            f"connections: # s busy or in transaction over # s, below # s | pool_size=7;;;0 {TAIL}"
        )
        time.sleep(0.6)
        assert run(*options, user=None) == (0, little + FIRST_RUN, "")
        load(pg, name, 0.6, 0.6)
        # Old enough for a window, and so much older than the next that these all use it.
        time.sleep(4)
        options += ["--since", "4"]
        nobody = f"no other session is on database {name} now\n"
        done = support.run("pool_size", *options, "--full-load-warning", "~:")
        assert masked(done.out) == judged("WARNING", name, 7, 6, who=nobody)
        assert done.code == 1
        values = measured(done.out)
        assert 0.45 < values["busy_ratio"] < 0.55
        # The window began with the first run: no longer than the load and the checks.
        assert 5.2 < values["window"] < 15
        # A run right after keeps the evidence: it is no 4 s since the last.
        done = run(*options, user=None)
        assert done == (1, judged("WARNING", name, 7, 6, who=nobody), "")
        # A state key of its own: a first run, and this time there is something to judge.
        done = run(*options, "--state-key", "other", user=None)
        assert done == (1, judged("WARNING", name, 7, 6, notes=FIRST_RUN, who=nobody), "")
        done = run(*options, "--min-busy", "5", user=None)
        low = (
            f"# sessions busy and # idle in transaction over # s, together below 5 | "
            f"pool_size=7;;;0 {TAIL}"
        )
        assert done == (0, little.partition("# s busy")[0] + low, "")


def test_a_retry_keeps_the_verdict_of_the_first_run(pg: PostgresServer, state: str) -> None:
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        options = ["-d", pg.dsn(name), "--cores", "3.25", "--pool-size", "7", "--state-dir", state]
        options += ["--since", "4"]
        time.sleep(3)
        nobody = f"no other session is on database {name} now\n"
        recent = (
            "no run on these statistics is # s ago: judged over the # s since the statistics were "
            "reset\n"
        )
        for notes in (FIRST_RUN, recent, recent):
            done = run(*options, user=None)
            assert done == (1, judged("WARNING", name, 7, 6, notes=notes, who=nobody), "")
        time.sleep(1)
        done = run(*options, "--since", "1", user=None)  # since the last, and quiet
        assert done.code == 0
        assert "OK - too little activity" in done.out
        assert len(done.out.splitlines()) == 1


def test_statistics_of_unknown_age_have_a_ratio_and_no_rate(
    make_pg: MakePg, state: str, tmp_path: Path
) -> None:
    """From 15 on they outlive a clean restart, and no reset says since when they are counted."""
    pg = make_pg(settings={"max_connections": 60})
    pg.execute("CREATE DATABASE app")
    options = ["-d", pg.dsn("app"), "--cores", "3.25", "--pool-size", "7", "--state-dir", state]
    unknown_age = "judged over all that the statistics hold, whose beginning is not known\n"
    little = (
        f"{PREFIX} OK - too little activity to judge the pool of database app of 7 connections: "
        "# s busy or in transaction over all that the statistics hold, below 60 s | "
        "pool_size=7;;;0\n"
    )
    load(pg, "app", 0.6, 0)
    masked_little = masked(little)
    assert run(*options, user=None) == (0, masked_little + f"first run: {unknown_age}", "")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(pg.connect("app")) for _ in range(50)]
        for session in opened:
            session.simple_query("begin; select pg_sleep(0.7)")
        for session in opened:
            session.wait_ready()
        time.sleep(0.7)
        for session in opened:
            session.query("commit")
    support.wait_until(lambda: sum(counters(pg, "app")[:2]) > 60, "the statistics of the load")
    pg.restart("fast")
    # The history of the server since it was made is no verdict on the pool that was OK just before.
    early = f"{PREFIX} OK - too early to judge the pool of database app of 7 connections: "
    anew = "the server started anew, or another took its place, since the last run, and "
    recent = "no run on its statistics is 60 s ago | pool_size=7;;;0\n"
    for since in ("last", "3600"):
        done = support.run("pool_size", *options, "--since", since, "--state-key", since)
        assert done.code == 1  # a first run
        done = support.run("pool_size", *options, "--since", since)
        assert done == (0, early + ("" if since == "3600" else anew) + recent, "")
    done = support.run("pool_size", *options, "--since", "reset")
    assert done.code == 1
    done = support.run("pool_size", *options, "--state-key", "other")
    ratio = measured(done.out)["busy_ratio"]
    assert 0.4 < ratio <= 0.6
    allowed = math.ceil(3.25 / ratio) - 1
    assert done == (
        1,
        f"{PREFIX} WARNING - pool of database app may be up to {allowed}, it is 7: lower it; busy "
        f"ratio {ratio:.3f} over all that the statistics hold (pool_size outside range "
        f"0:{allowed}) | pool_size=7;{allowed};;0 pool_size_limit={allowed};;;0 "
        f"busy_ratio={ratio:g};;;0;1 parallelism=1.0;;;1 "
        f"full_load={round(7 * ratio / 3.25 * 100, 3):g}%;;;0\n"
        f"first run: {unknown_age}no other session is on database app now\n",
        "",
    )
    # What was done there at some time is no pool in use beside one that is asked for.
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text(f"[databases]\n* = port={pg.port}\n[pgbouncer]\ndefault_pool_size = 6\n")
    with database(pg, "shop") as name:
        load(pg, name, 0.8, 0.8)
        options = ["-d", pg.dsn(name), "--cores", "3.25", "--ini", str(ini), "--since", "0.5"]
        options += ["--pool-mode", "transaction"]
        alone = support.run("pool_size", *options)
        assert (alone.code, measured(alone.out)["full_load"] < 105) == (0, True)
        both = support.run("pool_size", *options, "--database", name, "--database", "app")
        assert measured(both.out)["full_load"] > 140
        assert both.code == 1


HIDDEN = (
    "what is done in {} sessions of other roles cannot be seen: statements and transactions there "
    "count when they end, and parallel workers as connections; grant pg_read_all_stats to the role "
    "of the check\n"
)


def test_statements_in_progress_are_no_lack_of_activity(
    pg: PostgresServer, state: str, sessions: OpenSessions
) -> None:
    with database(pg) as name:
        pg.execute("CREATE ROLE plain LOGIN")
        try:
            options = ["--cores", "3.25", "--pool-size", "7", "--state-dir", state]
            options += ["--since", "1"]
            assert run("-d", pg.dsn(name), *options, user=None).code == 0
            opened = sessions(pg, 5, database=name)
            opened += sessions(pg, 1, database=name, user="plain")
            for session in opened[:4]:
                session.simple_query("select pg_sleep(25)")
            opened[4].query("BEGIN")
            time.sleep(2.2)
            # 4 sessions at work and 1 idle in a transaction, of which no counter knows yet.
            done = support.run("pool_size", "-d", pg.dsn(name), *options)
            values = measured(done.out)
            assert (done.code, values["pool_size_limit"]) == (1, 4)
            assert values["busy_ratio"] == pytest.approx(0.8, abs=0.02)
            assert values["busy_sessions"] > 2
            plain = ["-d", pg.dsn(name, "plain"), "--state-key", ""]
            assert run(*plain, *options, user=None).code == 0
            time.sleep(2.2)
            assert run(*plain, *options, user=None) == (
                0,
                # By the titles of the server's processes they are at work.
                f"{PREFIX} OK - pool of database {name} of 7 connections cannot be judged: busy "
                "ratio # over # s, unreliable | pool_size=7;;;0 busy_ratio=#;;;0;1 "
                f"parallelism=#;;;1 full_load=#%;;;0 {TAIL}the busy ratio is unreliable: the "
                "statistics do not have what the sessions did in the window, but more or less; "
                f"statements that touch no table come late\n{HIDDEN.format(5)}",
                "",
            )
        finally:
            pg.terminate(int(pid) for (pid,) in [*_backends(pg, "plain"), *_on(pg, name)])
            support.wait_until(lambda: not _backends(pg, "plain"), "sessions of plain are gone")
            pg.execute("DROP ROLE plain")


def _on(pg: PostgresServer, name: str) -> list[tuple[str]]:
    rows = pg.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")
    return [(str(row[0]),) for row in rows]


def test_reset_between_runs(pg: PostgresServer, state: str) -> None:
    with database(pg) as name:
        options = ["-d", pg.dsn(name), "--cores", "3.25", "--pool-size", "3", "--state-dir", state]
        load(pg, name, 0.3, 0)
        assert run(*options, user=None).code == 0
        reset(pg, name)
        load(pg, name, 0.6, 0.6)
        note = "the statistics were reset since the last run: judged over the # s since then\n"
        assert run(*options, user=None) == (0, judged("OK", name, 3, 6, notes=note), "")


def test_restart_crash_and_new_database_between_runs(make_pg: MakePg, state: str) -> None:
    pg = make_pg(settings={"max_connections": 10})
    options = ["--cores", "2", "--pool-size", "1", "--state-dir", state, "--min-busy", "0"]

    def early(why: str) -> None:
        assert support.run("pool_size", "-d", pg.dsn("app"), *options) == (
            0, f"{PREFIX} OK - too early to judge the pool of database app of 1 connection: {why}"
            "no run on its statistics is 60 s ago | pool_size=1;;;0\n", "",
        )  # fmt: skip

    pg.execute("CREATE DATABASE app")
    done = support.run("pool_size", "-d", pg.dsn("app"), *options)
    assert (done.code, done.out.splitlines()[1:]) == (
        0, ["first run: judged over all that the statistics hold, whose beginning is not known"]
    )  # fmt: skip
    pg.restart("fast")
    early("the server started anew, or another took its place, since the last run, and ")
    early("")
    load(pg, "app", 0.3, 0)
    run("-d", pg.dsn("app"), *options, user=None)
    with pg.connect("app") as session:
        # A backend killed so makes the postmaster start over, with empty statistics.
        os.kill(session.backend_pid, 9)
    support.wait_until(lambda: _takes_connections(pg), "the server is back")
    early("the statistics were lost in a crash since the last run, and ")
    pg.execute("DROP DATABASE app")
    pg.execute("CREATE DATABASE app")
    early("the database was made anew since the last run, and ")


def test_fail_over_to_a_standby_between_runs(
    pg: PostgresServer, make_pg: MakePg, tmp_path: Path
) -> None:
    """One service name, as one virtual address, leads to another server."""
    # Both are this test's own: other tests reset the statistics of a shared one.
    primary, standby = make_pg(major=pg.version), make_pg(major=pg.version)
    standby.stop("fast")
    (standby.data_directory / "standby.signal").touch()
    standby.start()
    services = tmp_path / "services"
    options = ["-d", "service=app", "--cores", "2", "--state-dir", str(tmp_path)]
    recent = "no run on its statistics is # s ago | pool_size=1;;;0"
    for server, said in (
        (primary, "first run: judged over all that the statistics hold, whose beginning is not "
         "known"),
        (standby, f"another server answers than at the last run (a fail-over?), and {recent}"),
        (primary, recent),
    ):  # fmt: skip
        services.write_text(f"[app]\nhost=127.0.0.1\nport={server.port}\n")
        named = {"PGSERVICEFILE": str(services), "PGDATABASE": "postgres", "PGUSER": "postgres"}
        done = run(*options, "--pool-size", "1", "--since", "60", user=None, **named)
        assert done.code == 0
        early = f"{PREFIX} OK - too early to judge the pool of database postgres of 1 connection: "
        assert done.out.splitlines()[-1].replace(early, "") == said
    # And back: its own last sample serves.
    done = run(*options, "--pool-size", "1", "--since", "0.1", user=None, **named)
    assert len(done.out.splitlines()) == 1


def _takes_connections(pg: PostgresServer) -> bool:
    try:
        return pg.execute("SELECT NOT pg_is_in_recovery()") == [("t",)]
    except (OSError, LabError):
        return False


SEEN = (
    "the pool's size is 3 client backends at most seen within an hour; --pool-size, --console or "
    "--ini names the configured one\n"
)


def test_the_observed_pool(pg: PostgresServer, sessions: OpenSessions) -> None:
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        sessions(pg, 3, database=name)
        sessions(pg, 2)  # in another database
        who = "3 sessions of role postgres: 3 idle\n"
        options = ["-d", pg.dsn(name), "--cores"]
        done = run(*options, "3.25")
        assert done == (0, judged("OK", name, 3, 6, notes=NO_STATE + SEEN), "")
        done = run(*options, "1.25")
        assert done == (1, judged("WARNING", name, 3, 2, notes=NO_STATE + SEEN, who=who), "")


def test_sessions_of_checks_are_no_pool(pg: PostgresServer, sessions: OpenSessions) -> None:
    """Of its own role, that is: whoever else calls a session so may hide nothing."""
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        pg.execute("CREATE ROLE plain LOGIN")
        try:
            opened = sessions(pg, 5, database=name)
            opened += sessions(pg, 1, database=name, user="plain")
            for session in opened[3:]:
                session.query("SET application_name = 'check_pgsock_sessions'")
            done = run("-d", pg.dsn(name), "--cores", "1.25")
            assert measured(done.out.replace("#", "0"))["pool_size"] == 4
            assert done.out.endswith(
                "\n3 sessions of role postgres: 3 idle\n"
                "1 session of role plain application check_pgsock_sessions: 1 idle\n"
            )
        finally:
            pg.terminate(int(pid) for (pid,) in _backends(pg, "plain"))
            support.wait_until(lambda: not _backends(pg, "plain"), "sessions of plain are gone")
            pg.execute("DROP ROLE plain")


def test_lock_waits_are_named(pg: PostgresServer, sessions: OpenSessions) -> None:
    with database(pg) as name:
        pg.execute("CREATE TABLE one AS SELECT 1 AS one", name)
        opened = sessions(pg, 6, database=name)
        opened[0].query("BEGIN; UPDATE one SET one = 2")
        for session in opened[1:5]:
            session.simple_query("UPDATE one SET one = one + 1")
        opened[5].simple_query("SELECT pg_sleep(20)")
        time.sleep(1.5)
        note = "4 of 5 active sessions wait for locks: that is what to mend first"
        done = run("-d", pg.dsn(name), "--cores", "2")
        assert done.code == 1
        assert note in done.out.splitlines()
        done = support.run("pool_size", "-d", pg.dsn(name), "--cores", "2")
        assert "too short a time" in done.out
        assert note in done.out.splitlines()


def test_a_role_that_may_only_log_in(pg: PostgresServer, sessions: OpenSessions) -> None:
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        pg.execute("CREATE ROLE plain LOGIN")
        try:
            sessions(pg, 2, database=name)
            sessions(pg, 1, database=name, user="plain")
            options = ["-d", pg.dsn(name, "plain"), "--cores", "1.25"]
            notes = NO_STATE + SEEN + HIDDEN.format(2)
            who = (
                "2 sessions of role postgres: 2 in a hidden state\n"
                "1 session of role plain: 1 idle\n"
            )
            done = run(*options)
            assert done == (1, judged("WARNING", name, 3, 2, notes=notes, who=who), "")
            pg.execute("GRANT pg_read_all_stats TO plain")
            assert "cannot be seen" not in run(*options).out
        finally:
            pg.terminate(int(pid) for (pid,) in _backends(pg, "plain"))
            support.wait_until(lambda: not _backends(pg, "plain"), "sessions of plain are gone")
            pg.execute("DROP ROLE plain")


def _backends(pg: PostgresServer, role: str) -> list[tuple[str]]:
    rows = pg.execute(f"SELECT pid FROM pg_stat_activity WHERE usename = '{role}'")
    return [(str(row[0]),) for row in rows]


def test_several_databases(pg: PostgresServer) -> None:
    with database(pg, "app_a") as one, database(pg, "Anwendung B") as two:
        load(pg, one, 0.6, 0)
        load(pg, two, 0.5, 0.5)
        options = ["-d", pg.dsn(), "--cores", "3.25", "--pool-size", "5"]
        done = run(*options, "--database", one, "--database", two)
        metrics = (
            "window=#s;;;0 size_anwend_a6ae5e=5;;;0 limit_anwend_a6ae5e=6;;;0 "
            "ratio_anwend_a6ae5e=#;;;0;1 size_app_a=5;;;0 limit_app_a=3;;;0 ratio_app_a=#;;;0;1\n"
        )
        first, _, notes = judged(
            "WARNING", one, 5, 3, extra="; the worst of 2 databases", notes=NO_STATE,
            who=f"no other session is on database {one} now\n",
        ).partition("window=#s;;;0\n")  # fmt: skip
        expected = first + metrics + notes
        digits = re.search(r"size_anwend_([0-9a-f]{6})", done.out)
        assert digits is not None
        assert done == (1, expected.replace("a6ae5e", digits[1]), "")
        done = run(*options, "--database", "all", "-v")
        assert done.code == 1
        assert done.out.startswith(first.replace("of 2", "of 3"))
        assert "pool of database Anwendung B may be # 6, it is 5" in masked(done.out)
        assert "template" not in done.out
        assert "size_app" not in done.out
        assert run(*options, "--database", "none", "--database", one) == unknown(
            "the server has no database none; see to --database"
        )


def test_the_cores_of_this_machine(pg: PostgresServer) -> None:
    with database(pg) as name:
        load(pg, name, 0.8, 0)
        done = run("-d", pg.dsn(name), "--pool-size", "1", "-v")
        cores = len(os.sched_getaffinity(pg.pid))
        assert done.code == 0
        *_, formula, origin = done.out.splitlines()
        assert formula == (
            f"formula: min({cores} cores, no I/O limit) / (busy ratio * parallelism); parallelism "
            "1 assumed: too few statements were seen; busy ratio of the counters alone, without "
            "what is in progress: #"
        )
        assert re.fullmatch(
            r"cores: .*; its backend # is a postgres process here, started # s apart", origin
        )


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_through_pgbouncer(pg: PostgresServer, pool_mode: str) -> None:
    support.require("pgbouncer")
    with database(pg) as name, PgBouncerServer(pg, pool_mode=pool_mode) as pooler:
        load(pg, name, 0.6, 0.6)
        options = ["-d", pooler.dsn(name), "--pool-size", "1"]
        for _ in range(7):  # more than it takes psycopg to prepare a statement
            done = run(*options, "--cores", "3.25")
            assert done == (0, judged("OK", name, 1, 6, notes=NO_STATE), "")
        # The backend is here, whatever the pooler's address is.
        assert "is a postgres process here" in run(*options, "-v").out
        assert run("-d", pooler.dsn("pgbouncer", "admin")) == unknown(
            "this is PgBouncer's console, not a database; name a database with --dsn"
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cores", "0"], "argument --cores: '0' is no number above 0, at most 1000000"),
        (["--cores", "nan"], "argument --cores: 'nan' is no number"),
        (["--io-limit", "0"], "argument --io-limit: '0' is no whole number of 1 or more"),
        (["--pool-size", "x"], "argument --pool-size: 'x' is no whole number of 1 or more"),
        (
            ["--parallelism", ".5"],
            "argument --parallelism: '.5' is below 1: a statement has one process at least",
        ),
        (["--min-busy", "-1"], "argument --min-busy: '-1' is below 0"),
        (
            ["--since", "0"],
            "argument --since: '0' is no time in seconds, above 0, at most 2592000",
        ),
        (["-p", "5432"], "unknown option -p 5432"),
    ],
)
def test_usage_errors(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done == unknown(f"{sentence}; see check_pgsock_pool_size --help")


def test_usage_errors_of_databases() -> None:
    assert run("--database", "all", "--database", "x") == unknown(
        "--database all takes in every database; drop the others, or all"
    )
    assert run("--database", "") == unknown("--database is empty; name a database, or all")
    seven = [word for number in range(7) for word in ("--database", f"d{number}")]
    assert run(*seven) == unknown(
        "--database names 7 databases, of which 6 fit into a line; use all, or further services"
    )


def test_a_state_directory_that_cannot_be_trusted(pg: PostgresServer, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(real)
    options = ["-d", pg.dsn(), "--cores", "4", "--state-dir"]
    assert run(*options, "state", user=None) == unknown(
        "--state-dir state is a relative path, and whoever runs the check decides from where; name "
        "it from / on"
    )
    assert run(*options, str(link), user=None) == unknown(
        f"the state directory {link} is a symbolic link; name the directory itself with --state-dir"
    )
    (real / "checks.sqlite").write_text("no database " * 100)
    done = run(*options, str(real), user=None)
    assert done == unknown(
        f"{real}/checks.sqlite is damaged (file is not a database) and was set aside as "
        "checks.sqlite.damaged; the next run starts anew"
    )
    done = run(*options, str(real), user=None)
    assert done.code == 0
    assert done.out.splitlines()[1].startswith("first run: ")


def test_the_check_leaves_the_server_as_it_was(pg: PostgresServer) -> None:
    with database(pg) as name:
        reset(pg, name)
        before = counters(pg, name)
        for _ in range(3):
            assert run("-d", pg.dsn(name), "--cores", "4").code == 0
        support.wait_until(
            lambda: pg.execute(f"SELECT FROM pg_stat_activity WHERE datname = '{name}'") == [],
            "the check's sessions are closed",
        )
        after = counters(pg, name)
        # Its own sessions are in the statistics, too: some milliseconds a run.
        assert after[0] + after[1] - before[0] - before[1] < 0.3


def test_help_imports_neither_psycopg_nor_sqlite() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(support.ROOT)!r}); "
        "from check_pgsock.checks import pool_size; "
        "print(sorted(set(sys.modules) & {'psycopg', 'sqlite3', 'typing', 'dataclasses', "
        "'pathlib'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
