"""Which pools of a PgBouncer clients wait in, why, and what to do: in words; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from check_pgsock.pgbouncer.console import Database, Pool, User, WaitingClient
from check_pgsock.pooling.wait_time import Unserved
from check_pgsock.text import clean, name_some, plural, say_top, write_seconds

SESSION = "session"
# What a server connection does by its column of SHOW POOLS, in words.
_DOING = {
    "sv_active": "in use",
    "sv_idle": "idle",
    "sv_used": "idle, to be checked",
    "sv_tested": "being checked",
    "sv_login": "logging in",
    "sv_active_cancel": "canceling",
    "sv_being_canceled": "being canceled",
}
_PAUSED = ("paused", "suspended")
_NOT_IN_USE = ("sv_idle", "sv_used", "sv_login")


class PoolWait(NamedTuple):
    """A pool, and for how long the first of its clients has waited."""

    pool: Pool
    seconds: float
    is_bound: bool  # it logs in: a lower bound
    size: int | None  # server connections that it may have, without the reserve; None: not known

    @property
    def name(self) -> str:
        """`alias/user`, fit to print."""
        return _name_of(self.pool)


class Pooler(NamedTuple):
    """What else matters of a PgBouncer."""

    databases: Mapping[str, Database]
    users: Mapping[str, User]
    state: str  # active, paused or suspended; empty where it is not told
    login_retry: str  # server_login_retry, seconds

    def is_paused(self, database: str) -> bool:
        """Whether it is, or all are, as far as that is told."""
        one = self.databases.get(database)
        return self.state in _PAUSED or (one is not None and one.paused)


def find_waits(
    pools: Sequence[Pool], clients: Sequence[WaitingClient], pooler: Pooler
) -> list[PoolWait]:
    """The pools, those first whose first client has waited longest."""
    found = []
    for pool in pools:
        logins = [
            one.waited
            for one in clients
            if one.logs_in and (one.database, one.user) == (pool.database, pool.user)
        ]
        longest = max(logins, default=0.0)
        is_bound = bool(logins) and longest >= pool.waited
        seconds = max(longest, pool.waited)
        found.append(PoolWait(pool, seconds, is_bound, _size_of(pool, pooler)))
    return sorted(found, key=lambda one: (-one.seconds, -one.pool.waiting, one.name))


def describe(one: PoolWait) -> str:
    """`pool app/app: 12 clients wait, the first for 3.2 s; 20 of 20 server connections in use`"""
    used = sum(count for name, count in one.pool.servers.items() if name not in _NOT_IN_USE)
    servers = f"{plural(used, 'server connection')} in use"
    if one.size and used <= one.size:
        servers = f"{used} of {plural(one.size, 'server connection')} in use"
    waiting = one.pool.waiting
    verb = "client waits" if waiting == 1 else "clients wait"
    since = f"{'at least ' if one.is_bound else ''}{write_seconds(one.seconds)}"
    return f"pool {one.name}: {waiting} {verb}, the first for {since}; {servers}"


def describe_servers(one: PoolWait) -> str:
    """`2 server connections: 1 in use, 1 idle`"""
    doing = [f"{count} {_DOING[name]}" for name, count in one.pool.servers.items() if count]
    if not doing:
        return "no server connection"
    return f"{plural(one.pool.connections, 'server connection')}: {', '.join(doing)}"


def wait_lines(waits: Sequence[PoolWait], pooler: Pooler, most: int) -> list[str]:
    """At most `most` lines: the pools in which clients wait, those with most first, what their
    server connections do, and what to do.
    """
    waiting = sorted((one for one in waits if one.pool.waiting), key=lambda w: -w.pool.waiting)
    shown = waiting if len(waiting) <= most else waiting[: most - 1]
    lines = [
        f"{describe(one).partition(';')[0]}; {describe_servers(one)}; {advise(one, pooler)}"
        for one in shown
    ]
    rest = waiting[len(shown) :]
    if rest:
        clients = plural(sum(one.pool.waiting for one in rest), "waiting client")
        lines.append(f"{len(rest)} more pools: {clients}")
    return lines


def client_lines(pools: Sequence[Pool], too_few: bool, most: int) -> list[str]:
    """At most `most` lines: which pools have most clients of a process that has too many, and what
    to do; or `too_few`, which takes no advice.
    """
    counts: dict[str, int] = {}
    for pool in pools:
        if pool.clients:
            name = f"pool {_name_of(pool)}"
            counts[name] = counts.get(name, 0) + pool.clients
    lines = say_top(counts, str, "pools", "connected", most - 1)
    if too_few:
        return lines
    return [
        *lines,
        "raise max_client_conn (and the limit of open files with it), or let these applications "
        "keep fewer connections",
    ]


def find_refusing(
    unserved: Mapping[str, Unserved], pools: Sequence[Pool], pooler: Pooler
) -> dict[str, Unserved]:
    """The databases of `unserved` that refuse their clients: they have no server connection, and
    more requests were not passed on than there are clients that wait. Where some do now, those of
    which that is only known of an earlier run are left out.
    """
    found = {}
    for name, one in unserved.items():
        mine = [each for each in pools if each.database == name]
        if pooler.is_paused(name) or any(_find_limit(each, pooler) for each in mine):
            continue  # clients wait there, and give up
        connected = any(each.logged_in for each in mine)
        if not connected and one.requests > sum(each.waiting for each in mine):
            found[name] = one
    return {name: one for name, one in found.items() if one.is_recent} or found


def describe_refusing(refusing: Mapping[str, Unserved]) -> str:
    """`database shop refuses its clients: no server connection, and none of 12 requests in 60 s was
    passed on`
    """
    names = name_some([clean(name, 63) for name in sorted(refusing)])
    who = f"database {names} refuses its"
    if len(refusing) > 1:
        who = f"databases {names} refuse their"
    requests = sum(one.requests for one in refusing.values())
    span = write_seconds(max(one.seconds for one in refusing.values()))
    asked = f"none of {requests} requests in {span} was"
    if requests == 1:
        asked = f"the one request in {span} was not"
    if not any(one.is_recent for one in refusing.values()):
        who = who.replace("refuses", "refused").replace("refuse ", "refused ")
        return f"{who} clients, and nobody has asked again since: {asked} passed on"
    return f"{who} clients: no server connection, and {asked} passed on"


def note_unconnected(waits: Sequence[PoolWait]) -> list[str]:
    """What the console does not tell where no pool has a server connection and nobody waits."""
    if not waits or any(one.pool.connections or one.pool.waiting for one in waits):
        return []
    return [
        "no pool has a server connection: nobody asks for one, or the server lets PgBouncer in no "
        "more and clients are refused while they log in, which its console does not tell; a check "
        "of the server, or a query through PgBouncer, does"
    ]


def advise(one: PoolWait, pooler: Pooler) -> str:
    """Why clients of this pool wait, and what to do."""
    database = pooler.databases.get(one.pool.database)
    is_full = one.size is not None and 0 < one.size <= one.pool.connections
    if pooler.state in _PAUSED:
        return f"PgBouncer is {pooler.state}: RESUME ends it"
    if database is not None and database.paused:
        return f"the database is paused: RESUME {clean(one.pool.database, 63)} ends it"
    limit = _find_limit(one.pool, pooler)
    if limit and not is_full:
        return limit
    if not one.pool.logged_in:
        return say_no_login(pooler)
    if is_full:
        if one.pool.mode == SESSION:
            return (
                "sessions hold them until their clients leave: fewer or shorter sessions, "
                "transaction pooling, or a larger pool_size; check_pgsock_pool_size says what it "
                "may be"
            )
        return (
            "shorter transactions, or a larger pool_size; check_pgsock_pool_size says what it may "
            "be"
        )
    if one.size is None:
        return "shorter transactions, or a larger pool"
    return (
        "PgBouncer opens further ones, one after the other; where they go on waiting, logins at "
        "the server are slow or fail"
    )


def _find_limit(pool: Pool, pooler: Pooler) -> str:
    """The limit besides its size that keeps a pool from opening a server connection, in words."""
    database, user = pooler.databases.get(pool.database), pooler.users.get(pool.user)
    if database is not None and 0 < database.max_connections <= database.connections:
        return (
            f"{database.connections} of {database.max_connections} server connections of the "
            "database are open: max_db_connections"
        )
    if user is not None and 0 < user.max_connections <= user.connections:
        return (
            f"{user.connections} of {user.max_connections} server connections of the user are "
            "open: max_user_connections"
        )
    return ""


def say_no_login(pooler: Pooler) -> str:
    """Why a pool has no server connection that has logged in, though one is asked for."""
    paused = "" if pooler.state else ", or all databases are paused"  # told from 1.19 on
    return (
        "the server refuses PgBouncer, cannot be reached or is slow to let in (PgBouncer's log "
        f"says it; it tries again every {pooler.login_retry} s, server_login_retry){paused}"
    )


def note_databases(pooler: Pooler, names: Sequence[str]) -> list[str]:
    """What holds clients of databases back besides the size of a pool; of all without `names`."""
    paused, disabled, full = [], [], []
    for name, one in sorted(pooler.databases.items()):
        if names and name not in names:
            continue
        called = clean(name, 63)
        if one.paused:
            paused.append(called)
        if one.disabled:
            disabled.append(called)
        if 0 < one.max_clients <= one.clients:
            full.append(f"{called} ({one.clients} of {one.max_clients})")
    notes = []
    if pooler.state in _PAUSED:
        notes.append(f"PgBouncer is {pooler.state}: its clients wait until RESUME")
    for some, verbs, what in (
        (full, ("refuses", "refuse"), "more clients (max_db_client_connections)"),
        (paused, ("is", "are"), "paused: clients wait until RESUME"),
        (disabled, ("is", "are"), "disabled: new clients are refused until ENABLE"),
    ):
        if some:
            noun, verb = ("databases", verbs[1]) if len(some) > 1 else ("database", verbs[0])
            notes.append(f"{noun} {name_some(some)} {verb} {what}")
    return notes


def _name_of(pool: Pool) -> str:
    return f"{clean(pool.database, 63)}/{clean(pool.user, 63)}"


def _size_of(pool: Pool, pooler: Pooler) -> int | None:
    """pool_size; not known where the user may have one of its own: SHOW USERS is not to be relied
    on for whose it is (it repeats that of the user above).
    """
    user = pooler.users.get(pool.user)
    database = pooler.databases.get(pool.database)
    if database is None or (user is not None and user.has_pool_size):
        return None
    return database.pool_size
