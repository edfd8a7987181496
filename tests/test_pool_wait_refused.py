"""check_pgsock_pool_wait where PgBouncer refuses its clients at once: what its counters tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from check_pgsock.pgbouncer.console import Database, Pool, User
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import WireError
from check_pgsock.pooling.wait_time import Sample, Unserved, find_unserved, take_sample
from check_pgsock.pooling.waits import (
    Pooler,
    describe_refusing,
    find_refusing,
    find_waits,
    note_unconnected,
)
from tests import support
from tests.conftest import Servers
from tests.pool_load import masked
from tests.support import Completed
from tests.test_pool_wait import FIRST_RUN, PREFIX, console, perfdata, state

__all__ = ["state"]

OPEN = Database(20, 0, 20, 0, 0, False, False)
FULL = OPEN._replace(max_connections=2, connections=2)
POOLER = Pooler({"shop": OPEN}, {}, "active", "15")
UNCONNECTED = (
    "no pool has a server connection: nobody asks for one, or the server lets PgBouncer in no more "
    "and clients are refused while they log in, which its console does not tell; a check of the "
    "server, or a query through PgBouncer, does\n"
)
DAY = 86400.0
ANSWER = "[('1',)]"


class History:
    """The samples of runs, and what each finds of the database shop."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, Sample]] = []

    def run(self, at: float, requests: int, received: int, paused: bool = False) -> Unserved | None:
        """A run's look at the counters."""
        before = self.samples[-1][1] if self.samples else None
        counters = {"shop": [0, requests, requests, received, 0]}
        names = ["shop"] if paused else []
        sample = take_sample(before, 60, len(self.samples) + 1, counters, {}, names)
        found = find_unserved(self.samples, at, sample, 300).get("shop")
        self.samples.append((at, sample))
        return found


def test_requests_of_which_none_was_passed_on() -> None:
    history = History()
    assert history.run(0, 100, 5000) is None
    assert history.run(60, 110, 5500) is None
    assert history.run(120, 130, 5500) == Unserved(20, 60, True)
    # A retry keeps it, though nobody has asked since, and so do runs for --over seconds.
    assert history.run(150, 130, 5500) == Unserved(20, 90, False)
    assert history.run(360, 130, 5500) == Unserved(20, 300, False)
    assert history.run(420, 130, 5500) is None
    assert history.run(480, 131, 5500) == Unserved(1, 120, True)
    # One that was passed on ends it.
    assert history.run(490, 140, 5501) is None
    assert history.run(500, 140, 5501) is None


def test_runs_that_were_missing() -> None:
    history = History()
    history.run(0, 100, 5000)
    assert history.run(DAY, 130, 5000) == Unserved(30, DAY, True)


def test_a_retry_within_a_minute_of_the_last_request_is_no_less() -> None:
    history = History()
    history.run(0, 100, 5000)
    assert history.run(20, 130, 5000) == Unserved(30, 20, True)
    assert history.run(50, 130, 5000) == Unserved(30, 50, True)
    assert history.run(80, 130, 5000) == Unserved(30, 80, False)


def test_what_was_asked_while_paused_is_not_refused() -> None:
    history = History()
    history.run(0, 100, 5000)
    history.run(60, 105, 5000, paused=True)
    assert history.run(120, 105, 5000) is None
    assert history.run(180, 106, 5000) == Unserved(1, 60, True)


def test_counters_of_another_alias_that_began_anew_take_nothing() -> None:
    def counters(shop: int, low: int) -> dict[str, list[int]]:
        return {"shop": [0, shop, shop, 70, 0], "low": [0, low, low, low, 0]}

    first = take_sample(None, 0, 1, counters(10, 9), {})
    then = take_sample(first, 60, 2, counters(15, 9), {})
    now = take_sample(then, 60, 3, counters(17, 1), {})
    assert find_unserved([(0, first), (60, then)], 120, now, 300)["shop"] == (7, 120, True)


def test_counters_that_began_anew_tell_nothing() -> None:
    history = History()
    history.run(0, 100, 5000)
    history.samples.append((10, take_sample(history.samples[0][1], 10, 1, {}, {})))
    assert history.run(60, 120, 5000) is None
    # Nor do those that another version has kept.
    old = Sample(1, 0, {"shop": [[7, 7], 0.0, 0]})
    now = take_sample(old, 60, 2, {"shop": [7, 9, 9, 5, 5]}, {})
    assert find_unserved([(0, old)], 60, now, 300) == {}


def pool(waiting: int = 0, **servers: int) -> Pool:
    states = ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login")
    return Pool(
        "shop", "app", 1, waiting, {one: servers.get(one, 0) for one in states}, 0, "session"
    )


@pytest.mark.parametrize(
    ("pools", "pooler", "refuses"),
    [
        ([pool()], POOLER, True),
        ([pool(sv_login=1)], POOLER, True),
        ([pool(sv_idle=1)], POOLER, False),
        ([pool(), pool(sv_active=1)], POOLER, False),
        ([pool(waiting=2)], POOLER, True),
        ([pool(waiting=3)], POOLER, False),  # their requests are those
        ([pool()], POOLER._replace(state="paused"), False),
        ([pool()], POOLER._replace(databases={"shop": OPEN._replace(paused=True)}), False),
        ([pool()], POOLER._replace(databases={}), True),
        ([pool()], POOLER._replace(databases={"shop": FULL}), False),
        ([pool()], POOLER._replace(users={"app": User(False, 2, 2)}), False),
    ],
)
def test_who_refuses(pools: list[Pool], pooler: Pooler, refuses: bool) -> None:
    unserved = {"shop": Unserved(3, 60)}
    assert find_refusing(unserved, pools, pooler) == (unserved if refuses else {})


def test_refusals_in_words() -> None:
    assert describe_refusing({"shop": Unserved(12, 60)}) == (
        "database shop refuses its clients: no server connection, and none of 12 requests in 60 s "
        "was passed on"
    )
    assert describe_refusing({"shop": Unserved(1, 5)}) == (
        "database shop refuses its clients: no server connection, and the one request in 5.0 s was "
        "not passed on"
    )
    assert describe_refusing({"shop": Unserved(12, 60, False)}) == (
        "database shop refused its clients, and nobody has asked again since: none of 12 requests "
        "in 60 s was passed on"
    )
    assert describe_refusing({"web\n": Unserved(3, 60), "shop": Unserved(4, 120)}) == (
        "databases shop, web  refuse their clients: no server connection, and none of 7 requests "
        "in 2 min was passed on"
    )


def test_pools_without_a_server_connection() -> None:
    def noted(*pools: Pool) -> list[str]:
        return note_unconnected(find_waits(pools, [], POOLER))

    assert noted(pool(), pool()) == [UNCONNECTED.strip()]
    for pools in ([], [pool(), pool(sv_idle=1)], [pool(waiting=1)], [pool(sv_login=1)]):
        assert noted(*pools) == []


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[PostgresServer]:
    """A server with a role that can be kept out."""
    support.require("pgbouncer")
    shared = servers.get(support.SOME_MAJORS[0])
    shared.execute("CREATE ROLE refused")
    yield shared
    shared.execute("DROP ROLE refused")


def ask(pooler: PgBouncerServer) -> str:
    """What a client that connects anew is told."""
    try:
        with pooler.connect(user="refused") as client:
            return str(client.query("SELECT 1"))
    except WireError as error:
        return str(error)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_server_that_lets_pgbouncer_in_no_more(
    server: PostgresServer, state: Sequence[str], mode: str
) -> None:
    settings = {"server_login_retry": 1, "query_wait_timeout": 1}
    with PgBouncerServer(server, pool_mode=mode, settings=settings, users=("refused",)) as pooler:
        server.execute("ALTER ROLE refused LOGIN")
        assert ask(pooler) == ANSWER
        server.execute("ALTER ROLE refused NOLOGIN")
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'refused'"
        )
        support.wait_until(lambda: not pooler.server_ports(), "it has no server connection")
        done = console(pooler, *state)
        assert (done.code, masked(done.out)) == (
            0,
            f"{PREFIX} OK - no client waits in 1 pool; 0 of 100 client connections | "
            f"{perfdata('#', 0, 0)}{FIRST_RUN}{UNCONNECTED}",
        )
        for _ in range(4):  # the first waits for query_wait_timeout, up to some version
            assert ask(pooler) != ANSWER
        for _ in range(2):  # a retry does not lose it
            assert refused(console(pooler, *state)) == REFUSED
        server.execute("ALTER ROLE refused LOGIN")
        support.wait_until(lambda: ask(pooler) == ANSWER, "it lets them in again")
        done = console(pooler, *state)
        assert (done.code, done.out.partition(";")[0]) == (
            0,
            f"{PREFIX} OK - no client waits in 1 pool",
        )
        assert UNCONNECTED not in done.out


REFUSED = (
    2,
    f"{PREFIX} CRITICAL - database postgres refuses its clients: no server connection, and none of "
    "4 requests in # s was passed on; no client waits in 1 pool; # waited on average over # s; 0 "
    f"of 100 client connections | {perfdata('#', 0, 0, ratio=True)}the server refuses PgBouncer, "
    "cannot be reached or is slow to let in (PgBouncer's log says it; it tries again every # s, "
    "server_login_retry), or all databases are paused\n",
)


def refused(done: Completed) -> tuple[int, str]:
    return done.code, masked(done.out)
