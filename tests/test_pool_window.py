"""Windows between samples of the session statistics, and what is in no counter yet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from check_pgsock.pooling import windows
from check_pgsock.pooling.origins import EARLIER_RUN, FIRST_RUN, NO_STATE
from check_pgsock.pooling.samples import History, Progress, Sample, parse_sample
from check_pgsock.pooling.windows import (
    ASKED,
    OLDEST_RUN,
    RECENT_RUNS,
    Window,
    between_runs,
)
from check_pgsock.postgres.parallelism import Looks
from check_pgsock.postgres.statistics import (
    CLOCK_STEP,
    CRASH,
    OTHER_DATABASE,
    OTHER_SERVER,
    RESET,
    RESTART,
)
from tests.pool_samples import EPOCH, sample


def choose_window(
    current: Sample,
    earlier: list[Sample] | None,
    since: float | None = 60,
    enough: float = 0,
) -> Window:
    return windows.choose_window(
        History(current, earlier), since, 60, lambda one: one.active + one.idle >= enough
    )


def parts(window: Window) -> tuple[str, float | None, float, float]:
    return window.origin, window.seconds, window.active, window.idle


def test_a_sample_survives_the_store() -> None:
    one = sample(3.25, 1.5, 2.5, address=None, port=None, stats_reset=None)
    other = sample(9, progress=Progress(1, 2, 3, 4, 5), looks=Looks(7, 9, 1))
    for each in (one, other):
        back = parse_sample(json.loads(json.dumps(each.as_json())))
        assert back is not None
        assert back.as_json() == each.as_json()


@pytest.mark.parametrize("data", [None, 5, [], {}, {"name": "app"}, "text"])
def test_samples_of_another_version_are_left_out(data: object) -> None:
    good = sample(0).as_json()
    assert parse_sample(data) is None
    assert parse_sample({**good, "statistics": data}) is None
    for name, wrong in (("progress", [1]), ("looks", [1, "2", 3]), ("backends", None)):
        assert parse_sample({**good, name: wrong}) is None


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
    assert parts(window) == (EARLIER_RUN, 300, 15, 20)


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
    assert parts(window) == (EARLIER_RUN, seconds, seconds, 0)


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
        # After a crash PostgreSQL 14 counts from then on, and says so.
        ({"postmaster_start": EPOCH + 240, "stats_reset": EPOCH + 250}, (RESTART, 50, 2, 3)),
        ({"oid": 6, "stats_reset": EPOCH + 290}, (OTHER_DATABASE, 10, 2, 3)),
    ],
)
def test_statistics_that_began_after_the_last_run_are_a_window(
    change: dict[str, Any], window: tuple[str, float | None, float, float]
) -> None:
    now = sample(300, 2, 3, **change)
    chosen = choose_window(now, [sample(200, 1, 1)])
    assert (parts(chosen), chosen.is_early) == (window, False)


@pytest.mark.parametrize(
    ("change", "origin"),
    [
        ({"stats_reset": None}, CRASH),
        # A counter went down, and no reset is known that did it.
        ({"active": 0.5, "session": 99}, RESET),
        ({"sessions": 0}, RESET),
        ({"postmaster_start": EPOCH + 290, "stats_reset": EPOCH - 700}, RESTART),
        ({"postmaster_start": EPOCH + 290, "stats_reset": None}, RESTART),
        ({"address": "192.0.2.2"}, OTHER_SERVER),
        ({"port": 5433, "stats_reset": None}, OTHER_SERVER),
        ({"oid": 6, "stats_reset": None}, OTHER_DATABASE),
        ({"stats_reset": EPOCH + 900}, RESET),  # nor is that a time that can be
    ],
)
@pytest.mark.parametrize("since", [60, 3600])
def test_after_a_restart_older_statistics_are_no_window(
    change: dict[str, Any], origin: str, since: float
) -> None:
    values = {"active": 2, "idle": 3, "session": 5, **change}
    earlier = [sample(200, 1, 1)]

    def choose(at: float) -> tuple[str, bool, float | None]:
        chosen = choose_window(sample(at, **values), earlier, since)
        return chosen.origin, chosen.is_early, chosen.seconds

    assert choose(300) == (origin, True, None)
    # Until a run is a minute ago, however many there are.
    earlier.append(sample(300, **values))
    assert choose(330) == (RECENT_RUNS, True, None)
    assert choose(360) == (EARLIER_RUN if since == 60 else OLDEST_RUN, False, 60)


def test_while_no_run_is_so_long_ago_the_window_begins_with_the_first() -> None:
    """Not with the beginning of the statistics, which may be that of the server."""
    earlier = [sample(at, at / 2) for at in (0, 30, 90, 2000)]
    window = choose_window(sample(3599, 1800), earlier, 3600)
    assert parts(window) == (OLDEST_RUN, 3599, 1800, 0)
    window = choose_window(sample(3600, 1800), earlier, 3600)
    assert parts(window) == (EARLIER_RUN, 3600, 1800, 0)
    # However little happened since.
    assert choose_window(sample(60), [sample(0)], 3600, enough=1).origin == OLDEST_RUN


def test_a_backward_step_of_the_clock_is_a_new_window_without_a_length() -> None:
    window = choose_window(sample(150, 9), [sample(200, 1)])
    assert (parts(window), window.is_early) == ((CLOCK_STEP, None, 9, 0), True)
    # Nor does a sample from before the step serve.
    assert choose_window(sample(150, 9), [sample(80, 0), sample(200, 1)]).origin == CLOCK_STEP


def test_a_clock_before_the_reset_gives_no_length() -> None:
    assert parts(choose_window(sample(-10, 5), [])) == (FIRST_RUN, None, 5, 0)


def test_an_address_of_two_servers_in_turn_subtracts_like_from_like() -> None:
    other = {"postmaster_start": EPOCH - 5, "stats_reset": EPOCH - 5}
    earlier = [sample(0, 1), sample(60, 900, **other), sample(120, 5)]
    window = choose_window(sample(180, 950, **other), earlier)
    assert parts(window) == (EARLIER_RUN, 120, 50, 0)


def test_a_reset_between_runs_is_never_subtracted_across() -> None:
    reset = {"stats_reset": EPOCH + 90}
    earlier = [sample(0, 50), sample(100, 1, **reset)]
    window = choose_window(sample(130, 2, **reset), earlier)
    assert (parts(window), window.is_early) == ((RECENT_RUNS, 40, 2, 0), False)
    window = choose_window(sample(160, 2, **reset), earlier)
    assert parts(window) == (EARLIER_RUN, 60, 1, 0)


def test_averages_are_never_above_what_was_measured() -> None:
    window = Window(EARLIER_RUN, 3, None, sample(3, 2.0, 0.9))
    assert (window.busy_sessions, window.in_transaction_sessions) == (0.666, 0.3)
    assert Window(EARLIER_RUN, None, None, sample(3, 0.0017, 0.001)).spent == 0.002


def test_what_is_in_progress_is_of_the_window_it_was_spent_in() -> None:
    """A statement of 90 s, begun 10 s before the window: in no counter until after it."""
    before = sample(100, progress=Progress(active=10, idle=4))
    during = sample(160, progress=Progress(active=70, idle=64))
    window = choose_window(during, [before])
    assert (window.active, window.idle, window.counted) == (60, 60, (0, 0))
    # It ended in the window, and its whole time came into the counters.
    ended = sample(160, 90, 14)
    window = choose_window(ended, [before])
    assert (window.active, window.idle, window.counted) == (80, 10, (90, 14))
    assert window.lowest == window.highest == pytest.approx(80 / 90)


def test_time_that_may_be_either_leaves_the_ratio_open() -> None:
    before = sample(100)
    now = sample(160, 20, 20, progress=Progress(unsplit=10, oldest=30))
    window = choose_window(now, [before])
    assert (window.active, window.idle) == (25, 25)  # divided as the rest is
    assert (window.lowest, window.highest) == (0.4, 0.6)
    # At the start, what came into the counters since may be of either, too.
    before = sample(100, progress=Progress(unsplit=10, oldest=600))
    window = choose_window(sample(160, 20, 30), [before])
    assert (window.active, window.idle) == (16, 24)
    assert (window.lowest, window.highest) == (0.25, 0.5)
    assert window.oldest == 600


def test_what_cannot_be_is_no_negative_time() -> None:
    before = sample(100, progress=Progress(active=50))
    window = choose_window(sample(160, 10), [before])
    assert (window.active, window.idle, window.lowest, window.highest) == (0, 0, 0, 0)


def test_the_window_grows_while_there_is_too_little_in_it() -> None:
    hours = [sample(at * 3600, min(at, 3) * 1000.0) for at in range(30)]
    now = sample(30 * 3600, 3000)
    quiet = choose_window(now, hours, enough=900)
    assert quiet.seconds == 24 * 3600  # the longest, and still not enough
    busy = [sample(at * 3600, at * 1000.0) for at in range(30)]
    assert choose_window(sample(30 * 3600, 30000), busy, enough=2500).seconds == 3 * 3600
    assert choose_window(sample(30 * 3600, 30000), busy, 7200, enough=500).seconds == 2 * 3600


def test_since_the_reset_is_all_there_is() -> None:
    window = choose_window(sample(500, 20, 30), [sample(400, 1, 1)], None)
    assert parts(window) == (ASKED, 500, 20, 30)


def test_the_windows_from_one_run_to_a_next() -> None:
    samples = [sample(0), sample(60, 30), sample(70, 130), sample(120, 150), sample(180, 160)]

    def found(current: Sample, earlier: list[Sample]) -> list[tuple[float, float | None, float]]:
        windows = between_runs(History(current, earlier))
        return [(ago, window.seconds, window.active) for ago, window in windows]

    # 50 s, then back to a run so long before.
    assert found(samples[-1], samples[:-1]) == [(0, 60, 10), (60, 50, 20), (110, 70, 130)]
    assert found(samples[-1], []) == []
    # Retries are too near each other to tell a load, and yesterday is over.
    assert found(sample(200), [sample(180), sample(190)]) == []
    assert found(sample(200000, 9e9), [sample(100)]) == []
    # More than the sessions there can have done.
    assert found(sample(60, 999), [sample(0)]) == []


def test_a_history_is_what_the_counters_went_on_from() -> None:
    looks = Looks(1, 2, 0)
    earlier = [sample(at, looks=looks) for at in (-10, 0, 100, 86400)]
    earlier.insert(2, sample(50, port=5433, looks=looks))
    history = History(sample(86450, looks=looks), earlier)
    assert [one.taken - EPOCH for one in history.within(100)] == [86450, 86400]
    assert [one.taken - EPOCH for one in history.same] == [86400, 100, 0, -10]
    assert history.looks == Looks(3, 6, 0)  # of a day
    assert History(sample(5), None).looks == Looks(0, 0, 0)
