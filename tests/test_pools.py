"""Pools assessed on windows of their statistics, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from check_pgsock.pooling import assessment, pools, windows, wording
from check_pgsock.pooling.origins import EARLIER_RUN, FIRST_RUN, NO_STATE
from check_pgsock.pooling.pools import (
    JUDGED,
    NO_STATEMENTS,
    TOO_LITTLE,
    Pool,
    Size,
    Terms,
)
from check_pgsock.pooling.samples import Backends, History, Progress, Sample, sum_progress
from check_pgsock.pooling.windows import Window
from check_pgsock.postgres import statistics
from check_pgsock.postgres.parallelism import Launched, Looks
from tests.pool_samples import EPOCH, sample

NINE = Size(9, "--pool-size")


def assess(now: Sample, earlier: list[Sample], *more: Any) -> Pool:
    return assessment.assess(History(now, earlier), *more)


def of(active: float, idle: float, seconds: float = 100, **terms: Any) -> Pool:
    """The pool of 9 after so many seconds, judged since the reset."""
    return assess(sample(seconds, active, idle), [], Terms(4, **terms), NINE)


@pytest.mark.parametrize(
    ("active", "idle", "outcome", "allowed"),
    [
        (50, 150, JUDGED, 16),  # 4 / 0.25: just the limit is no more than that
        (100, 0, JUDGED, 4),
        (0, 100, NO_STATEMENTS, None),
        (0, 0, TOO_LITTLE, None),
        (5, 4.9, TOO_LITTLE, None),
        (5, 5, JUDGED, 8),
    ],
)
def test_outcomes(active: float, idle: float, outcome: str, allowed: int | None) -> None:
    pool = of(active, idle)
    assert (pool.outcome, pool.allowed, pool.size) == (outcome, allowed, 9)


def test_nothing_at_all_is_too_little_even_where_nothing_is_enough() -> None:
    assert of(0, 0, least_busy=0).outcome == TOO_LITTLE


def test_without_a_length_the_sum_decides() -> None:
    terms = Terms(4)
    little = assess(sample(1e7, 30, 29.9, stats_reset=None), [], terms, NINE)
    assert (little.outcome, little.ratio, little.allowed) == (TOO_LITTLE, None, None)
    assert wording.describe(little, terms) == (
        "too little activity to judge the pool of database app of 9 connections: 59.900 s busy or "
        "in transaction over all that the statistics hold, below 60 s"
    )
    enough = assess(sample(1, 30, 30, stats_reset=None), [], terms, NINE)
    assert (enough.outcome, enough.ratio, enough.allowed) == (JUDGED, 0.5, 8)
    assert wording.describe(enough, terms) == (
        "pool of database app may be up to 8, it is 9: lower it; busy ratio 0.500 over all that "
        "the statistics hold"
    )


LITTLE = "too little activity to judge the pool of database app of 9 connections: "


@pytest.mark.parametrize(
    ("active", "idle", "seconds", "least", "words"),
    [
        (5, 4.99, 100, 0.1, f"{LITTLE}0.050 sessions busy and 0.049 idle in transaction over "
         "100 s, together below 0.1"),
        (9, 9, 0.5, 0.1, f"too short a time to judge {LITTLE[29:-2]}: 0.5 s, below 60 s"),
        (0, 0, 100, 0, f"{LITTLE}no statement's or transaction's time over 100 s"),
        (0, 50, 100, 0.1, "pool of database app of 9 connections: 50.000 s idle in transactions "
         "and no statement's time over 100 s, which sets no limit"),
    ],
)  # fmt: skip
def test_words_of_what_is_not_judged(
    active: float, idle: float, seconds: float, least: float, words: str
) -> None:
    pool = of(active, idle, seconds, least_busy=least)
    assert wording.describe(pool, Terms(4, least_busy=least)) == words


def test_what_cannot_be_seen_is_no_zero() -> None:
    hidden = sample(100, 0.07, progress=Progress(unseen=3), backends=3)
    pool = assess(hidden, [], Terms(4), NINE)
    assert wording.describe(pool, Terms(4)) == (
        f"{LITTLE}at least 0.000 sessions busy and 0.000 idle in transaction over 100 s, together "
        "below 0.1; what 3 sessions may be in cannot be seen"
    )
    assert wording.describe_unseen(pool) == (
        "what is done in 3 sessions of other roles cannot be seen: statements and transactions "
        "there count when they end, and parallel workers as connections; grant pg_read_all_stats "
        "to the role of the check"
    )
    assert wording.describe_unseen(of(1, 1)) is None


def test_the_checks_own_session_is_no_activity() -> None:
    little = of(0.03, 0.02, seconds=0.2, since=0.1)
    assert little.outcome == TOO_LITTLE
    assert wording.describe(little, Terms(4, since=0.1)) == (
        f"{LITTLE}0.050 s busy or in transaction over 0.2 s, below 0.2 s"
    )
    assert of(6, 6, seconds=61, since=None).outcome == JUDGED
    assert of(0.6, 0.6, seconds=1.5, since=1.6).outcome == TOO_LITTLE


def backend(count: int, **other: Any) -> Backends:
    values = {"oid": 5, "role": "app", "application": "", "state": "idle", "hidden": False,
              "active": 0.0, "idle": 0.0, "unsplit": 0.0, "oldest": None, "waiting": 0}  # fmt: skip
    return Backends(**{**values, **other}, count=count)


def test_progress_is_the_sum_of_those_that_show_it() -> None:
    progress = sum_progress(
        [
            backend(7),
            backend(2, state="active", active=3.5, unsplit=1.0, oldest=4.0),
            backend(1, state="idle in transaction", active=0.5, idle=2.0, oldest=9.0),
            backend(4, state=None, hidden=True),
            backend(2, state="disabled"),
        ]
    )
    assert [progress.active, progress.idle, progress.unsplit, progress.oldest] == [4, 2, 1, 9]
    assert progress.unseen == 6


def test_a_pool_that_was_lowered_is_no_longer_judged_by_what_it_was() -> None:
    earlier = [
        sample(at * 1000, at * 500, backends=seen) for at, seen in ((0, 60), (1, 30), (2, 8))
    ]
    now = sample(4000, 2000, backends=5)
    assert assess(now, earlier, Terms(4)).size == 30
    assert assess(sample(4700, 2350, backends=5), earlier, Terms(4)).size == 8
    # Where the size is configured sooner.
    assert assess(now, earlier, Terms(4), Size(6, "x")).size == 6
    assert assess(sample(2500, 1250, backends=5), earlier, Terms(4), Size(6, "x")).size == 8


def test_the_larger_of_configured_and_seen_is_judged() -> None:
    earlier = [sample(at, at / 2, backends=seen) for at, seen in ((0, 3), (60, 30), (120, 5))]
    now = sample(180, 90, backends=4)
    terms = Terms(4, poolers=3)

    def size(configured: int | None) -> tuple[int, str]:
        given = None if configured is None else Size(configured, "the console", "default_pool_size")
        pool = assess(now, earlier, terms, given)
        (said,) = wording.describe_size(pool, terms)
        return pool.size, said

    seen = "the pool's size is 30 client backends at most seen within"
    assert size(None) == (
        30, f"{seen} an hour; --pool-size, --console or --ini names the configured one"
    )  # fmt: skip
    assert size(9) == (
        30, f"{seen} ten minutes, more than 9 connections by the console, times 3 poolers; see to "
        "--poolers, and to who else connects",
    )  # fmt: skip
    assert size(20) == (
        60, "the pool's size is 20 connections by the console, times 3 poolers"
    )  # fmt: skip
    pool = assess(now, earlier, Terms(4), Size(30, "x", notes=("as far as known",)))
    assert wording.describe_size(pool, Terms(4)) == ["as far as known"]


@pytest.mark.parametrize(
    ("active", "idle", "size", "sentence"),
    [
        (0.8, 4.2, 60, "may be 12 to 25, it is 60: lower default_pool_size"),
        (0.8, 4.2, 25, "may be 12 to 25, it is 25"),
        (0.8, 4.2, 11, "may be 12 to 25, it is 11: raise default_pool_size"),
        (3, 0, 2, "may be up to 4, of 9 that its load asks for, it is 2: raise default_pool_size"),
        (3, 0, 60, "may be up to 4, of 9 that its load asks for, it is 60: the server is too small "
         "for the work, or statements take too long"),
        # Little work, but of statements without a pause: some of it comes at the same time.
        (2.7, 0, 8, "may be up to 4, of 8 that its load asks for, it is 8: lower "
         "default_pool_size, and clients wait briefly at times"),
    ],
)  # fmt: skip
def test_the_sentence_that_a_dba_needs(
    active: float, idle: float, size: int, sentence: str
) -> None:
    """Of a pool that was full."""
    given = Size(size, "the console", "default_pool_size", "app/web")
    terms = Terms(4)
    pool = assess(sample(100, active * 100, idle * 100, backends=size), [], terms, given)
    assert wording.describe(pool, terms).startswith(f"pool app/web {sentence}; busy ratio ")


def test_nothing_is_to_grow_where_all_are_too_large() -> None:
    pool = assess(sample(100, 80, 420, backends=7), [], Terms(4), Size(7, "x", "default_pool_size"))
    assert ": raise default_pool_size;" in wording.describe(pool, Terms(4))
    assert "raise" not in wording.describe(pool, Terms(4), may_grow=False)


def test_no_more_are_needed_than_there_ever_were() -> None:
    """Each session has a connection of its own, or the pool was never full."""
    now = sample(100, 80, 420, backends=7)
    direct = assess(now, [], Terms(4))
    assert (direct.needed, direct.size) == (7, 7)
    assert assess(now, [], Terms(4), Size(30, "x")).needed == 7
    assert assess(now, [], Terms(4), Size(7, "x")).needed == 12
    # Where none were seen that says nothing.
    assert assess(sample(100, 80, 420, backends=0), [], Terms(4), Size(30, "x")).needed == 12


def test_who_has_more_sessions_than_are_configured_has_what_it_wants() -> None:
    """Not a full pool, beside which an administrator works."""
    for size, seen, needed in (
        (1, 2, 12), (1, 6, 6), (4, 5, 12), (4, 6, 6), (10, 11, 12), (7, 8, 12), (7, 11, 11),
    ):  # fmt: skip
        given = Size(size, "--pool-size")
        pool = assess(sample(100, 80, 420, backends=seen), [], Terms(4), given)
        assert (size, seen, pool.needed) == (size, seen, needed)
        is_raised = ": raise it;" in wording.describe(pool, Terms(4))
        assert is_raised == (needed == 12)


def test_when_the_load_was_that_asks_for_more() -> None:
    earlier = [sample(0, backends=5), sample(60, 48, 252, backends=5), sample(7000, 400, 500)]
    pool = assess(sample(7100, 420, 510), earlier, Terms(4), Size(4, "x"))
    assert (pool.needed, pool.window.seconds, pool.load_ago) == (12, 100, 7040)
    assert wording.describe_load(pool) == "the load that asks for 12 connections was 1 h 57 min ago"
    # Of that pool more were never wanted.
    pool = assess(sample(7100, 420, 510), earlier, Terms(4), Size(6, "x"))
    assert (pool.needed, wording.describe_load(pool)) == (5, None)
    # It is that of now.
    pool = assess(sample(60, 48, 252), earlier[:1], Terms(4), Size(4, "x"))
    assert ": raise it;" in wording.describe(pool, Terms(4))
    assert wording.describe_load(pool) is None


def test_much_work_is_that_of_the_window_or_of_the_day() -> None:
    """Two cores, three clients whose statements have no pauses."""

    def advice(share: float, *earlier: Sample, parallelism: float = 1) -> str:
        end = earlier[-1].statistics.active if earlier else 0.0
        now = sample(10000, end + share * 100, backends=3)
        given = Terms(2, parallelism=parallelism)
        pool = assess(now, [*earlier, sample(9900, end, backends=3)], given)
        return wording.describe(pool, given).partition("it is 3")[2].partition("; busy")[0]

    small = ": the server is too small for the work, or statements take too long"
    briefly = ": lower it, and clients wait briefly at times"
    assert advice(0.6) == briefly
    assert advice(1.4) == small
    assert advice(0.6, sample(0, backends=3), sample(100, 140, backends=3)) == small
    assert advice(0.6, sample(0, backends=3), sample(100, 130, backends=3)) == briefly
    assert advice(0.6, parallelism=2) == briefly
    assert advice(0.71, parallelism=2) == small


def test_locks_are_to_be_mended_first() -> None:
    def found(*backends: Backends) -> tuple[str, str | None]:
        now = sample(100, 500, backends=5)
        pool = assess(now, [], Terms(2), None, False, backends)
        return wording.describe(pool, Terms(2)), wording.describe_locks(pool)

    updates = backend(5, state="active", waiting=4)
    said, note = found(updates, backend(9))
    assert said.startswith(
        "pool of database app may be up to 2, of 5 that its load asks for, it is 5: its "
        "statements wait for locks; busy ratio 1.000 "
    )
    assert note == "4 of 5 active sessions wait for locks: that is what to mend first"
    assert found(backend(1, state="active", waiting=1))[1] == (
        "1 of 1 active session waits for a lock: that is what to mend first"
    )
    pool = assess(sample(100), [], Terms(2), NINE, False, [updates])
    assert note in wording.qualify(pool, Terms(2))
    said, note = found(updates, backend(4, state="active"))
    assert "the server is too small" in said
    assert note is None
    assert found(backend(5))[1] is None


def test_the_workers_that_statements_wanted() -> None:
    pool = of(10, 10)
    assert wording.describe_workers(pool, None) == []
    assert wording.describe_workers(pool, Launched(0, 0)) == []
    assert wording.describe_workers(pool, Launched(8, 8)) == [
        "statements on database app got the 8 parallel workers that they wanted since the "
        "statistics were reset"
    ]
    assert wording.describe_workers(pool, Launched(8, 3)) == [
        "statements on database app got 3 of the 8 parallel workers that they wanted since the "
        "statistics were reset: see max_parallel_workers"
    ]


def test_what_is_seen_has_no_setting() -> None:
    given = Size(3, "the console", "pool_size of shop", "shop/app")
    pool = assess(sample(100, 80, 20, backends=9), [], Terms(4), given)
    assert wording.describe(pool, Terms(4)).startswith(
        "pool shop/app may be up to 5, it is 9: lower it; busy ratio "
    )


def test_session_pooling_holds_the_highest_number_of_sessions() -> None:
    earlier = [sample(0, backends=40), sample(60, 30, backends=20)]
    pool = assess(sample(120, 60, backends=30), earlier, Terms(4), Size(25, "x"), True)
    # Half a session at work, of 25 that were there on average: a fiftieth.
    assert (pool.needed, pool.size, pool.ratio, pool.allowed) == (40, 40, 0.02, 200)
    assert wording.describe(pool, Terms(4)) == (
        "pool of database app may be 40 to 200, it is 40; busy ratio of whole sessions 0.020 over "
        "60 s"
    )
    # Without an earlier run, by the sessions there are now.
    alone = assess(sample(100, 20, backends=2), [], Terms(4), NINE, True)
    assert (alone.ratio, alone.needed) == (0.1, 2)
    undated = assess(sample(100, 200, stats_reset=None), [], Terms(4), NINE, True)
    assert (undated.outcome, undated.ratio) == (pools.UNDATED, None)
    assert wording.describe(undated, Terms(4)) == (
        "pool of database app of 9 connections cannot be judged by whole sessions: since when they "
        "count is not known"
    )


def test_where_parallelism_is_from() -> None:
    def told(looks: Looks | None) -> str:
        now = sample(160, 30, looks=looks)
        before = sample(100, looks=Looks(5, 10, 0))
        return wording.describe_parallelism(assess(now, [before], Terms(4)))

    assert told(Looks(20, 65, 0)) == "parallelism 3 as seen on the database"
    assumed = "parallelism 1 assumed: too few statements were seen"
    assert told(Looks(14, 65, 0)) == told(None) == assumed
    assert told(Looks(20, 65, 3)) == assumed  # some hide what they do
    given = assess(sample(100, 30), [], Terms(4, parallelism=2.5))
    assert (given.allowed, wording.describe_parallelism(given)) == (
        1, "parallelism 2.5 as given"
    )  # fmt: skip


def test_all_pools_of_a_server_share_its_cores() -> None:
    terms = Terms(4, io_limit=3)
    each = [
        assess(sample(100, 50, 50, name=name, backends=0), [], terms, Size(size, "x"))
        for name, size in (("shop", 5), ("app", 4), ("quiet", 3))
    ]
    quiet = assess(sample(100, name="none"), [], terms, Size(99, "x"))
    assert [one.work for one in [*each, quiet]] == [2.5, 2.0, 1.5, None]
    assert pools.full_load([*each, quiet], terms.capacity) == 200
    assert pools.full_load([quiet], terms.capacity) is None
    assert wording.describe_together(each, terms) == (
        "all pools in full use come to 6.0 processes at work, 200 % of the 3 that the server can "
        "run: shop 2.5, app 2.0, quiet 1.5"
    )


def test_work_of_an_unknown_time_counts_only_where_it_is_asked_for() -> None:
    dated = assess(sample(100, 50, 50), [], Terms(4), NINE)
    undated = assess(sample(100, 50, 50, stats_reset=None), [], Terms(4), NINE)
    none = assess(sample(100), [], Terms(4), NINE)
    assessed = {1: dated, 2: undated, 3: none}
    assert pools.find_working(assessed, {1, 3}) == [dated]
    assert pools.find_working(assessed, {2, 3}) == [dated, undated]


def test_who_holds_the_backends() -> None:
    pool = of(10, 0)
    seen = [backend(3), backend(2, state=None, hidden=True), backend(9, application="x|y")]
    assert wording.top_backends(pool, seen) == [
        "9 sessions of role app application x?y: 9 idle",
        "5 sessions of role app: 3 idle, 2 in a hidden state",
    ]
    assert wording.top_backends(pool, []) == ["no other session is on database app now"]


def test_the_worst_is_the_fullest_of_those_judged() -> None:
    def pool(name: str, size: int, allowed: int | None) -> Pool:
        made = Pool(name, window(60), size, size, None, (1.0, pools.ASSUMED))
        made.allowed = allowed
        made.outcome = TOO_LITTLE if allowed is None else JUDGED
        return made

    small, large, quiet = pool("a", 10, 4), pool("b", 100, 90), pool("c", 500, None)
    assert pools.find_worst([large, quiet, small]) is small
    assert pools.find_worst([quiet, pool("d", 9, None)]) is quiet


def window(seconds: float | None, origin: str = EARLIER_RUN, after: Sample | None = None) -> Window:
    return Window(origin, seconds, None, after or sample(60, 1, 1))


def test_an_unreliable_ratio_is_said_and_judged_by_the_least() -> None:
    open_time = Progress(unsplit=50, oldest=900)
    pool = assess(sample(160, 25, 25, progress=open_time), [sample(100)], Terms(4), NINE)
    assert not pool.is_reliable
    assert (pool.ratio, pool.allowed) == (0.5, 16)
    assert wording.describe(pool, Terms(4)).endswith(
        "to 16, it is 9; busy ratio 0.500 over 60 s, unreliable: at least 0.250"
    )
    assert wording.describe_quality(pool) == (
        "the busy ratio is unreliable, between 0.250 and 0.750: a transaction is 15 min old, older "
        "than the window"
    )
    short = Progress(unsplit=50, oldest=30)
    pool = assess(sample(160, 25, 25, progress=short), [sample(100)], Terms(4), NINE)
    assert wording.describe_quality(pool) == (
        "the busy ratio is unreliable, between 0.250 and 0.750: transactions are in progress whose "
        "time before their present statement is not known"
    )
    assert wording.describe_quality(of(10, 10)) is None
    assert wording.describe_quality(of(0, 0)) is None


def test_what_the_statistics_do_not_have_is_not_judged() -> None:
    """Three sessions are at work in all looks, and the counters know of nothing."""
    before = sample(100, 5, looks=Looks(30, 30, 0))
    pool = assess(sample(160, 6, looks=Looks(30, 30, 0)), [before], Terms(4), NINE)
    assert (pool.outcome, pool.allowed) == (pools.UNRELIABLE, None)
    # Nor where they are idle in transactions, or in either state.
    for looks in (Looks(9, 9, 0, 30), Looks(11, 11, 0, 11)):
        pool = assess(sample(160, 9, 3, looks=looks), [sample(100, 5, looks=looks)], Terms(4), NINE)
        assert pool.outcome == pools.UNRELIABLE
    # Nothing came into the counters at all, or less than had been in progress.
    progress = Progress(active=9, idle=9)
    looks = Looks(9, 9, 0, 30)
    before = sample(100, progress=progress, looks=looks)
    pool = assess(sample(160, looks=looks), [before], Terms(4), NINE)
    assert wording.describe(pool, Terms(4)) == (
        "pool of database app of 9 connections cannot be judged: the statistics have nothing of "
        "60 s"
    )
    said = wording.describe_quality(pool)
    assert said is not None
    assert said.startswith("the busy ratio is unreliable: the statistics do not have what ")
    # One run's looks may have met the only moment of work.
    alone = assess(sample(160, 90, 30, looks=Looks(90, 90, 0)), [sample(100, 5)], Terms(4), NINE)
    assert alone.outcome == JUDGED


def test_what_came_late_is_not_judged() -> None:
    """9.5 sessions at work on 5 connections: from 15 on statements without a table come later."""
    before, now = sample(100, 5, 5, backends=5), sample(160, 290, 300, backends=5)
    pool = assess(now, [before], Terms(4), NINE)
    assert (pool.outcome, pool.allowed, pool.needed) == (pools.UNRELIABLE, None, None)
    assert wording.describe(pool, Terms(4)) == (
        "pool of database app of 9 connections cannot be judged: busy ratio 0.491 over 60 s, "
        "unreliable"
    )
    assert wording.describe_quality(pool) == (
        "the busy ratio is unreliable: the statistics do not have what the sessions did in the "
        "window, but more or less; statements that touch no table come late"
    )
    # A window from before what came late holds it all; the load between the runs stays unknown.
    pool = assess(now, [sample(0, backends=5), before], Terms(4), NINE)
    assert (pool.outcome, pool.window.seconds, pool.needed) == (JUDGED, 160, 5)


@pytest.mark.parametrize(
    ("seconds", "origin", "words"),
    [
        (60, EARLIER_RUN, None),
        (86400, FIRST_RUN, "first run: judged over the 24 h 00 min since the statistics "
         "were reset"),
        (None, statistics.CRASH, "the statistics were lost in a crash since the last run: judged "
         "over all that the statistics hold, whose beginning is not known"),
        (864000, windows.RECENT_RUNS, "no run on these statistics is 60 s ago: judged over the "
         "10 d 00 h since the statistics were reset"),
        (90, windows.OLDEST_RUN, "no run on these statistics is 1 h 00 min ago (--since): judged "
         "over the 90 s since the first one"),
    ],
)  # fmt: skip
def test_the_origin_is_said(seconds: float | None, origin: str, words: str | None) -> None:
    terms = Terms(4, since=3600)
    assert wording.describe_origin(window(seconds, origin), terms) == words


def test_every_origin_has_words() -> None:
    for origin in (
        NO_STATE, FIRST_RUN, windows.ASKED, statistics.RESET,
        statistics.CRASH, statistics.RESTART, statistics.OTHER_SERVER, statistics.OTHER_DATABASE,
        statistics.CLOCK_STEP,
    ):  # fmt: skip
        assert wording.describe_origin(window(1, origin), Terms(4))
        assert wording.describe_origin(window(None, origin), Terms(4, since=None))


def test_after_a_restart_it_is_too_early() -> None:
    """What was done since the server was made says nothing of the pool that was OK just before."""
    terms = Terms(4, since=3600)
    anew = {"postmaster_start": EPOCH + 290, "stats_reset": None}
    earlier = [sample(0), sample(240, 60, 400)]
    pool = assess(sample(300, 9000, 100, **anew), earlier, terms, NINE)
    assert (pool.outcome, pool.ratio, pool.work) == (pools.TOO_EARLY, None, None)
    words = "too early to judge the pool of database app of 9 connections: "
    assert wording.describe(pool, terms) == (
        f"{words}the server started anew, or another took its place, since the last run, and no "
        "run on its statistics is 60 s ago"
    )
    assert wording.qualify(pool, terms) == []
    earlier.append(sample(300, 9000, 100, **anew))
    pool = assess(sample(330, 9009, 160, **anew), earlier, terms, NINE)
    assert wording.describe(pool, terms) == f"{words}no run on its statistics is 60 s ago"
    pool = assess(sample(360, 9015, 200, **anew), earlier, terms, NINE)
    assert (pool.outcome, pool.ratio) == (JUDGED, 0.13)
