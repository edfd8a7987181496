"""Which connections nobody uses, on made-up ones: pure."""

from __future__ import annotations

from typing import Any

import pytest

from check_pgsock.sessions.connections import CLIENT, KEYS, SERVER, UNIX, Connection
from check_pgsock.sessions.leaks import (
    Leak,
    count_possible,
    find_leaks,
    leak_lines,
    leave_out_walsenders,
    say_unjudged,
    without_clock,
)

IDLE, IN_TRANSACTION, UNKNOWN = "idle", "idle in transaction", "unknown"
IDLE_FOR, IN_TRANSACTION_FOR = 900.0, 60.0


def connection(
    activity: str = IDLE, idle: float | None = 1000.0, pid: int | None = 7, **known: Any
) -> Connection:
    """A session over TCP, whose backend is known unless `pid` is None."""
    whose = {"user": "app", "database": "shop", "backend_type": "client backend"} if pid else {}
    return {
        **dict.fromkeys(KEYS),
        "leg": SERVER,
        "peer_address": "10.0.0.5",
        "activity": activity,
        "idle_seconds": idle,
        "backend_pid": pid,
        "received_bytes": 80,
        **whose,
        **known,
    }


def over_unix(activity: str = IDLE, pid: int | None = 7, age: float = 9999.0) -> Connection:
    return connection(
        activity, None, pid, leg=UNIX, peer_address="[local]", received_bytes=None,
        age_seconds=age, age_is_lower_bound=False,
    )  # fmt: skip


def kinds(*connections: Connection, **watched: float) -> tuple[int, int, int]:
    """How many are silent, idle in a transaction, of dead peers; `p7=5.0` is a watched backend."""
    seen = {int(name[1:]): seconds for name, seconds in watched.items()}
    found = find_leaks(connections, IDLE_FOR, IN_TRANSACTION_FOR, seen)
    return len(found.silent), len(found.idle_in_transaction), len(found.dead_peers)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (connection(IDLE, 900.1), (1, 0, 0)),
        (connection(IDLE, 900.0), (0, 0, 0)),
        (connection(IN_TRANSACTION, 60.1), (0, 1, 0)),
        (connection(IN_TRANSACTION, 60.0), (0, 0, 0)),
        # Once, however long it has been idle besides.
        (connection(IN_TRANSACTION, 9999.0), (0, 1, 0)),
        (connection("suspected dead peer", 0.7), (0, 0, 1)),
        (connection("suspected dead peer", None), (0, 0, 1)),
        # Whatever else it does it is not silent.
        *(
            (connection(activity, 9999.0), (0, 0, 0))
            for activity in ("active", "waiting", "not accepted", "no startup packet", "orphaned",
                             "client not reading", "kernel orphan")
        ),
        # Idle, or at one statement: it counts, and is called uncertain.
        (connection(UNKNOWN, 1000.0, None), (1, 0, 0)),
        (connection(UNKNOWN, 800.0, None), (0, 0, 0)),
    ],
)  # fmt: skip
def test_what_is_a_leak(one: Connection, expected: tuple[int, int, int]) -> None:
    assert kinds(one) == expected


def test_what_is_uncertain() -> None:
    ones = [connection(UNKNOWN, 1000.0, None), connection(), connection(IN_TRANSACTION)]
    found = find_leaks(ones, IDLE_FOR, IN_TRANSACTION_FOR, {})
    assert found.silent == [Leak(ones[0], 1000.0, False), Leak(ones[1], 1000.0, True)]
    assert (found.uncertain, found.others) == (1, 1)


def test_a_session_without_a_clock_is_told_by_earlier_runs() -> None:
    assert kinds(over_unix(), p7=900.1) == (1, 0, 0)
    assert kinds(over_unix(), p7=900.0) == (0, 0, 0)
    assert kinds(over_unix(IN_TRANSACTION), p7=60.1) == (0, 1, 0)
    assert kinds(over_unix(IN_TRANSACTION), p8=60.1) == (0, 0, 0)
    # What has a clock of its own needs none of that.
    assert kinds(connection(IDLE, 5.0), p7=901.0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("one", "unknown", "untimed", "hidden"),
    [
        (over_unix(), 0, 1, 1),
        (over_unix(IN_TRANSACTION), 0, 1, 1),
        (over_unix(UNKNOWN), 1, 0, 1),
        (over_unix(UNKNOWN, pid=None), 1, 0, 1),
        (over_unix(IN_TRANSACTION, age=61.0), 0, 1, 1),
        (over_unix(UNKNOWN, age=61.0), 1, 0, 1),
        ({**over_unix(age=1.0), "age_is_lower_bound": True}, 0, 1, 1),
        # A client that logs in has a clock: it will tell.
        (connection(UNKNOWN, None, None), 1, 0, 0),
    ],
)
def test_what_cannot_be_judged(one: Connection, unknown: int, untimed: int, hidden: int) -> None:
    found = find_leaks([one], IDLE_FOR, IN_TRANSACTION_FOR, {8: 9999.0})
    counts = [len(ones) for ones in (found.unknown, found.untimed, found.hidden)]
    assert counts == [unknown, untimed, hidden]
    assert (found.told, found.silent, found.others) == (0, [], 0)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (connection(), 1),
        (connection(UNKNOWN, 1.0), 1),
        *((connection(activity), 1) for activity in ("active", "waiting", "suspected dead peer")),
        # Nobody has asked for a session, or nobody took it.
        *((connection(activity), 0) for activity in ("no startup packet", "not accepted")),
        # It has not lived for so long.
        (over_unix(age=900.0), 1),
        (over_unix(IN_TRANSACTION, age=60.0), 1),
        (over_unix(UNKNOWN, age=60.0), 1),
    ],
)
def test_what_is_judged(one: Connection, told: int) -> None:
    found = find_leaks([one], IDLE_FOR, IN_TRANSACTION_FOR, {})
    assert (found.told, found.unknown, found.untimed) == (told, [], [])


def test_whether_transactions_are_told() -> None:
    known: dict[str, Any] = {"activity_known_by": "title"}
    told = [connection(**known), connection(UNKNOWN, **known), connection("active")]
    told.append(connection(IN_TRANSACTION, **known))
    by_socket = [connection(pid=None, activity_known_by="tcp_info"), connection(UNKNOWN, None)]
    found = find_leaks([*told, *by_socket], IDLE_FOR, IN_TRANSACTION_FOR, {})
    assert found.untitled == by_socket


def test_how_many_may_be_in_transaction() -> None:
    """(possible, silent): of those of a server, idle for longer than the bound, or nobody knows."""
    bounds = IDLE_FOR, IN_TRANSACTION_FOR

    def count(*connections: Connection) -> tuple[int, int]:
        return count_possible(find_leaks(connections, *bounds, {}), connections, *bounds)

    by: dict[str, Any] = {"activity_known_by": "tcp_info"}
    assert count(connection(IDLE, 60.0, **by)) == (0, 0)
    assert count(connection(IDLE, 60.1, **by), connection(IDLE, 900.1, **by)) == (2, 1)
    assert count(connection(UNKNOWN, None, **by)) == (1, 0)
    assert count(over_unix(UNKNOWN, age=60.0)) == (0, 0)
    assert count(connection(activity_known_by="title")) == (0, 0)
    elsewhere = find_leaks([connection(**by)], *bounds, {})
    assert count_possible(elsewhere, [], *bounds) == (0, 0)


def test_which_sessions_have_no_clock() -> None:
    timeless = [over_unix(), over_unix(IN_TRANSACTION), connection(IDLE, None)]
    others = [over_unix("active"), over_unix(pid=None), connection(), over_unix(UNKNOWN)]
    assert without_clock([*others, *timeless]) == timeless


def test_walsenders_are_left_out() -> None:
    client, pooled = connection(), connection(pid=None)
    ones = [
        client,
        connection(backend_type="walsender", user="repl", database=None),
        pooled,
        connection(backend_type=None, user=None, database=None),
        connection("no startup packet", backend_type="untitled"),
    ]
    assert leave_out_walsenders(ones) == ([client, pooled, ones[4]], 1)


def test_what_is_said_of_the_others() -> None:
    ones = [over_unix(), over_unix(UNKNOWN, None), over_unix(UNKNOWN, None)]
    found = find_leaks([*ones, connection(UNKNOWN, pid=None)], IDLE_FOR, IN_TRANSACTION_FOR, {})
    assert say_unjudged(found, 2) == [
        "not judged, since whether it is idle is not known: 2 connections",
        "not judged, since for how long they are idle is told by earlier runs alone (Unix sockets, "
        "procfs; see --state-dir): 1 session",
        "not judged, since its title may be a walsender's: 2 sessions",
        "1 of the silent may be at one statement since: question and answer came within one tick "
        "of the clock",
    ]
    assert say_unjudged(find_leaks([connection()], 1, 1, {}), 0) == []


def test_who_leaks() -> None:
    ones = [
        *(
            connection(IDLE, 1000.0 + n, 20 + n, peer_pid=99, peer_process="py|thon")
            for n in (2, 0)
        ),
        connection(IDLE, 7200.0, 30, peer_address="10.0.0.6"),
        connection(IDLE, 1200.0, None, user=None, peer_address="10.0.0.7"),
        connection(IN_TRANSACTION, 720.0, 41, user="re\nport", database=None),
        connection(IN_TRANSACTION, 120.0, 40, user="re\nport", database=None),
        connection("suspected dead peer", 12.0, 50),
        connection("suspected dead peer", None, 51),
    ]
    found = find_leaks([*ones, over_unix(pid=60)], IDLE_FOR, IN_TRANSACTION_FOR, {60: 950.0})
    assert leak_lines(found, 30) == [
        "user app on shop from 10.0.0.5, for up to 12 s (backend 50): 2 with a suspected dead peer",
        "user re port from 10.0.0.5, for up to 12 min (backend 41): 2 idle in transaction",
        "user app on shop from 10.0.0.5 by py?thon (99), for up to 16 min (backend 22): 2 silent",
        "from 10.0.0.7, for up to 20 min: 1 silent",
        "user app on shop from 10.0.0.6, for up to 2 h 00 min (backend 30): 1 silent",
        "user app on shop over a Unix socket, for up to 15 min (backend 60): 1 silent",
    ]
    # Lines are shared among the kinds.
    lines = leak_lines(found, 9)
    assert len(lines) == 5
    assert lines[-1] == "2 more of others: 2 silent"


def test_who_leaks_on_the_client_leg() -> None:
    one = {**connection(IDLE, 901.0, None, leg=CLIENT, process="java"), "pid": 5}
    found = find_leaks([one], IDLE_FOR, IN_TRANSACTION_FOR, {})
    assert leak_lines(found, 10) == ["to 10.0.0.5 by java (5), for up to 15 min: 1 silent"]
    lost = find_leaks([connection("suspected dead peer", None, None)], 1, 1, {})
    assert leak_lines(lost, 10) == ["from 10.0.0.5: 1 with a suspected dead peer"]
    assert leak_lines(find_leaks([], 1, 1, {}), 10) == []
