"""What a connection is doing: the rule, on sockets as the kernel showed them."""

from __future__ import annotations

from typing import Optional

import pytest

from check_pgsock.sessions.activity import ACTIVITIES, Activity, judge_activity
from check_pgsock.sessions.titles import Title, parse_title
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Socket, TcpInfo
from tests.moment import LOCAL4

Info = tuple[
    int, int, Optional[int], Optional[int]
]  # ms since sent, received; bytes acked, received

# Measured on PostgreSQL 18, Linux 6.18: a session that answered 4 s ago, 8 ms after it was asked.
ANSWERED: Info = (4000, 4008, 444, 41)
ASKED: Info = (4008, 4000, 444, 55)
EQUAL: Info = (4000, 4000, 444, 55)
# The same, seen from the client's end: it sent and its SYN was acknowledged.
CLIENT_ANSWERED: Info = (4008, 4000, 42, 444)
CLIENT_ASKED: Info = (4000, 4008, 56, 444)


def end(
    info: Info | None = ANSWERED,
    state: int = model.ESTABLISHED,
    *,
    inode: int = 1,
    timer: int = 2,
    retransmits: int = 0,
    receive_queue: int = 0,
    send_queue: int = 0,
    ack: int = 0,
) -> Socket:
    return Socket(
        state, LOCAL4, 5432, LOCAL4, 4711, 0, inode, 1, timer, 1000, retransmits, receive_queue,
        send_queue, None if info is None else TcpInfo(*info, last_ack_received_ms=ack),
    )  # fmt: skip


def title(text: str) -> Title:
    return parse_title(f"postgres: u d 127.0.0.1(4711) {text}", cluster_name="")


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        # Nobody has it.
        (end(None, inode=0), ("not accepted", None)),
        (end(EQUAL, model.CLOSE_WAIT, inode=0), ("not accepted", None)),
        (end(state=model.FIN_WAIT1, inode=0), ("kernel orphan", None)),
        (end(state=model.FIN_WAIT2, inode=0), ("kernel orphan", None)),
        (end(state=model.CLOSING, inode=0), ("kernel orphan", None)),
        (end(state=model.LAST_ACK, inode=0), ("kernel orphan", None)),
        (end(None, model.TIME_WAIT, inode=0, timer=3), ("unknown", None)),
        (end(None, model.SYN_RECV, inode=0, timer=1), ("unknown", None)),
        # The other end is closed, or this one is on its way to be.
        (end(ASKED, model.CLOSE_WAIT), ("orphaned", None)),
        (end(state=model.FIN_WAIT1), ("unknown", None)),
        # The client's host vanished: recorded 1.5 and 3 s later.
        (end((664, 7020, 400, 50), timer=1, retransmits=2, send_queue=10), None),
        (
            end((1332, 8520, 400, 50), timer=1, retransmits=3, send_queue=10),
            ("suspected dead peer", 8.52),
        ),
        (end((7020, 7020, 400, 50), retransmits=1), ("suspected dead peer", 7.02)),
        # The client does not read: its window answers the probes, or does no more.
        (
            end((5496, 5504, 121984, 50), timer=4, send_queue=47784),
            ("client not reading", 5.504),
        ),
        (
            end((7012, 7020, 121984, 50), timer=4, retransmits=1, send_queue=47784),
            ("client not reading", 7.02),
        ),
        (
            end((14520, 14528, 121984, 50), timer=4, retransmits=2, send_queue=47784),
            ("suspected dead peer", 14.528),
        ),
    ],
)
def test_the_socket_comes_before_the_title(
    one: Socket, expected: tuple[str, float | None] | None
) -> None:
    told = Activity("idle", 0.664, "title") if expected is None else Activity(*expected, "socket")
    assert judge_activity(one, True, title("idle")) == told


@pytest.mark.parametrize(
    ("info", "receive_queue"),
    [
        ((52, 52, 0, 0), 0),  # nothing sent
        ((52, 52, 1, 8), 0),  # a request for TLS, refused
        ((52, 52, 2, 16), 0),  # and one for GSSAPI encryption
        ((52, 52, 0, 3), 3),
    ],
)
def test_without_a_startup_packet(info: Info, receive_queue: int) -> None:
    one = end(info, receive_queue=receive_queue)
    assert judge_activity(one, True) == ("no startup packet", 0.052, "tcp_info")


def test_a_child_without_a_title_has_no_startup_packet() -> None:
    told = judge_activity(end((40, 52, 1, 300)), True, Title("untitled"))
    assert told == ("no startup packet", 0.04, "title")
    assert judge_activity(end(None), True, Title("untitled")).idle_seconds is None


def test_a_client_that_sent_nothing() -> None:
    # bytes_acked counts its SYN.
    assert judge_activity(end((52, 52, 1, 0)), False) == ("no startup packet", 0.052, "tcp_info")
    assert judge_activity(end((56, 56, 9, 1)), False).activity == "no startup packet"


@pytest.mark.parametrize(
    ("info", "text", "expected"),
    [
        (ANSWERED, "idle", ("idle", 4.0)),
        (EQUAL, "idle", ("idle", 4.0)),
        (ANSWERED, "idle in transaction", ("idle in transaction", 4.0)),
        (ANSWERED, "idle in transaction (aborted)", ("idle in transaction", 4.0)),
        (None, "idle", ("idle", None)),
        (ASKED, "SELECT", ("active", None)),
        ((900, 4008, 90_000, 41), "COPY", ("active", None)),  # it sends rows
        (ASKED, "<FASTPATH>", ("active", None)),
        (ASKED, "SELECT waiting", ("waiting", None)),
        (ASKED, "COMMIT waiting for 0/3000148", ("waiting", None)),
        # A login: the server spoke last, but there is no session that could be idle.
        ((48, 52, 24, 35), "authentication", ("unknown", None)),
        ((4000, 4008, 1200, 900), "authentication", ("unknown", None)),  # with TLS
        ((4000, 4008, 444, 41), "startup", ("unknown", None)),
    ],
)
def test_the_title_comes_before_tcp_info(
    info: Info | None, text: str, expected: tuple[str, float | None]
) -> None:
    assert judge_activity(end(info), True, title(text)) == (*expected, "title")


@pytest.mark.parametrize(
    ("one", "server", "expected"),
    [
        (end(ANSWERED), True, ("idle", 4.0)),
        (end(ASKED), True, ("active", None)),
        (end((4000, 3996, 444, 55)), True, ("active", None)),  # one jiffy of 4 ms
        (end(EQUAL), True, ("unknown", 4.0)),
        (end(CLIENT_ANSWERED), False, ("idle", 4.0)),
        (end(CLIENT_ASKED), False, ("active", None)),
        (end(EQUAL), False, ("unknown", None)),
        # The server does not read what its client sends: it works.
        (end(CLIENT_ASKED, timer=4, send_queue=9000), False, None),
        # The response was sent again: when it was sent first is not known.
        (end(ANSWERED, timer=1, retransmits=1, send_queue=9), True, ("unknown", None)),
        # SCRAM, and the client considers its password; what is not acknowledged counts, too.
        (end((48, 52, 24, 35)), True, ("unknown", None)),
        (end((52, 48, 36, 24)), False, ("unknown", None)),
        (end((4000, 4008, 0, 41), timer=1, send_queue=444), True, ("idle", 4.0)),
        # An older kernel does not count bytes.
        (end((4000, 4008, None, None)), True, ("idle", 4.0)),
    ],
)
def test_tcp_info_alone(
    one: Socket, server: bool, expected: tuple[str, float | None] | None
) -> None:
    told = ("active", None, "socket") if expected is None else (*expected, "tcp_info")
    assert judge_activity(one, server) == told


def test_without_tcp_info_and_title_nothing_is_known() -> None:
    assert judge_activity(end(None), True) == ("unknown", None, "socket")


def test_a_request_that_waits_contradicts_a_title_that_stands_still() -> None:
    asked: Info = (90_000, 60_000, 444, 55)
    assert judge_activity(end(asked), True, title("idle")) == ("unknown", None, "tcp_info")
    assert judge_activity(end(asked), True, title("SELECT")).activity == "active"
    just_asked: Info = (90_000, 4, 444, 55)
    assert judge_activity(end(just_asked), True, title("idle")) == ("idle", 0.004, "title")


def test_an_answer_of_long_ago_contradicts_one_that_says_active() -> None:
    # SET update_process_title = off was the last that it showed.
    answered: Info = (60_000, 60_004, 444, 55)
    assert judge_activity(end(answered), True, title("SET")) == ("unknown", None, "tcp_info")
    assert judge_activity(end(EQUAL), True, title("SET")).activity == "active"
    assert judge_activity(end(answered), True, title("SELECT waiting")).activity == "waiting"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("idle", ("unknown", "tcp_info")),  # it may be in a transaction
        ("idle in", ("idle in transaction", "title")),
        ("idle in transaction (ab", ("idle in transaction", "title")),
        ("SELECT", ("unknown", "tcp_info")),  # it may wait
        ("SELECT waiting", ("waiting", "title")),
    ],
)
def test_a_title_that_may_be_cut(text: str, expected: tuple[str, str]) -> None:
    peers = {(LOCAL4, 4711)}
    told = parse_title(
        f"postgres: u d 127.0.0.1(4711) {text}", whole=False, cluster_name="", peers=peers
    )
    found = judge_activity(end(EQUAL), True, told)
    assert (found.activity, found.known_by) == expected


# Measured through PgBouncer on loopback: ends that sent and received within one tick, and how long
# ago each was acknowledged.
ANSWERED_TIED = (end((2048, 2048, 444, 55), ack=2004), end((2048, 2048, 56, 444), ack=2048))
ASKED_TIED = (end((2040, 2040, 444, 55), ack=2040), end((2040, 2040, 56, 444), ack=1996))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (ANSWERED_TIED, ("idle", 2.048)),
        (ASKED_TIED, ("active", None)),
        # One that was acknowledged at once tells nothing, nor does the answer to a keepalive.
        ((end(EQUAL, ack=4000), end(EQUAL, ack=4000)), ("unknown", 4.0)),
        ((end(EQUAL, ack=40), end(EQUAL, ack=40)), ("unknown", 4.0)),
        # What the other end's clocks tell goes before.
        ((end(EQUAL, ack=3960), end(CLIENT_ASKED)), ("active", None)),
        ((end(EQUAL), end(CLIENT_ANSWERED)), ("idle", 4.0)),
        ((end(EQUAL), end(None)), ("unknown", 4.0)),
    ],
)
def test_within_a_tick_acknowledgements_tell(
    ends: tuple[Socket, Socket], expected: tuple[str, float | None]
) -> None:
    server_end, client_end = ends
    told = (*expected, "tcp_info")
    assert judge_activity(server_end, True, None, client_end) == told
    if ends in (ANSWERED_TIED, ASKED_TIED):
        assert judge_activity(client_end, False, None, server_end) == told


def test_a_walsender_that_streams_is_active() -> None:
    told = parse_title("postgres: walsender u 127.0.0.1(4711) streaming 0/1", cluster_name="")
    assert judge_activity(end(ANSWERED), True, told) == ("active", None, "title")


def test_on_the_client_leg_what_the_server_closed_is_no_orphan() -> None:
    assert judge_activity(end(ASKED, model.CLOSE_WAIT), False).activity == "closed by server"


def test_on_the_client_leg_a_socket_without_owner_waits_for_no_acceptance() -> None:
    assert judge_activity(end(None, inode=0), False).activity == "unknown"


def test_the_activities() -> None:
    assert len(set(ACTIVITIES)) == len(ACTIVITIES) == 12
