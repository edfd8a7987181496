"""Which sessions --user, --exclude-user and --database choose: pure."""

from __future__ import annotations

from argparse import Namespace

import pytest

from check_pgsock.errors import PgsockError
from check_pgsock.sessions.connections import KEYS, Connection
from check_pgsock.sessions.selection import Selection, chosen_selection

NOT_COUNTED = "more, whose user or database is not known, not counted"


def session(user: str | None, database: str | None) -> Connection:
    return {**dict.fromkeys(KEYS), "user": user, "database": database}


APP, REPORT, BATCH = session("app", "shop"), session("report", "shop"), session("app", "batch")
NAMELESS = session(None, None)
ALL = [APP, REPORT, BATCH]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ALL),
        (Selection(["app"]), [APP, BATCH]),
        (Selection(["app", "report"]), ALL),
        (Selection(excluded_users=["app"]), [REPORT]),
        (Selection(databases=["shop"]), [APP, REPORT]),
        (Selection(["app"], databases=["shop"]), [APP]),
        (Selection(["app"], ["app"]), []),
        (Selection(["nobody"]), []),
    ],
)
def test_what_is_chosen(selection: Selection, expected: list[Connection]) -> None:
    assert selection.choose(ALL) == (expected, [])


@pytest.mark.parametrize(
    ("selection", "expected", "notes"),
    [
        (Selection(), [APP, NAMELESS], []),
        (Selection(["app"]), [APP], [f"a lower bound: 1 connection {NOT_COUNTED}"]),
        (Selection(databases=["shop"]), [APP], [f"a lower bound: 1 connection {NOT_COUNTED}"]),
        # One that is not known to be excluded stays.
        (
            Selection(excluded_users=["report"]),
            [APP, NAMELESS],
            ["1 connection of users that are not known counted, too"],
        ),
    ],
)
def test_what_is_not_known(
    selection: Selection, expected: list[Connection], notes: list[str]
) -> None:
    assert selection.choose([APP, NAMELESS]) == (expected, notes)


def test_half_known() -> None:
    """A title that is cut may tell the one and not the other."""
    userless, baseless = session(None, "shop"), session("app", None)
    assert Selection(["app"]).choose([APP, baseless]) == ([APP, baseless], [])
    assert Selection(databases=["batch"]).choose([BATCH, userless]) == ([BATCH], [])
    chosen, notes = Selection(["app"], databases=["shop"]).choose([APP, userless, baseless])
    assert (chosen, notes) == ([APP], [f"a lower bound: 2 connections {NOT_COUNTED}"])


def test_nothing_known_of_any() -> None:
    with pytest.raises(PgsockError) as refused:
        Selection(["app"]).choose([NAMELESS, NAMELESS])
    assert str(refused.value) == (
        "user and database are known of none of 2 connections, by which to select them: drop "
        "--user and --database, or see the README on who may know them"
    )
    assert Selection(["app"]).choose([]) == ([], [])
    assert Selection(excluded_users=["app"]).choose([NAMELESS])[0] == [NAMELESS]


def test_in_words() -> None:
    assert Selection().describe() == ""
    assert not Selection()
    every = chosen_selection(Namespace(user=["b", "a", "b"], exclude_user=["c"], database=["d"]))
    assert every
    assert every.describe() == " of user a, b of all users but c on database d"
