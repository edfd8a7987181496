"""Sentences on connections whose peer is gone, on made-up ones: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from check_pgsock.sessions.activity import NOT_ACCEPTED, ORPHANED
from check_pgsock.sessions.connections import CLIENT, KEYS, OVER_UNIX, SERVER, UNIX, Connection
from check_pgsock.sessions.orphans import advice_lines, orphan_lines, say_backend

if TYPE_CHECKING:
    from check_pgsock.sessions.orphans import Orphan

NOUN = "in CLOSE_WAIT"


def connection(**values: object) -> Connection:
    given = {"leg": SERVER, "activity": ORPHANED, "peer_address": "10.0.0.5", **values}
    return {**dict.fromkeys(KEYS), **given}


def backend(pid: object = 4711, **values: object) -> Connection:
    session = {"user": "app", "database": "shop", "session_state": "SELECT", "process": "postgres"}
    return connection(backend_pid=pid, **{**session, **values})


@pytest.mark.parametrize(
    ("values", "seconds", "expected"),
    [
        (
            {},
            730.0,
            "user app on shop from 10.0.0.5 runs SELECT, its client gone for at least 12 min",
        ),
        (
            {"session_state": "SELECT waiting"},
            None,
            "user app on shop from 10.0.0.5 runs SELECT waiting, its client gone",
        ),
        (
            {"session_state": "idle in transaction", "peer_address": OVER_UNIX, "leg": UNIX},
            3.0,
            "user app on shop over a Unix socket is idle in transaction, its client gone for at "
            "least 3.0 s",
        ),
        (
            {"user": None, "database": None, "session_state": None},
            0.0,
            "from 10.0.0.5, its client gone for at least 0.0 s",
        ),
        (
            {"user": "a|b\x1b[0m\n", "database": "x" * 70},
            None,
            f"user a?b?[0m  on {'x' * 60}... from 10.0.0.5 runs SELECT, its client gone",
        ),
    ],
)
def test_a_backend(values: dict[str, object], seconds: float | None, expected: str) -> None:
    assert say_backend(backend(**values), seconds) == f"process 4711: {expected}"


def test_the_longest_first_and_the_rest_in_one_line() -> None:
    orphans: list[Orphan] = [
        (backend(1), 5.0),
        (backend(2), None),
        (backend(3, user="report"), 70.0),
        (backend(4, peer_address="10.0.0.6"), 5.0),
    ]
    lines = [say_backend(*orphans[at]) for at in (2, 0, 3, 1)]
    assert orphan_lines(orphans, NOUN, 4) == lines
    assert orphan_lines(orphans, NOUN, 3) == [
        *lines[:2], "2 more backends: user app; database shop; peers 10.0.0.6 (1), 10.0.0.5 (1)",
    ]  # fmt: skip
    assert orphan_lines(orphans[:2], NOUN, 1) == [
        "2 more backends: user app; database shop; peer 10.0.0.5"
    ]


def test_many_names_are_cut() -> None:
    orphans: list[Orphan] = [(backend(pid, user=f"u{pid % 5}"), None) for pid in range(20)]
    lines = orphan_lines(orphans, NOUN, 10)
    assert len(lines) == 10
    assert lines[-1] == (
        "11 more backends: users u4 (3), u0 (2), u1 (2) and 2 more; database shop; peer 10.0.0.5"
    )


def test_others_are_counted() -> None:
    waiting: list[Orphan] = [(connection(activity=NOT_ACCEPTED), 8.0) for _ in range(6)]
    counted = [
        "peer 10.0.0.5: 6 in CLOSE_WAIT",
        "activity: 6 not accepted",
        "the longest for at least 8.0 s",
    ]
    assert orphan_lines(waiting, NOUN, 10) == counted
    orphans: list[Orphan] = [(backend(pid), None) for pid in range(9)]
    lines = orphan_lines([*waiting, *orphans], NOUN, 8)
    assert lines[:4] == [say_backend(backend(pid), None) for pid in range(4)]
    assert lines[4:] == [
        "5 more backends: user app; database shop; peer 10.0.0.5", *counted,
    ]  # fmt: skip


def test_nobody_is_nobody() -> None:
    assert orphan_lines([], NOUN, 10) == []
    assert advice_lines([]) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [backend(1), backend(2, peer_address="10.0.0.6"), backend(3, peer_address="10.0.0.6")],
            [
                "each holds a slot until its statement ends: pg_terminate_backend(PID) ends it, "
                "client_connection_check_interval lets the server notice by itself; at fault: the "
                "clients on 10.0.0.6, 10.0.0.5, gone under a statement"
            ],
        ),
        (
            [backend(1, peer_address=OVER_UNIX), connection(activity=NOT_ACCEPTED)],
            [
                "it holds its slot until its statement ends: pg_terminate_backend(PID) ends it, "
                "client_connection_check_interval lets the server notice by itself; at fault: the "
                "client on this host, gone under a statement",
                "1 connection not accepted: the server is stopped or starved, and its clients have "
                "given up",
            ],
        ),
        (
            [connection(process="pgbouncer"), connection(process="pgbouncer")],
            [
                "at fault: the pooler on this host (pgbouncer), which has not closed what its "
                "clients closed: stopped, starved or stuck"
            ],
        ),
        (
            [connection(process="pgbouncer"), connection(process="a|b")],
            [
                "at fault: the program on this host (a?b, pgbouncer), which has not closed what "
                "its clients closed: stopped, starved or stuck"
            ],
        ),
        (
            [connection()],
            [
                "at fault is the program that accepted them (which one is not seen from here), "
                "unless it is a PostgreSQL server: its backends work on until their statements "
                "end, client_connection_check_interval lets them notice"
            ],
        ),
        (
            [
                connection(leg=CLIENT, process="java", receive_queue_bytes=size)
                for size in (0, 1, 1, 112)
            ],
            [
                "at fault: the program on this host (java), which has not closed what the server "
                "closed (1 with unread bytes, 2 not looked at since, 1 read to the end, and "
                "leaked): let its pool validate connections, or limit their idle time"
            ],
        ),
    ],
)
def test_whose_fault_it_is(rows: list[Connection], expected: list[str]) -> None:
    assert advice_lines(rows) == expected
