"""avg_parallelism from sums of looks, and looks at titles: no I/O."""

from __future__ import annotations

import pytest

from check_pgsock.postgres.parallelism import NONE_SEEN, Looks, add, count_titles, parallelism
from check_pgsock.sessions.children import parse_children
from check_pgsock.sessions.titles import Title

DATABASES = {"app": 16384, "postgres": 5}


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        (Looks(10, 10, 0), 1.0),
        (Looks(60, 300, 0), 5.0),
        (Looks(4, 5, 0), 1.25),
        # Nothing seen, or nothing that can be relied on, is not 1.
        (NONE_SEEN, None),
        (Looks(0, 0, 3), None),
        (Looks(10, 10, 1), None),
        (Looks(99, 99, 1), None),
        (Looks(100, 300, 1), 3.0),
    ],
)
def test_parallelism(looks: Looks, expected: float | None) -> None:
    assert parallelism(looks) == expected


def test_looks_add_up() -> None:
    assert add([]) == NONE_SEEN
    assert add([Looks(1, 5, 0), NONE_SEEN, Looks(2, 2, 3)]) == Looks(3, 7, 3)


def titles(*texts: str) -> dict[int, Title]:
    """The titles of a postmaster's children, from process id 100 on."""
    raws = {pid: f"postgres: {text}".encode() + bytes(99) for pid, text in enumerate(texts, 100)}
    return parse_children(raws, b"postgres\0-D\0/data\0", 300)


def test_leaders_and_their_workers() -> None:
    seen = titles(
        "checkpointer ",
        "app app 192.0.2.1(40000) SELECT",
        "parallel worker for PID 101 ",
        "parallel worker for PID 101 ",
        "app app [local] UPDATE waiting",
        "app app [local] idle",
        "app app [local] idle in transaction",
        "app app 192.0.2.1(40001) <FASTPATH>",
        "app postgres [local] CREATE INDEX",
        "parallel worker for PID 108 ",
        "autovacuum worker app",
        "walsender rep 192.0.2.2(40000) streaming 0/5000148",
    )
    assert count_titles(seen, DATABASES) == {16384: Looks(3, 5, 0, 1), 5: Looks(1, 2, 0)}


def test_workers_of_a_leader_that_executes_no_more() -> None:
    seen = titles("app app [local] idle", "parallel worker for PID 100 ")
    assert count_titles(seen, DATABASES) == {16384: NONE_SEEN}


@pytest.mark.parametrize(
    "text",
    [
        "authentication",
        "startup",
        "initializing",
        "notify interrupt",
    ],
)
def test_sessions_that_execute_nothing(text: str) -> None:
    assert count_titles(titles(f"app app [local] {text}"), DATABASES) == {16384: NONE_SEEN}


def test_sessions_that_are_idle_in_transactions() -> None:
    for text in ("idle in transaction", "idle in transaction (aborted)"):
        assert count_titles(titles(f"app app [local] {text}"), DATABASES) == {
            16384: Looks(0, 0, 0, 1)
        }


def test_titles_that_are_not_updated_hide_all() -> None:
    seen = titles("app app [local] ", "app app [local] SELECT", "app postgres [local] ")
    assert count_titles(seen, DATABASES) == {16384: Looks(0, 0, 2), 5: Looks(0, 0, 1)}


def test_a_session_of_an_unknown_database_is_hidden_in_each() -> None:
    # Of `a b c` it cannot be told where the user ends; `gone` has been made since.
    hidden = {16384: Looks(0, 0, 1), 5: Looks(0, 0, 1)}
    for text in ("a b c [local] SELECT", "app gone [local] SELECT"):
        assert count_titles(titles(text), DATABASES) == hidden
    assert count_titles(titles("app gone [local] idle"), DATABASES) == {
        16384: NONE_SEEN,
        5: NONE_SEEN,
    }
