"""The console of a real PgBouncer, and what is none."""

from __future__ import annotations

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError, UsageError
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.postgres.client import connect, connect_console


def test_the_real_one(pgbouncer: PgBouncerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")  # the console refuses startup options
    monkeypatch.setenv("PGDATABASE", "postgres")
    dsn = f"host={pgbouncer.host} port={pgbouncer.port} user=stats"
    opened = connect_console(dsn, "check", Deadline(5))
    try:
        assert (opened.is_console, opened.endpoint) == (True, (pgbouncer.host, pgbouncer.port))
        assert opened.describe().startswith(f"the console of PgBouncer {opened.version} at ")
        for what in ("CONFIG", "DATABASES", "USERS", "LISTS", "VERSION"):
            shown = [{name: _as_text(value) for name, value in row.items()}
                     for row in opened.show(what)]  # fmt: skip
            told = pgbouncer.console(f"SHOW {what}")
            if what == "LISTS":  # the other console is one more client
                shown, told = shown[:3], told[:3]
            assert shown == told
        with pytest.raises(SourceError, match=r"refused a query: .*invalid command 'SHOW NOTHING'"):
            opened.show("NOTHING")
    finally:
        opened.close()


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)


def test_what_is_no_console(pgbouncer: PgBouncerServer) -> None:
    with pytest.raises(SourceError) as error:
        connect_console(pgbouncer.dsn(), "check", Deadline(5))
    assert str(error.value).endswith(
        ", not PgBouncer's console; name PgBouncer's port with --dsn, without a database or with "
        "dbname=pgbouncer"
    )
    with pytest.raises(UsageError, match="--dsn holds a password"):
        connect_console("password=x", "check", Deadline(5))
    opened = connect(pgbouncer.dsn("pgbouncer", "stats"), "check", Deadline(5))
    with pytest.raises(SourceError, match="this is PgBouncer's console, not a database"):
        opened.begin()
    opened.close()


def test_a_user_whom_only_auth_query_finds(
    pg: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer asks it of the console in vain: at once or until the time is over."""
    pg.execute("CREATE ROLE asked LOGIN PASSWORD 'secret'")
    monkeypatch.setenv("PGPASSWORD", "secret")
    settings = {"stats_users": "asked", "auth_user": "postgres"}
    try:
        with PgBouncerServer(pg, auth_type="scram-sha-256", settings=settings) as pooler:
            connect(pooler.dsn("postgres", "asked"), "check", Deadline(5)).close()
            with pytest.raises(SourceError) as error:
                connect_console(pooler.dsn("pgbouncer", "asked"), "check", Deadline(3), "--console")
    finally:
        pg.execute("DROP ROLE asked")
    assert str(error.value).endswith(
        "; see to host and port in --console, and to its user, who has to be in PgBouncer's "
        "auth_file: auth_query finds nobody for the console, unless auth_dbname names a database "
        "(PgBouncer 1.19 and later)"
    )
