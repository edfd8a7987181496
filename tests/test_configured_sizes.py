"""The sizes that check_pgsock_pool_size takes from PgBouncer's configuration, and what it says of
them: rows of the console without one.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from check_pgsock.pgbouncer.configured import from_console
from check_pgsock.pgbouncer.pool_limits import Configured
from check_pgsock.pooling import pools, wording
from check_pgsock.pooling.assessment import assess
from check_pgsock.pooling.pools import Pool, Size, Terms
from check_pgsock.pooling.samples import History
from check_pgsock.pooling.sizes import Sizes, find_sizes
from tests.pool_samples import sample

TERMS = Terms(4)
NOT_TOLD = "the console does not tell a max_user_connections of [users]"


def row(database: str, user: str, **columns: int) -> dict[str, Any]:
    """A row of SHOW POOLS."""
    columns = {"cl_active": 0, "cl_waiting": 0, "sv_active": 0, "sv_idle": 0, **columns}
    return {"database": database, "user": user, **columns}


def console(*rows: dict[str, Any], mode: str = "transaction", **settings: str) -> Configured:
    """A console that has entries shop and batch, of 15 connections each, and these pools."""
    entries = [
        {
            "name": name,
            "host": "127.0.0.1",
            "port": 5432,
            "database": name,
            "pool_size": 15,
            "reserve_pool": 0,
            "max_connections": settings.get("max_db_connections", 0),
        }
        for name in ("shop", "batch")
    ]
    settings = {
        "default_pool_size": "15",
        "reserve_pool_size": "0",
        "max_db_connections": "0",
        "max_user_connections": "0",
        "pool_mode": mode,
        **settings,
    }
    config = [{"key": key, "value": value} for key, value in settings.items()]
    return from_console(entries, config, rows, [], asker="stats")


def sizes_of(configured: Configured, **databases: bool) -> Sizes:
    options = Namespace(pool_size=None, console="x", ini=None, poolers=1, pool_mode=None)
    server = {"address": "127.0.0.1", "listens_at": 5432}
    return find_sizes(options, configured, databases or {"shop": True}, server, "check", "db")


def size_of(configured: Configured) -> Size:
    found = sizes_of(configured).get("shop")
    assert found is not None
    return found


def judged(backends: int, size: Size | None, is_session: bool = False, **more: Any) -> Pool:
    """A pool after 100 s with half a session at work and as much idle in a transaction."""
    return assess(
        History(sample(100, 50, 50, backends=backends, **more), []), TERMS, size, is_session
    )


def test_one_stray_connection_does_not_double_the_pool() -> None:
    app, own = row("shop", "app", sv_idle=1), row("shop", "check", sv_idle=1)
    gone = row("shop", "dba")
    found = sizes_of(console(app, own, gone))
    size = found.get("shop")
    assert size is not None
    assert (size.connections, size.name, size.notes) == (15, "shop/app", [NOT_TOLD])
    assert found.told == [
        "not counted, for nobody uses them now, or the check alone: shop/check, shop/dba"
    ]


@pytest.mark.parametrize(
    ("users", "settings", "note"),
    [
        (
            ["app", "dba"],
            {},
            "30 connections are those of 2 pools by the console: shop/app 15, shop/dba 15",
        ),
        (
            ["app", "dba"],
            {"max_db_connections": "20"},
            "20 connections are those of 2 pools by the console, within max_db_connections: "
            "shop/app 15, shop/dba 15",
        ),
        (
            ["a", "b", "c", "d", "e", "f", "g"],
            {},
            "105 connections are those of 7 pools by the console: shop/a 15, shop/b 15, shop/c 15, "
            "shop/d 15, shop/e 15 and 2 further",
        ),
    ],
)
def test_a_sum_names_its_pools(users: list[str], settings: dict[str, str], note: str) -> None:
    size = size_of(console(*(row("shop", one, cl_active=1) for one in users), **settings))
    assert size.notes == [note, NOT_TOLD]
    assert wording.describe_size(judged(1, size), TERMS) == [note, NOT_TOLD]


def test_clients_that_wait_in_session_pooling_are_needed() -> None:
    """The server has as many sessions as the pool: those that wait have none."""
    full = row("shop", "app", cl_active=15, sv_active=15, cl_waiting=3)
    configured = console(full, mode="session")
    assert sizes_of(configured).is_session("shop")
    pool = judged(15, size_of(configured), True)
    assert (pool.size, pool.needed) == (15, 18)
    assert ", it is 15: raise default_pool_size; busy ratio of whole sessions " in wording.describe(
        pool, TERMS
    )
    few = row("shop", "app", cl_active=5, sv_active=4)
    assert judged(7, size_of(console(few, mode="session")), True).needed == 7
    by_transaction = size_of(console(full))
    assert judged(15, by_transaction).needed == judged(15, Size(15, "x")).needed


def test_a_database_whose_pools_nobody_uses_does_not_add_up() -> None:
    """Unless it is asked for: it was at work earlier in the window, and has no connection now."""
    configured = console(row("shop", "app", sv_idle=1), row("batch", "app"), row("batch", "check"))
    found = sizes_of(configured, shop=True, batch=False)
    assert found.get("batch") is None
    shop = judged(1, found.get("shop"))
    batch = judged(0, found.get("batch"), name="batch")
    assert pools.find_working({1: shop, 2: batch}, {1}) == [shop]
    direct = judged(2, found.get("batch"), name="batch")  # beside the pooler
    assert pools.find_working({1: shop, 2: direct}, {1}) == [shop, direct]
    asked = sizes_of(configured, shop=True, batch=True).get("batch")
    assert asked is not None
    assert asked.connections == 15
