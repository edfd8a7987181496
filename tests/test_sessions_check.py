"""check_pgsock_sessions against real servers: whole output and exit code, with sessions that really
end in each way; every count is compared with the truth.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.session_load import (
    ADVICE,
    HIDDEN,
    NO_STATE,
    PREFIX,
    PROFILE,
    SHORT_RUNS,
    abandon,
    break_protocol,
    counters,
    first_run,
    is_refused,
    kill,
    leave,
    new_database,
    run,
    wait_for,
)


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state directory of our own."""
    return str(tmp_path)


def shares(abandoned: str, fatal: str, killed: str, judged: bool = True) -> str:
    bound = "10" if judged else ""
    return (
        f"abandoned_share={abandoned}%;{bound};;0;100 fatal_share={fatal}%;{bound};;0;100 "
        f"killed_share={killed}%;;;0;100"
    )


def rates(abandoned: str, fatal: str, killed: str, new: str) -> str:
    return (
        f"abandoned_rate={abandoned};;;0 fatal_rate={fatal};;;0 killed_rate={killed};;;0 "
        f"sessions_rate={new};;;0"
    )


def test_counts_are_the_truth_on_every_major(
    every_major: int, make_pg: MakePg, sessions: OpenSessions, state: str
) -> None:
    """New sessions, those that stay, and each way to end; the check's own are elsewhere."""
    pg = make_pg(major=every_major)
    with new_database(pg, "app") as name:
        options = ["-d", pg.dsn(), "--database", name, "--state-dir", state]
        assert run(*options) == (0, first_run(name), "")
        leave(pg, name, 40)
        abandon(pg, name, 4)
        break_protocol(pg, name, 12)
        kill(pg, name, 4)
        sessions(pg, 3, database=name)
        wait_for(pg, name, 63, 4, 12, 4, 3)
        expected = (
            f"{PREFIX} WARNING - 4 abandoned, 12 fatal and 4 killed of 60 ended sessions on "
            "database app over # (fatal_share outside range 0:10) | "
            f"{rates('0.013', '0.04', '0.013', '0.21')} {shares('6.667', '20.0', '6.667')} "
            f"{PROFILE}\n{SHORT_RUNS}{ADVICE}"
            "database app, 4 abandoned, 12 fatal, 4 killed: 20 ended badly\n"
            "role postgres, from 127.0.0.1: 3 open now\n"
        )
        assert run(*options) == (1, expected, "")
        # A retry keeps the evidence, also when all is well by now.
        leave(pg, name, 5)
        wait_for(pg, name, 68)
        done = run(*options)
        assert done.code == 1
        assert "12 fatal and 4 killed of 65 ended sessions" in done.out


def test_each_way_to_end_is_counted_as_it_is_documented(every_major: int, make_pg: MakePg) -> None:
    pg = make_pg(major=every_major, hba=["host app locked 127.0.0.1/32 reject"])
    pg.execute("CREATE ROLE locked LOGIN; CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    with new_database(pg, "app") as name:
        pg.connect(name).abort()
        wait_for(pg, name, 1, 1, 0, 0)
        with pg.connect(name) as session:  # the client vanishes while its statement runs
            session.query("SET client_connection_check_interval = 50")
            session.simple_query("SELECT pg_sleep(20)")
            time.sleep(0.1)
            session.kill()
            wait_for(pg, name, 2, 1, 1, 0)
        session = pg.connect(name)
        session.query("SET idle_session_timeout = 20")
        wait_for(pg, name, 3, 1, 2, 0)
        session.close()
        session = pg.connect(name)
        session.query("SET idle_in_transaction_session_timeout = 20; BEGIN")
        wait_for(pg, name, 4, 1, 3, 0)
        session.close()
        # Failed logins are no sessions, and no fatal ones.
        assert is_refused(pg, name, "locked") == "28000"
        assert is_refused(pg, name, "few") == "53300"
        assert is_refused(pg, name, "none_such") == "28000"
        assert is_refused(pg, "none_such", "postgres") == "3D000"
        # A connection that never becomes a session, and a walsender, are none either.
        socket.create_connection((pg.host, pg.port), 5).close()
        assert is_refused(pg, name, "postgres", replication="database") == ""
        # What the database itself refuses is fatal without a session.
        pg.execute(f"REVOKE CONNECT ON DATABASE {name} FROM public; CREATE ROLE plain LOGIN")
        assert is_refused(pg, name, "plain") == "42501"
        wait_for(pg, name, 4, 1, 4, 0)
        # So is what asks for an unknown setting.
        assert is_refused(pg, name, "postgres", options="-c none=1") == "42704"
        wait_for(pg, name, 4, 1, 5, 0, 0)


def test_a_parallel_query_ends_no_session(pg: PostgresServer, state: str) -> None:
    """Its workers are in numbackends: its end would look like that of sessions."""
    with new_database(pg, "wide") as name:
        options = ["-d", pg.dsn(), "--database", name, "--state-dir", state, "--min-sessions", "1"]
        with pg.connect(name) as session:
            session.query("CREATE TABLE big AS SELECT generate_series(1, 1000) AS i; ANALYZE big")
            session.query("SET parallel_setup_cost = 0; SET min_parallel_table_scan_size = 0")
            session.query("ALTER TABLE big SET (parallel_workers = 3)")
            session.query("SET parallel_tuple_cost = 0; SET parallel_leader_participation = off")
            session.simple_query("SELECT sum(i) FROM big WHERE pg_sleep(0.003) IS NOT NULL")
            workers = f"SELECT FROM pg_stat_activity WHERE datname = '{name}'"
            support.wait_until(lambda: len(pg.execute(workers)) > 2, "the workers are there")
            assert run(*options).code == 0
            assert len(pg.execute(workers)) > 2
            session.wait_ready()
            leave(pg, name)
            wait_for(pg, name, 2, 0, 0, 0, 1)
            done = run(*options)
        assert done.out.startswith(
            f"{PREFIX} OK - 0 abandoned, 0 fatal and 0 killed of 1 ended session on database wide "
        )


def test_one_that_is_killed_at_night_wakes_nobody(pg: PostgresServer, state: str) -> None:
    with new_database(pg, "night") as name:
        options = ["-d", pg.dsn(), "--database", name, "--state-dir", state]
        assert run(*options).code == 0
        kill(pg, name)
        wait_for(pg, name, 1, 0, 0, 1)
        few = "shares are not judged: 1 ended session, fewer than 20 (--min-sessions)\n"
        line = (
            "0 abandoned, 0 fatal and 1 killed of 1 ended session on database night over #{} | "
            "abandoned_rate=0.0;;;0 fatal_rate=0.0;;;0 killed_rate=0.003;{};;0 "
            f"sessions_rate=0.003;;;0 {shares('0.0', '0.0', '100.0', judged=False)} {PROFILE}\n"
            f"{SHORT_RUNS}{few}{ADVICE}"
        )
        assert run(*options) == (0, f"{PREFIX} OK - {line.format('', '')}", "")
        # Whoever wants to know says so.
        over = " (killed_rate outside range 0:0)"
        who = "database night, 1 killed: 1 ended badly\n"
        done = run(*options, "--killed-rate-warning", "0")
        assert done == (1, f"{PREFIX} WARNING - {line.format(over, 0)}{who}", "")
        done = run(*options, "--killed-share-critical", "50%", "--min-sessions", "1")
        assert done.code == 2
        assert "killed_share=100.0%;;50;0;100" in done.out


@pytest.mark.parametrize("granted", [False, True])
def test_as_nobody_without_a_home_with_a_role_that_may_only_log_in(
    pg: PostgresServer, sessions: OpenSessions, granted: bool
) -> None:
    with new_database(pg, "plain_app") as name:
        pg.execute("CREATE ROLE plain LOGIN")
        if granted:
            pg.execute("GRANT pg_read_all_stats TO plain")
        try:
            leave(pg, name, 15)
            abandon(pg, name, 5)
            sessions(pg, 2, database=name)
            wait_for(pg, name, 22, 5, 0, 0, 2)
            options = ["-d", pg.dsn("postgres", "plain"), "--database", name]
            address = "from 127.0.0.1" if granted else "from a hidden address"
            note = f"rates are not known, and shares are of all time: {NO_STATE}\n"
            expected = (
                f"{PREFIX} WARNING - 5 abandoned, 0 fatal and 0 killed of 20 ended sessions on "
                f"database {name} in all that the statistics hold (abandoned_share outside range "
                f"0:10) | {shares('25.0', '0.0', '0.0')} {PROFILE}\n{note}"
                f"{'' if granted else HIDDEN}{ADVICE}database {name}, 5 abandoned: 5 ended badly\n"
                f"role postgres, {address}: 2 open now\n"
            )
            assert run(*options, user="nobody") == (1, expected, "")
            # Whoever names a rate relies on it.
            options += ["--abandoned-share-warning", "50", "-c", "1", "--sessions-rate-warning=5"]
            done = run(*options, user="nobody")
            assert done.code == 3
            assert done.out.splitlines()[:2] == [
                f"{PREFIX} UNKNOWN - abandoned_rate cannot be judged: {NO_STATE}; without "
                "--critical the rest is judged",
                f"sessions_rate cannot be judged: {NO_STATE}; without --sessions-rate-warning the "
                "rest is judged",
            ]
        finally:
            support.wait_until(lambda: not _sessions_of(pg, "plain"), "the sessions are gone")
            pg.execute("DROP ROLE plain")


def _sessions_of(pg: PostgresServer, role: str) -> int:
    return len(pg.execute(f"SELECT FROM pg_stat_activity WHERE usename = '{role}'"))


def test_what_a_database_refuses_is_fatal_and_hides_the_length(
    pg: PostgresServer, state: str
) -> None:
    with new_database(pg, "refusing") as name:
        pg.execute(f"CREATE ROLE plain LOGIN; REVOKE CONNECT ON DATABASE {name} FROM public")
        try:
            options = ["-d", pg.dsn(), "--database", name, "--state-dir", state]
            assert run(*options).code == 0
            leave(pg, name, 20)
            for _ in range(30):
                assert is_refused(pg, name, "plain") == "42501"
            wait_for(pg, name, 20, 0, 30, 0, 0)
            expected = (
                f"{PREFIX} WARNING - 0 abandoned, 30 fatal and 0 killed of 30 ended sessions on "
                "database refusing over # (fatal_share outside range 0:10) | "
                f"{rates('0.0', '0.1', '0.0', '0.067')} {shares('0.0', '100.0', '0.0')}\n"
                f"{SHORT_RUNS}30 of the fatal ones failed while they started: see to CONNECT "
                "rights, connection limits and settings of the databases, roles and clients\n"
                "how long sessions last is not known: one that failed while it started may count "
                "with all time since 2000; pg_stat_reset() begins anew\n"
                "database refusing, 30 fatal: 30 ended badly\n"
            )
            assert run(*options) == (1, expected, "")
            # Once it is over, what was counted since then tells the length.
            options += ["--over", "0.2"]
            assert run(*options).code == 0
            time.sleep(0.2)
            leave(pg, name, 20)
            wait_for(pg, name, 40)
            done = run(*options)
            assert (done.code, done.out.splitlines()[1:]) == (0, [ADVICE.strip()])
        finally:
            pg.execute("DROP ROLE plain")


def test_reset_crash_restart_and_a_new_database(
    every_major: int, make_pg: MakePg, state: str
) -> None:
    pg = make_pg(major=every_major)
    pg.execute("CREATE DATABASE app")
    options = ["-d", pg.dsn(), "--database", "app", "--state-dir", state]
    assert run(*options).code == 0
    abandon(pg, "app", 3)
    wait_for(pg, "app", 3, 3)
    assert "3 abandoned, 0 fatal and 0 killed of 3 ended" in run(*options).out
    pg.execute("SELECT pg_stat_reset()", "app")
    wait_for(pg, "app", 0, 0)
    abandon(pg, "app", 2)
    wait_for(pg, "app", 2, 2)
    reach = "earlier runs reach back # of the 300 s of --over"
    lost = (
        "the statistics were reset, or lost in a crash, after an earlier run: what came between is "
        "missing, so that counts and rates are lower bounds"
    )

    def told() -> list[str]:
        done = run(*options)
        assert (done.code, done.err) == (0, "")
        return done.out.splitlines()

    few = "shares are not judged: {}, fewer than 20 (--min-sessions)"
    line, *notes = told()
    assert line.startswith(f"{PREFIX} OK - 5 abandoned, 0 fatal and 0 killed of 5 ended sessions")
    assert "abandoned_rate=0.017;;;0 " in line
    assert notes == [reach, lost, few.format("5 ended sessions"), ADVICE.strip()]
    with pg.connect("app") as session:
        # A backend killed so makes the postmaster start over, with empty statistics.
        os.kill(session.backend_pid, 9)
    support.wait_until(lambda: _has_lost_all(pg), "the server is back, without statistics")
    abandon(pg, "app", 1)
    wait_for(pg, "app", 1, 1)
    line, *notes = told()
    assert line.startswith(f"{PREFIX} OK - 6 abandoned, 0 fatal and 0 killed of ")
    assert lost in notes
    with pg.connect("app"):
        pg.restart("fast")  # its session counts as killed
    wait_for(pg, "app", 2, 1, 0, 1)
    anew = "the server started anew, or another took its place, since the last run"
    assert run(*options) == (0, first_run("app", anew, ADVICE.strip(), PROFILE), "")
    abandon(pg, "app", 1)
    wait_for(pg, "app", 3, 2, 0, 1)
    assert told()[0].startswith(f"{PREFIX} OK - 1 abandoned, 0 fatal and 0 killed of 1 ended ")
    pg.execute("DROP DATABASE app")
    assert run(*options) == (
        3,
        f"{PREFIX} UNKNOWN - the server has no database app; see to --database\n",
        "",
    )
    pg.execute("CREATE DATABASE app")
    made = "the database was made anew since the last run"
    assert run(*options) == (0, first_run("app", made), "")


def _has_lost_all(pg: PostgresServer) -> bool:
    try:
        return counters(pg, "app")[:2] == (0, 0)
    except (OSError, LabError):
        return False


def test_fail_over_to_another_server_between_runs(make_pg: MakePg, tmp_path: Path) -> None:
    """One service name, as one virtual address, leads to another server, and back."""
    one, other = make_pg(), make_pg()
    for server in (one, other):
        server.execute("CREATE DATABASE app")
    abandon(other, "app", 30)
    wait_for(other, "app", 30, 30)
    services = tmp_path / "services"
    options = ["-d", "service=db", "--database", "app", "--state-dir", str(tmp_path)]

    def run_at(server: PostgresServer) -> str:
        services.write_text(f"[db]\nhost=127.0.0.1\nport={server.port}\ndbname=postgres\n")
        done = run(*options, PGSERVICEFILE=str(services), PGUSER="postgres")
        assert (done.code, done.err) == (0, "")
        return done.out.splitlines()[0].partition(" | ")[0]

    first = f"{PREFIX} OK - ends of sessions on database app are judged from the next run on: "
    assert run_at(one) == f"{first}first run"
    assert run_at(other) == f"{first}another server answers than at the last run (a fail-over?)"
    abandon(one, "app", 2)
    wait_for(one, "app", 2, 2)
    counted = "{} abandoned, 0 fatal and 0 killed of {} ended sessions on database app over #"
    assert run_at(one) == f"{PREFIX} OK - {counted.format(2, 2)}"
    assert run_at(other) == f"{PREFIX} OK - {counted.format(0, 0)}"


def test_several_databases_have_labels_of_their_own(pg: PostgresServer, state: str) -> None:
    """Four long names fit into a line, and a fifth is refused; `all` takes in what comes later."""
    names = [f"a_database_of_{number}" for number in range(4)]
    named = [part for name in names for part in ("--database", name)]
    options = ["-d", pg.dsn(), "--state-dir", state]
    thresholds = [
        f"--{label}-{word}=1000.125"
        for label in ("fatal-rate", "killed-rate", "sessions-rate", "killed-share", "fatal-share")
        for word in ("warning", "critical")
    ]
    for name in names:
        pg.execute(f"CREATE DATABASE {name}")
    try:
        assert run(*options, *named).code == 0
        assert run(*options, "--database", "all").code == 0
        abandon(pg, names[0], 30)
        abandon(pg, names[1], 3)
        wait_for(pg, names[0], 30, 30)
        wait_for(pg, names[1], 3, 3)
        done = run(*options, *named, *thresholds)
        first = done.out.splitlines()[0]
        assert len(first.encode()) < 1000
        labels = [one.partition("=")[0] for one in first.partition(" | ")[2].split()]
        assert len(labels) == 9 + 16
        assert len({one[:19] for one in labels}) == len(labels)
        assert done.code == 1
        assert done.out.splitlines()[-2:] == [
            "database a_database_of_0, 30 abandoned: 30 ended badly",
            "database a_database_of_1, 3 abandoned: 3 ended badly",
        ]
        pg.execute("CREATE DATABASE a_new_one")
        try:
            done = run(*options, "--database", "all")
        finally:
            pg.execute("DROP DATABASE a_new_one")
        assert done.code == 1
        assert "\ndatabase a_new_one is counted from the next run on: first run\n" in done.out
        assert run(*options, "--database", "all").code == 1  # it is gone again
    finally:
        for name in names:
            pg.execute(f"DROP DATABASE {name}")
    done = run(*options, *named, "--database", "a_fifth")
    assert done == (
        3,
        f"{PREFIX} UNKNOWN - --database names 5 databases, of which 4 fit into a line; use all, or "
        "further services\n",
        "",
    )


def test_behind_pgbouncer_clients_that_vanish_abandon_no_session(
    pg: PostgresServer, state: str
) -> None:
    """The sessions are those of the pooler: it says goodbye to the server for a lost client, and
    only where it is stopped itself they are abandoned.
    """
    support.require("pgbouncer")
    with new_database(pg, "pooled") as name:
        options = ["-d", pg.dsn(), "--database", name, "--state-dir", state]
        with PgBouncerServer(pg) as pooler:
            assert run(*options).code == 0
            for _ in range(5):
                session = pooler.connect(name)
                session.query("BEGIN")
                session.kill()
            held = [pooler.connect(name) for _ in range(3)]
            for one in held:
                one.query("SELECT 1")
            support.wait_until(lambda: _open(pg, name) == 3, "the pool has three sessions")
            done = run(*options)
            assert done.out.startswith(f"{PREFIX} OK - 0 abandoned, 0 fatal and 0 killed of ")
            _close(held)
            # Through the pooler itself the check is one of its clients.
            through = ["-d", pooler.dsn(name), "--state-dir", state]
            assert run(*through).code == 0
            assert run(*through, user=None).code == 0
        support.wait_until(lambda: _open(pg, name) == 0, "the pool is closed")
        done = run(*options)
        assert done.out.startswith(f"{PREFIX} OK - 3 abandoned, 0 fatal and 0 killed of ")


def _close(sessions: list[Session]) -> None:
    for one in sessions:
        one.close()


def _open(pg: PostgresServer, name: str) -> int:
    return len(pg.execute(f"SELECT FROM pg_stat_activity WHERE datname = '{name}'"))


def test_the_mode_of_pooling_by_a_load_that_is_known(pg: PostgresServer, state: str) -> None:
    """A tenth of a second in a transaction of one: up to ten times fewer connections."""
    with new_database(pg, "mode") as name:
        for _ in range(2):
            with pg.connect(name) as session:
                session.query("BEGIN")
                time.sleep(0.1)
                session.query("COMMIT")
                time.sleep(0.9)
        wait_for(pg, name, 2, 0, 0, 0, 0)
        options = ["-d", pg.dsn(), "--database", name, "--min-sessions", "2"]
        done = support.run("sessions", *options)
        items = dict(one.split("=") for one in done.out.splitlines()[0].partition(" | ")[2].split())
        assert 1 <= float(items["session_length"].split("s")[0]) < 1.1
        assert 9 < float(items["in_transaction_share"].split("%")[0]) < 12
        assert (
            "% of their time, in all that the statistics hold: transaction pooling would pay, "
            "where it is not in use already: up to "
        ) in done.out
        with pg.connect(name) as session:
            session.query("SELECT pg_sleep(2.5)")
        wait_for(pg, name, 3, 0, 0, 0, 0)
        assert "session pooling suffices, and saves their starts" in (
            support.run("sessions", *options).out
        )


def test_its_own_session_is_closed_whatever_becomes_of_it(pg: PostgresServer) -> None:
    with new_database(pg, "asked") as name:
        assert run("-d", pg.dsn(name), "--database", "nosuch") == (
            3,
            f"{PREFIX} UNKNOWN - the server has no database nosuch; see to --database\n",
            "",
        )
        wait_for(pg, name, 1, 0, 0, 0, 0)
        assert run("-d", pg.dsn(name)).code == 0
        wait_for(pg, name, 2, 0, 0, 0, 0)
    support.require("pgbouncer")
    with PgBouncerServer(pg) as pooler:
        done = run("-d", pooler.dsn("pgbouncer", "stats"))
        assert done == (
            3,
            f"{PREFIX} UNKNOWN - this is PgBouncer's console, not a database; name a database with "
            "--dsn\n",
            "",
        )
        support.wait_until(lambda: len(_ends(pooler)) == 1, "the session has ended")
        assert "client close request" in _ends(pooler)[-1]


def _ends(pooler: PgBouncerServer) -> list[str]:
    log = pooler.log.read_text(encoding="utf-8").splitlines()
    return [line for line in log if "/stats@" in line and "closing because: " in line]


def test_no_slot_left_is_critical(make_pg: MakePg) -> None:
    settings = {"max_connections": 4, "superuser_reserved_connections": 1, "max_wal_senders": 0}
    server = make_pg(settings=settings)
    held = [server.connect() for _ in range(4)]
    done = run("-d", server.dsn())
    _close(held)
    assert (done.code, done.err) == (2, "")
    assert done.out == (
        f'{PREFIX} CRITICAL - no connection slot is left: connection to server at "127.0.0.1", '
        f"port {server.port} failed: FATAL:  sorry, too many clients already\n"
    )
