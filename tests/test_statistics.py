"""Windows between samples of the session statistics, pools assessed on them, and their words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from check_pgsock import pools
from check_pgsock.pools import JUDGED, NO_STATEMENTS, TOO_LITTLE, Backends, Terms
from check_pgsock.postgres.locality import TOLERANCE, judge_locality
from check_pgsock.postgres.statistics import (
    CLOCK_STEP,
    CRASH,
    FIRST_RUN,
    LAST_RUN,
    NO_STATE,
    OTHER_DATABASE,
    OTHER_SERVER,
    RECENT_RUNS,
    RESET,
    RESTART,
    Statistics,
    Window,
    parse_statistics,
)
from check_pgsock.postgres.statistics import choose_window as choose

EPOCH = 1_700_000_000.0


def sample(at: float, active: float = 0.0, idle: float = 0.0, **other: Any) -> Statistics:
    """A sample `at` seconds after the server's start, reset at its start."""
    values: dict[str, Any] = {
        "name": "app",
        "oid": 5,
        "postmaster_start": EPOCH,
        "address": "192.0.2.1",
        "port": 5432,
        "stats_reset": EPOCH,
        "taken": EPOCH + at,
        "active": active,
        "idle": idle,
        "session": active + idle,
        "abandoned": 0,
        "fatal": 0,
        "killed": 0,
        "sessions": 1,
    }
    return Statistics(**{**values, **other})


def choose_window(current: Statistics, earlier: list[Statistics] | None) -> Window:
    return choose(current, earlier, 60)


def parts(window: Window) -> tuple[str, float | None, float, float]:
    return window.origin, window.seconds, window.active, window.idle


def test_a_sample_survives_the_store() -> None:
    one = sample(3.25, 1.5, 2.5, address=None, port=None, stats_reset=None)
    back = parse_statistics(json.loads(json.dumps(one.as_json())))
    assert back is not None
    assert back.as_json() == one.as_json()


@pytest.mark.parametrize("data", [None, 5, [], {}, {"name": "app"}, "text"])
def test_samples_of_another_version_are_left_out(data: object) -> None:
    assert parse_statistics(data) is None
    assert parse_statistics({**sample(0).as_json(), "active": "much"}) is None


def test_first_run_and_no_state_judge_since_the_reset() -> None:
    now = sample(500, 20, 30)
    assert parts(choose_window(now, [])) == (FIRST_RUN, 500, 20, 30)
    assert parts(choose_window(now, None)) == (NO_STATE, 500, 20, 30)


def test_never_reset_has_sums_and_no_length() -> None:
    window = choose_window(sample(500, 20, 30, stats_reset=None), [])
    assert parts(window) == (FIRST_RUN, None, 20, 30)
    assert (window.spent, window.busy_sessions, window.in_transaction_sessions) == (50, None, None)


def test_second_run_judges_since_the_first() -> None:
    window = choose_window(sample(500, 20, 30), [sample(200, 5, 10)])
    assert parts(window) == (LAST_RUN, 300, 15, 20)


@pytest.mark.parametrize("reset", [EPOCH, None])
@pytest.mark.parametrize(
    ("earlier", "now", "seconds"),
    [
        ([0, 300], 600, 300),
        ([0, 300], 330, 330),  # a retry keeps the evidence
        ([0, 300, 330], 360, 60),
        ([0, 300, 330], 340, 340),
        ([0, 5, 10, 70], 75, 65),
    ],
)
def test_a_short_window_reaches_back(
    earlier: list[float], now: float, seconds: float, reset: float | None
) -> None:
    before = [sample(at, at, stats_reset=reset) for at in earlier]
    window = choose_window(sample(now, now, stats_reset=reset), before)
    assert parts(window) == (LAST_RUN, seconds, seconds, 0)


@pytest.mark.parametrize(("reset", "seconds"), [(EPOCH - 500, 559.5), (None, None)])
def test_recent_runs_change_nothing_of_the_first(
    reset: float | None, seconds: float | None
) -> None:
    earlier = [sample(at, 90, stats_reset=reset) for at in (0, 5, 30)]
    now = sample(59.5, 91, stats_reset=reset)
    assert parts(choose_window(now, earlier)) == (RECENT_RUNS, seconds, 91, 0)


@pytest.mark.parametrize(
    ("change", "window"),
    [
        ({"stats_reset": EPOCH + 250}, (RESET, 50, 2, 3)),
        ({"stats_reset": None}, (CRASH, None, 2, 3)),
        # A counter went down, and no reset is known that did it.
        ({"active": 0.5, "session": 99}, (RESET, None, 0.5, 3)),
        ({"sessions": 0}, (RESET, None, 2, 3)),
        ({"postmaster_start": EPOCH + 290, "stats_reset": EPOCH - 700}, (RESTART, 1000, 2, 3)),
        ({"postmaster_start": EPOCH + 290, "stats_reset": None}, (RESTART, None, 2, 3)),
        ({"address": "192.0.2.2"}, (OTHER_SERVER, 300, 2, 3)),
        ({"port": 5433, "stats_reset": None}, (OTHER_SERVER, None, 2, 3)),
        ({"oid": 6, "stats_reset": EPOCH + 290}, (OTHER_DATABASE, 10, 2, 3)),
        ({"oid": 6, "stats_reset": None}, (OTHER_DATABASE, None, 2, 3)),
    ],
)
def test_other_statistics_are_a_new_window(
    change: dict[str, Any], window: tuple[str, float | None, float, float]
) -> None:
    now = sample(300, **{"active": 2, "idle": 3, "session": 5, **change})
    assert parts(choose_window(now, [sample(200, 1, 1)])) == window


def test_a_backward_step_of_the_clock_is_a_new_window_without_a_length() -> None:
    window = choose_window(sample(150, 9), [sample(200, 1)])
    assert parts(window) == (CLOCK_STEP, None, 9, 0)
    # Nor does a sample from before the step serve.
    assert choose_window(sample(150, 9), [sample(80, 0), sample(200, 1)]).origin == CLOCK_STEP


def test_a_clock_before_the_reset_gives_no_length() -> None:
    assert parts(choose_window(sample(-10, 5), [])) == (FIRST_RUN, None, 5, 0)


def test_an_address_of_two_servers_in_turn_subtracts_like_from_like() -> None:
    other = {"postmaster_start": EPOCH - 5, "stats_reset": EPOCH - 5}
    earlier = [sample(0, 1), sample(60, 900, **other), sample(120, 5)]
    window = choose_window(sample(180, 950, **other), earlier)
    assert parts(window) == (LAST_RUN, 120, 50, 0)


def test_a_reset_between_runs_is_never_subtracted_across() -> None:
    reset = {"stats_reset": EPOCH + 90}
    earlier = [sample(0, 50), sample(100, 1, **reset)]
    window = choose_window(sample(130, 2, **reset), earlier)
    assert parts(window) == (RECENT_RUNS, 40, 2, 0)
    window = choose_window(sample(160, 2, **reset), earlier)
    assert parts(window) == (LAST_RUN, 60, 1, 0)


def test_averages_are_never_above_what_was_measured() -> None:
    window = Window(LAST_RUN, 3, 2.0, 0.9)
    assert (window.busy_sessions, window.in_transaction_sessions) == (0.666, 0.3)
    assert Window(LAST_RUN, None, 0.0017, 0.001).spent == 0.002


def assess(active: float, idle: float, terms: Terms, seconds: float = 100) -> pools.Pool:
    return pools.assess(sample(seconds, active, idle), [], [], terms)


@pytest.mark.parametrize(
    ("active", "idle", "outcome", "allowed"),
    [
        (50, 150, JUDGED, 15),  # 4 / 0.25 is 16: strictly below
        (100, 0, JUDGED, 3),
        (0, 100, NO_STATEMENTS, None),
        (0, 0, TOO_LITTLE, None),
        (5, 4.9, TOO_LITTLE, None),
        (5, 5, JUDGED, 7),
    ],
)
def test_outcomes(active: float, idle: float, outcome: str, allowed: int | None) -> None:
    pool = assess(active, idle, Terms(4, pool_size=9))
    assert (pool.outcome, pool.allowed, pool.size) == (outcome, allowed, 9)


def test_nothing_at_all_is_too_little_even_where_nothing_is_enough() -> None:
    assert assess(0, 0, Terms(4, least_busy=0, pool_size=9)).outcome == TOO_LITTLE


def test_without_a_length_the_sum_decides() -> None:
    little = pools.assess(sample(1e7, 30, 29.9, stats_reset=None), [], [], Terms(4, pool_size=9))
    assert (little.outcome, little.ratio, little.allowed) == (TOO_LITTLE, None, None)
    assert pools.describe(little, 0.1) == (
        "too little activity to judge the pool of 9 on database app: 59.900 s busy or in "
        "transaction over all that the statistics hold, below 60 s"
    )
    enough = pools.assess(sample(1, 30, 30, stats_reset=None), [], [], Terms(4, pool_size=9))
    assert (enough.outcome, enough.ratio, enough.allowed) == (JUDGED, 0.5, 7)
    assert pools.describe(enough, 0.1) == (
        "pool of 9 on database app, largest allowed is 7: busy ratio 0.500 over all that the "
        "statistics hold"
    )


LITTLE = "too little activity to judge the pool of 9 on database app: "


@pytest.mark.parametrize(
    ("active", "idle", "seconds", "terms", "words"),
    [
        (5, 4.99, 100, Terms(4, pool_size=9), f"{LITTLE}0.050 sessions busy and 0.049 idle in "
         "transaction over 100 s, together below 0.1"),
        (0.1, 0.04, 0.5, Terms(4, pool_size=9), f"{LITTLE}0.140 s busy or in transaction over "
         "0.5 s, below 0.2 s"),
        (0, 0, 100, Terms(4, pool_size=9, least_busy=0), f"{LITTLE}no statement's or "
         "transaction's time over 100 s"),
        (0, 50, 100, Terms(4, pool_size=9), "pool of 9 on database app: 50.000 s idle in "
         "transactions and no statement's time over 100 s, which sets no limit"),
    ],
)  # fmt: skip
def test_words_of_what_is_not_judged(
    active: float, idle: float, seconds: float, terms: Terms, words: str
) -> None:
    assert pools.describe(assess(active, idle, terms, seconds), terms.least_busy) == words


def test_what_is_in_progress_is_no_zero() -> None:
    """Statements come into the statistics when they end; hidden sessions may be in some."""
    quiet = [backend(7), backend(4, oid=6, unflushed=True)]
    running = backend(8, state="active", unflushed=True)
    hidden = backend(1, state=None, hidden=True, unflushed=None)
    for seen, before, after in (
        (quiet, "", ""),
        ([*quiet, running], "at least ", "; 8 sessions are in statements or transactions that are "
         "not in the statistics yet"),
        ([*quiet, backend(1, unflushed=True), hidden], "at least ", "; 1 session is in statements "
         "or transactions that are not in the statistics yet, and what 1 further session may be in "
         "cannot be seen"),
        ([*quiet, hidden], "at least ", "; what 1 further session may be in cannot be seen"),
    ):  # fmt: skip
        pool = pools.assess(sample(100, 0.07), [], seen, Terms(4, pool_size=9))
        assert pools.describe(pool, 0.1) == (
            f"{LITTLE}{before}0.000 sessions busy and 0.000 idle in transaction over 100 s, "
            f"together below 0.1{after}"
        )


def test_the_checks_own_session_is_no_activity() -> None:
    assert assess(0.03, 0.02, Terms(4, pool_size=9), seconds=0.2).outcome == TOO_LITTLE
    assert assess(0.6, 0.6, Terms(4, pool_size=9), seconds=1.5).outcome == JUDGED


def backend(count: int, **other: Any) -> Backends:
    values = {"oid": 5, "role": "app", "application": "", "state": "idle", "hidden": False,
              "unflushed": False}  # fmt: skip
    return Backends(**{**values, **other}, count=count)


def test_the_size_is_what_is_seen() -> None:
    seen = [backend(3), backend(2, state=None, hidden=True), backend(7, oid=6)]
    pool = pools.assess(sample(100, 10), [], seen, Terms(4))
    assert (pool.size, pool.hidden) == (5, 2)
    assert pools.describe_size(pool, Terms(4)) == [
        "the pool's size is what is seen now, 5 client backends; --pool-size names the "
        "configured one",
        "2 of them belong to other roles and hide their kind, so parallel workers are counted, "
        "too; grant pg_read_all_stats to the role of the check",
    ]
    assert pools.describe_size(pool, Terms(4, pool_size=5)) == []
    assert pools.top_backends(pool, 5, [*seen, backend(9, application="x|y")]) == [
        "9 sessions of role app application x?y: 9 idle",
        "5 sessions of role app: 3 idle, 2 in a hidden state",
    ]
    assert pools.top_backends(pool, 8, seen) == ["no other session is on database app now"]


def test_the_worst_is_the_fullest_of_those_judged() -> None:
    window = Window(LAST_RUN, 60, 30, 30)
    small = pools.Pool("a", 10, 0, window, JUDGED, 0.5, 4)
    large = pools.Pool("b", 100, 0, window, JUDGED, 0.5, 90)
    quiet = pools.Pool("c", 500, 0, window, TOO_LITTLE)
    assert pools.find_worst([large, quiet, small]) is small
    assert pools.find_worst([quiet, pools.Pool("d", 9, 0, window, TOO_LITTLE)]) is quiet


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Window(LAST_RUN, 60, 1, 1), None),
        (
            Window(FIRST_RUN, 86400, 1, 1),
            "first run: judged over the 24.0 h since the statistics were reset",
        ),
        (
            Window(CRASH, None, 1, 1),
            "the statistics were lost in a crash since the last run: judged over all that the "
            "statistics hold, whose beginning is not known",
        ),
        (
            Window(RECENT_RUNS, 864000, 1, 1),
            "no run on these statistics is 60 s ago (--min-window): judged over the 10 days since "
            "the statistics were reset",
        ),
    ],
)
def test_the_origin_is_said(window: Window, words: str | None) -> None:
    assert pools.describe_origin(window, 60) == words


def test_every_origin_has_words() -> None:
    for origin in (NO_STATE, FIRST_RUN, RESET, CRASH, RESTART, OTHER_SERVER, OTHER_DATABASE):
        assert pools.describe_origin(Window(origin, 1, 1, 1), 60)
    assert pools.describe_origin(Window(CLOCK_STEP, None, 1, 1), 60)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.26, "0.3 s"), (42.4, "42 s"), (1000, "17 min"), (18720, "5.2 h"), (1036800, "12 days")],
)
def test_duration(seconds: float, words: str) -> None:
    assert pools.duration(seconds) == words


@pytest.mark.parametrize(
    ("found", "start", "proven", "reason"),
    [
        (("postgres", 99.99), 100.0, True, "is a postgres process here, started 0.010 s apart"),
        (("postmaster", 100.0), 100.0, True, "is a postgres process here, started 0.000 s apart"),
        (None, 100.0, False, "is no process that can be seen here"),
        (("ba|sh", 100.0), 100.0, False, "is here a process called ba?sh"),
        (("postgres", 100.0), None, False, "hides when it started"),
        (
            ("postgres", 100.0),
            100.1 + TOLERANCE,
            False,
            "and the process here started 0.6 s apart",
        ),
    ],
)
def test_locality(
    found: tuple[str, float] | None, start: float | None, proven: bool, reason: str
) -> None:
    locality = judge_locality(7, start, found)
    assert (locality.proven, locality.reason) == (proven, f"its backend 7 {reason}")
