"""Titles of one postmaster's children, together: what they say for certain, and nothing else."""

from __future__ import annotations

import pytest

from check_pgsock.sessions import children, titles
from check_pgsock.sessions.titles import Title
from tests.made_up_titles import PEERS, POSTMASTER, ROOM, client, cut, padded
from tests.moment import LOCAL4, LOCAL6


def test_the_children_of_one_postmaster() -> None:
    raws = {
        1: padded("postgres: 15/main: checkpointer "),
        2: padded("postgres: 15/main: u d 127.0.0.1(4711) idle"),
        3: padded("postgres: 15/main: u d [local] SELECT"),
        4: POSTMASTER,
        5: b"",
        6: padded("cat /etc/passwd"),
    }
    found = children.parse_children(raws, POSTMASTER)
    assert list(found) == list(raws)
    assert found[2] == client("u", "d")
    assert (found[3].user, found[3].state) == ("u", "active")
    assert [found[pid].kind for pid in (1, 4, 5, 6)] == [
        "auxiliary", "untitled", "unknown", "unknown",
    ]  # fmt: skip


def test_what_stands_behind_the_first_nul_is_of_another_title() -> None:
    raw = b"postgres: u d 127.0.0.1(4711) idle\0n transaction".ljust(ROOM, b"\0")
    assert children.parse_children({1: raw}, POSTMASTER)[1] == client("u", "d")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["checkpointer ", "u d [local] idle"], ""),
        (["15/main: checkpointer ", "15/main: background writer "], "15/main"),
        (["a: b: background writer "], "a: b"),
        ([f"{'n' * 64}: checkpointer "], None),
        (["u d [local] idle"], None),
        # A backup with this label.
        (['walsender u 1.2.3.4(5) sending backup "x: checkpointer ', "checkpointer "], None),
    ],
)
def test_cluster_name_of_the_siblings(texts: list[str], expected: str | None) -> None:
    assert children.find_cluster_name(f"postgres: {text}" for text in texts) == expected


def test_room_for_titles() -> None:
    short, longer = padded("postgres: checkpointer "), b"p" * (ROOM + 5) + b"\0"
    # The argument area holds two NULs more than the longest title, if there is no environment.
    assert children.title_room([short]) == children.title_room([POSTMASTER]) == ROOM - 2
    # A title that runs over it shows that there is one.
    assert children.title_room([short, longer]) == ROOM + 5
    assert children.title_room([short, longer], area=200) == 198
    assert children.title_room([]) == 0


# Recorded of a postmaster started as `env -i ./p -D ./data`, with an X of 30 bytes: 46 bytes.
SMALL = b"./p\0-D\0./data\0"
ONE = b"postgres: app app 127.0.0.1(40001) idle\0"
TWO = b"postgres: app app 127.0.0.1(40002) idle in t\0"
THREE = b"postgres: app app 127.0.0.1(40003) idle in t\0"


def test_a_title_at_the_end_of_its_area_may_be_cut() -> None:
    raws = {1: ONE, 2: TWO, 3: THREE}
    found = children.parse_children(raws, SMALL, peers=PEERS)
    assert found == {
        1: client("app", "app", port=40001),
        2: cut("idle in t"),
        3: cut("idle in t", port=40003),
    }
    # Only what its area is known to be larger than is whole.
    known = children.parse_children({1: ONE}, SMALL, area=46)
    assert known == {1: client("app", "app", port=40001)}
    for area in (None, len(ONE) + 1):
        alone = children.parse_children({1: ONE}, SMALL, area, peers=PEERS)
        assert alone == {1: cut("idle", port=40001)}


def test_a_cut_title_that_names_no_peer_is_unknown() -> None:
    unknown = Title("unknown", text=TWO[:-1].decode(), whole=False)
    assert children.parse_children({2: TWO}, SMALL)[2] == unknown
    assert children.parse_children({2: TWO}, SMALL, peers={(LOCAL4, 40001)})[2] == unknown


@pytest.mark.parametrize(
    "other",
    [
        b"postgres: app app 127.0.0.1(40002) idle\0",  # it names the same peer
        b"postgres: app app localhost(40002) idle\0",
        b"postgres: nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\0",  # it may be that peer's
    ],
)
def test_a_cut_title_whose_peer_may_be_another_childs_is_unknown(other: bytes) -> None:
    found = children.parse_children({2: TWO, 4: other}, SMALL, peers=PEERS)
    assert found[2] == Title("unknown", text=TWO[:-1].decode(), whole=False)


def test_a_page_is_all_that_the_kernel_shows() -> None:
    raws = {1: b"postgres: u d 127.0.0.1(4711) idle".ljust(4096, b"x"), 2: b"y" * 5000}
    assert not children.parse_children(raws)[1].whole


def test_states_stand_still_where_one_has_none() -> None:
    raws = {
        1: padded("postgres: u d 127.0.0.1(4711) idle"),
        2: padded("postgres: u d 127.0.0.1(4712) "),
        3: padded("postgres: checkpointer "),
    }
    found = children.parse_children(raws, POSTMASTER)
    assert found[1] == client("u", "d", None, waiting=None)._replace(text=None)
    assert found[2].state is None
    assert found[3].text == "checkpointer "


def test_matching_titles_with_peers() -> None:
    def title(host: str, port: int) -> Title:
        return titles.parse_title(f"postgres: u d {host}({port}) idle", cluster_name="")

    other = b"\x0a\0\0\x01"
    found = children.match_peers(
        {
            1: title("127.0.0.1", 1),
            2: title("::1", 1),
            3: title("127.0.0.1", 3), 4: title("127.0.0.1", 3),
            5: title("localhost", 5),
            6: title("localhost", 6),
            7: title("localhost", 7), 8: title("elsewhere", 7),
            9: title("localhost", 1),
            10: title("127.0.0.1", 10),
        },
        [
            (LOCAL4, 1), (LOCAL6, 1), (LOCAL4, 3), (LOCAL4, 5), (LOCAL4, 6), (other, 6),
            (LOCAL4, 7), (LOCAL4, 8),
        ],
    )  # fmt: skip
    assert found == {
        (LOCAL4, 1): 1, (LOCAL6, 1): 2, (LOCAL4, 3): None, (LOCAL4, 5): 5, (LOCAL4, 7): None,
    }  # fmt: skip
