"""Which Unix sockets belong to a path; no I/O."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from check_pgsock.sockets.unix_sockets import (
    FileId,
    UnixEndpoint,
    UnixListener,
    UnixSocket,
    choose,
)
from tests.details import (
    ABSTRACT,
    ABSTRACT_LISTENER,
    ABSTRACT_SESSION,
    FILE,
    HALF_CLOSED,
    LISTENER,
    LOG,
    ODD_LISTENER,
    ODD_PATH,
    ODD_SESSION,
    ORPHAN,
    PATH,
    RELATIVE_LISTENER,
    SESSION,
    STRAY,
    UNIX_LISTENERS,
    UNIX_SOCKETS,
    WAITING,
)

ALL: list[UnixListener | UnixSocket] = [*UNIX_LISTENERS, *UNIX_SOCKETS]
SESSIONS = [SESSION, ORPHAN, HALF_CLOSED]


def named(*names: bytes) -> Callable[[bytes], bool]:
    """What tells these names."""
    return lambda name: name in names


def by_procfs(found: list[UnixListener | UnixSocket]) -> list[UnixListener | UnixSocket]:
    """What procfs tells of them: no file, no accept queue, but who waits."""
    listeners = [
        one._replace(file=None, accept_queue=None) for one in found if isinstance(one, UnixListener)
    ]
    sockets = [one._replace(file=None) for one in found if isinstance(one, UnixSocket)]
    return [*listeners, *sockets, WAITING]


def test_by_the_file() -> None:
    expected = UnixEndpoint([LISTENER], SESSIONS, 1, [STRAY], [])
    assert choose(ALL, named(PATH), FILE) == expected
    # Whatever the listener calls it: from another mount namespace, or relative.
    assert choose(ALL, named(), FILE) == expected._replace(strays=[])
    assert choose(ALL, named(), RELATIVE_LISTENER.file) == UnixEndpoint(
        [RELATIVE_LISTENER], [], 0, [], []
    )


def test_sessions_whose_listener_is_elsewhere() -> None:
    found = [one for one in ALL if one != LISTENER]
    assert choose(found, named(PATH), FILE) == UnixEndpoint([], SESSIONS, 0, [STRAY], [])


def test_by_name_and_inode_where_stat_shows_another_device() -> None:
    shown: FileId = (99, FILE[1])
    assert choose(ALL, named(PATH), shown) == UnixEndpoint([LISTENER], SESSIONS, 1, [STRAY], [])
    assert choose(ALL, named(), shown) == UnixEndpoint([], [], 0, [], [])


def test_another_file_of_the_same_name() -> None:
    # Of another mount namespace, or bound again by a server of another network namespace.
    assert choose(ALL, named(PATH), (99, 99)) == UnixEndpoint([], [], 0, [*SESSIONS, STRAY], [])


def test_a_file_that_cannot_be_seen_is_that_of_the_listeners() -> None:
    assert choose(ALL, named(PATH), None) == UnixEndpoint([LISTENER], SESSIONS, 1, [STRAY], [])
    found = [one for one in ALL if one != LISTENER]
    assert choose(found, named(PATH), None) == UnixEndpoint([], [], 0, [*SESSIONS, STRAY], [])


def test_abstract_names() -> None:
    expected = UnixEndpoint([ABSTRACT_LISTENER], [ABSTRACT_SESSION], 0, [], [])
    assert choose(ALL, named(ABSTRACT), None) == expected


def test_a_name_with_a_newline() -> None:
    expected = UnixEndpoint([ODD_LISTENER], [ODD_SESSION], 0, [], [])
    assert choose(ALL, named(ODD_PATH), ODD_LISTENER.file) == expected


@pytest.mark.parametrize("file", [None, FILE])
def test_procfs_tells_by_name_alone(file: FileId | None) -> None:
    endpoint = choose(by_procfs(ALL), named(PATH), file)
    assert [one.inode for one in endpoint.listeners] == [LISTENER.inode]
    inodes = [one.inode for one in (*SESSIONS, STRAY)]
    assert [one.inode for one in endpoint.sessions] == inodes
    assert (endpoint.not_accepted, endpoint.strays) == (1, [])


def test_sockets_without_connections_are_left_out() -> None:
    closed = SESSION._replace(state=7)
    assert choose([closed, LOG], named(PATH, b"/mnt/log"), None) == UnixEndpoint([], [], 0, [], [])
    assert choose([LOG], named(), LOG.file) == UnixEndpoint([], [], 0, [], [])
    assert choose(ALL, named(b"/elsewhere"), None) == UnixEndpoint([], [], 0, [], [])
