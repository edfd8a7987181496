"""How sessions ended, counted from samples, and what that says of the mode of pooling: no I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest

from check_pgsock.pooling import origins, session_ends
from check_pgsock.pooling.mode import Usage, describe_usage, find_usage
from check_pgsock.pooling.session_ends import Ends, Sample, add_up, find_ends, parse_sample
from check_pgsock.pooling.session_holders import Holder, holder_lines, kind_lines
from check_pgsock.pooling.session_wording import describe, describe_each, qualify
from check_pgsock.postgres import statistics
from check_pgsock.postgres.statistics import Statistics

NOW = 1_790_000_000.0
SINCE_2000 = NOW - 946_684_800.0
COUNTED: dict[str, Any] = {
    "name": "app", "oid": 5, "postmaster_start": NOW - 9999, "address": "192.0.2.1", "port": 5432,
    "stats_reset": None, "active": 10.0, "idle": 20.0, "session": 300.0, "sessions": 100,
    "abandoned": 1, "fatal": 2, "killed": 3,
}  # fmt: skip


def sample(ago: float = 0.0, backends: int = 10, **changed: Any) -> Sample:
    return Sample(Statistics(**{**COUNTED, "taken": NOW - ago, **changed}), backends)


def counts(ends: Ends) -> tuple[str, int, int, int, int, int]:
    return (ends.origin, ends.new, ends.ended, ends.abandoned, ends.fatal, ends.killed)


LATER: dict[str, Any] = {"sessions": 160, "abandoned": 7, "fatal": 6, "killed": 4}


def test_counted_since_an_earlier_run() -> None:
    ends = find_ends(sample(backends=15, **LATER), [sample(300)], 300)
    assert counts(ends) == ("earlier run", 60, 55, 6, 4, 1)
    assert ends.seconds == 300
    assert ends.rates == {"abandoned": 0.02, "fatal": 4 / 300, "killed": 1 / 300, "new": 0.2}
    assert ends.share("abandoned") == pytest.approx(100 * 6 / 55)
    assert not ends.began_anew


def test_rates_of_a_short_span_are_over_the_whole_of_it() -> None:
    ends = find_ends(sample(**LATER), [sample(30)], 300)
    assert (ends.seconds, ends.rates["abandoned"]) == (30, 0.02)


def test_a_retry_keeps_the_evidence() -> None:
    """From the newest run that is so long ago, whatever came in between."""
    earlier = [sample(900, sessions=50, abandoned=0), sample(320), sample(60, **LATER)]
    assert counts(find_ends(sample(**LATER), earlier, 300)) == ("earlier run", 60, 60, 6, 4, 1)
    # Once it is older than that it is over.
    ends = find_ends(sample(**LATER), [sample(700), sample(310, **LATER)], 300)
    assert counts(ends) == ("earlier run", 0, 0, 0, 0, 0)
    assert ends.share("killed") is None


def test_ended_are_the_three_kinds_at_least() -> None:
    """Those that a database refuses are fatal, and no sessions."""
    ends = find_ends(sample(backends=12, fatal=42), [sample(300)], 300)
    assert counts(ends) == ("earlier run", 0, 40, 0, 40, 0)
    assert ends.share("fatal") == 100


@pytest.mark.parametrize(
    ("earlier", "origin"),
    [
        (None, origins.NO_STATE),
        ([], origins.FIRST_RUN),
        ([sample(60, address="192.0.2.2")], statistics.OTHER_SERVER),
        ([sample(60, postmaster_start=NOW - 5e6)], statistics.RESTART),
        ([sample(60, oid=4)], statistics.OTHER_DATABASE),
        ([sample(-60)], statistics.CLOCK_STEP),
    ],
)
def test_nothing_to_compare_with(earlier: list[Sample] | None, origin: str) -> None:
    ends = find_ends(sample(backends=10, **LATER), earlier, 300)
    zero = (origin, 0, 0, 0, 0, 0)
    assert counts(ends) == ((origin, 160, 150, 7, 6, 4) if earlier is None else zero)
    assert ends.rates == {}
    assert ends.is_counted == (earlier is None)


def test_an_address_that_leads_to_two_servers_in_turn() -> None:
    other = sample(60, address="192.0.2.2", sessions=9, abandoned=0)
    ends = find_ends(sample(**LATER), [sample(300), other], 300)
    assert counts(ends) == ("earlier run", 60, 60, 6, 4, 1)


def test_a_clock_that_was_set_back_ends_what_is_counted() -> None:
    """Runs of before the step are a time ago that nobody knows."""
    earlier = [sample(500), sample(-3000), sample(60, sessions=150)]
    assert counts(find_ends(sample(**LATER), earlier, 300))[:2] == ("earlier run", 10)


@pytest.mark.parametrize("reset", [NOW - 30, None])
def test_a_reset_and_a_crash_lose_what_came_before(reset: float | None) -> None:
    anew = {"sessions": 5, "abandoned": 2, "fatal": 0, "killed": 0, "active": 0.0, "idle": 0.0}
    after = sample(backends=3, stats_reset=reset, session=1.0, **anew)
    ends = find_ends(after, [sample(300), sample(60, 20, **LATER)], 300)
    assert counts(ends) == ("earlier run", 65, 72, 8, 4, 1)
    assert ends.began_anew
    assert ends.session == 1.0


def test_statistics_that_are_dated_by_their_first_session_lose_nothing() -> None:
    """As version 14 does."""
    zero = dict.fromkeys(("active", "idle", "session", "sessions", *session_ends.KINDS), 0)
    ends = find_ends(sample(0, 1, **{**zero, "sessions": 2}, stats_reset=NOW - 5),
                     [sample(60, 0, **zero)], 300)  # fmt: skip
    assert counts(ends) == ("earlier run", 2, 1, 0, 0, 0)
    assert not ends.began_anew


@pytest.mark.parametrize("times", [1, 2, 7])
def test_sessions_that_failed_while_they_started(times: int) -> None:
    now = sample(fatal=2 + times, session=300 + 45 + times * (SINCE_2000 - 20))
    ends = find_ends(now, [sample(300)], 300)
    assert (ends.fatal, ends.false_starts) == (times, times)
    assert find_usage([now.statistics], ends, 1) is None


def test_what_the_store_keeps() -> None:
    data = json.loads(json.dumps(sample(5).as_json()))
    parsed = parse_sample(data)
    assert parsed is not None
    assert parsed.as_json() == sample(5).as_json()
    damaged: list[Any] = [None, {}, [], [{}, 3], [data[0], "3"], [data[0]], [data[0], 1, 2]]
    assert [parse_sample(one) for one in damaged] == [None] * 7


def test_several_databases_add_up() -> None:
    one = find_ends(sample(**LATER), [sample(300)], 300)
    other = find_ends(sample(**LATER), [sample(200)], 300)
    new = find_ends(sample(**LATER), [], 300)
    total = add_up([one, new, other])
    assert counts(total) == ("earlier run", 120, 120, 12, 8, 2)
    assert total.seconds == 300
    assert total.rates["abandoned"] == 0.04
    assert add_up([new, new]).origin == origins.FIRST_RUN
    each = {"app": one, "big": other, "new": new}
    assert kind_lines(each, 5) == [
        "database app, 6 abandoned, 4 fatal, 1 killed: 11 ended badly",
        "database big, 6 abandoned, 4 fatal, 1 killed: 11 ended badly",
    ]
    assert describe(total, list(each)) == (
        "12 abandoned, 8 fatal and 2 killed of 120 ended sessions on 3 databases over 5 min"
    )
    assert qualify(total, each, 300, 20, False) == [
        "database new is counted from the next run on: first run"
    ]
    assert describe_each(each, [sample(name="big", **LATER).statistics], 20) == [
        "database big: 6 abandoned, 4 fatal and 1 killed of 60 ended sessions over 3 min; sessions "
        "last 1.9 s on average and are in a transaction for 10.0 % of their time, in all that the "
        "statistics hold: transaction pooling would pay, where it is not in use already: up to 10 "
        "times fewer server connections; session pooling, too, saves their starts"
    ]


def test_many_databases_take_few_lines() -> None:
    one = find_ends(sample(**LATER), [sample(300)], 300)
    worse = find_ends(sample(**{**LATER, "killed": 60}), [sample(300)], 300)
    new = {f"new{number:02}": find_ends(sample(**LATER), [], 300) for number in range(60)}
    made = find_ends(sample(**LATER), [sample(300, oid=4)], 300)
    known = {f"known{number:02}": one for number in range(22)}
    each = {"made|": made, **new, **known, "worse": worse}
    assert qualify(add_up(each.values()), each, 300, 20, False) == [
        "database made? is counted from the next run on: the database was made anew since the last "
        "run",
        "databases new00, new01, new02, new03, new04 and 55 further are counted from the next run "
        "on: first run",
    ]
    lines = describe_each(each, [sample(name=name, **LATER).statistics for name in each], 20)
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "database worse",
        *(f"database known{number:02}" for number in range(19)),
    ]
    assert lines[-1] == (
        "3 further databases, where no more sessions ended badly than in any of these"
    )


def test_what_qualifies_the_numbers() -> None:
    reset = sample(backends=3, stats_reset=NOW - 30, fatal=1, session=SINCE_2000)
    ends = find_ends(reset, [sample(60)], 300)
    assert qualify(ends, {"app": ends}, 300, 200, True) == [
        "earlier runs reach back 60 s of the 300 s of --over",
        "the statistics were reset, or lost in a crash, after an earlier run: what came between is "
        "missing, so that counts and rates are lower bounds",
        "shares are not judged: 107 ended sessions, fewer than 200 (--min-sessions)",
        "1 of the fatal ones failed while they started: see to CONNECT rights, connection limits "
        "and settings of the databases, roles and clients",
    ]
    assert qualify(ends, {"app": ends}, 60, 20, True)[1] == (
        "the number of ended sessions may be off by some parallel workers, which other roles hide; "
        "grant pg_read_all_stats to the role of the check"
    )


@pytest.mark.parametrize(
    ("session", "busy", "said"),
    [
        (3000.0, 1500.0, "last 30 s on average and are in a transaction for 50.0 % of their time, "
         "in all that the statistics hold: session pooling suffices"),
        (900.0, 855.0, "last 9.0 s on average and are in a transaction for 95.0 % of their time, "
         "in all that the statistics hold: session pooling suffices, and saves their starts"),
        (360000.0, 10800.0, "last 1 h 00 min on average and are in a transaction for 3.0 % of "
         "their time, in all that the statistics hold: transaction pooling would pay, where it is "
         "not in use already: up to 33 times fewer server connections"),
        (360000.0, 3240.0, "last 1 h 00 min on average and are in a transaction for 0.9 % of "
         "their time, in all that the statistics hold: transaction pooling would pay, where it is "
         "not in use already: over 100 times fewer server connections"),
        (5.0, 1.0, "last under 0.1 s on average and are in a transaction for 20.0 % of their time, "
         "in all that the statistics hold: transaction pooling would pay, where it is not in use "
         "already: up to 5.0 times fewer server connections; session pooling, too, saves their "
         "starts"),
        (3000.0, 0.0, "last 30 s on average and are in a transaction for 0.0 % of their time, in "
         "all that the statistics hold: transaction pooling would pay, where it is not in use "
         "already: hardly any server connection"),
    ],
)  # fmt: skip
def test_the_mode_of_pooling(session: float, busy: float, said: str) -> None:
    assert describe_usage(Usage(100, session, busy, recent=False), 20) == f"sessions {said}"


def test_too_little_to_tell_the_mode_of_pooling() -> None:
    none = Usage(0, 0.0, 0.0, recent=False)
    assert (none.length, none.share) == (None, None)
    assert describe_usage(none, 20) == "no time of sessions is counted yet"
    assert describe_usage(Usage(19, 190.0, 19.0, recent=False), 20) == (
        "sessions last 10 s on average and are in a transaction for 10.0 % of their time, in all "
        "that the statistics hold: too few to tell the mode of pooling (19, --min-sessions)"
    )


def test_more_time_in_transactions_than_in_sessions_is_all_of_it() -> None:
    """The counters are of whole milliseconds in one version and not in another."""
    assert Usage(1, 1.0, 1.001, recent=False).share == 100


def test_where_a_false_start_hides_the_whole() -> None:
    """What was counted between two runs is then told, without a length if too few ended."""
    long_ago: dict[str, Any] = {"session": 300 + SINCE_2000 - 10**7}
    now = sample(**{**LATER, "session": long_ago["session"] + 120, "active": 34.0})
    ends = find_ends(now, [sample(300, **long_ago)], 300)
    usage = find_usage([now.statistics], ends, 20)
    assert describe_usage(usage, 20) == (
        "sessions last 2.0 s on average and are in a transaction for 20.0 % of their time, since "
        "an earlier run: transaction pooling would pay, where it is not in use already: up to 5.0 "
        "times fewer server connections; session pooling, too, saves their starts"
    )
    usage = find_usage([now.statistics], ends, 61)
    assert describe_usage(usage, 61) == (
        "sessions are in a transaction for 20.0 % of their time, since an earlier run: transaction "
        "pooling would pay, where it is not in use already: up to 5.0 times fewer server "
        "connections"
    )
    first = find_usage([now.statistics], find_ends(now, None, 300), 20)
    assert describe_usage(first, 20) == (
        "how long sessions last is not known: one that failed while it started may count with all "
        "time since 2000; pg_stat_reset() begins anew"
    )
    # Without fatal ends no session failed: a large and old server.
    old = sample(fatal=0, session=SINCE_2000 * 3).statistics
    assert find_usage([old], Ends(origins.FIRST_RUN), 20) is not None


def test_who_has_sessions_open() -> None:
    web: dict[str, Any] = {"oid": 5, "role": "app|x", "application": "web\n", "hidden": False}
    found = [
        Holder(address="192.0.2.7", count=3, **web),
        Holder(address=None, count=4, **web),
        Holder(oid=6, role="other", application="", address=None, hidden=True, count=9),
        Holder(oid=5, role="other", application="", address=None, hidden=True, count=1),
    ]
    assert holder_lines(found, 5) == [
        "role other, from a hidden address: 10 open now",
        "role app?x, application web , over a Unix socket: 4 open now",
        "role app?x, application web , from 192.0.2.7: 3 open now",
    ]
    assert holder_lines(found, 2)[1] == "2 more groups: 7 open now"
