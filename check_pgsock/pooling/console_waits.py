"""What check_pgsock_pool_wait learns from PgBouncer's console: asked once, put beside the past."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Callable

from check_pgsock.dsn_option import libpq_environment
from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.pgbouncer import console
from check_pgsock.pooling import wait_time
from check_pgsock.pooling.waits import (
    Pooler,
    PoolWait,
    client_lines,
    describe,
    describe_refusing,
    find_refusing,
    find_waits,
    note_databases,
    note_unconnected,
    say_no_login,
    wait_lines,
)
from check_pgsock.postgres.client import CONSOLE, connect_console
from check_pgsock.socket_state import NO_DIRECTORY
from check_pgsock.store import Store, make_key
from check_pgsock.text import clean, plural, write_seconds

if TYPE_CHECKING:
    from argparse import Namespace

    from check_pgsock.contract import Run
    from check_pgsock.pgbouncer.console import Pool, WaitingClient
    from check_pgsock.pooling.wait_time import Unserved, Waited

_MOST_TOLD = 20  # databases, at -v
_TELLS_STATE = (1, 19)  # SHOW STATE came with it
_ONE_OF_SEVERAL = (
    "PgBouncer processes share this port (so_reuseport), and the one that answered tells of itself "
    "alone: ask each by its own Unix socket"
)


class ConsoleWaits:
    """What the console told: of the pools that were chosen, and of the whole process."""

    def __init__(
        self,
        waits: Sequence[PoolWait],
        pools: Sequence[Pool],
        pooler: Pooler,
        details: list[str],
    ) -> None:
        self.waits = waits
        self.pools = pools  # of the process
        self.clients = 0  # of the process
        self.most_clients = 0  # max_client_conn
        self.average: Waited | None = None
        self.refusing: dict[str, Unserved] = {}  # databases that refuse their clients
        self.notes: list[str] = []
        self.told: list[str] = []
        self.details = details
        self.unknown: dict[str, str] = {}
        self.commit: Callable[[], None] | None = None
        self._pooler = pooler

    @property
    def waiting(self) -> int:
        """The clients that wait."""
        return sum(one.pool.waiting for one in self.waits)

    @property
    def longest(self) -> float:
        """Seconds for which the first of them has; 0 where none waits."""
        return self.waits[0].seconds if self.waits else 0.0

    @property
    def floor(self) -> tuple[str, str] | None:
        """The least state, with no reason besides the headline: where clients are refused."""
        if not self.refusing:
            return None
        recent = any(one.is_recent for one in self.refusing.values())
        return ("critical" if recent else "warning", "")

    def describe(self) -> str:
        """Who is refused, and the pool whose first client has waited longest, in words."""
        waits = self._describe_waits()
        return f"{describe_refusing(self.refusing)}; {waits}" if self.refusing else waits

    def _describe_waits(self) -> str:
        waiting = [one for one in self.waits if one.pool.waiting]
        if not self.waits:
            return "no client waits: there is no pool yet"
        if not waiting:
            return f"no client waits in {plural(len(self.waits), 'pool')}"
        if len(waiting) == 1:
            return describe(waiting[0])
        return f"{describe(waiting[0])}; {self.waiting} clients wait in {len(waiting)} pools"

    def describe_clients(self) -> str:
        """How many client connections the process has, which are too many, in words."""
        text = f"{self.clients} of {self.most_clients} client connections (max_client_conn)"
        full = self.clients >= self.most_clients
        return f"{text}: PgBouncer refuses further clients" if full else text

    def who(self, alerts: bool, too_few: bool, most: int) -> list[str]:
        """At most `most` lines: why clients are refused; where the number of clients of the process
        `alerts`, for being too high or `too_few`, the pools with most; the pools by the clients
        that wait.
        """
        lines = [say_no_login(self._pooler)] if self.refusing else []
        if alerts:
            lines += client_lines(self.pools, too_few, most // 2)
        return lines + wait_lines(self.waits, self._pooler, most - len(lines))

    def paused(self) -> list[str]:
        """The databases that are paused."""
        return [name for name in self._pooler.databases if self._pooler.is_paused(name)]

    def compare(self, unserved: Mapping[str, Unserved]) -> None:
        """Take over what became of requests since earlier runs."""
        self.refusing = find_refusing(unserved, self.pools, self._pooler)


def read_waits(run: Run) -> ConsoleWaits:
    """Ask the console; raises as connect_console() does, and SourceError where a name that was
    given is none.
    """
    options = run.options
    with closing(connect_console(options.dsn, run.spec.executable, run.deadline)) as client:
        pools = console.parse_pools(client.show("POOLS"))
        clients = []
        if any(one.waiting for one in pools):
            clients = console.parse_waiting_clients(client.show("CLIENTS"))
        stats = client.show("STATS")
        taken = time.time()
        config = console.parse_config(client.show("CONFIG"))
        lists = console.parse_lists(client.show("LISTS"))
        state = ""
        if console.parse_release(client.version) >= _TELLS_STATE:
            state = console.find_state(client.show("STATE"))
        pooler = Pooler(
            console.parse_databases(client.show("DATABASES")),
            console.parse_users(client.show("USERS")),
            state,
            _setting(config, "server_login_retry"),
        )
        endpoint, details = client.endpoint, [client.describe()]

    _require_names(options, pooler, pools)
    chosen = [one for one in pools if _is_chosen(options, one)]
    found = ConsoleWaits(find_waits(chosen, clients, pooler), pools, pooler, details)
    found.clients = lists.get("used_clients", 0) - 1
    found.most_clients = _whole(config, "max_client_conn")
    found.notes = note_databases(pooler, options.database)
    logging_in = sum(one.logs_in for one in clients if _is_chosen(options, one))
    if logging_in:
        found.notes.append(
            f"{plural(logging_in, 'client')} waiting to log in: PgBouncer tells no maxwait of "
            "those, since when they do is known to the second"
        )
    shared = _is_shared(config, endpoint)
    if config.get("so_reuseport") == "1":
        found.notes.append(
            "one of several PgBouncer processes, if others share its port (so_reuseport): it tells "
            "of itself alone"
        )
    _add_average(run, found, shared, (endpoint, config.get("peer_id", "")), taken, stats, clients)
    if not found.refusing:
        found.notes += note_unconnected(found.waits)
    return found


def _add_average(
    run: Run,
    found: ConsoleWaits,
    is_shared: bool,
    pooler: object,
    taken: float,
    stats: Sequence[console.Row],
    clients: Iterable[WaitingClient],
) -> None:
    """Put the counters beside those of earlier runs."""
    options = run.options
    if options.user:
        return  # SHOW STATS tells of databases, not of users
    if is_shared:
        found.unknown["wait_ratio"] = _ONE_OF_SEVERAL
        return
    store = Store.open(options.state_dir, run.deadline)
    if store is None:
        why = f"it takes what earlier runs saw, and there is {NO_DIRECTORY}"
        found.unknown["wait_ratio"] = why
        found.notes.append(f"wait_ratio is not measured: {why}")
        return
    key = make_key(
        run.spec.name, options.state_key, options.dsn, libpq_environment(), pooler,
        sorted(set(options.database)),
    )  # fmt: skip
    earlier = [
        (one.at, sample)
        for one in store.samples(key)
        for sample in [wait_time.parse_sample(one.data)]
        if sample is not None and one.at < taken
    ]
    waits: dict[str, list[float]] = {}
    for one in clients:
        waits.setdefault(one.database, []).append(one.waited)
    chosen = {
        name: counts
        for name, counts in console.parse_counters(stats).items()
        if not options.database or name in options.database
    }
    before, passed = (earlier[-1][1], taken - earlier[-1][0]) if earlier else (None, 0.0)
    asked = console.parse_console_queries(stats)
    sample = wait_time.take_sample(before, passed, asked, chosen, waits, found.paused())
    found.compare(wait_time.find_unserved(earlier, taken, sample, options.over))
    found.average = wait_time.average(earlier, taken, sample, options.over)
    if found.average is None:
        found.notes.append("first run: wait_ratio is measured from the second on")
    else:
        found.details.append(f"wait_ratio is that of {found.average.seconds:.3f} s")
        found.told += _tell_means(found.average)
        if found.average.is_bound:
            found.notes.append(
                "PgBouncer was restarted, or counters of it began anew, within the last "
                f"{write_seconds(found.average.seconds)}: what it had counted since the run before "
                "is missing, wait_ratio is a lower bound"
            )
    found.details.append(f"state: {store.path}")
    found.commit = lambda: store.commit({key: sample}, taken, options.over)


def _tell_means(average: Waited) -> list[str]:
    """The databases whose clients waited most."""
    ranked = sorted(average.means.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"database {clean(name, 63)}: {mean:.3f} clients waited on average"
        for name, mean in ranked[:_MOST_TOLD]
    ]
    if len(ranked) > _MOST_TOLD:
        rest = sum(mean for _, mean in ranked[_MOST_TOLD:])
        lines.append(f"{len(ranked) - _MOST_TOLD} more databases: {rest:.3f}")
    return lines


def _is_shared(config: Mapping[str, str], endpoint: tuple[str, int]) -> bool:
    """Whether another process may answer next time, and nothing would tell: the one that has a
    Unix socket has it alone, and those with a peer_id (1.19) say who they are.
    """
    is_named = config.get("peer_id", "0") != "0"
    return config.get("so_reuseport") == "1" and not is_named and not endpoint[0].startswith("/")


def _is_chosen(options: Namespace, one: Pool | WaitingClient) -> bool:
    """Whether --database and --user choose the pool, or the client's."""
    return (not options.database or one.database in options.database) and (
        not options.user or one.user in options.user
    )


def _require_names(options: Namespace, pooler: Pooler, pools: Sequence[Pool]) -> None:
    """Raise SourceError for a name that PgBouncer does not know: nobody would ever wait there."""
    databases = {*pooler.databases, *(one.database for one in pools)}
    users = {*pooler.users, *(one.user for one in pools)}
    for what, named, known in (
        ("database", options.database, databases),
        ("user", options.user, users),
    ):
        missing = sorted(set(named) - known)
        if CONSOLE in missing:
            raise SourceError(f"--{what} {CONSOLE} is the console itself; drop it")
        if missing:
            listed = ", ".join(clean(one) for one in missing)
            raise SourceError(
                f"PgBouncer knows no {what} {listed}: see to --{what}; one that only the entry * "
                "lets in is known once somebody has connected"
            )


def _setting(config: Mapping[str, str], name: str) -> str:
    if name not in config:
        raise MalformedError(f"SHOW CONFIG has no {name}; PgBouncer 1.12 and later have it")
    return clean(config[name])


def _whole(config: Mapping[str, str], name: str) -> int:
    text = _setting(config, name)
    if not text.isdigit():
        raise MalformedError(f"SHOW CONFIG says {name} is {text}, which is no number")
    return int(text)
