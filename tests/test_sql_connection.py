"""The one connection of every check that asks the database, by what the server logs of it.

A further executable is a line more in CHECKS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from tests import support
from tests.conftest import Installations, MakePg
from tests.pool_load import fake_server
from tests.support import Completed
from tests.test_thrashing import make_certificate

# What each needs besides the DSN, to be OK on a server without a load.
CHECKS = {
    "pool_size": ("--cores", "4"),
    "sessions": (),
    "saturation": ("--limit", "sql", "--leg", "client", "-p", "1"),
}
# Of these alone the DSN may lead through a pooler.
THROUGH_POOLERS = tuple(name for name in CHECKS if name != "saturation")
LOGGED: dict[str, Setting] = {
    "log_connections": True,
    "log_disconnections": True,
    "log_statement": "all",
    "log_line_prefix": "%p|%a|",
}
SECRET = "geheim"

every_check = pytest.mark.parametrize("check", CHECKS)


class Logged(NamedTuple):
    """What a server has logged of one session: its application_name and its statements."""

    application: str
    statements: list[str]
    lines: list[str]


class Log:
    """What a server logs from now on; all of a run is there when the run has ended."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._seen = server.log.stat().st_size

    def sessions(self) -> list[Logged]:
        """The sessions that ended since the last time, but those of the tests' own."""
        support.wait_until(lambda: self._is_whole(), "all sessions have ended")
        text = self._text()
        self._seen = self._server.log.stat().st_size
        found = []
        for pid in dict.fromkeys(
            re.findall(r"^(\d+)\|[^|]*\|LOG:  connection received", text, re.M)
        ):
            lines = [line for line in text.splitlines() if line.startswith(f"{pid}|")]
            name = re.search(rf"^{pid}\|.* application_name=(\S+)", text, re.M)
            if name is not None:
                made = rf"^{pid}\|[^|]*\|LOG:  (?:statement|execute <unnamed>): ((?:.|\n\t)*)"
                found.append(Logged(name[1], re.findall(made, text, re.M), lines))
        return found

    def _text(self) -> str:
        with open(self._server.log, encoding="utf-8") as stream:
            stream.seek(self._seen)
            return stream.read()

    def _is_whole(self) -> bool:
        text = self._text()
        begun, ended = (
            set(re.findall(rf"^(\d+)\|[^|]*\|LOG:  {what}", text, re.M))
            for what in ("connection authorized", "disconnection")
        )
        return bool(begun) and begun <= ended


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory of nobody's."""
    with fresh_directory("pgsock-state-") as directory:
        accounts.own(directory, accounts.account_of("nobody"))
        yield directory


def run(
    check: str, dsn: str, state: Path, *more: str, user: str | None = "nobody", **env: str
) -> Completed:
    """The check, as nobody with the distribution's psycopg, or with the newest."""
    options = ["-d", dsn, *CHECKS[check], "--state-dir", str(state), *more]
    return support.run(check, *options, user=user, env=env)


def is_ok(check: str, done: Completed) -> bool:
    return (done.code, done.err) == (0, "") and done.out.startswith(f"{prefix(check)} OK - ")


def check_transactions(statements: list[str]) -> list[int]:
    """See that all is done in read-only transactions of queries; their statement_timeouts.

    Statements may have come together.
    """
    text = re.sub(r"--.*", "", ";".join(statements))
    each = [one.strip() for one in text.split(";") if one.strip()]
    assert each.pop() in ("ROLLBACK", "COMMIT")
    timeouts = []
    while each:
        begin, timeout, digits = each[:3]
        words = re.fullmatch(r"SET LOCAL statement_timeout = (\d+)", timeout)
        assert (begin, digits) == ("BEGIN READ ONLY", "SET LOCAL extra_float_digits = 1")
        assert words is not None
        timeouts.append(int(words[1]))
        ends = [at for at, one in enumerate(each) if one in ("ROLLBACK", "COMMIT")]
        queries = each[3 : ends[0] if ends else None]
        assert queries
        assert all(re.match(r"(SELECT|WITH)\s", one) for one in queries)
        each = each[3 + len(queries) + 1 :]
    return timeouts


def prepared(session: Logged) -> list[str]:
    """What it has executed of statements that have a name; psycopg 3.1 begins a transaction by one
    that has none, which PgBouncer takes in every mode.
    """
    return [line for line in session.lines if re.search(r"LOG:  execute (?!<unnamed>)", line)]


def prefix(check: str) -> str:
    return f"PGSOCK_{check.upper()}"


@every_check
def test_one_connection_and_all_it_does_is_reading(
    check: str, every_major: int, make_pg: MakePg, state: Path
) -> None:
    """By a role with LOGIN alone."""
    server = make_pg(settings=LOGGED, major=every_major)
    server.execute("CREATE ROLE watch LOGIN")
    log = Log(server)
    for timeout in (3, 8):
        for file in state.iterdir():
            file.unlink()
        done = run(check, server.dsn("postgres", "watch"), state, "-t", str(timeout))
        assert is_ok(check, done)
        (session,) = log.sessions()
        assert session.application == f"check_pgsock_{check}"
        timeouts = check_transactions(session.statements)
        assert all(100 * timeout < one < 900 * timeout for one in timeouts)
        assert not prepared(session)


@every_check
def test_what_writes_or_lasts_too_long_is_ended_by_the_server(
    check: str, make_pg: MakePg, state: Path
) -> None:
    """A relation that is read is another one here, by the role's search_path."""
    server = make_pg(settings=LOGGED)
    server.execute("CREATE ROLE watch LOGIN; ALTER ROLE watch SET search_path = own, pg_catalog")
    server.execute("CREATE SCHEMA own; GRANT USAGE ON SCHEMA own TO PUBLIC; CREATE SEQUENCE own.s;")
    server.execute("GRANT ALL ON SEQUENCE own.s TO PUBLIC")
    for what, seconds, said in (
        ("nextval('own.s')", "5", "cannot execute nextval() in a read-only transaction"),
        ("pg_sleep(60) IS NULL", "1", "canceling statement due to statement timeout"),
    ):
        server.execute(
            "DROP VIEW IF EXISTS own.pg_database; CREATE VIEW own.pg_database AS SELECT *, "
            f"{what} AS more FROM pg_catalog.pg_database; GRANT SELECT ON own.pg_database TO PUBLIC"
        )
        began = time.monotonic()
        done = run(check, server.dsn("postgres", "watch"), state, "-t", seconds)
        assert time.monotonic() - began < 5
        assert (done.code, done.err) == (3, "")
        assert f"the database refused a query: {said}; see to the server" in done.out


@pytest.mark.parametrize("check", THROUGH_POOLERS)
def test_through_pgbouncer_in_transaction_mode(
    check: str, make_pg: MakePg, pg: PostgresServer, state: Path
) -> None:
    """All runs share one server connection, and find nothing that an earlier one left on it."""
    support.require("pgbouncer")
    server = make_pg(settings=LOGGED, major=pg.version)
    with PgBouncerServer(server, pool_mode="transaction", default_pool_size=1) as pooler:
        log = Log(server)
        for _ in range(4):
            assert is_ok(check, run(check, pooler.dsn(), state))
            newest = support.run(check, "-d", pooler.dsn(), *CHECKS[check])
            assert is_ok(check, newest)
        pooler.console("RECONNECT")
        (session,) = log.sessions()
    # PgBouncer sets application_name itself.
    statements = [one for one in session.statements if not one.startswith("SET application_name=")]
    assert len(check_transactions(statements)) >= 8
    asked = [line for line in session.lines if ": BEGIN READ ONLY" in line]
    assert {line.split("|")[1] for line in asked} == {f"check_pgsock_{check}"}
    assert not prepared(session)


@every_check
@pytest.mark.parametrize("user", ["nobody", None])
def test_all_that_libpq_offers(
    check: str, user: str | None, make_pg: MakePg, tmp_path: Path
) -> None:
    """Password file, service file, Unix socket, several hosts: each is one session of that run."""
    hba = ["host all locked all scram-sha-256"]
    server = make_pg(settings=LOGGED, hba=hba)
    server.execute(f"CREATE ROLE locked LOGIN PASSWORD '{SECRET}'")
    server.execute("CREATE ROLE watch LOGIN")
    readonly = make_pg(settings={**LOGGED, "default_transaction_read_only": True})
    at, port = "host=127.0.0.1", f"port={server.port}"
    with fresh_directory("pgsock-libpq-") as directory:
        passwords, services = directory / "passwords", directory / "services"
        passwords.write_text(f"127.0.0.1:{server.port}:postgres:locked:{SECRET}\n")
        passwords.chmod(0o600)
        services.write_text(f"[app]\nhost=127.0.0.1\nport={server.port}\nuser=watch\n"
                            "dbname=postgres\n")  # fmt: skip
        if user is not None:
            accounts.own(passwords, accounts.account_of(user))
        uri = f"postgresql://watch@127.0.0.1:{server.port}/postgres"
        both = f"host=127.0.0.1,127.0.0.1 port={readonly.port},{server.port}"
        forms: list[tuple[str, dict[str, str], str]] = [
            (f"{at} {port} dbname=postgres user=locked passfile={passwords}", {}, ""),
            (f"{at} {port} dbname=postgres user=locked", {"PGPASSFILE": str(passwords)}, ""),
            (f"{at} {port} dbname=postgres user=locked", {"PGPASSWORD": SECRET}, ""),
            ("service=app", {"PGSERVICEFILE": str(services)}, ""),
            (f"host={server.socket_directory} {port} dbname=postgres user=watch", {}, "[local]"),
            (f"{both} dbname=postgres user=postgres target_session_attrs=read-write", {}, ""),
            (f"host=127.0.0.1,127.0.0.1 port=1,{server.port} dbname=postgres user=watch", {}, ""),
            (f"{uri}?target_session_attrs=any&connect_timeout=5", {}, ""),
            (f"host=no.such.host hostaddr=127.0.0.1 {port} dbname=postgres user=watch", {}, ""),
            (f"{uri}?options=-c%20statement_timeout%3D0%20-c%20work_mem%3D1MB", {}, ""),
        ]
        log = Log(server)
        for number, (dsn, environment, origin) in enumerate(forms):
            state = directory / f"state{number}"
            state.mkdir(mode=0o700)
            if user is not None:
                accounts.own(state, accounts.account_of(user))
            done = run(check, dsn, state, user=user, **environment)
            assert is_ok(check, done), dsn
            (session,) = log.sessions()
            assert session.application == f"check_pgsock_{check}"
            assert session.statements[0] == "BEGIN READ ONLY"
            assert f"host={origin or '127.0.0.1'}" in session.lines[0]
        assert ": BEGIN" not in readonly.log.read_text(encoding="utf-8")
        wrong = f"{at} {port} dbname=postgres user=locked"
        done = run(check, wrong, tmp_path, user=None, PGPASSWORD="falsch")
        assert (done.code, done.err) == (3, "")
        assert 'password authentication failed for user "locked"' in done.out
        assert "falsch" not in done.out


@every_check
@pytest.mark.parametrize("user", ["nobody", None])
def test_tls(
    check: str, user: str | None, make_pg: MakePg, installations: Installations, tmp_path: Path
) -> None:
    if not installations.get(15).has_tls():
        pytest.skip("this PostgreSQL has no TLS")
    with fresh_directory("pgsock-tls-") as directory:
        key, certificate = make_certificate(directory)
        _, other = make_certificate(tmp_path)
        for path in (certificate, other):
            path.chmod(0o644)
        readable = directory / "other.crt"
        readable.write_bytes(other.read_bytes())
        tls: dict[str, Setting] = {
            "ssl": True,
            "ssl_key_file": str(key),
            "ssl_cert_file": str(certificate),
        }
        server = make_pg(settings={**LOGGED, **tls}, major=15)
        log = Log(server)
        dsn = f"host=localhost hostaddr=127.0.0.1 port={server.port} dbname=postgres user=postgres"
        states = [directory / one for one in ("state0", "state1", "state2", "state3")]
        for state in states:
            state.mkdir(mode=0o700)
            if user is not None:
                accounts.own(state, accounts.account_of(user))
        full = f"{dsn} sslmode=verify-full sslrootcert"
        for more, state, encrypted in (
            (f"{full}={certificate}", states[0], True),
            (f"{dsn} sslmode=require", states[1], True),
            (f"{dsn} sslmode=disable", states[2], False),
        ):
            assert is_ok(check, run(check, more, state, user=user))
            (session,) = log.sessions()
            (line,) = (one for one in session.lines if "connection authorized" in one)
            assert ("SSL enabled" in line) == encrypted
        done = run(check, f"{full}={readable}", states[3], user=user)
        assert (done.code, done.err) == (3, "")
        assert "certificate verify failed" in done.out


@every_check
def test_the_connect_timeout_of_the_dsn(check: str, tmp_path: Path) -> None:
    with fake_server(None) as port:
        dsn = f"host=127.0.0.1 port={port} dbname=x user=x connect_timeout=2"
        began = time.monotonic()
        done = run(check, dsn, tmp_path, "-t", "20", user=None)
        assert time.monotonic() - began < 6
    assert (done.code, done.err) == (3, "")
    assert "timeout expired; see to the server" in done.out


@every_check
@pytest.mark.parametrize(
    "dsn",
    [
        f"dbname=x password={SECRET}",
        f"postgresql://u:{SECRET}@127.0.0.1/x",
        f"service=none sslpassword={SECRET}",
    ],
)
def test_a_password_in_the_dsn_is_refused(check: str, dsn: str, tmp_path: Path) -> None:
    done = run(check, dsn, tmp_path, "-vvv", user=None)
    words = re.match(rf"{prefix(check)} UNKNOWN - --dsn holds a (ssl)?password, which every user "
                     r"can see in the list of processes; put it into ~/\.pgpass, a service file "
                     r"or the environment \(PGPASSWORD\)\n", done.out)  # fmt: skip
    assert words is not None
    assert (done.code, done.err) == (3, "")
    assert SECRET not in done.out


@every_check
@pytest.mark.parametrize("right", ["", "IN ROLE pg_read_all_stats"])
def test_the_least_privilege(check: str, right: str, pg: PostgresServer, state: Path) -> None:
    """LOGIN alone suffices, also while others have sessions that it may not look into."""
    pg.execute(f"CREATE ROLE watch LOGIN {right}")
    try:
        with pg.connect() as idle, pg.connect() as busy:
            idle.query("BEGIN")
            busy.simple_query("SELECT pg_sleep(1)")
            done = run(check, pg.dsn("postgres", "watch"), state)
            assert is_ok(check, done)
            busy.wait_ready()
    finally:
        support.wait_until(lambda: not _has_session(pg, "watch"), "the session is gone")
        pg.execute("DROP ROLE watch")


def _has_session(pg: PostgresServer, role: str) -> bool:
    return bool(pg.execute(f"SELECT FROM pg_stat_activity WHERE usename = '{role}'"))
