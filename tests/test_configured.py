"""What PgBouncer's configuration says of its pools: console rows of several releases, and files.

tests/data/configured holds what the four SHOW commands answer to one configuration: 1.18 recorded,
the others with the columns of each release's src/admin.c (those of 1.25 are 1.24's; there pool_size
of shop is 0, and report has a reserve_pool_size of its own).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.pgbouncer.configured import from_console, from_ini
from check_pgsock.pgbouncer.flow import SINK, SOURCE, largest_flow
from check_pgsock.pgbouncer.ini import DEFAULTS, Ini
from check_pgsock.pgbouncer.pool_limits import Configured, ConfiguredPools, Pool

DATA = Path(__file__).with_name("data") / "configured"
Rows = list[dict[str, Any]]

SHOP_CAP = "max_db_connections"
JOBS_CAP = "max_db_connections of jobs or * in [databases]"
USER_CAP = "max_user_connections"
REPORT_CAP = "max_user_connections of report in [users]"
NOT_TOLD = "the console does not tell a max_user_connections of [users]"
DOUBTFUL = (
    "pool sizes of web in [users] may be those of another user, whose PgBouncer 1.23 to 1.25 shows "
    "again: the larger of them and the alias's is taken"
)
RESERVED = "{} of the {} are the reserve, opened only while a client has waited for {}".format


def rows_of(release: str) -> dict[str, Rows]:
    tables = json.loads((DATA / f"{release}.json").read_text(encoding="utf-8"))
    return {
        name: [dict(zip(table["columns"], row)) for row in table["rows"]]
        for name, table in tables.items()
    }


def console(tables: Mapping[str, Rows]) -> Configured:
    return from_console(*(tables[one] for one in ("databases", "config", "pools", "users")))


def ini(
    databases: dict[str, str], settings: dict[str, str] | None = None, **users: str
) -> Configured:
    return from_ini(Ini("x.ini", {**DEFAULTS, **(settings or {})}, 0, databases, users))


def test_all_that_a_console_says() -> None:
    jobs = "pool_size of jobs or * in [databases]"
    assert console(rows_of("1.18")).pools_of("shop") == ConfiguredPools(
        size=36,
        reserve=1,
        why="",
        pools=(
            Pool("jobs/jobs", "jobs", "jobs", 5, 2, jobs, "session"),
            Pool("shop/app", "shop", "app", 20, 3, "default_pool_size", "session"),
            Pool("shop/report", "shop", "report", 20, 3, "default_pool_size", "transaction"),
            Pool("shop/web", "shop", "web", 20, 3, "default_pool_size", "transaction"),
        ),
        capped_by=(JOBS_CAP, SHOP_CAP),
        notes=(NOT_TOLD, RESERVED(1, 36, "reserve_pool_timeout of 5 s")),
        held=4,
    )


@pytest.mark.parametrize(
    ("release", "size", "reserve", "report", "capped_by", "note"),
    [
        *((one, 36, 1, 20, (JOBS_CAP, SHOP_CAP), NOT_TOLD) for one in ("1.12", "1.16", "1.18")),
        ("1.21", 36, 1, 20, (JOBS_CAP, SHOP_CAP), NOT_TOLD),
        *((one, 34, 2, 3, (JOBS_CAP, USER_CAP, REPORT_CAP), DOUBTFUL) for one in ("1.23", "1.24")),
        ("1.25", 34, 2, 3, (JOBS_CAP, USER_CAP), DOUBTFUL),
    ],
)
def test_the_consoles_of_all_releases(
    release: str, size: int, reserve: int, report: int, capped_by: tuple[str, ...], note: str
) -> None:
    found = console(rows_of(release)).pools_of("shop")
    assert (found.size, found.reserve, found.capped_by) == (size, reserve, capped_by)
    assert [one.size for one in found.pools if one.user == "report"] == [report]
    said = RESERVED(reserve, size, "reserve_pool_timeout of 5 s")
    assert found.notes == (note, said)


@pytest.mark.parametrize("release", ["1.12", "1.18", "1.25"])
def test_the_pool_modes_are_those_that_show_pools_tells(release: str) -> None:
    tables = rows_of(release)
    found = console(tables).pools_of("shop")
    assert {(one.alias, one.user, one.pool_mode) for one in found.pools} == {
        (row["database"], row["user"], row["pool_mode"])
        for row in tables["pools"]
        if row["database"] != "pgbouncer"
    }


def test_a_pool_that_looks_up_passwords_for_a_forced_user() -> None:
    tables = rows_of("1.18")
    tables["pools"].append({**tables["pools"][0], "database": "jobs", "user": "looker"})
    found = console(tables).pools_of("shop")
    assert [one.name for one in found.pools if one.alias == "jobs"] == ["jobs/jobs", "jobs/looker"]


def test_the_users_of_a_release_that_does_not_repeat_sizes() -> None:
    tables = rows_of("1.24")
    for row in tables["users"]:
        if row["name"] in ("stats", "web"):
            row["pool_size"] = ""
    found = console(tables).pools_of("shop")
    assert [one.size for one in found.pools if one.user == "web"] == [20]
    assert DOUBTFUL not in found.notes
    for row in tables["users"]:  # one that says so even where neighbours have the same
        row["pool_size"] = {"app": "5", "stats": "3", "web": "3"}.get(row["name"], "")
    found = console(tables).pools_of("shop")
    assert [one.size for one in found.pools if one.user == "web"] == [3]
    assert DOUBTFUL not in found.notes


@pytest.mark.parametrize(
    ("table", "column", "size", "why", "note"),
    [
        (
            "databases",
            "max_connections",
            43,
            "",
            "max_db_connections of jobs, shop is not in the console, and not taken into account",
        ),
        (
            "databases",
            "reserve_pool",
            35,
            "",
            "reserve_pool_size of jobs, shop is not in the console, and not taken into account",
        ),
        (
            "databases",
            "pool_size",
            None,
            "pool_size of jobs/jobs, shop/app, shop/report, shop/web is not in the console",
            NOT_TOLD,
        ),
    ],
)
def test_a_column_that_is_missing_is_no_zero(
    table: str, column: str, size: int | None, why: str, note: str
) -> None:
    tables = rows_of("1.18")
    for row in tables[table]:
        del row[column]
    found = console(tables).pools_of("shop")
    assert (found.size, found.why) == (size, why)
    assert note in found.notes


def test_a_console_without_settings() -> None:
    tables = rows_of("1.18")
    tables["config"] = []
    configured = console(tables)
    found = configured.pools_of("shop")
    assert configured.so_reuseport is None
    assert found.size == 36
    assert found.notes[1] == (
        "max_user_connections of jobs/jobs, shop/app, shop/report, shop/web is not in the console, "
        "and not taken into account"
    )
    assert found.pools[1].setting == "default_pool_size, or pool_size of shop or * in [databases]"


def test_a_database_that_nobody_used_yet() -> None:
    found = console(rows_of("1.18")).pools_of("crm")
    assert (found.size, found.settings) == (12, ("max_user_connections",))
    assert [one.name for one in found.pools] == ["crm"]
    assert found.notes == (
        "who connects to crm is not in the console: one user is assumed",
        "crm: several hosts, and all connections may go to one of them",
        NOT_TOLD,
    )
    assert console(rows_of("1.18")).pools_of("crm", users=["app", "jobs"]).size == 24


def test_roles_that_are_seen_on_the_server_and_forced_are_explained() -> None:
    found = ini({"shop": "host=db", "jobs": "host=db dbname=shop user=jobs"})
    assert [one.name for one in found.pools_of("shop", users=["jobs", "app"]).pools] == [
        "shop/app",
        "jobs/jobs",
    ]


def test_a_database_that_is_elsewhere() -> None:
    assert console(rows_of("1.18")).pools_of("pgbouncer|") == ConfiguredPools(
        None, 0, "no entry in the console leads to database pgbouncer?", (), (), ()
    )
    assert console(rows_of("1.18")).pools_of("pgbouncer").pools == ()


def test_a_file() -> None:
    found = ini(
        {
            "shop": "host=db port=5433 pool_size=7 reserve_pool_size=1",
            "jobs": "host=db port=5433 dbname=shop user=jobs",
        },
        {"so_reuseport": "1"},
        jobs="pool_size=2 reserve_pool_size=0 pool_mode=transaction",
    )
    assert found.so_reuseport
    assert found.pools_of("shop") == ConfiguredPools(
        size=10,
        reserve=1,
        why="",
        pools=(
            Pool("shop", "shop", None, 7, 1, "pool_size of shop in [databases]", "session"),
            Pool("jobs/jobs", "jobs", "jobs", 2, 0, "pool_size of jobs in [users]", "transaction"),
        ),
        capped_by=(),
        notes=(
            "who connects to shop is not in x.ini: one user is assumed",
            "1 of the 10 are the reserve, opened only while a client has waited for "
            "reserve_pool_timeout of 5 s",
        ),
    )
    assert [one.is_session for one in found.pools_of("shop").pools] == [True, False]


def test_the_entry_for_any_alias() -> None:
    entries = {"*": "host=db pool_size=4", "crm": "host=db dbname=other"}
    found = ini(entries).pools_of("shop")
    assert (found.size, found.settings) == (4, ("pool_size of * in [databases]",))
    assert [one.name for one in found.pools] == ["shop"]
    assert ini(entries).pools_of("crm").size is None  # its name leads elsewhere
    assert ini(entries).pools_of("other").size == 4 + 20
    fixed = ini({"*": "host=db dbname=shop"})
    assert (fixed.pools_of("shop").size, fixed.pools_of("other").size) == (20, None)


def test_who_looks_up_passwords_has_a_pool() -> None:
    looker = {"auth_user": "looker"}
    found = ini({"shop": "host=db", "auth": "host=db dbname=a"}, looker)
    assert [one.name for one in found.pools_of("shop").pools] == ["shop", "shop/looker"]
    found = ini({"shop": "host=db auth_dbname=auth", "auth": "dbname=a"}, looker)
    assert [one.name for one in found.pools_of("shop").pools] == ["shop"]
    assert [one.name for one in found.pools_of("a").pools] == ["auth", "auth/looker"]


@pytest.mark.parametrize(
    ("entry", "settings", "size", "capped_by"),
    [
        ("max_db_connections=0", {"max_db_connections": "7"}, 7, ("max_db_connections",)),
        ("pool_size=-1", {}, 20, ()),
        ("pool_size=0", {"max_db_connections": "9"}, 9, ("max_db_connections",)),
        ("pool_size=0", {"max_user_connections": "9"}, 9, ("max_user_connections",)),
        ("max_db_connections=20", {}, 20, ()),
        ("min_pool_size=30", {}, 20, ()),
    ],
)
def test_zeros_and_caps(
    entry: str, settings: dict[str, str], size: int, capped_by: tuple[str, ...]
) -> None:
    found = ini({"shop": f"host=db {entry}"}, settings).pools_of("shop")
    assert (found.size, found.capped_by) == (size, capped_by)


def test_a_reserve_that_is_turned_off() -> None:
    off = {"reserve_pool_size": "5", "reserve_pool_timeout": "0"}
    assert ini({"shop": "host=db"}, off).pools_of("shop").size == 20


def test_caps_of_users() -> None:
    databases = {"shop": "host=db", "old": "host=db dbname=shop"}
    configured = ini(
        databases, {"max_user_connections": "7"}, app="max_user_connections=0", web="pool_size=1"
    )
    assert configured.pools_of("shop", users=["app"]).size == 7
    assert configured.pools_of("shop", users=["app", "web"]).size == 7 + 2
    assert configured.pools_of("shop").size == 14  # one user of each: it need not be the same


def test_users_say_nothing_of_forced_ones_before_1_23() -> None:
    tables = rows_of("1.18")
    tables["users"].append({"name": "jobs", "pool_mode": "statement"})
    found = console(tables).pools_of("shop")
    assert [one.pool_mode for one in found.pools if one.user == "jobs"] == ["session"]
    tables["databases"].append({**tables["databases"][1], "name": "more", "max_connections": 0})
    tables["config"].append({"key": "max_user_connections", "value": "5"})
    jobs = next(one for one in tables["pools"] if one["database"] == "jobs")
    tables["pools"].append({**jobs, "database": "more"})
    # Three users of shop, and the forced one of jobs and that of more.
    assert console(tables).pools_of("shop").size == 15 + 5 + 5


def test_no_limit_at_all() -> None:
    found = ini({"shop": "host=db"}, {"default_pool_size": "0"}).pools_of("shop")
    assert (found.size, found.reserve, found.why) == (
        None,
        0,
        "default_pool_size is 0, and nothing else limits it: any number of connections (before "
        "PgBouncer 1.24: one)",
    )


def test_a_primary_and_a_replica_by_the_names_of_their_hosts() -> None:
    configured = ini({"shop": "host=pg1 pool_size=1", "ro": "host=pg2 dbname=shop pool_size=2"})
    found = configured.pools_of("shop", users=["app"], hosts=("10.0.0.9", "pg1"), port=5432)
    assert (found.size, found.notes) == (
        1, ("ro: taken for another server, by the name of its host",)
    )  # fmt: skip
    found = configured.pools_of("shop", users=["app"], hosts=("10.0.0.9",), port=5432)
    assert (found.size, len(found.notes)) == (3, 1)


def test_entries_that_lead_to_several_servers() -> None:
    configured = ini(
        {
            "shop": "host=10.0.0.1 pool_size=1",
            "ro": "host=10.0.0.2 dbname=shop pool_size=2",
            "old": "host=db port=5433 dbname=shop pool_size=4",
            "named": "host=db dbname=shop pool_size=8",
            "unix": "dbname=shop pool_size=16",
        }
    )
    assert configured.pools_of("shop", users=["app"]).notes == (
        "shop, ro, old, named, unix lead to 5 servers, and which of them is this one is not known: "
        "all are counted",
    )
    for hosts, port, size, notes in (
        ((), None, 31, 1),
        (("10.0.0.1",), None, 1, 1),
        (("10.0.0.1",), 5432, 1, 1),
        (("10.0.0.2", "db"), 5432, 2 + 8, 0),
        (("10.0.0.3",), 5432, 31 - 4, 1),
        (("10.0.0.3",), 5434, 31, 2),
        ((), 5433, 4, 0),
        # By the name of its host, as the DSN has it, what is named otherwise is another server.
        (("10.0.0.9", "db"), 5432, 8, 0),
        (("10.0.0.9", "db", "10.0.0.1"), 5432, 1 + 8, 0),
    ):
        found = configured.pools_of("shop", users=["app"], hosts=hosts, port=port)
        assert (found.size, len(found.notes)) == (size, notes), (hosts, port)
    found = configured.pools_of("shop", users=["app"], hosts=["10.0.0.1"], port=5432)
    assert found.notes == ("named: taken for another server, by the name of its host",)


def test_the_port_tells_servers_apart_before_the_address() -> None:
    entries = {
        "shop": "host=localhost port=27180",
        "shop_ro": "host=localhost port=27140 dbname=shop",
    }
    found = ini(entries).pools_of("shop", users=["app"], hosts=["127.0.0.1"], port=27180)
    assert ([one.name for one in found.pools], found.notes) == (["shop/app"], ())


def test_a_server_at_a_port_that_no_entry_leads_to_may_be_another() -> None:
    entries = {"shop": "host=localhost port=27180"}
    found = ini(entries).pools_of("shop", users=["app"], hosts=["127.0.0.1"], port=27160)
    elsewhere = (
        "shop: port 27180, and this server's is 27160: another server, unless a proxy or a tunnel "
        "is between"
    )
    assert (found.size, found.notes) == (20, (elsewhere,))


def used(name: str, **columns: int) -> dict[str, Any]:
    """A row of SHOW POOLS for a user of shop."""
    return {
        "database": "shop", "user": name, "cl_active": 0, "cl_waiting": 0, "sv_active": 0,
        "sv_idle": 0, "sv_used": 0, "sv_tested": 0, "sv_login": 0, "maxwait": 0, **columns,
    }  # fmt: skip


def console_of(*rows: dict[str, Any], asker: str = "") -> Configured:
    """What a console says of one entry, shop, of 15 connections, with these pools."""
    entry = {"name": "shop", "host": "db", "port": 5432, "database": "shop", "pool_size": 15}
    config = [{"key": "default_pool_size", "value": "15"}]
    return from_console([entry], config, rows, [], asker=asker)


@pytest.mark.parametrize("column", ["cl_active", "cl_waiting_cancel_req", "sv_idle", "sv_used"])
def test_a_pool_counts_while_it_has_a_connection(column: str) -> None:
    app, dba = used("app", cl_active=1), used("dba")
    found = console_of(app, dba).pools_of("shop")
    assert (found.size, found.left_out, found.in_use) == (15, ("shop/dba",), True)
    found = console_of(app, {**dba, column: 1}).pools_of("shop")
    assert (found.size, found.left_out) == (30, ())


def test_where_no_pool_is_in_use_the_largest_counts() -> None:
    """A pool does not grow by the last client's leaving."""
    found = console_of(used("app"), used("dba")).pools_of("shop")
    assert (found.size, found.left_out, found.in_use) == (15, ("shop/dba",), False)


def test_a_console_that_does_not_tell_connections_is_no_pool_out_of_use() -> None:
    bare = [{"database": "shop", "user": one} for one in ("app", "dba")]
    found = console_of(*bare).pools_of("shop")
    assert (found.size, found.held, found.in_use) == (30, None, True)


def test_the_pool_of_the_check_itself_does_not_count() -> None:
    app, dba = used("app"), used("dba", sv_idle=1)
    check, stats = used("check", cl_active=2, sv_idle=1), used("stats", sv_idle=1)
    own = {"check"}
    found = console_of(app, dba, check, stats, asker="stats").pools_of("shop", own={*own, "stats"})
    assert (found.size, found.left_out) == (15, ("shop/app", "shop/check", "shop/stats"))
    found = console_of(app, check).pools_of("shop", own=own)
    assert (found.size, found.left_out, found.in_use) == (15, ("shop/check",), False)
    found = console_of(check).pools_of("shop", own=own)
    assert ([one.name for one in found.pools], found.in_use) == (["shop/check"], False)
    # With more clients than checks are it is an application's, too.
    found = console_of(dba, {**check, "cl_active": 3}).pools_of("shop", own=own)
    assert (found.size, found.left_out) == (30, ())


def test_clients_that_hold_a_connection_or_wait_for_one() -> None:
    app = used("app", cl_active=9, cl_waiting=3, sv_active=8)  # one has not asked for anything yet
    found = console_of(app, used("dba", sv_active=1), used("gone")).pools_of("shop")
    assert (found.size, found.held) == (30, 8 + 3 + 1)


@pytest.mark.parametrize(
    ("databases", "users", "settings", "sentence"),
    [
        ({"shop": "host"}, {}, {}, r"x\.ini: shop in \[databases\] is not of the form key=value"),
        ({"shop": "port=x"}, {}, {}, r"x\.ini: shop in \[databases\] has no port 'x'"),
        ({}, {"app": "pool_size"}, {}, r"x\.ini: app in \[users\] is not of the form key=value"),
        ({}, {}, {"default_pool_size": "many"}, r"x\.ini: default_pool_size is no number: 'many'"),
    ],
)
def test_what_pgbouncer_refuses(
    databases: dict[str, str], users: dict[str, str], settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(MalformedError, match=sentence):
        ini(databases, settings, **users)


def test_names_from_outside_are_cleaned() -> None:
    found = ini({"a|\n": "dbname=shop user='b\x1b' pool_size=3"}).pools_of("shop")
    assert [(one.name, one.setting) for one in found.pools] == [
        ("a? /b?", "pool_size of a?  in [databases]")
    ]


def test_caps_of_both_ends_hold_at_once() -> None:
    """Neither the caps of aliases alone (15) nor those of users alone (12) say what can be open."""
    databases = {"shop": "max_db_connections=5", "old": "dbname=shop user=app"}
    configured = ini(databases, {"default_pool_size": "10", "max_user_connections": "6"})
    found = configured.pools_of("shop", users=["report", "web"])
    assert (found.size, found.settings) == (
        11,
        ("max_db_connections of shop in [databases]", "max_user_connections"),
    )


def test_a_flow_goes_around() -> None:
    left, right, one, two = ("left",), ("right",), ("one",), ("two",)
    room = {
        (SOURCE, left): 1.0,
        (SOURCE, right): 1.0,
        (left, one): 1.0,
        (left, two): 1.0,
        (right, two): 1.0,
        (one, SINK): 1.0,
        (two, SINK): 1.0,
    }
    assert largest_flow(room) == (2, {SOURCE})
    assert largest_flow({**room, (SOURCE, left): 9.0}) == (2, {SOURCE, left, two, right})
