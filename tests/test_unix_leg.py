"""The sessions of a leg's Unix sockets: sorted out and compared; no I/O."""

from __future__ import annotations

import pytest

from check_pgsock.legs import Leg
from check_pgsock.sockets.unix_sockets import UnixEndpoint
from check_pgsock.unix.leg import Sessions, compare, is_gone
from tests.details import (
    ABSTRACT_LISTENER,
    ABSTRACT_SESSION,
    HALF_CLOSED,
    LISTENER,
    ODD_LISTENER,
    ORPHAN,
    SESSION,
    STRAY,
)

ENDPOINT = UnixEndpoint([LISTENER], [SESSION, ORPHAN, HALF_CLOSED], 1, [STRAY], [])
ABSTRACT = UnixEndpoint([ABSTRACT_LISTENER], [ABSTRACT_SESSION], 0, [], [])


def test_a_client_is_gone_when_its_end_is() -> None:
    assert is_gone(ORPHAN)
    assert not is_gone(SESSION)
    assert not is_gone(HALF_CLOSED)  # it sends no more, and still reads
    # A server that has shut down both ways, with its client there.
    assert not is_gone(SESSION._replace(shutdown=3))
    # procfs tells neither.
    assert not is_gone(ORPHAN._replace(shutdown=None, peer_inode=None))


def test_sessions_are_sorted_out() -> None:
    found = Sessions()
    found.add(ENDPOINT)
    assert (found.connected, found.gone) == ([SESSION, HALF_CLOSED], [ORPHAN])
    assert (found.not_accepted, found.established) == (1, 3)
    assert found.all == [SESSION, HALF_CLOSED, ORPHAN]
    assert found.describe() == [
        "listener /mnt/.s.PGSQL.5432: uid 0, accept queue 1, backlog 5",
        "not counted: 1 session of other socket files that had the same name",
    ]


def test_several_paths_are_added_up_and_each_socket_counted_once() -> None:
    found = Sessions()
    for endpoint in (ENDPOINT, ABSTRACT, ENDPOINT, ABSTRACT):
        found.add(endpoint)
    assert found.connected == [SESSION, HALF_CLOSED, ABSTRACT_SESSION]
    assert (found.not_accepted, found.strays) == (1, 1)
    assert found.listeners == [LISTENER, ABSTRACT_LISTENER]
    # Seen from where the listener is not, the sessions tell.
    found = Sessions()
    for _ in range(2):
        found.add(ENDPOINT._replace(listeners=[], not_accepted=0))
    assert found.connected == [SESSION, HALF_CLOSED]


def test_names_of_listeners() -> None:
    found = Sessions()
    found.add(ABSTRACT._replace(sessions=[]))
    found.add(UnixEndpoint([ODD_LISTENER._replace(uid=None, backlog=None)], [], 0, [], []))
    assert found.describe() == [
        "listener @pgsock/.s.PGSQL.5433: uid 65534, accept queue 0, backlog 9",
        "listener /mnt/a b\nc/.s.PGSQL.5434: procfs tells neither its accept queue nor its backlog",
    ]


@pytest.mark.parametrize(
    ("looks", "closed", "opened"),
    [
        ([{1, 2}] * 4, set(), set()),
        ([{1, 2}, {1, 2}, {2}, {2}], {1}, set()),
        ([{1}, {1}, {1, 2}, {1, 2}], set(), {2}),
        ([set(), set(), {1}, set(), set()], {1}, {1}),
        # What a look leaves out, and another has, was there.
        ([{1}, {1, 2}, {1, 2}, {1, 2}, {1, 2}], set(), set()),
        ([{1, 2}, {1, 2}, {1}, {1, 2}, {1, 2}], set(), set()),
        ([{1, 2}, {1, 2}, {1, 2}, {1}, {1, 2}], set(), set()),
        ([{1, 2}, {1, 2}, {1, 2}, {1, 2}, {1}], set(), set()),
        # One after the other: each look finds another.
        ([{1}, {1}, {2}, {3}, {4}, {4}], {1, 2, 3}, {2, 3, 4}),
    ],
)
def test_compare(looks: list[set[int]], closed: set[int], opened: set[int]) -> None:
    assert compare(looks) == (closed, opened)


def test_words() -> None:
    assert Leg((), paths=("/run/s",)).describe() == "on socket /run/s"
    assert Leg((), paths=("/run/s", "@s")).describe() == "on sockets /run/s, @s"
    assert Leg((1, 2), paths=("/run/s",)).describe() == "on ports 1, 2 and socket /run/s"
