"""The values of options as the command line gives them; pure: no resolver is asked."""

from __future__ import annotations

from typing import Callable

import pytest

from check_pgsock.host_names import Host, HostName
from check_pgsock.legs import Leg, Network
from check_pgsock.option_values import (
    parse_address,
    parse_age,
    parse_count,
    parse_count_or_zero,
    parse_directory,
    parse_file,
    parse_name,
    parse_namespace,
    parse_network,
    parse_number,
    parse_peer,
    parse_port,
    parse_positive,
    parse_seconds,
    parse_socket,
    parse_source,
)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_number, "-1.5e3", -1500.0),
        (parse_positive, "1000000", 1e6),
        (parse_seconds, "3600", 3600.0),
        (parse_seconds, "1e-3", 0.001),
        (parse_age, "2592000", 2592000.0),
        (parse_count, "1000000000", 10**9),
        (parse_count_or_zero, "0", 0),
        (parse_count_or_zero, "7", 7),
        (parse_port, "65535", 65535),
        (parse_file, "-", "-"),
        (parse_directory, ".", "."),
        (parse_name, " ", " "),
        (parse_source, "procfs", "procfs"),
        (parse_source, "a file", "a file"),
        (parse_namespace, "self", "self"),
        (parse_socket, "@a", "@a"),
        (parse_address, "::ffff:192.0.2.1", bytes((192, 0, 2, 1))),
    ],
)
def test_what_is_taken(parse: Callable[[str], object], text: str, value: object) -> None:
    assert parse(text) == value


SECONDS = "'{}' is no time in seconds, above 0, at most "
COUNT = "'{}' is no whole number of 1 or more"
PORT = "'{}' is no port, 1 to 65535"


@pytest.mark.parametrize(
    ("parse", "texts", "sentence"),
    [
        (parse_number, ["", "inf", "nan", "1,5", "0x1"], "'{}' is no number"),
        (parse_positive, ["0", "-1", "1000001"], "'{}' is no number above 0, at most 1000000"),
        (parse_seconds, ["0", "-1", "3601"], f"{SECONDS}3600"),
        (parse_age, ["0", "-1", "2592001"], f"{SECONDS}2592000"),
        (parse_count, ["", "0", "-1", "1.5", "1000000001", "1" + "0" * 21, "\u0663"], COUNT),
        (parse_count, ["0000000001000000000999"], COUNT),  # its first 19 digits are 10**9
        (parse_count_or_zero, ["", "-1", "00", "+0"], COUNT),
        (parse_port, ["", "0", "65536", "9" * 30, "-1", "\u0663"], PORT),
        (parse_port, ["000065535999"], PORT),  # its first 9 digits are a port
        (parse_file, ["", "a\0b"], "'{}' is no file"),
        (parse_directory, ["", "a\0b"], "'{}' is no directory"),
        (parse_name, ["", "a\0b"], "'{}' is no name of a user or a database"),
        (parse_source, ["", "a\0b"], "'{}' is neither auto, netlink, procfs nor a file"),
        (parse_namespace, ["", "a\0b", "a/b", ".", ".."],
         "'{}' is neither a name (ip netns) nor a process id"),
        (parse_socket, ["", "a", "@", "/a\0b"],
         "'{}' is neither the absolute path of a Unix socket nor @NAME of an abstract one"),
        (parse_address, ["", "db", "10.0.0", "::1%lo", "10.0.0.0/8", "\u0663.0.0.1"],
         "'{}' is no IPv4 or IPv6 address"),
    ],
)  # fmt: skip
def test_what_is_refused(parse: Callable[[str], object], texts: list[str], sentence: str) -> None:
    for text in texts:
        with pytest.raises(ValueError) as caught:
            parse(text)
        assert str(caught.value) == sentence.format(text)


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
    name = parse_peer(text)
    assert isinstance(name, HostName)
    assert name.text == text


@pytest.mark.parametrize("text", ["10.0.0.0/8", "::1", "2001:db8::/32", "127.0.0.1", "0.0.0.0/0"])
def test_networks(text: str) -> None:
    network = parse_peer(text)
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
        parse_peer(text)
    assert str(caught.value) == sentence.format(text)


def test_a_host_is_its_addresses_and_is_called_by_its_name() -> None:
    addresses = ["192.0.2.7", "::1", "2001:db8::7", "10.0.0.1"]
    host = Host("db.example", frozenset(map(parse_address, addresses)))
    assert host.describe() == "db.example is 10.0.0.1, 192.0.2.7, ::1, 2001:db8::7"
    local, inside, outside = map(parse_address, ("192.0.2.1", "2001:db8::7", "192.0.2.8"))
    for leg, accepted in (
        (Leg((5432,), peers=(host,)), [True, False]),
        (Leg((5432,), excluded_peers=(host,)), [False, True]),
        (Leg((5432,), peers=(host, parse_network("192.0.2.8"))), [True, True]),
    ):
        assert leg.filter is not None
        assert [leg.filter(local, one) for one in (inside, outside)] == accepted
    assert Leg((5432,), False, peers=(host,)).describe() == "to port 5432 with db.example"
