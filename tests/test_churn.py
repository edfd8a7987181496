"""Churn: ledgers of events and of snapshots; pure, on recorded events."""

from __future__ import annotations

import pytest

from check_pgsock.churn import (
    Churn,
    Close,
    EventLedger,
    SnapshotLedger,
    cookies,
    fullest_destination,
    has_data,
    identity,
)
from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.legs import Leg
from check_pgsock.option_values import parse_address, parse_network
from check_pgsock.sockets import model, port_range
from check_pgsock.sockets.model import Socket, TcpInfo
from tests.destroy_events import PORT, event

SERVER = Leg((PORT,))
CLIENT = Leg((PORT,), server=False)
A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
LOOPBACK4 = bytes((127, 0, 0, 1))
LONG = 1000.0  # ms; later than any of the recorded connections began


def live(
    cookie: int | None,
    state: int = model.ESTABLISHED,
    inode: int = 7,
    remote_port: int = 40000,
    timer: int = 0,
    local: bytes = A,
    remote: bytes = B,
    info: TcpInfo | None = None,
) -> Socket:
    """A socket of a snapshot."""
    return Socket(
        state, local, PORT, remote, remote_port, 0, inode, cookie, timer, 0, 0, 0, 0, info
    )


def numbers(churn: Churn) -> tuple[int, int, int, int | None, int | None]:
    """closed, opened, cycles, probes, failed connects"""
    return churn.closed, churn.opened, churn.cycles, churn.probes, churn.failed_connects


def counted(
    leg: Leg,
    *names: str,
    start: tuple[int, ...] = (),
    end: tuple[int, ...] = (),
    lost: int = 0,
    at: float = LONG,
) -> Churn:
    """The churn of these recorded events in 2 s."""
    ledger = EventLedger(leg, set(start))
    for name in names:
        ledger.add(event(name), at)
    return ledger.finish(set(end), lost, 2.0)


def test_opened_and_closed_within_the_window() -> None:
    churn = counted(SERVER, "close_ipv4_server", "close_ipv6_server", "close_mapped_server")
    assert numbers(churn) == (3, 3, 3, 0, None)
    assert churn.rate(churn.closed) == 1.5
    assert churn.closes == [
        Close(105023, LOOPBACK4, False, False),
        Close(105033, bytes(15) + b"\1", False, False),
        Close(105035, LOOPBACK4, False, False),
    ]


def test_pool_that_closes_does_not_cycle() -> None:
    churn = counted(SERVER, "close_ipv4_server", start=(105023, 5), end=(5,))
    assert numbers(churn) == (1, 0, 0, 0, None)


def test_pool_that_opens_does_not_cycle() -> None:
    assert numbers(counted(SERVER, start=(5,), end=(5, 6, 7))) == (0, 2, 0, 0, None)


def test_closed_after_the_end_was_read_is_not_of_this_window() -> None:
    churn = counted(SERVER, "close_ipv4_server", end=(105023,))
    assert numbers(churn) == (0, 1, 0, 0, None)
    assert churn.closes == []


def test_not_seen_at_the_start_but_older() -> None:
    # Reset while its process was busy: such a socket is in no dump. Last data 20 ms ago.
    churn = counted(SERVER, "close_ipv4_server", at=-1.0)
    assert numbers(churn) == (1, 0, 0, 0, None)
    assert numbers(counted(SERVER, "close_ipv4_server", at=0.0)) == (1, 1, 1, 0, None)


def test_client_leg_counts_its_own_end() -> None:
    churn = counted(CLIENT, "close_ipv4_client", "close_ipv6_client", "close_mapped_client")
    assert numbers(churn) == (3, 3, 3, 0, 0)


def test_other_end_is_not_counted() -> None:
    assert numbers(counted(SERVER, "close_ipv4_client")) == (0, 0, 0, 0, None)
    assert numbers(counted(CLIENT, "close_ipv4_server")) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("leg", "name"), [(SERVER, "probe_ipv4_server"), (CLIENT, "probe_ipv4_client")]
)
def test_probe(leg: Leg, name: str) -> None:
    churn = counted(leg, name)
    assert numbers(churn)[:4] == (1, 1, 1, 1)
    assert numbers(churn.without_probes())[:4] == (0, 0, 0, 1)
    assert churn.without_probes().closes == []
    (cookie,) = (one.cookie for one in churn.closes)
    assert cookie is not None
    older = counted(leg, name, start=(cookie,))
    assert numbers(older)[:4] == (1, 0, 0, 1)
    assert numbers(older.without_probes())[:4] == (0, 0, 0, 1)


def test_reset_by_the_other_end_is_a_close() -> None:
    assert numbers(counted(SERVER, "client_abort_server")) == (1, 1, 1, 0, None)
    assert numbers(counted(CLIENT, "server_abort_client")) == (1, 1, 1, 0, 0)


def test_reset_before_any_data_is_a_probe() -> None:
    assert numbers(counted(CLIENT, "server_abort_ipv6_client")) == (1, 1, 1, 1, 0)


def test_listener_is_no_close() -> None:
    assert numbers(counted(SERVER, "listener_ipv4", "listener_ipv6")) == (0, 0, 0, 0, None)


def test_abort_by_this_end_on_the_server_leg() -> None:
    churn = counted(SERVER, "server_abort_server", "server_abort_ipv6_server")
    assert numbers(churn) == (2, 2, 2, 0, None)
    churn = counted(SERVER, "server_abort_server", start=(105028,))
    assert numbers(churn) == (1, 0, 0, 0, None)
    assert numbers(counted(Leg((6432,)), "server_abort_server")) == (0, 0, 0, 0, None)


def test_abort_by_this_end_on_the_client_leg_is_known_by_its_cookie() -> None:
    ledger = EventLedger(CLIENT, set())
    ledger.add(event("client_abort_client"), LONG)
    assert ledger.unexplained == 1
    assert numbers(ledger.finish(set(), 0, 1.0)) == (0, 0, 0, 0, 0)
    assert numbers(counted(CLIENT, "client_abort_client", start=(105026,))) == (1, 0, 0, 0, 0)
    ledger = EventLedger(CLIENT, set())
    ledger.see({105026})
    ledger.add(event("client_abort_client"), LONG)
    churn = ledger.finish(set(), 0, 1.0)
    assert (numbers(churn), ledger.unexplained) == ((1, 1, 1, 0, 0), 0)
    assert churn.closes == [Close(105026, LOOPBACK4, False, False)]


def test_refused_connect_is_no_close() -> None:
    churn = counted(CLIENT, "refused_client")
    assert numbers(churn) == (0, 0, 0, 0, 1)


def test_address_and_peers_filter_events() -> None:
    here = parse_address("127.0.0.1")
    net = parse_network("127.0.0.0/8")
    names = ("close_ipv4_server", "close_ipv6_server", "server_abort_server")
    assert numbers(counted(Leg((PORT,), True, here), *names)) == (2, 2, 2, 0, None)
    assert numbers(counted(Leg((PORT,), True, None, (net,)), *names)) == (2, 2, 2, 0, None)
    assert numbers(counted(Leg((PORT,), True, None, (), (net,)), *names)) == (1, 1, 1, 0, None)
    other = Leg((PORT,), False, A)
    assert numbers(counted(other, "refused_client", "close_ipv4_client")) == (0, 0, 0, 0, 0)


def test_abort_that_lost_its_local_address_counts_where_it_was_seen() -> None:
    leg = Leg((PORT,), True, bytes(15) + b"\1")
    assert numbers(counted(leg, "server_abort_ipv6_server")) == (0, 0, 0, 0, None)
    churn = counted(leg, "server_abort_ipv6_server", start=(4735,))
    assert numbers(churn) == (1, 0, 0, 0, None)


def test_lost_events_are_closes() -> None:
    # Two of the lost were there at the start and have gone, the third came and went.
    churn = counted(SERVER, "close_ipv4_server", start=(105023, 1, 2, 3), end=(3,), lost=3)
    assert (numbers(churn), churn.lost) == ((4, 1, 1, 0, None), 3)


def test_gone_without_an_event_is_not_closed_yet() -> None:
    assert numbers(counted(SERVER, start=(1,))) == (0, 0, 0, 0, None)


def test_event_without_tcp_info_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^an event without tcp_info$"):
        EventLedger(SERVER, set()).add(live(1), LONG)


def test_cookies_are_those_of_full_connected_sockets() -> None:
    states = range(1, len(model.STATE_NAMES))
    found = cookies(live(state, state) for state in states)
    assert found == {1, 4, 5, 8, 9, 11}
    assert cookies([live(1, model.FIN_WAIT2, timer=3)]) == set()  # in TIME_WAIT's form
    assert cookies([live(None)]) == set()


def snapshots(*moments: list[Socket]) -> Churn:
    """The churn of these snapshots, in 2 s."""
    ledger = SnapshotLedger()
    for moment in moments:
        ledger.add(moment)
    return ledger.finish(2.0)


def test_snapshots_by_cookie() -> None:
    one, two, three = live(1), live(2), live(3, remote=A)
    churn = snapshots([one, three], [one, two], [two])
    assert numbers(churn) == (2, 1, 1, None, None)
    assert churn.closes == [Close(3, A, False, False), Close(1, B, False, False)]
    assert numbers(snapshots([one])) == (0, 0, 0, None, None)
    assert numbers(snapshots()) == (0, 0, 0, None, None)


def test_snapshots_follow_a_connection_through_its_states() -> None:
    through = [model.ESTABLISHED, model.CLOSE_WAIT, model.LAST_ACK]
    assert numbers(snapshots(*([live(1, s)] for s in through))) == (0, 0, 0, None, None)
    ended = snapshots([live(1)], [live(1, model.FIN_WAIT2, 0, timer=3)], [live(1, model.TIME_WAIT)])
    assert numbers(ended) == (1, 0, 0, None, None)


def test_snapshots_of_procfs() -> None:
    # Not accepted, accepted, closed by its process: one connection.
    same = [live(None, inode=0), live(None, inode=9), live(None, model.LAST_ACK, inode=0)]
    assert numbers(snapshots(*([one] for one in same))) == (0, 0, 0, None, None)
    replaced = snapshots([live(None, inode=9)], [live(None, inode=10)])
    assert numbers(replaced) == (1, 1, 1, None, None)
    other = snapshots([live(None)], [live(None, remote_port=40001)])
    assert numbers(other) == (1, 1, 1, None, None)


def test_without_probes_leaves_snapshots_alone() -> None:
    churn = snapshots([live(1)], [live(2)])
    assert numbers(churn.without_probes()) == numbers(churn)


def test_identity() -> None:
    assert identity(live(5)) == 5
    assert identity(live(None)) == (A, PORT, B, 40000)


@pytest.mark.parametrize(
    ("info", "server", "expected"),
    [
        (None, True, False),
        (TcpInfo(0, 0, None, None), True, False),
        (TcpInfo(0, 0, 9, 0), True, False),
        (TcpInfo(0, 0, 0, 8), True, True),
        (TcpInfo(0, 0, 1, 0), False, False),
        (TcpInfo(0, 0, 9, 0), False, True),
        (TcpInfo(0, 0, 1, 9), False, True),
    ],
)
def test_has_data(info: TcpInfo | None, server: bool, expected: bool) -> None:
    assert has_data(live(1, info=info), server) is expected


def test_fullest_destination() -> None:
    assert fullest_destination([]) == (0, None)
    full = live(2, remote_port=5432)
    sockets = [live(1, remote_port=6432), full, live(3, remote_port=5432), live(4, local=B)]
    assert fullest_destination(sockets) == (2, live(3, remote_port=5432))


def test_port_count() -> None:
    assert port_range.parse_port_count(b"32768\t60999\n") == 28232
    assert port_range.parse_port_count(b"1024 1024") == 1


@pytest.mark.parametrize(
    "text", [b"", b"1024", b"1 2 3", b"a b", b"-1 5", b"5 4", b"0 9", b"1 99999"]
)
def test_malformed_port_range(text: bytes) -> None:
    with pytest.raises(MalformedError, match=r"^/proc/sys/net/ipv4/ip_local_port_range: no "):
        port_range.parse_port_count(text)


def test_port_range_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_range, "NAME", "nonexistent/range")
    with pytest.raises(SourceError) as raised:
        port_range.read_port_count()
    assert str(raised.value) == (
        "/proc/sys/nonexistent/range cannot be read: No such file or directory; give "
        "--time-wait-warning and --time-wait-critical without %"
    )
