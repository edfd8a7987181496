"""What the tests of check_pgsock_sessions need: sessions that end in each way, what the server
counts of them, and output whose measured numbers are masked.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator

from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session, WireError
from tests import support
from tests.support import Completed

PREFIX = "PGSOCK_SESSIONS"
SHORT_RUNS = "earlier runs reach back # of the 300 s of --over: rates are a lower bound\n"
ADVICE = "sessions last # on average and are in a transaction for # %: #\n"
PROFILE = "session_length=#s;;;0 in_transaction_share=#%;;;0;100"
HIDDEN = (
    "the number of ended sessions may be off by some parallel workers, which other roles hide; "
    "grant pg_read_all_stats to the role of the check\n"
)
NO_STATE = "no state directory (--state-dir) keeps what earlier runs saw"


def run(*arguments: str, user: str | None = None, **more: str) -> Completed:
    """Run the check; how long it looked back, and what sessions do, is masked."""
    done = support.run("sessions", *arguments, user=user, env=more)
    return Completed(done.code, masked(done.out), done.err)


def masked(text: str) -> str:
    """`text` with what is measured as `#`."""
    text = re.sub(r"(?<= over )[\d.]+ (s|min)\b", "#", text)
    text = re.sub(r"(?<=reach back )[\d.]+ (s|min)\b", "#", text)
    text = re.sub(
        r"sessions last .* on average and are in a transaction for [\d.]+ % of their time, .*",
        ADVICE.rstrip("\n"),
        text,
    )
    return re.sub(r"(session_length=|in_transaction_share=)[\d.]+", r"\1#", text)


def counters(pg: PostgresServer, name: str) -> tuple[int, ...]:
    """New, abandoned, fatal and killed sessions, and sessions that are open."""
    ((*counted,),) = pg.execute(
        "SELECT sessions, sessions_abandoned, sessions_fatal, sessions_killed, numbackends "
        f"FROM pg_stat_database WHERE datname = '{name}'"
    )
    return tuple(int(one or 0) for one in counted)


def wait_for(pg: PostgresServer, name: str, *expected: int) -> None:
    """Wait until the server has counted this."""
    give_up = time.monotonic() + 5
    while counters(pg, name)[: len(expected)] != expected and time.monotonic() < give_up:
        time.sleep(0.02)
    assert counters(pg, name)[: len(expected)] == expected


def abandon(server: PostgresServer | PgBouncerServer, name: str, count: int = 1) -> None:
    """Sessions whose clients are gone without a word."""
    for _ in range(count):
        server.connect(name).kill()


def leave(server: PostgresServer, name: str, count: int = 1) -> None:
    """Sessions that end as they should."""
    for _ in range(count):
        server.connect(name).close()


def break_protocol(pg: PostgresServer, name: str, count: int = 1) -> None:
    """Sessions that the server ends with FATAL: 08P01, invalid frontend message type."""
    for _ in range(count):
        session = pg.connect(name)
        session.socket.sendall(b"!\0\0\0\x04")
        _wait_lost(session)


def kill(pg: PostgresServer, name: str, count: int = 1) -> None:
    """Sessions that pg_terminate_backend() ends."""
    for _ in range(count):
        session = pg.connect(name)
        pg.execute(f"SELECT pg_terminate_backend({session.backend_pid})")
        _wait_lost(session)


def _wait_lost(session: Session) -> None:
    support.wait_until(session.is_lost, "the server has ended the session")
    session.socket.close()


def is_refused(pg: PostgresServer, name: str, user: str, **parameters: str) -> str:
    """The SQLSTATE with which a session is refused; empty where it is not."""
    with socket.create_connection((pg.host, pg.port), 5) as connected:
        session = Session(connected)
        session.send_startup({"user": user, "database": name, **parameters})
        try:
            session.wait_ready()
        except WireError as error:
            return error.sqlstate
        session.close()
        return ""


@contextlib.contextmanager
def new_database(pg: PostgresServer, name: str) -> Iterator[str]:
    """A database in which nothing has been counted."""
    pg.execute(f"CREATE DATABASE {name}")
    try:
        yield name
    finally:
        pg.execute(f"DROP DATABASE {name} WITH (FORCE)")


def first_run(name: str, why: str = "first run", note: str = "", perf: str = "") -> str:
    """The whole output where there is nothing to compare with."""
    return (
        f"{PREFIX} OK - ends of sessions on database {name} are judged from the next run on: {why}"
        f"{perf and ' | '}{perf}\n{note or 'no time of sessions is counted yet'}"
    ).rstrip("\n") + "\n"
