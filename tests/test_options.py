"""Peers as the command line names them; pure: no resolver is asked."""

from __future__ import annotations

import pytest

from check_pgsock import options as opts
from check_pgsock.host_names import Host, HostName
from check_pgsock.legs import Leg, Network


@pytest.mark.parametrize(
    "text",
    [
        "db",
        "db.example",
        "db.example.",
        "DB-1.example",
        "app_db_1",
        "xn--bcher-kva.example",
        "1.example",
        "beef",
        "localhost",
        "a" * 63 + ".example",
        ".".join(["a" * 49] * 5),
    ],
)
def test_host_names(text: str) -> None:
    name = opts.parse_peer(text)
    assert isinstance(name, HostName)
    assert name.text == text


@pytest.mark.parametrize("text", ["10.0.0.0/8", "::1", "2001:db8::/32", "127.0.0.1", "0.0.0.0/0"])
def test_networks(text: str) -> None:
    network = opts.parse_peer(text)
    assert isinstance(network, Network)
    assert network.text == text


NEITHER = "'{}' is neither a network such as 10.0.0.0/8 or 2001:db8::/32 nor the name of a host"
NO_NETWORK = "'{}' is no network such as 10.0.0.0/8 or 2001:db8::/32"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((one, NEITHER) for one in ("", "a b", "-db", "db-", "db..example", ".db", "bücher.de",
                                     "db\n", "*.example", "db.example;", "a" * 64,
                                     ".".join(["a" * 50] * 5))),
        # getaddrinfo(3) would take these for addresses.
        *((one, NEITHER) for one in ("0x7f000001", "0x7f.1", "db.1", "db.0x1f.")),
        *((one, NO_NETWORK) for one in ("127.1", "2130706433", "10.0.0", "10.0.0.300",
                                        "10.0.0.0/33", "db/8", "db:5432", "1.")),
        ("fe80::1%eth0", "'{}' has a zone; name the network alone"),
        ("10.0.0.1/8", "'{}' has host bits set; did you mean 10.0.0.0/8?"),
    ],
)  # fmt: skip
def test_neither(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        opts.parse_peer(text)
    assert str(caught.value) == sentence.format(text)


def test_a_host_is_its_addresses_and_is_called_by_its_name() -> None:
    addresses = ["192.0.2.7", "::1", "2001:db8::7", "10.0.0.1"]
    host = Host("db.example", frozenset(map(opts.parse_address, addresses)))
    assert host.describe() == "db.example is 10.0.0.1, 192.0.2.7, ::1, 2001:db8::7"
    local, inside, outside = map(opts.parse_address, ("192.0.2.1", "2001:db8::7", "192.0.2.8"))
    for leg, accepted in (
        (Leg((5432,), peers=(host,)), [True, False]),
        (Leg((5432,), excluded_peers=(host,)), [False, True]),
        (Leg((5432,), peers=(host, opts.parse_network("192.0.2.8"))), [True, True]),
    ):
        assert leg.filter is not None
        assert [leg.filter(local, one) for one in (inside, outside)] == accepted
    assert Leg((5432,), False, peers=(host,)).describe() == "to port 5432 with db.example"
