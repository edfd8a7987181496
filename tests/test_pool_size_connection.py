"""The one connection of check_pgsock_pool_size: refused, hung, unresolvable, elsewhere, or full."""

from __future__ import annotations

import functools
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session, WireError
from tests import support
from tests.conftest import MakePg
from tests.pool_load import (
    NO_STATE,
    PREFIX,
    database,
    fake_server,
    judged,
    load,
    masked,
    measured,
    run,
    unknown,
)


def test_a_server_that_is_not_here(pg: PostgresServer) -> None:
    """In a pid namespace of its own the check sees no process of the server: as behind a tunnel."""
    support.require("root")
    command = support.command("pool_size", "-d", pg.dsn(), "--pool-size", "1")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, masked(done.stdout), done.stderr) == unknown(
        "whether the server is on this machine is not proven (its backend # is no process that "
        "can be seen here); name the server's cores with --cores"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command, "--cores", "4"],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0


def test_a_server_that_lets_in_and_never_answers() -> None:
    with fake_server("15.8") as port:
        dsn = f"host=127.0.0.1 port={port} dbname=x user=x"
        done = support.run("pool_size", "-d", dsn, "-t", "1", user="nobody")
    assert done == unknown(
        "no verdict within 1 s, the time ran out while waiting for the database's answer; see "
        "what hangs there, or raise --timeout"
    )


def test_no_slot_left_is_critical(make_pg: MakePg, pg: PostgresServer) -> None:
    settings = {"max_connections": 4, "superuser_reserved_connections": 1, "max_wal_senders": 0}
    server = make_pg(settings=settings, major=pg.version)
    server.execute("CREATE ROLE plain LOGIN")
    held = [server.connect() for _ in range(3)]
    reserved = {
        15: "remaining connection slots are reserved for non-replication superuser connections",
        18: "remaining connection slots are reserved for roles with the SUPERUSER attribute",
    }[pg.version]
    at = f'connection to server at "127.0.0.1", port {server.port} failed: '

    def refused(dsn: str, said: str) -> None:
        sentence = f"{PREFIX} CRITICAL - no connection slot is left: "
        # psycopg 3.1.7 cuts off which server it was.
        assert support.run("pool_size", "-d", dsn) == (2, f"{sentence}{at}{said}\n", "")
        done = support.run("pool_size", "-d", dsn, user="nobody")
        assert done == (2, f"{sentence}{said}\n", "")

    refused(server.dsn("postgres", "plain"), f"FATAL:  {reserved}")
    held.append(server.connect())
    refused(server.dsn(), "FATAL:  sorry, too many clients already")
    if support.has("pgbouncer"):
        settings = {"server_login_retry": 1}
        with PgBouncerServer(server, max_client_conn=1, settings=settings) as pooler:
            # PgBouncer lets its client in and then finds that the server refuses.
            done = run("-d", pooler.dsn("template1"))
            assert done.code == 2
            assert "too many clients" in done.out
            at = at.replace(str(server.port), str(pooler.port))
            held.pop().close()
            support.wait_until(functools.partial(joins, held, pooler), "a slot is free")
            refused(pooler.dsn(), "FATAL:  no more connections allowed (max_client_conn)")
    for session in held:
        session.close()


def joins(held: list[Session], pooler: PgBouncerServer) -> bool:
    """Whether one more session is let in."""
    try:
        held.append(pooler.connect())
    except WireError:
        return False
    return True


def test_the_limit_of_the_checks_own_role_is_no_lack_of_slots(pg: PostgresServer) -> None:
    with database(pg) as name:
        pg.execute("CREATE ROLE watch LOGIN CONNECTION LIMIT 1")
        try:
            with pg.connect(name, "watch"):
                for user in (None, "nobody"):
                    done = run("-d", pg.dsn(name, "watch"), "--cores", "4", user=user)
                    words = re.fullmatch(
                        rf"{PREFIX} UNKNOWN - the limit of the check's own role is used up: (.*); "
                        r"raise it \(ALTER ROLE \.\.\. CONNECTION LIMIT\) or name another role "
                        r"with --dsn\n",
                        done.out,
                    )
                    assert (done.code, done.err) == (3, "")
                    assert words is not None
                    assert words[1].endswith('FATAL:  too many connections for role "watch"')
            pg.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
            support.wait_until(lambda: not _sessions(pg, "watch"), "the session is gone")
            done = run("-d", pg.dsn(name, "watch"), "--cores", "4")
            assert done.code == 2
            assert done.out == (
                f"{PREFIX} CRITICAL - no connection slot is left: FATAL:  too many connections for "
                f'database "{name}"\n'
            )
        finally:
            support.wait_until(lambda: not _sessions(pg, "watch"), "the session is gone")
            pg.execute("DROP ROLE watch")


def _sessions(pg: PostgresServer, role: str) -> int:
    return len(pg.execute(f"SELECT FROM pg_stat_activity WHERE usename = '{role}'"))


def test_a_role_that_leaves_out_digits(pg: PostgresServer, tmp_path: Path) -> None:
    """extra_float_digits would round counters and times, so that samples have no order."""
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        pg.execute("CREATE ROLE rough LOGIN; ALTER ROLE rough SET extra_float_digits = -15")
        try:
            options = ["-d", pg.dsn(name, "rough"), "--cores", "3.25", "--pool-size", "1"]
            options += ["--full-load-warning", "~:", "--since", "0.5"]
            state = ["--state-dir", str(tmp_path), "--since", "0.01"]
            for _ in range(2):
                done = support.run("pool_size", *options)
                assert masked(done.out) == judged("OK", name, 1, 6, notes=NO_STATE)
                assert 1.2 < measured(done.out)["window"] < 10
                done = run(*options, *state, "--min-busy", "0", user=None)
                assert done.code == 0
            assert len(done.out.splitlines()) == 1  # judged since the last run
        finally:
            support.wait_until(lambda: not _sessions(pg, "rough"), "the session is gone")
            pg.execute("DROP ROLE rough")


def test_the_server_is_too_old() -> None:
    with fake_server("13.14 (Debian|13.14)") as port:
        done = support.run("pool_size", "-d", f"host=127.0.0.1 port={port} dbname=x user=x")
    assert done == unknown(
        "PostgreSQL 13.14 (Debian?13.14) keeps no session statistics; they came with version 14"
    )


@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize(("seconds", "end"), [("1", "deadline"), ("3.5", "libpq")])
def test_a_server_that_never_answers(seconds: str, end: str, user: str | None) -> None:
    sentence = {
        "deadline": f"no verdict within {seconds} s, the time ran out while connecting to the "
        "database; see what hangs there, or raise --timeout",
        "libpq": "the database cannot be reached: connection timeout expired; see to the server, "
        "--dsn and the role's rights",
    }[end]
    with fake_server(None) as port:
        dsn = f"host=127.0.0.1 port={port} dbname=x"
        done = support.run("pool_size", "-d", dsn, "-t", seconds, user=user, timeout=6)
    assert done == unknown(sentence)


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("host=127.0.0.1 port=1 dbname=x", r".*Connection refused"),
        # Name or service not known, Temporary failure in name resolution, as libc has it
        ("host=no.such.host.invalid dbname=x", r".*(not known|resol).*"),
        ("service=none_such dbname=x", 'definition of service "none_such" not found'),
    ],
)
@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_server_that_cannot_be_reached(dsn: str, said: str, user: str | None) -> None:
    done = run("-d", dsn, user=user)
    expected = (
        rf"{PREFIX} UNKNOWN - the database cannot be reached: {said}; see to the server, --dsn "
        r"and the role's rights\n"
    )
    assert (done.code, done.err) == (3, "")
    assert re.fullmatch(expected, done.out)


@pytest.mark.parametrize("python", [sys.executable, support.SYSTEM_PYTHON], ids=["own", "system"])
def test_a_name_server_that_never_answers(python: str, tmp_path: Path) -> None:
    """With the newest psycopg and the distribution's, whose libpq resolves by itself."""
    support.require("root")
    support.require("system-python")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.77", 53))
        resolver = tmp_path / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.77\n")
        check = support.command("pool_size", "-d", "host=db.example dbname=x", "-t", "1.5",
                                python=python)  # fmt: skip
        mount = f'mount --bind {resolver} /etc/resolv.conf && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mount, "sh", *check],
            env=support.environment(support.readable_tree()),
            capture_output=True,
            text=True,
            check=False,
            timeout=4,
        )
    assert (done.returncode, done.stdout, done.stderr) == unknown(
        "no verdict within 1.5 s, the time ran out while connecting to the database; see what "
        "hangs there, or raise --timeout"
    )


SECRET = "geheim"
UNREADABLE = (
    "--dsn is no connection string: key=value pairs (dbname=app host=db1), service=NAME, or a URI "
    "(postgresql://host/app)"
)


def holds(secret: str) -> str:
    return (
        f"--dsn holds a {secret}, which every user can see in the list of processes; put it into "
        "~/.pgpass, a service file or the environment (PGPASSWORD)"
    )


@pytest.mark.parametrize(
    ("dsn", "sentence"),
    [
        (f"dbname=x password={SECRET}", holds("password")),
        (f"dbname=x password = '{SECRET}'", holds("password")),
        (f"postgresql://u:{SECRET}@127.0.0.1/x", holds("password")),
        (f"postgres://u@127.0.0.1/x?password={SECRET}", holds("password")),
        (f"dbname=x sslpassword={SECRET}", holds("sslpassword")),
        (f"service=none sslpassword={SECRET}", holds("sslpassword")),
        (f"postgresql://u:{SECRET}@[::1/x", UNREADABLE),
        (f"password=a {SECRET} host=x", UNREADABLE),
        (f"dbname='postgresql://u:{SECRET}@127.0.0.1/x'", "--dsn has a URI as its dbname; give "
         "the URI alone"),
        ("app", f'{UNREADABLE}: missing "=" after "app" in connection info string'),
        ("hots=x", f'{UNREADABLE}: invalid connection option "hots"'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_dsn_that_is_refused(dsn: str, sentence: str, user: str | None) -> None:
    """Before anything is connected to: no such server is there."""
    done = run("-d", dsn, "-vvv", user=user)
    assert done.code == 3
    assert done.out.splitlines()[0] == f"{PREFIX} UNKNOWN - {sentence}"
    assert SECRET not in done.out
    assert done.err == ""


def test_what_libpq_takes_from_elsewhere(pg: PostgresServer, tmp_path: Path) -> None:
    with database(pg) as name:
        load(pg, name, 0.6, 0.6)
        expected = (0, judged("OK", name, 1, 6, notes=NO_STATE), "")
        options = ["--cores", "3.25", "--pool-size", "1"]
        server = {"PGHOST": "127.0.0.1", "PGPORT": str(pg.port), "PGPASSWORD": SECRET}
        named = {**server, "PGUSER": "postgres", "PGDATABASE": name}
        assert run(*options, user=None, **named) == expected
        services = tmp_path / "services"
        services.write_text(
            f"[app]\nhost=127.0.0.1\nport={pg.port}\ndbname={name}\nuser=postgres\n"
            f"password={SECRET}\n"
        )
        file = {"PGSERVICEFILE": str(services)}
        assert run("-d", "service=app", *options, user=None, **file) == expected
        uri = f"postgresql://postgres@127.0.0.1:{pg.port}/{name}?application_name=mine"
        assert run("-d", uri, *options) == expected


def test_without_psycopg_or_libpq(pg: PostgresServer, tmp_path: Path) -> None:
    # As psycopg 3.2 says it, where it finds no libpq, and at `ulimit -v 40000`.
    said = (
        "no pq wrapper available.\nAttempts made:\n"
        "- couldn't import psycopg 'c' implementation: No module named 'psycopg_c'\n"
        "- couldn't import psycopg 'binary' implementation: No module named 'psycopg_binary'\n"
        "- couldn't import psycopg 'python' implementation: "
    )
    none, memory = "libpq library not found", "libpq.so.5: failed to map segment from shared object"
    psycopg = tmp_path / "psycopg.py"
    psycopg.write_text(f"raise ImportError({said + none!r})\n")
    both = "install Debian's {}, or the extra: pip install 'check_pgsock[binary]'"
    hidden = {"PYTHONPATH": f"{tmp_path}:{support.ROOT}"}
    assert run("-d", pg.dsn(), user=None, **hidden) == unknown(
        f"psycopg finds no libpq; {both.format('libpq5')}"
    )
    psycopg.write_text(f"raise ImportError({said + memory!r})\n")
    assert run("-d", pg.dsn(), user=None, **hidden) == unknown(
        f"psycopg cannot be loaded: couldn't import psycopg 'python' implementation: {memory}; see "
        "to its installation, or to the memory that ulimit -v leaves"
    )
    assert run("-d", pg.dsn(), PSYCOPG_IMPL="binary") == unknown(
        f"psycopg finds no libpq; {both.format('libpq5')}"
    )
    missing = "import sys\nsys.modules['psycopg'] = None\n"
    psycopg.unlink()
    (tmp_path / "sitecustomize.py").write_text(missing)
    assert run("-d", pg.dsn(), user=None, **hidden) == unknown(
        f"psycopg is not installed; {both.format('python3-psycopg')}"
    )
