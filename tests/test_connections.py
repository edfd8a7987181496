"""Connections described, grouped and named, on made-up sockets: pure."""

from __future__ import annotations

import pytest

from check_pgsock.pgsock.connections import Condition
from check_pgsock.sessions.backends import Backend
from check_pgsock.sessions.connections import (
    CLIENT,
    KEYS,
    SERVER,
    Connection,
    count_by,
    of_socket,
    of_unix_socket,
    who_lines,
)
from check_pgsock.sessions.holders import Holder
from check_pgsock.sessions.titles import parse_title
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Socket, TcpInfo
from check_pgsock.sockets.unix_sockets import STREAM, UnixSocket

INFO = TcpInfo(5000, 5100, 501, 60, total_retransmits=2)
ONE = Socket(
    ESTABLISHED, bytes([10, 0, 0, 1]), 5432, bytes([10, 0, 0, 2]), 40000, 26, 77, 1, 0, 0, 0, 3, 4,
    INFO, 9,
)  # fmt: skip
IDLE = Backend(300, parse_title("postgres: app shop 10.0.0.2(40000) idle"), 42.0, 1.5, 2)


def connection(peer: str, user: str | None, activity: str = "idle") -> Connection:
    known = {"leg": SERVER, "peer_address": peer, "user": user, "activity": activity}
    return {**dict.fromkeys(KEYS), **known}


def test_a_session_from_its_socket_and_its_backend() -> None:
    assert of_socket(ONE, SERVER, IDLE) == {
        "leg": "server",
        "namespace": None,
        "state": "ESTABLISHED",
        "local_address": "10.0.0.1",
        "local_port": 5432,
        "peer_address": "10.0.0.2",
        "peer_port": 40000,
        "user": "app",
        "database": "shop",
        "session_state": "idle",
        "activity": "idle",
        "activity_known_by": "title",
        "idle_seconds": 5.0,
        "age_seconds": 42.0,
        "age_known_by": "backend start",
        "age_is_lower_bound": False,
        "backend_pid": 300,
        "backend_type": "client backend",
        "backend_cpu_seconds": 1.5,
        "parallel_workers": 2,
        "uid": 26,
        "pid": 300,
        "process": "postgres",
        "peer_uid": None,
        "peer_pid": None,
        "peer_process": None,
        "received_bytes": 60,
        "sent_bytes": 501,
        "receive_queue_bytes": 3,
        "send_queue_bytes": 4,
        "retransmits": 0,
        "total_retransmits": 2,
        "cgroup": 9,
        "inode": 77,
    }


def test_the_client_end_has_its_own_process_and_sent_no_syn_byte() -> None:
    found = of_socket(ONE, CLIENT, IDLE, Holder(400, "pgbouncer", 99.0))
    assert (found["pid"], found["process"], found["backend_pid"]) == (400, "pgbouncer", 300)
    assert (found["sent_bytes"], found["received_bytes"]) == (500, 60)
    assert (found["user"], found["age_seconds"]) == ("app", 42.0)


def test_what_a_socket_alone_does_not_tell_is_none() -> None:
    found = of_socket(ONE._replace(info=None, inode=0, state=CLOSE_WAIT, cgroup=None), SERVER)
    told = {key for key, value in found.items() if value is not None}
    assert told == {
        "leg", "state", "local_address", "local_port", "peer_address", "peer_port", "activity",
        "activity_known_by", "receive_queue_bytes", "send_queue_bytes", "retransmits",
    }  # fmt: skip
    assert found["activity"] == "not accepted"


def test_a_cut_title_says_only_what_is_certain() -> None:
    cut = parse_title(
        "postgres: app shop 10.0.0.2(40000) idle in tr",
        whole=False,
        cluster_name="",
        peers={(bytes([10, 0, 0, 2]), 40000)},
    )
    found = of_socket(ONE, SERVER, IDLE._replace(title=cut))
    assert (found["user"], found["session_state"]) == ("app", None)
    assert found["activity"] == "idle in transaction"


def test_a_title_of_more_than_one_meaning_is_no_state() -> None:
    text = 'postgres: walsender u [local] sending backup "x [local] idle'
    told = parse_title(text, cluster_name="")
    assert told.text == text
    assert of_unix_socket(None, IDLE._replace(title=told))["session_state"] is None


def test_unix_sessions() -> None:
    title = parse_title("postgres: app shop [local] SELECT waiting")
    end = UnixSocket(ESTABLISHED, b"/s", (1, 2), STREAM, 88, 26, 5, 89, 7, 0, 0)
    peer = end._replace(path=None, file=None, inode=89, uid=33, peer_inode=88)
    found = of_unix_socket(end, IDLE._replace(title=title), peer, None, Holder(500, "psql", None))
    assert (found["leg"], found["peer_address"], found["state"]) == (
        "unix", "[local]", "ESTABLISHED",
    )  # fmt: skip
    assert (found["activity"], found["age_seconds"]) == ("waiting", 42.0)
    assert (found["peer_uid"], found["peer_pid"], found["peer_process"]) == (33, 500, "psql")
    assert (found["pid"], found["process"], found["receive_queue_bytes"]) == (300, "postgres", 7)
    # Its client has closed: there is no CLOSE_WAIT to tell it by.
    gone = of_unix_socket(end._replace(peer_inode=0, shutdown=3), IDLE._replace(title=title))
    assert gone["activity"] == "orphaned"
    assert of_unix_socket(end)["activity"] == "unknown"


def test_groups_are_ordered_by_size_then_value() -> None:
    rows = [connection("b", "x"), connection("a", None), connection("a", "x"), connection("c", "x")]
    groups = count_by(rows, "peer_address")
    assert [(values, len(ones)) for values, ones in groups] == [
        (("a",), 2), (("b",), 1), (("c",), 1),
    ]  # fmt: skip
    assert [values for values, _ in count_by(rows, "user", "activity")] == [
        ("x", "idle"), (None, "idle"),
    ]  # fmt: skip


def test_who_names_the_largest_and_adds_up_the_rest() -> None:
    rows = [connection(f"10.0.0.{n}", f"user{n % 4}") for n in range(12) for _ in range(12 - n)]
    lines = who_lines(rows, "established")
    assert len(lines) == 10
    assert lines[:2] == ["peer 10.0.0.0: 12 established", "peer 10.0.0.1: 11 established"]
    assert lines[4:] == [
        "8 more peers: 36 established",
        "user user0: 24 established",
        "user user1: 21 established",
        "user user2: 18 established",
        "user user3: 15 established",
        "activity: 78 idle",
    ]


@pytest.mark.parametrize("activity", ["unknown", "orphaned"])
def test_who_says_nothing_of_what_is_not_known(activity: str) -> None:
    rows = [connection("10.0.0.1", None, activity)] * 3
    assert who_lines(rows, "in CLOSE_WAIT") == ["peer 10.0.0.1: 3 in CLOSE_WAIT"]
    assert who_lines([], "established") == []


def test_names_from_outside_are_cleaned() -> None:
    rows = [connection("10.0.0.1", "evil\n| \x1b[31m")]
    assert who_lines(rows, "established")[1] == "user evil ? ?[31m: 1 established"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("user=app", True),
        ("user=a*", True),
        ("user=b*", False),
        ("user!=b*", True),
        ("peer=10.0.0.2", True),
        ("namespace=", True),
        ("user=", False),
        ("user!=", True),
        ("idle_seconds>4.9", True),
        ("idle>=5", True),
        ("idle<5", False),
        ("age<=42", True),
        ("peer_uid>0", False),
        ("peer_uid<1", False),
        ("age_is_lower_bound=false", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert Condition(condition).holds(of_socket(ONE, SERVER, IDLE)) is holds
