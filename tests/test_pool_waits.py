"""How long clients of a PgBouncer waited, and why: counters and sentences, without a PgBouncer."""

from __future__ import annotations

import json

import pytest

from check_pgsock.pgbouncer.console import Database, Pool, User, WaitingClient
from check_pgsock.pooling import wait_time
from check_pgsock.pooling.wait_time import Sample, Waited, average, take_sample
from check_pgsock.pooling.waits import (
    Pooler,
    advise,
    client_lines,
    describe,
    describe_servers,
    find_waits,
    note_databases,
    wait_lines,
)

DAY = 86400.0
SECOND = 10**6
OPEN = Database(20, 0, 20, 0, 0, False, False)
NOBODY = Pooler({"shop": OPEN}, {}, "active", "15")


def counters(waited: float, others: int = 10) -> list[int]:
    """What SHOW STATS says of an alias after `waited` seconds of waiting that have ended."""
    return [round(waited * SECOND), others, others]


class History:
    """The samples of runs, and what each finds."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, Sample]] = []
        self.asked = 0  # queries that the console of the process has answered
        self.found: Waited | None = None

    def run(
        self, at: float, shop: list[int] | None, waits: tuple[float, ...] = (), over: float = 300
    ) -> float | None:
        """The mean that a run finds, `shop` not being there where it is None."""
        before, passed = None, 0.0
        if self.samples:
            before, passed = self.samples[-1][1], at - self.samples[-1][0]
        told = {} if shop is None else {"shop": shop}
        self.asked += 1
        sample = take_sample(before, passed, self.asked, told, {"shop": waits})
        self.found = average(self.samples, at, sample, over)
        assert wait_time.parse_sample(json.loads(json.dumps(sample))) == sample
        self.samples.append((at, sample))
        return None if self.found is None else self.found.mean

    @property
    def is_bound(self) -> bool:
        """Whether the last run found a lower bound."""
        assert self.found is not None
        return self.found.is_bound


def test_waits_that_end_within_the_window() -> None:
    history = History()
    assert history.run(0, counters(1000)) is None
    assert history.run(10, counters(1005)) == 0.5
    assert history.run(20, counters(1005)) == 0.25


def test_waits_that_have_not_ended() -> None:
    """Two clients wait for 100 s: the counter stands still, and then has all at once."""
    history = History()
    history.run(0, counters(7))
    assert history.run(50, counters(7), (50, 50)) == 2
    assert history.run(100, counters(7), (100, 100)) == 2
    assert history.run(110, counters(207)) == pytest.approx(200 / 110)
    assert history.run(210, counters(207), over=100) == 0


def test_waits_that_began_before_the_first_run() -> None:
    history = History()
    history.run(0, counters(0), (500, 20))
    assert history.run(10, counters(0), (510, 30)) == 2
    assert history.run(20, counters(520 + 20)) == 1  # both ended at once


def test_who_gives_up_is_never_counted_by_pgbouncer() -> None:
    """What was seen of it counts, and the mean is not below 0."""
    history = History()
    history.run(0, counters(0))
    assert history.run(100, counters(0), (100,)) == 1
    assert history.run(200, counters(0)) == 0.5
    assert history.run(300, counters(0), (10, 10)) == pytest.approx(120 / 300)


def test_counters_that_fell() -> None:
    """What they have now came since; that they fell another counter tells, too."""
    history = History()
    history.run(0, counters(5, 100), (3,))
    assert history.run(10, counters(1, 200)) == 0.1
    assert history.is_bound
    assert history.run(20, counters(8, 3), (2,)) == pytest.approx(11 / 20)
    assert history.run(40, counters(8, 3), (22,), over=20) == 1
    assert not history.is_bound


def test_a_restart_takes_nothing_from_what_was_waited_before() -> None:
    """After it SHOW STATS has no row of an alias until somebody connects."""
    history = History()
    history.run(0, counters(0))
    assert history.run(8, counters(16), (6, 6, 4)) == 4
    assert not history.is_bound
    history.asked = 0
    assert history.run(12, None) == pytest.approx(32 / 12)
    assert history.is_bound
    # Two clients of the new process have waited since, of whom one waits on.
    assert history.run(16, counters(2), (3,)) == pytest.approx(37 / 16)
    assert history.is_bound
    assert history.run(20, counters(6), over=8) == pytest.approx((5 + 1) / 8)
    assert not history.is_bound


def test_a_restart_is_told_by_the_console_where_all_counters_are_higher() -> None:
    history = History()
    history.run(0, counters(1), (5,))
    history.asked = 0
    assert history.run(10, counters(3, 50), (1,)) == 0.4
    assert history.is_bound


def test_a_database_that_is_removed_and_comes_back() -> None:
    history = History()
    history.run(0, counters(50))
    assert history.run(10, counters(60)) == 1
    assert history.run(20, None) == 0.5
    assert history.run(30, counters(3)) == pytest.approx(13 / 30)
    assert history.run(40, counters(3), over=10) == 0


def test_a_database_that_comes_later() -> None:
    history = History()
    history.run(0, None)
    assert history.run(10, counters(5)) == 0.5


def test_databases_add_up() -> None:
    first = take_sample(None, 0, 1, {"a": counters(1), "b": counters(2)}, {})
    second = take_sample(first, 10, 2, {"a": counters(11), "b": counters(22)}, {"a": [5]})
    found = average([(0, first)], 10, second, 300)
    assert found is not None
    assert (found.seconds, found.means, found.mean) == (10, {"a": 1.5, "b": 2}, 3.5)


def test_the_window() -> None:
    history = History()
    for at in range(0, 600, 60):
        history.run(at, counters(at / 60))
    assert history.run(600, counters(10 + 300), over=300) == pytest.approx(305 / 300)
    assert history.run(601, counters(310), over=300) == pytest.approx(304 / 301, abs=0.02)


def test_the_window_where_runs_were_missing() -> None:
    """18 clients have waited for 3 min, and before that there was no run for 21 min."""
    history = History()
    history.run(0, counters(0))
    history.run(1260, counters(0))
    assert history.run(1440, counters(18 * 180)) == 18
    assert history.found is not None
    assert history.found.seconds == 180
    # What is too young says little.
    history = History()
    history.run(0, counters(0))
    history.run(1300, counters(0))
    assert history.run(1440, counters(1440)) == 1


def test_a_retry_keeps_what_the_run_before_has_seen() -> None:
    """The runs are further apart than --over."""
    history = History()
    history.run(0, counters(0))
    assert history.run(1200, counters(4800)) == 4
    assert history.run(1380, counters(4800)) == pytest.approx(4800 / 1380)


@pytest.mark.parametrize(
    "data",
    [None, 7, [], {"a": [[1], 0.0, 0]}, [1, 0], [1, 0, 7], ["1", 0, {}], [1, 0, {"a": 7}],
     [1, 0, {"a": [[], 0.0, 0]}], [1, 0, {"a": [7, 0.0, 0]}], [1, 0, {"a": [[1], "0", 0]}],
     [1, 0, {"a": [[1], 0.0]}]],
)  # fmt: skip
def test_what_is_no_sample(data: object) -> None:
    assert wait_time.parse_sample(data) is None


def pool(
    waiting: int = 3, waited: float = 3.2, mode: str = "transaction", user: str = "app",
    **servers: int,
) -> Pool:  # fmt: skip
    states = ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login")
    doing = {one: servers.get(one, 0) for one in states}
    return Pool("shop", user, 1, waiting, doing, waited, mode)


def said(one: Pool, pooler: Pooler = NOBODY) -> str:
    (wait,) = find_waits([one], [], pooler)
    return describe(wait)


def test_a_pool_in_words() -> None:
    assert said(pool(12, sv_active=20)) == (
        "pool shop/app: 12 clients wait, the first for 3.2 s; 20 of 20 server connections in use"
    )
    assert said(pool(1, 300, sv_active=1, sv_idle=2)) == (
        "pool shop/app: 1 client waits, the first for 5 min; 1 of 20 server connections in use"
    )
    # With those of the reserve, or where the user has a size of its own, there is no "of".
    assert said(pool(sv_active=23)).endswith("the first for 3.2 s; 23 server connections in use")
    own = NOBODY._replace(users={"app": User(True, 0, 0)})
    assert said(pool(sv_active=3), own).endswith("; 3 server connections in use")
    assert said(pool(sv_active=3, user="a|b\n")).startswith("pool shop/a?b : 3 clients wait")


def test_clients_that_log_in_have_no_maxwait_of_pgbouncers() -> None:
    clients = [
        WaitingClient("shop", "app", 7, True),
        WaitingClient("shop", "app", 8, False),
        WaitingClient("shop", "other", 99, True),
    ]
    (wait,) = find_waits([pool(2, 0)], clients, NOBODY)
    assert (wait.seconds, wait.is_bound) == (7, True)
    assert "the first for at least 7.0 s" in describe(wait)
    (wait,) = find_waits([pool(2, 9)], clients, NOBODY)
    assert (wait.seconds, wait.is_bound) == (9, False)


def test_who_waits_longest_is_first_and_most_in_the_lines() -> None:
    pools = [pool(2, 9, user="long", sv_active=20), pool(30, 1, user="many", sv_active=20),
             pool(0, 0, user="none")]  # fmt: skip
    waits = find_waits(pools, [], NOBODY)
    assert [one.pool.user for one in waits] == ["long", "many", "none"]
    advice = "20 server connections: 20 in use; shorter transactions, or a larger pool_size"
    assert [line.partition("; check_pgsock")[0] for line in wait_lines(waits, NOBODY, 10)] == [
        f"pool shop/many: 30 clients wait, the first for 1.0 s; {advice}",
        f"pool shop/long: 2 clients wait, the first for 9.0 s; {advice}",
    ]


def test_more_pools_than_lines() -> None:
    pools = [pool(number, 9, user=f"user{number}") for number in range(1, 6)]
    *shown, rest = wait_lines(find_waits(pools, [], NOBODY), NOBODY, 3)
    assert [line.partition(":")[0] for line in shown] == ["pool shop/user5", "pool shop/user4"]
    assert rest == "3 more pools: 6 waiting clients"


def test_who_has_too_many_clients() -> None:
    pools = [pool(number, user=f"user{number}") for number in range(1, 6)]
    idle = pool(0, user="idle")._replace(active=0)
    advice = (
        "raise max_client_conn (and the limit of open files with it), or let these applications "
        "keep fewer connections"
    )
    assert client_lines([idle, *pools], False, 4) == [
        "pool shop/user5: 6 connected",
        "pool shop/user4: 5 connected",
        "3 more pools: 9 connected",
        advice,
    ]
    assert client_lines([idle], False, 4) == [advice]
    # Too few of them take no advice on too many.
    assert client_lines([idle, pools[0]], True, 4) == ["pool shop/user1: 2 connected"]


def test_what_server_connections_do() -> None:
    one = pool(sv_active=3, sv_idle=1, sv_used=2, sv_tested=4, sv_login=1)
    (wait,) = find_waits([one], [], NOBODY)
    assert describe_servers(wait) == (
        "11 server connections: 3 in use, 1 idle, 2 idle, to be checked, 4 being checked, "
        "1 logging in"
    )


@pytest.mark.parametrize(
    ("one", "pooler", "expected"),
    [
        (pool(sv_active=20), NOBODY, "shorter transactions, or a larger pool_size"),
        (pool(sv_active=20, mode="session"), NOBODY, "sessions hold them until their clients"),
        (pool(sv_active=20), NOBODY._replace(state="paused"), "PgBouncer is paused: RESUME"),
        (pool(), NOBODY, "the server refuses PgBouncer, cannot be reached or is slow to let in"),
        (pool(sv_login=1), NOBODY, "the server refuses PgBouncer, cannot be reached or is slow"),
        (pool(sv_active=7), NOBODY, "PgBouncer opens further ones, one after the other"),
        (
            pool(sv_active=7),
            NOBODY._replace(databases={"shop": OPEN._replace(max_connections=20)}),
            "20 of 20 server connections of the database are open: max_db_connections",
        ),
        (
            pool(sv_active=7),
            NOBODY._replace(users={"app": User(False, 9, 9)}),
            "9 of 9 server connections of the user are open: max_user_connections",
        ),
        (
            pool(sv_active=7),
            NOBODY._replace(users={"app": User(True, 0, 9)}),
            "shorter transactions, or a larger pool",
        ),
        (
            pool(),
            NOBODY._replace(databases={"shop": OPEN._replace(paused=True)}),
            "the database is paused: RESUME shop ends it",
        ),
    ],
)
def test_why_they_wait(one: Pool, pooler: Pooler, expected: str) -> None:
    (wait,) = find_waits([one], [], pooler)
    assert advise(wait, pooler).startswith(expected)


def test_what_is_said_of_databases() -> None:
    databases = {
        **{f"d{number}": OPEN._replace(disabled=True) for number in range(100)},
        "b": OPEN._replace(paused=True, disabled=True),
        "a": OPEN._replace(max_clients=4, clients=4),
        "c": OPEN,
    }
    pooler = Pooler(databases, {}, "suspended", "15")
    paused = "database b is paused: clients wait until RESUME"
    assert note_databases(pooler, []) == [
        "PgBouncer is suspended: its clients wait until RESUME",
        "database a (4 of 4) refuses more clients (max_db_client_connections)",
        paused,
        "databases b, d0, d1, d10, d11 and 96 further are disabled: new clients are refused until "
        "ENABLE",
    ]
    assert note_databases(pooler._replace(state=""), ["b"]) == [
        paused,
        "database b is disabled: new clients are refused until ENABLE",
    ]
    assert note_databases(NOBODY, []) == []
