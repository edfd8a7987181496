"""Since when something is seen: what samples tell together, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.first_seen import FirstSeen, follow, recall
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.store import Store


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], {}),
        ([{"a": 1.5}], {"a": 1.5}),
        # Of two runs at once each knows what the other one may not.
        ([{"a": 5.0, "b": 7.0}, {"a": 5.0, "c": 6.5}], {"a": 5.0, "b": 7.0, "c": 6.5}),
        ([{"a": 9.0}, {"a": 5}], {"a": 5}),
        ([None, [1], "a", {"a": "5"}, {"a": None}], {}),
    ],
)
def test_what_samples_tell(samples: list[object], expected: dict[str, float]) -> None:
    assert recall(samples) == expected


def test_what_is_seen_now() -> None:
    earlier = {"stays": 5.0, "gone": 3.0, "later": 11.0}
    assert follow(earlier, ["stays", "new", "later"], 10.0) == {
        "stays": 5.0, "new": 10.0, "later": 10.0,
    }  # fmt: skip


@pytest.fixture
def store() -> Iterator[Store]:
    with fresh_directory("pgsock-state-") as directory:
        opened = Store.open(str(directory), Deadline(5))
        assert opened is not None
        yield opened
        opened.close()


def test_from_run_to_run(store: Store) -> None:
    first = FirstSeen(store, "key")
    assert first.see(["a", "b"], 100.0) == {"a": 0.0, "b": 0.0}
    first.commit(1000.0)
    second = FirstSeen(store, "key")
    assert second.see(["b", "c"], 130.0) == {"b": 30.0, "c": 0.0}
    second.commit(1030.0)
    third = FirstSeen(store, "key")
    assert third.see(["b", "c"], 700.0) == {"b": 600.0, "c": 570.0}
    third.commit(1600.0)
    assert FirstSeen(store, "another").see(["b"], 700.0) == {"b": 0.0}
    # What ended is forgotten, and so are samples that later ones repeat.
    third = FirstSeen(store, "key")
    assert third.see([], 760.0) == {}
    third.commit(1660.0)
    assert [one.data for one in store.samples("key")] == [{"b": 100.0, "c": 130.0}, {}]


def test_two_runs_at_once_lose_nothing(store: Store) -> None:
    one, other = FirstSeen(store, "key"), FirstSeen(store, "key")
    one.see(["a"], 100.0)
    other.see(["a", "b"], 101.0)
    other.commit(1001.0)
    one.commit(1000.0)
    assert FirstSeen(store, "key").see(["a", "b"], 160.0) == {"a": 60.0, "b": 59.0}


def test_a_step_of_the_clock_moves_no_age(store: Store) -> None:
    one = FirstSeen(store, "key")
    one.see(["a"], 100.0)
    one.commit(90000.0)
    two = FirstSeen(store, "key")
    assert two.see(["a"], 160.0) == {"a": 60.0}
    two.commit(10.0)
    assert FirstSeen(store, "key").see(["a"], 220.0) == {"a": 120.0}


def test_nothing_is_kept_where_there_is_nothing(store: Store) -> None:
    one = FirstSeen(store, "key")
    one.see([], 100.0)
    one.commit(1000.0)
    assert store.samples("key") == []
