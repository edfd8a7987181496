"""How connections spread over workers, and how busy sessions are, on made-up numbers: pure."""

from __future__ import annotations

import pytest

from check_pgsock.checks.workers import headline, measure
from check_pgsock.legs import Leg
from check_pgsock.sessions.workers import (
    PEERS,
    PROCESSES,
    Kind,
    Look,
    Utilization,
    Worker,
    find_most_uneven,
    group,
    remove_numbers,
)

TO = Leg((5432,), server=False)
ON = Leg((5432,))


def workers(*counts: int, program: str = "web", word: str = PROCESSES) -> list[Worker]:
    """Workers of one program with so many connections."""
    return [Worker((word, program), f"{program} {n}", count) for n, count in enumerate(counts)]


def look(at: float, *activities: str, cpu: float | None = None) -> Look:
    """Sessions 0, 1, ... that do this."""
    return Look(at, {pid: (activity, cpu) for pid, activity in enumerate(activities)})


@pytest.mark.parametrize(
    ("counts", "share", "spread"),
    [
        ((60, 10, 10, 10), 66.7, 6.0),
        ((10, 10, 10, 10), 25.0, 1.0),
        ((50,), 100.0, 1.0),
        ((80, 20), 80.0, 4.0),
        ((60, 0), 100.0, 60.0),  # a sibling counts as one connection at least
        ((0, 0), 0.0, 0.0),
    ],
)
def test_share_and_spread(counts: tuple[int, ...], share: float, spread: float) -> None:
    kind = Kind(workers(*counts))
    assert (round(kind.share, 1), kind.spread) == (share, spread)
    assert kind.connections == sum(counts)


def test_only_siblings_are_compared_and_only_if_one_has_many() -> None:
    web, job = workers(19, 1), workers(50, program="job")
    assert find_most_uneven(group(web + job), 20) is None
    chosen = find_most_uneven(group(web + job), 19)
    assert chosen is not None
    assert chosen.busiest == web[0]
    assert group(web + job)[0].busiest == job[0]
    assert find_most_uneven([], 1) is None


def test_the_most_uneven_of_several_kinds_is_chosen() -> None:
    web, job = workers(90, 80, 80), workers(40, 5, 5, program="job")
    chosen = find_most_uneven(group(web + job), 20)
    assert chosen is not None
    assert (chosen.busiest.name, chosen.spread) == ("job 0", 8.0)


def test_numbers_do_not_make_workers_different() -> None:
    first, second = (f"puma: cluster worker {n}: {4000 + n} [shop]" for n in (2, 31))
    assert remove_numbers(first) == remove_numbers(second) == "puma: cluster worker #: # [shop]"


def test_a_session_counts_in_parts() -> None:
    looks = [
        look(0, "active", "idle", "waiting", "idle in transaction", "unknown"),
        look(1, "idle", "idle", "waiting", "orphaned"),
    ]
    used = Utilization(looks)
    assert used.counts == {"active": 0.5, "waiting": 1.0, "idle": 1.5, "idle in transaction": 1.0}
    assert (used.sessions, used.unknown, used.cpu_bound, used.percent) == (4, 1, 0, 37.5)


def test_sessions_that_end_in_the_window_count_as_they_were() -> None:
    used = Utilization([look(0, "active", "idle"), look(1, "active"), look(2)])
    assert used.counts == {"active": 1.0, "waiting": 0, "idle": 1.0, "idle in transaction": 0}
    assert (used.sessions, used.percent) == (2, 50.0)


def test_what_is_not_known_is_no_zero() -> None:
    used = Utilization([look(0, "unknown", "unknown")])
    assert (used.counts, used.percent, used.unknown, used.cpu_bound) == (None, None, 2, None)
    used = Utilization([look(0)])
    assert used.counts is not None
    assert (used.counts["active"], used.percent) == (0.0, None)


def test_cpu_bound_is_who_had_a_processor_for_more_than_half_of_the_window() -> None:
    first = Look(10.0, {1: ("active", 5.0), 2: ("active", 5.0), 3: ("active", None)})
    last = Look(
        12.0, {1: ("active", 6.1), 2: ("active", 6.0), 3: ("active", 9.0), 4: ("active", 9.0)}
    )
    assert Utilization([first, last]).cpu_bound == 1
    assert Utilization([first]).cpu_bound is None


def test_headlines() -> None:
    kinds = group(workers(60, 10, 10, 10) + workers(1, program="psql"))
    uneven = find_most_uneven(kinds, 20)
    held = "web 0 holds 60 of 90 connections (67 %) of 4 workers"
    assert headline(TO, kinds, uneven, None) == f"{held} to port 5432"
    used = Utilization([look(0, *["active"] * 37, *["waiting"] * 3, *["idle"] * 10)])
    said = "37 of 50 sessions active, 3 waiting (utilization 80 %) on port 5432"
    assert headline(ON, kinds, uneven, used) == f"{said}; {held}"
    assert headline(ON, kinds, None, used) == said
    few = group(workers(5, 5))
    assert headline(TO, few, None, None) == (
        "10 connections of 2 workers to port 5432, too few to judge"
    )
    unlike = group(workers(50) + workers(1, program="psql"))
    assert headline(TO, unlike, None, None) == (
        "51 connections of 2 workers to port 5432, none like another"
    )
    alone = group(workers(50))
    assert headline(TO, alone, None, None) == "50 connections of 1 worker to port 5432"
    assert headline(TO, [], None, None) == "0 connections to port 5432"
    silent = Utilization([look(0, "unknown", "unknown")])
    assert headline(ON, alone, None, silent) == (
        "2 sessions, what they do is not known, on port 5432"
    )


def test_labels_do_not_depend_on_who_is_judged() -> None:
    used = Utilization([look(0, "idle"), look(1, "idle")])
    told = [
        measure(kinds, uneven, used)
        for kinds, uneven in (
            ([], None),
            (group(workers(5)), None),
            (group(workers(30, 1)), Kind(workers(30, 1))),
            (group(workers(30, 1, word=PEERS)), Kind(workers(30, 1, word=PEERS))),
        )
    ]
    assert {tuple(one.label for one in metrics) for metrics in told} == {
        ("busiest_worker", "spread", "workers", "active", "waiting", "idle", "idle_in_transaction",
         "sessions", "utilization", "cpu_bound"),
    }  # fmt: skip
    # Of addresses only what is asked for is judged: nobody knows what is even for them.
    assert [[one.judged for one in metrics[:2]] for metrics in told] == [
        [False, False], [False, False], [True, True], [True, False],
    ]  # fmt: skip
