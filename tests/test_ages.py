"""Ages of connections: exact where they are proven to be, else a lower bound."""

from __future__ import annotations

import socket
import time

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg
from check_pgsock.sessions.ages import Age, confirm_setting, judge_age, prove_period, time_elapsed
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Socket, TcpInfo
from check_pgsock.sockets.sources.netlink import NetlinkSource
from tests.moment import LOCAL4


def end(
    left: float,
    silence: float | None = 0.0,
    *,
    timer: int = 2,
    probes: int = 0,
    bytes_received: int | None = 41,
) -> Socket:
    """A socket whose timer has so many seconds left, and that has been silent for so long."""
    info = None
    if silence is not None:
        info = TcpInfo(round(silence * 1000), round(silence * 1000), 444, bytes_received)
    return Socket(
        model.ESTABLISHED, LOCAL4, 5432, LOCAL4, 4711, 0, 1, 1, timer, round(left * 1000), probes,
        0, 0, info,
    )  # fmt: skip


YOUNG = end(7190.0)  # 10 s of 7200 have passed


@pytest.mark.parametrize(
    ("one", "known", "expected"),
    [
        (YOUNG, {"backend": 9.98}, Age(9.98, "backend start", False)),
        (YOUNG, {"period": 7200, "at_most": 60}, Age(10, "keepalive timer", False)),
        # It may have fired since, and been set anew by traffic.
        (YOUNG, {"period": 7200}, Age(10, "keepalive timer", True)),
        (YOUNG, {"period": 7200, "at_most": 7201}, Age(10, "keepalive timer", True)),
        (YOUNG, {"period": 7200, "first_seen": 300}, Age(300, "first seen", True)),
        (end(7190, 400), {"period": 7200}, Age(400, "last data", True)),
        (end(7190, 400), {"period": 7200, "at_most": 900}, Age(400, "last data", True)),
        # Another period than it has: of 15 s, read as if it were of 7200 s.
        (end(12), {"period": 7200, "at_most": 60}, Age(0, "last data", True)),
        (end(12, None), {"period": 7200, "at_most": 60}, None),
        (YOUNG, {"period": 60}, Age(0, "last data", True)),
        # Another timer, a probe on its way, a timer that is due.
        (end(0.2, timer=1), {"period": 7200}, Age(0, "last data", True)),
        (end(75, 7300, probes=1), {"period": 7200}, Age(7300, "last data", True)),
        (end(0, 10), {"period": 7200}, Age(10, "last data", True)),
        (end(0, None, timer=0), {}, None),
        (end(0, None, timer=0), {"first_seen": 5.0}, Age(5, "first seen", True)),
        # The clock of what it received began with the connection.
        (end(0, 3.5, timer=0, bytes_received=0), {"first_seen": 1}, Age(3.5, "last data", False)),
        (end(0, 3.5, timer=0, bytes_received=None), {}, Age(3.5, "last data", True)),
    ],
)
def test_judge_age(one: Socket, known: dict[str, float], expected: Age | None) -> None:
    assert judge_age(one, **known) == expected


def pairs(period: float, *ages: float) -> list[tuple[Socket, float]]:
    """Sockets within their first period, 30 ms behind their backends' ages."""
    return [(end(period - age - 0.03), age) for age in ages]


@pytest.mark.parametrize("period", [1, 2, 15, 60, 90, 120, 7200])
def test_a_period_is_proven_by_a_young_backend(period: int) -> None:
    assert prove_period(pairs(period, 0.3, 0.7)) == period
    assert prove_period(pairs(period, 0.3, period * 0.7)) == period


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], None),
        (pairs(7200, 500, 7000), 7200),
        (pairs(7200, 900), None),  # too old: a shorter period may have passed
        (pairs(60, 5), 60),
        (pairs(60, 7), None),
        # 5 s of silence and the usual 75 s until the next probe, or 80 s?
        (pairs(80, 6, 20), None),
        (pairs(80, 4, 20), 80),
        # Sessions with periods of their own, or clocks that do not fit.
        (pairs(60, 0.5) + pairs(15, 3), None),
        ([*pairs(60, 0.5, 10.4), (end(30), 20)], None),
        # Older than the period: their timers were set anew, and tell nothing.
        ([*pairs(15, 0.5), (end(11.3), 400)], 15),
        ([(end(10, timer=1), 0.5), (end(10, probes=1), 0.5)], None),
    ],
)
def test_what_proves_a_period(found: list[tuple[Socket, float]], expected: int | None) -> None:
    assert prove_period(found) == expected


@pytest.mark.parametrize(
    ("sockets", "expected"),
    [
        ([], False),
        ([end(7190, 9.95)], True),  # silent since it logged in
        ([end(7190, 3)], False),  # it had traffic: no witness
        ([end(7190, 3), end(7100, 99.8)], True),
        ([end(100, 7099.9)], False),  # too old to be one
        ([end(7190, 9.95), end(7300, 0)], False),  # more time than the setting allows
        ([end(7190, 9.95), end(7190, 20)], False),
        ([end(12, 3)], False),  # a client with 15 s of its own
        ([end(7190, None)], False),
        ([end(7190, 9.95), end(74, 20, probes=1), end(0.2, timer=1)], True),
    ],
)
def test_what_confirms_a_setting(sockets: list[Socket], expected: bool) -> None:
    assert confirm_setting(7200, sockets) == expected


def test_the_timer_of_real_sockets() -> None:
    """Exact until the period has passed; then no more than a lower bound, and nothing shows it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        silent, busy = (Pair(listener) for _ in range(2))
        seen = []
        for at in (0.5, 1.0, 1.7, 2.5, 3.3):
            while time.monotonic() < silent.made + at:
                busy.send()
                time.sleep(0.05)
            sockets = NetlinkSource(Deadline(5)).sockets(
                Leg((port,)).query(model.ESTABLISHED, info=True)
            )
            by_port = {one.remote_port: one for one in sockets}
            now = time.monotonic()
            for pair in (silent, busy):
                one, age = by_port[pair.port], now - pair.made
                elapsed = time_elapsed(one, 2)
                if age < 2:
                    assert elapsed == pytest.approx(age, abs=0.1)
                    assert prove_period([(one, age)]) == (2 if age < 1 else None)
                bound = judge_age(one, period=2)
                assert bound is not None
                assert bound.seconds <= age + 0.02
                assert bound.bound == (pair is busy)  # the silent one has received nothing ever
                exact = judge_age(one, period=2, at_most=age)
                assert exact is not None
                if not exact.bound:
                    assert exact.seconds == pytest.approx(age, abs=0.1)
                seen.append((pair is busy, age > 2, elapsed))
        # As if it were new.
        assert any(late and elapsed is not None and elapsed < 1.5 for _, late, elapsed in seen)
        silent.close()
        busy.close()


class Pair:
    """Both ends of a connection, with a keepalive period of 2 s on the accepted one."""

    def __init__(self, listener: socket.socket) -> None:
        self._client = socket.create_connection(listener.getsockname())
        self._server, _ = listener.accept()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        self.made = time.monotonic()
        self.port = self._client.getsockname()[1]

    def send(self) -> None:
        """A byte from the client."""
        self._client.send(b"x")
        self._server.recv(1)

    def close(self) -> None:
        """Close both ends."""
        self._client.close()
        self._server.close()


@pytest.mark.parametrize("state", [model.SYN_SENT, model.SYN_RECV])
def test_a_connection_that_is_not_made_yet_has_no_age(state: int) -> None:
    """Its clocks of data have never been set: they hold the machine's uptime."""
    made_up = end(1.0, 35_000.0, timer=1, bytes_received=0)._replace(state=state)
    assert judge_age(made_up) is None


def test_the_clocks_of_a_connection_that_is_not_made_yet_do_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        clients = []
        try:
            for _ in range(4):
                clients.append(socket.socket())
                clients[-1].setblocking(False)
                clients[-1].connect_ex(("127.0.0.1", port))
            time.sleep(0.05)
            found = NetlinkSource(Deadline(5)).sockets(
                Leg((port,), server=False).query(model.SYN_SENT, info=True)
            )
        finally:
            for one in clients:
                one.close()
    assert found
    assert all(one.info is not None and one.info.last_data_sent_ms > 60_000 for one in found)
