"""PgBouncer's console: what its SHOW commands tell, read by column name.

`Client.show()` of postgres/client.py asks; the functions here read its rows, and are pure. Columns
come with nearly every release: others than those read here are left alone. Authority: src/admin.c
and src/stats.c of PgBouncer 1.12 to 1.25. Any stats_user may ask for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from check_pgsock.errors import MalformedError
from check_pgsock.postgres.client import CONSOLE
from check_pgsock.text import clean

Row = Mapping[str, Any]

# Server connections by state, as SHOW POOLS has them; those for cancel requests came with 1.18.
_SERVERS = ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login")
_CANCELING = ("sv_active_cancel", "sv_being_canceled")
# What only grows while the process and the pools of a database live, the wait first.
_COUNTERS = (
    "total_wait_time", "total_xact_count", "total_query_count", "total_received", "total_sent",
)  # fmt: skip
_WAITING = "waiting"  # of a client


class Pool(NamedTuple):
    """A row of SHOW POOLS: the clients and server connections of an alias and a user."""

    database: str  # the alias, as clients name it
    user: str
    active: int  # clients that are served, or ask for nothing
    waiting: int  # clients that wait for a server connection
    servers: Mapping[str, int]  # server connections by column: sv_active, sv_idle, ...
    waited: float  # seconds for which the first of those that wait has; 0 where it logs in
    mode: str  # session, transaction or statement

    @property
    def connections(self) -> int:
        """The server connections that count towards the pool's size (pool_server_count())."""
        return sum(self.servers.values())

    @property
    def logged_in(self) -> int:
        """The server connections that the server has let in."""
        return self.connections - self.servers["sv_login"]

    @property
    def clients(self) -> int:
        """All its clients."""
        return self.active + self.waiting


class WaitingClient(NamedTuple):
    """A client of SHOW CLIENTS that waits for a server connection."""

    database: str
    user: str
    waited: float  # seconds; of one that logs in a lower bound, from times of whole seconds
    logs_in: bool


class Database(NamedTuple):
    """A row of SHOW DATABASES; a limit of 0 is none."""

    pool_size: int  # of each of its pools, unless its user has one
    max_connections: int  # server connections of all its pools
    connections: int
    max_clients: int  # since 1.24, else 0
    clients: int
    paused: bool
    disabled: bool


class User(NamedTuple):
    """A row of SHOW USERS; a limit of 0 is none."""

    has_pool_size: bool  # one of its own; SHOW USERS may repeat that of another user
    max_connections: int  # server connections of all its pools
    connections: int


def parse_pools(rows: Iterable[Row]) -> list[Pool]:
    """SHOW POOLS, without the console's own."""
    pools = []
    for row in rows:
        if _text(row, "database", "POOLS") == CONSOLE:
            continue
        servers = {name: _number(row, name, "POOLS") for name in _SERVERS}
        servers.update({name: _number(row, name, "POOLS") for name in _CANCELING if name in row})
        microseconds = _number(row, "maxwait_us", "POOLS")
        pools.append(
            Pool(
                row["database"],
                _text(row, "user", "POOLS"),
                _number(row, "cl_active", "POOLS"),
                _number(row, "cl_waiting", "POOLS"),
                servers,
                _number(row, "maxwait", "POOLS") + microseconds / 10**6,
                _text(row, "pool_mode", "POOLS"),
            )
        )
    return pools


def parse_waiting_clients(rows: Sequence[Row]) -> list[WaitingClient]:
    """Those of SHOW CLIENTS that wait.

    PgBouncer counts from the query that waits. One that waits while it logs in, for the first
    server connection of its pool, has none: since when tells its request_time, beside that of the
    console's own session, which asks now. Both are local times in whole seconds.
    """
    now = max(
        (_text(row, "request_time", "CLIENTS") for row in rows if row["database"] == CONSOLE),
        default="",
    )
    found = []
    for row in rows:
        if _text(row, "state", "CLIENTS") != _WAITING:
            continue
        waited = _number(row, "wait", "CLIENTS") + _number(row, "wait_us", "CLIENTS") / 10**6
        logs_in = not waited
        if logs_in:
            waited = _seconds_between(_text(row, "request_time", "CLIENTS"), now)
        database = _text(row, "database", "CLIENTS")
        found.append(WaitingClient(database, _text(row, "user", "CLIENTS"), waited, logs_in))
    return found


def parse_counters(rows: Iterable[Row]) -> dict[str, list[int]]:
    """SHOW STATS by alias: counters that only grow, the first is total_wait_time (microseconds)."""
    return {
        _text(row, "database", "STATS"): [_number(row, name, "STATS") for name in _COUNTERS]
        for row in rows
        if row["database"] != CONSOLE
    }


def parse_console_queries(rows: Iterable[Row]) -> int:
    """SHOW STATS: how many queries the console has answered, this one counted. Each session adds at
    least one, so that a process says more each time.
    """
    own = (row for row in rows if row["database"] == CONSOLE)
    return sum(_number(row, "total_query_count", "STATS") for row in own)


def parse_databases(rows: Iterable[Row]) -> dict[str, Database]:
    """SHOW DATABASES by alias. A PAUSE of all databases is in SHOW STATE alone (1.19)."""
    return {
        _text(row, "name", "DATABASES"): Database(
            _number(row, "pool_size", "DATABASES"),
            _number(row, "max_connections", "DATABASES"),
            _number(row, "current_connections", "DATABASES"),
            int(row.get("max_client_connections") or 0),
            int(row.get("current_client_connections") or 0),
            bool(_number(row, "paused", "DATABASES")),
            bool(_number(row, "disabled", "DATABASES")),
        )
        for row in rows
        if row["name"] != CONSOLE
    }


def parse_config(rows: Iterable[Row]) -> dict[str, str]:
    """SHOW CONFIG: the settings in effect by name."""
    return {_text(row, "key", "CONFIG"): str(row["value"] or "") for row in rows}


def parse_lists(rows: Iterable[Row]) -> dict[str, int]:
    """SHOW LISTS: how many there are of what."""
    return {_text(row, "list", "LISTS"): _number(row, "items", "LISTS") for row in rows}


def parse_users(rows: Iterable[Row]) -> dict[str, User]:
    """SHOW USERS by name; before 1.23 it tells no numbers, which are 0 then."""
    return {
        _text(row, "name", "USERS"): User(
            bool(str(row.get("pool_size") or "").strip()),
            int(row.get("max_user_connections") or 0),
            int(row.get("current_connections") or 0),
        )
        for row in rows
    }


def find_state(rows: Iterable[Row]) -> str:
    """SHOW STATE: `active`, `paused` or `suspended`."""
    return next((row["key"] for row in rows if row["value"] == "yes"), "")


def parse_release(version: str) -> tuple[int, int]:
    """`1.18.0/bouncer` is (1, 18), what cannot be read (0, 0)."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0].partition("/")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _seconds_between(since: str, now: str) -> float:
    """At least so many seconds lie between two times as the console writes them, such as
    `2024-05-01 12:00:00 UTC`; 0 where that cannot be told, as when the clocks change.
    """
    from datetime import datetime

    then, _, zone = since.rpartition(" ")
    present, _, present_zone = now.rpartition(" ")
    if zone != present_zone:
        return 0.0
    try:
        passed = datetime.fromisoformat(present) - datetime.fromisoformat(then)
    except ValueError:
        return 0.0
    return max(passed.total_seconds() - 1, 0.0)


def _text(row: Row, column: str, command: str) -> str:
    value = row.get(column)
    if value is None:
        raise _malformed(command, column, "is missing")
    return str(value)


def _number(row: Row, column: str, command: str) -> int:
    text = _text(row, column, command)
    try:
        return int(text)
    except ValueError:
        raise _malformed(command, column, f"is no number: {clean(text)}") from None


def _malformed(command: str, column: str, what: str) -> MalformedError:
    return MalformedError(
        f"the column {column} of SHOW {command} {what}; PgBouncer 1.12 and later are understood, "
        "please report another"
    )
