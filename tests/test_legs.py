"""Legs: queries, filters, listeners and descriptions; pure."""

from __future__ import annotations

import socket

import pytest

from check_pgsock.legs import Leg, top_peers
from check_pgsock.option_values import parse_address, parse_network
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Listener, Query
from tests.moment import ANY6, LOCAL4, LOCAL6, SOCKETS


def packed(text: str) -> bytes:
    """An address, folded."""
    return parse_address(text)


def listener(address: bytes, port: int = 5432) -> Listener:
    """A listener that is bound to `address`."""
    return Listener(address, port, 0, 1, 1, 0, 128)


def test_query_of_each_leg() -> None:
    query = Leg((5432, 6432)).query(model.ESTABLISHED, model.SYN_RECV)
    assert query == Query((5432, 6432), True, 1 << 1 | 1 << 3 | 1 << 12, None, False)
    assert Leg((5432,), server=False).query(model.CLOSE_WAIT) == Query((5432,), False, 256)


@pytest.mark.parametrize(
    ("address", "peers", "excluded", "accepted"),
    [
        (None, ["10.0.0.0/8"], [], {"10.1.2.3"}),
        (None, ["::ffff:10.0.0.0/104"], [], {"10.1.2.3"}),
        (None, ["0.0.0.0/0"], ["10.0.0.0/8"], {"127.0.0.1"}),
        (None, ["::/0"], [], {"2001:db8::7"}),
        (None, [], ["2001:db8::/32", "127.0.0.1"], {"10.1.2.3"}),
        ("127.0.0.1", [], [], {"10.1.2.3", "127.0.0.1", "2001:db8::7"}),
        ("127.0.0.2", [], [], set()),
    ],
)
def test_filter(
    address: str | None, peers: list[str], excluded: list[str], accepted: set[str]
) -> None:
    leg = Leg(
        (5432,),
        address=None if address is None else packed(address),
        peers=tuple(map(parse_network, peers)),
        excluded_peers=tuple(map(parse_network, excluded)),
    )
    assert leg.filter is not None
    found = {
        one for one in ("10.1.2.3", "127.0.0.1", "2001:db8::7") if leg.filter(LOCAL4, packed(one))
    }
    assert found == accepted


def test_listeners_are_filtered_by_address_only() -> None:
    here, everywhere4, everywhere6 = listener(LOCAL4), listener(bytes(4)), listener(ANY6)
    other = listener(packed("10.0.0.1"))
    found = [here, everywhere4, everywhere6, other, listener(LOCAL4, 6432)]
    assert Leg((5432,)).listeners(found) == found[:4]
    assert Leg((5432,), peers=(parse_network("10.0.0.0/8"),)).listeners(found) == found[:4]
    assert Leg((5432,), address=LOCAL4).listeners(found) == [here]
    assert Leg((5432,), address=packed("10.9.9.9")).listeners(found) == [everywhere4]
    assert Leg((5432,), address=packed("10.9.9.9")).listeners([everywhere6]) == [everywhere6]
    assert Leg((5432,), address=LOCAL6).listeners(found) == [everywhere6]
    assert Leg((5432,), address=packed("10.9.9.9")).missing_ports([here, other]) == [5432]
    each_port = [here, listener(bytes(4), 6432)]
    assert Leg((5432, 6432), address=LOCAL4).listeners(each_port) == each_port
    assert Leg((5432, 7432)).missing_ports(found) == [7432]


@pytest.mark.parametrize(
    ("leg", "text"),
    [
        (Leg((5432,)), "on port 5432"),
        (Leg((5432, 6432), server=False), "to ports 5432, 6432"),
        (Leg((5432,), address=LOCAL6), "on port 5432 at ::1"),
        (Leg((5432,), False, address=LOCAL4), "to port 5432 from 127.0.0.1"),
        (Leg((5432,), peers=(parse_network("10.0.0.0/8"),)),
         "on port 5432 with 10.0.0.0/8"),
        (Leg((5432,), excluded_peers=(parse_network("fe80::/10"),)),
         "on port 5432 without fe80::/10"),
    ],
)  # fmt: skip
def test_describe(leg: Leg, text: str) -> None:
    assert leg.describe() == text


def test_top_peers_keeps_the_count_of_the_rest() -> None:
    sockets = [
        SOCKETS[0]._replace(remote_address=socket.inet_aton(f"10.0.0.{host}"))
        for host in range(12)
        for _ in range(12 - host)
    ]
    lines = top_peers(sockets, "established", most=10)
    assert lines[0] == "peer 10.0.0.0: 12 established"
    assert lines[8:] == ["peer 10.0.0.8: 4 established", "3 more peers: 6 established"]
    assert top_peers([], "established") == []
