"""Which of a postmaster's children hold a connection slot, by their titles."""

from __future__ import annotations

import socket

import pytest

from check_pgsock.sessions.children import parse_children
from check_pgsock.sessions.slots import begins_as_sender, count_slots
from check_pgsock.sessions.titles import Title

Peer = tuple[bytes, int]  # address and port
POSTMASTER = b"/usr/lib/postgresql/18/bin/postgres\0-D\0/var/lib/postgresql/18/main\0"
ROOM = 60  # bytes that a title has


def peer(port: int) -> Peer:
    """The client at 192.0.2.1 with this port."""
    return socket.inet_aton("192.0.2.1"), port


def parse(*texts: str, room: int = 200, peers: tuple[Peer, ...] = ()) -> dict[int, Title]:
    """The titles of the children with these texts, from process 100 on; "" is untitled."""
    raws = {
        pid: f"postgres: {text}".encode()[:room] + b"\0" if text else POSTMASTER
        for pid, text in enumerate(texts, 100)
    }
    return parse_children(raws, POSTMASTER, area=room + 2, peers=peers)


SERVER = ("checkpointer ", "background writer ", "walwriter ", "autovacuum launcher ",
          "io worker 0", "logical replication launcher ")  # fmt: skip


def test_what_holds_a_slot() -> None:
    titles = parse(
        *SERVER,
        "app shop 192.0.2.1(1001) idle",
        "app shop 192.0.2.1(1002) SELECT",
        "app shop 192.0.2.1(1003) authentication",
        "app shop [local] idle in transaction",
        "parallel worker for PID 107 ",
        "autovacuum worker shop",
        "walsender repl 192.0.2.1(1004) streaming 0/3000148",
        "walsender repl shop 192.0.2.1(1005) START_REPLICATION",
        "",  # no startup packet yet
    )
    slots = count_slots(titles, [peer(port) for port in (1001, 1002, 1003, 1004, 1005, 1006)])
    assert (slots.used, sorted(slots.holders), slots.untold) == (4, [106, 107, 108, 109], 0)
    assert slots.senders == {peer(1004), peer(1005)}
    assert slots.note() is None


def test_a_cluster_name_and_no_state() -> None:
    """With cluster_name, and update_process_title = off."""
    names = ("checkpointer ", "app shop 192.0.2.1(1) ", "app shop [local] ")
    titles = parse(*(f"main: {name}" for name in names), "main: walsender u 192.0.2.1(2) ")
    slots = count_slots(titles, [peer(1), peer(2)], senders={103})
    assert (slots.used, slots.senders, slots.untold) == (2, {peer(2)}, 1)


CUT = "a_user_with_a_long_name a_database_with_a_long_name 192.0.2.1(1001) idle"
NOTE = (
    "a lower bound of the connection slots: of {} of the server's processes the title does not "
    "tell whether it holds one"
)


def test_titles_that_are_cut_are_attributed_by_descriptors() -> None:
    titles = parse(CUT, CUT, CUT, CUT, "app shop 192.0.2.1(1) idle", room=ROOM)
    slots = count_slots(titles, [peer(1)], connected={100: True, 101: False, 102: None, 103: True})
    assert (slots.used, slots.attributed, slots.untold) == (3, 2, 1)
    assert slots.note() == NOTE.format(1)


@pytest.mark.parametrize(
    ("ports", "untitled", "used"),
    [
        ((1,), 0, 1),  # no connection is left for those whose titles are cut
        ((1, 2, 3), 0, 3),
        ((1, 2, 3), 1, 2),  # one of the three has sent no startup packet
        ((1, 2, 3, 4, 5), 0, 4),  # never more than there are processes
    ],
)
def test_titles_that_are_cut_are_attributed_by_connections(
    ports: tuple[int, ...], untitled: int, used: int
) -> None:
    texts = (CUT, CUT, CUT, "app shop 192.0.2.1(1) idle", *[""] * untitled)
    slots = count_slots(parse(*texts, room=ROOM), [peer(port) for port in ports])
    assert (slots.used, slots.untold) == (used, 4 - used)
    assert slots.note() == (NOTE.format(4 - used) if used < 4 else None)


def test_what_may_be_a_walsender_is_never_taken_to_hold_a_slot() -> None:
    titles = parse("walsender u 192.0.2.1(1) idle", "app shop 192.0.2.1(2) idle")
    peers = [peer(1), peer(2)]
    for connected in (None, {100: True}):
        slots = count_slots(titles, peers, senders={100}, connected=connected)
        assert (slots.used, slots.untold, slots.senders) == (1, 1, {peer(1)})
        assert slots.note() == (
            "a lower bound of the connection slots: 1 of the server's processes count neither as "
            "slots nor as established, since by the title they are walsenders at rest; sessions of "
            "a user named walsender, which hold slots, have the same title"
        )


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("postgres: walsender repl 192.0.2.1(1) idle", True),
        ("postgres: main: walsender repl 192.0.2.1(1) idle", True),
        ("postgres: walsender_ shop 192.0.2.1(1) idle", False),
        ("postgres: app walsender 192.0.2.1(1) idle", False),
    ],
)
def test_how_a_walsenders_title_begins(text: str, begins: bool) -> None:
    assert begins_as_sender(text) == begins


def test_nothing_is_nothing() -> None:
    slots = count_slots({})
    assert (slots.used, slots.untold, slots.senders) == (0, 0, set())
