"""What PgBouncer's configuration says of its pools, against the connections that it really opens:
50 clients that hold transactions.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from check_pgsock.pgbouncer.configured import from_console, from_ini
from check_pgsock.pgbouncer.ini import read_ini_at
from check_pgsock.pgbouncer.pool_limits import Configured, ConfiguredPools
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import restricted, support
from tests.conftest import Installations

CLIENTS = 50
USERS = ("app", "jobs", "report")
READ = """
import os, sys
os.setgroups([]); os.setresgid(65533, 65533, 65533); os.setresuid(65533, 65533, 65533)
from check_pgsock.errors import SourceError
from check_pgsock.pgbouncer.ini import read_ini_at
try:
    read_ini_at(sys.argv[1])
except SourceError as error:
    print(error)
"""

pytestmark = pytest.mark.skipif(
    not support.has("pgbouncer"), reason="this machine has no PgBouncer"
)


class Case(NamedTuple):
    """A configuration, who connects, and what is said of it."""

    databases: Mapping[str, str]  # `SERVER` stands for host and port
    settings: Mapping[str, str | int]
    clients: tuple[tuple[str, str], ...]  # alias and user, in this order, as many of each
    size: int  # the server connections, said and opened
    reserve: int
    pools: tuple[tuple[str, int, str], ...]  # name, size and the setting that the file names
    capped_by: tuple[str, ...] = ()
    users: str = ""  # section [users]
    by_console: int | None = None  # the size that the console alone makes known, where another


CASES = {
    "two users": Case(
        {"shop": "SERVER"},
        {"default_pool_size": 3},
        (("shop", "app"), ("shop", "report")),
        6,
        0,
        (("shop/app", 3, "default_pool_size"), ("shop/report", 3, "default_pool_size")),
    ),
    "two aliases, one with a forced user": Case(
        {"shop": "SERVER pool_size=4", "jobs": "SERVER dbname=shop user=jobs pool_size=2"},
        {},
        (("shop", "app"), ("jobs", "app")),
        6,
        0,
        (
            ("shop/app", 4, "pool_size of shop in [databases]"),
            ("jobs/jobs", 2, "pool_size of jobs in [databases]"),
        ),
    ),
    "any alias": Case(
        {"*": "SERVER pool_size=5", "crm": "SERVER pool_size=7"},
        {},
        (("shop", "app"),),
        5,
        0,
        (("shop/app", 5, "pool_size of * in [databases]"),),
    ),
    "a cap of the alias": Case(
        {"shop": "SERVER max_db_connections=5"},
        {"default_pool_size": 4, "max_db_connections": 100},
        (("shop", "app"), ("shop", "report")),
        5,
        0,
        (("shop/app", 4, "default_pool_size"), ("shop/report", 4, "default_pool_size")),
        ("max_db_connections of shop in [databases]",),
    ),
    "caps of alias and user at once": Case(
        {"shop": "SERVER max_db_connections=3", "old": "SERVER dbname=shop user=app"},
        {"default_pool_size": 6, "max_user_connections": 4},
        (("shop", "report"), ("old", "jobs"), ("shop", "jobs")),
        7,
        0,
        (
            ("shop/jobs", 6, "default_pool_size"),
            ("shop/report", 6, "default_pool_size"),
            ("old/app", 6, "default_pool_size"),
        ),
        ("max_db_connections of shop in [databases]", "max_user_connections"),
    ),
    "a cap of a forced user": Case(
        {"shop": "SERVER user=app", "old": "SERVER dbname=shop user=report"},
        {"default_pool_size": 4, "max_user_connections": 3},
        (("shop", "jobs"), ("old", "jobs")),
        6,
        0,
        (("shop/app", 4, "default_pool_size"), ("old/report", 4, "default_pool_size")),
        ("max_user_connections",),
    ),
    "a cap of a user": Case(
        {"shop": "SERVER"},
        {"default_pool_size": 4},
        (("shop", "app"), ("shop", "report")),
        7,
        0,
        (("shop/app", 4, "default_pool_size"), ("shop/report", 4, "default_pool_size")),
        ("max_user_connections of app in [users]",),
        "app = max_user_connections=3",
        by_console=8,
    ),
    "the reserve": Case(
        {"shop": "SERVER reserve_pool=3"},
        {"default_pool_size": 2, "reserve_pool_timeout": "0.1"},
        (("shop", "app"),),
        5,
        3,
        (("shop/app", 2, "default_pool_size"),),
    ),
    "the reserve under a cap": Case(
        {"shop": "SERVER"},
        {
            "default_pool_size": 2,
            "reserve_pool_size": 3,
            "reserve_pool_timeout": "0.1",
            "max_db_connections": 4,
        },
        (("shop", "app"),),
        4,
        2,
        (("shop/app", 2, "default_pool_size"),),
        ("max_db_connections",),
    ),
    "a reserve that is turned off": Case(
        {"shop": "SERVER"},
        {"default_pool_size": 2, "reserve_pool_size": 3, "reserve_pool_timeout": 0},
        (("shop", "app"),),
        2,
        0,
        (("shop/app", 2, "default_pool_size"),),
    ),
}


@pytest.fixture(scope="module")
def shop(installations: Installations) -> Iterator[PostgresServer]:
    """A server with a database, shop, and its users."""
    support.require("pgbouncer")
    binaries = installations.get(support.newest_major())
    with PostgresServer(binaries, settings={"max_connections": 100}) as server:
        server.execute("CREATE DATABASE shop")
        for user in USERS:
            server.execute(f"CREATE ROLE {user} LOGIN")
        yield server


@contextlib.contextmanager
def pooler(server: PostgresServer, case: Case) -> Iterator[PgBouncerServer]:
    """A PgBouncer that is configured so, and nobody connected."""
    where = f"host={server.host} port={server.port}"
    databases = {name: one.replace("SERVER", where) for name, one in case.databases.items()}
    settings = {"pool_mode": "transaction", **case.settings}
    with PgBouncerServer(server, databases=databases, settings=settings, users=USERS) as running:
        with open(running.ini, "a", encoding="utf-8") as file:
            file.write(f"[users]\n{case.users}\n")
        running.console("RELOAD")
        yield running


@contextlib.contextmanager
def clients(running: PgBouncerServer, case: Case) -> Iterator[None]:
    """Clients that begin a transaction as soon as they may, and hold it.

    Those of one pool come after those of the other: what a cap leaves depends on the order.
    """
    with contextlib.ExitStack() as stack:
        for alias, user in case.clients:
            for _ in range(CLIENTS // len(case.clients)):
                connected = socket.create_connection((running.host, running.port), 5)
                client = Session(stack.enter_context(connected))
                # Without a server connection of its pool it would wait for an answer.
                client.send_startup({"user": user, "database": alias})
                client.simple_query("BEGIN")
            time.sleep(0.2)
        yield


def open_connections(server: PostgresServer) -> int:
    """The server connections to shop."""
    ((count,),) = server.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' "
        "AND backend_type = 'client backend'"
    )
    return int(count or 0)


def ask_console(running: PgBouncerServer) -> Configured:
    """What the console says now."""
    databases, config, pools, users = (
        running.console(f"SHOW {kind}") for kind in ("DATABASES", "CONFIG", "POOLS", "USERS")
    )
    return from_console(databases, config, pools, users)


def summary(found: ConfiguredPools) -> tuple[int | None, int, list[tuple[str, int | None]]]:
    """What a console and a file say alike: size, reserve, and the pools."""
    return found.size, found.reserve, sorted((one.name, one.size) for one in found.pools)


@pytest.mark.parametrize("name", CASES)
def test_it_opens_what_its_configuration_says(shop: PostgresServer, name: str) -> None:
    case = CASES[name]
    with pooler(shop, case) as running:
        support.wait_until(lambda: open_connections(shop) == 0, "earlier pools are gone")
        with clients(running, case):
            support.wait_until(lambda: open_connections(shop) >= case.size, "the pools are full")
            time.sleep(0.5)
            assert open_connections(shop) == case.size
            told = ask_console(running).pools_of("shop")
        roles = {user for _, user in case.clients}
        read = from_ini(read_ini_at(str(running.ini))).pools_of("shop", users=roles)
    pools = sorted((pool, size) for pool, size, _ in case.pools)
    assert summary(read) == (case.size, case.reserve, pools)
    assert summary(told) == (case.by_console or case.size, case.reserve, pools)
    assert sorted((one.name, one.size, one.setting) for one in read.pools) == sorted(case.pools)
    assert read.capped_by == case.capped_by
    assert {one.pool_mode for one in (*read.pools, *told.pools)} == {"transaction"}


def test_a_forced_user_of_two_aliases(shop: PostgresServer) -> None:
    """Before 1.23 it is another one in each; the file, which says no release, is of those since."""
    case = Case(
        {"shop": "SERVER user=app", "old": "SERVER dbname=shop user=app"},
        {"default_pool_size": 4, "max_user_connections": 3},
        (("shop", "jobs"), ("old", "jobs")),
        6,
        0,
        (),
    )
    with pooler(shop, case) as running:
        users = running.console("SHOW USERS")
        size = 3 if "max_user_connections" in users[0] else 6
        support.wait_until(lambda: open_connections(shop) == 0, "earlier pools are gone")
        with clients(running, case):
            support.wait_until(lambda: open_connections(shop) >= size, "the pools are full")
            time.sleep(0.5)
            assert open_connections(shop) == size
            assert ask_console(running).pools_of("shop").size == size
        read = from_ini(read_ini_at(str(running.ini))).pools_of("shop")
    assert (read.size, read.notes) == (
        3,
        (
            "a PgBouncer before 1.23 takes max_user_connections of [pgbouncer] alone for forced "
            "users, and counts for each alias apart",
        ),
    )


def test_a_file_that_nobody_may_read() -> None:
    """Debian's is 0640, of postgres."""
    support.require("root")
    support.require("system-python")
    with fresh_directory("pgsock-ini-") as directory:
        path = directory / "pgbouncer.ini"
        path.write_text("[databases]\n", encoding="ascii")
        path.chmod(0o640)
        done = restricted.run_code(READ, str(path), gives_up_root=True)
    sentence = (
        f"{path}: Permission denied: it needs the right to read it, as root, PgBouncer's own user "
        "or a member of the file's group\n"
    )
    assert done == (0, sentence, "")
