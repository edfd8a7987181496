"""PgBouncer's console: rows of seven releases, recorded from the real ones, and what they say.

tests/data/console holds what SHOW told of 1.18.0, Debian's, and of 1.12.0, 1.16.0, 1.19.0, 1.23.0,
1.24.0 and 1.25.2, built from their sources: the releases from 1.12 to 1.25 between which columns of
these commands differ (src/admin.c, src/stats.c). Each was asked by an admin 1.25 s after five
clients on a pool of two had begun a statement of 1.5 s; SHOW CONFIG is cut down to a few settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.pgbouncer import console
from check_pgsock.pgbouncer.console import Database, Pool, User, WaitingClient

RECORDED = sorted((Path(__file__).parent / "data" / "console").glob("*.json"))
Rows = dict[str, list[dict[str, Any]]]

_RELEASES = pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)


def read(path: Path) -> Rows:
    rows: Rows = json.loads(path.read_text(encoding="ascii"))
    return rows


def release(path: Path) -> tuple[int, int]:
    return console.parse_release(path.stem)


def test_every_release_is_there() -> None:
    assert sorted(map(release, RECORDED)) == [
        (1, 12), (1, 16), (1, 18), (1, 19), (1, 23), (1, 24), (1, 25),
    ]  # fmt: skip


@_RELEASES
def test_pools(path: Path) -> None:
    (pool,) = console.parse_pools(read(path)["POOLS"])
    servers = {"sv_active": 2, "sv_idle": 0, "sv_used": 0, "sv_tested": 0, "sv_login": 0}
    if release(path) >= (1, 18):
        servers.update(sv_active_cancel=0, sv_being_canceled=0)
    assert pool == Pool("shop", "app", 2, 3, servers, pool.waited, "transaction")
    assert pool.waited == pytest.approx(1.25, abs=0.02)
    assert pool.connections == 2


@_RELEASES
def test_waiting_clients(path: Path) -> None:
    found = console.parse_waiting_clients(read(path)["CLIENTS"])
    assert found == [WaitingClient("shop", "app", one.waited, False) for one in found]
    assert [one.waited for one in found] == pytest.approx([1.25] * 3, abs=0.02)


@_RELEASES
def test_counters_databases_and_users(path: Path) -> None:
    rows = read(path)
    assert console.parse_console_queries(rows["STATS"]) == 5
    ((name, counters),) = console.parse_counters(rows["STATS"]).items()
    assert name == "shop"
    # Three clients have waited for 3.7 s together, and nothing of it is counted yet.
    assert 0 < counters[0] < 20000
    assert counters[1:4] == [5, 5, 52]
    seen = 5 if release(path) >= (1, 24) else 0
    assert console.parse_databases(rows["DATABASES"]) == {
        "idle": Database(5, 7, 0, 0, 0, True, False),
        "shop": Database(2, 0, 2, 0, seen, False, False),
    }
    users = console.parse_users(rows["USERS"])
    assert users["app"] == User(False, 0, 2 if release(path) >= (1, 23) else 0)


@_RELEASES
def test_settings_lists_and_state(path: Path) -> None:
    rows = read(path)
    config = console.parse_config(rows["CONFIG"])
    assert (config["max_client_conn"], config["so_reuseport"]) == ("100", "0")
    assert console.parse_lists(rows["LISTS"])["used_clients"] == 6
    tells = release(path) >= (1, 19)
    assert ("STATE" in rows) is tells
    assert console.find_state(rows.get("STATE", [])) == ("active" if tells else "")
    (version,) = rows["VERSION"]
    assert version["version"].endswith(path.stem)


def client(database: str, state: str, request_time: str, wait: int = 0) -> dict[str, Any]:
    return {
        "database": database, "user": "app", "state": state, "wait": wait, "wait_us": 0,
        "request_time": request_time,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("since", "now", "seconds"),
    [
        ("2026-01-01 10:00:00 UTC", "2026-01-01 10:00:09 UTC", 8.0),
        ("2026-01-01 23:59:59 CET", "2026-01-02 00:00:03 CET", 3.0),
        ("2026-01-01 10:00:00 UTC", "2026-01-01 10:00:00 UTC", 0.0),
        ("2026-10-25 02:59:59 CEST", "2026-10-25 02:00:01 CET", 0.0),
        ("yesterday UTC", "2026-01-01 10:00:00 UTC", 0.0),
    ],
)
def test_a_client_that_logs_in_waits_since_its_request(
    since: str, now: str, seconds: float
) -> None:
    rows = [
        client("shop", "waiting", since),
        client("shop", "active", since, 7),
        client("pgbouncer", "active", now),
    ]
    assert console.parse_waiting_clients(rows) == [WaitingClient("shop", "app", seconds, True)]


def test_a_user_that_has_a_pool_size() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "pool_size": "        7"},
        {"name": "b", "pool_size": None},
    ]
    assert console.parse_users(rows) == {"a": User(True, 0, 0), "b": User(False, 0, 0)}


def test_what_is_not_as_it_should_be() -> None:
    with pytest.raises(MalformedError) as error:
        console.parse_lists([{"list": "pools", "items": "many"}])
    assert str(error.value) == (
        "the column items of SHOW LISTS is no number: many; PgBouncer 1.12 and later are "
        "understood, please report another"
    )
    with pytest.raises(MalformedError, match="the column maxwait_us of SHOW POOLS is missing"):
        console.parse_pools([dict.fromkeys(["database", "user", *_OLD], "0")])


_OLD = (
    "cl_active",
    "cl_waiting",
    "sv_active",
    "sv_idle",
    "sv_used",
    "sv_tested",
    "sv_login",
    "maxwait",
)


@pytest.mark.parametrize(
    ("version", "found"),
    [("1.18.0/bouncer", (1, 18)), ("1.9/bouncer", (1, 9)), ("devel", (0, 0)), ("", (0, 0))],
)
def test_releases(version: str, found: tuple[int, int]) -> None:
    assert console.parse_release(version) == found
