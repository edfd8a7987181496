"""netstat: what a network namespace has counted of TCP."""

from __future__ import annotations

import pytest

from check_pgsock.sockets.sources.netstat import parse_netstat, read_listen_drops

TEXT = b"""TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts
TcpExt: 0 12 14 3
IpExt: InNoRoutes InOctets
IpExt: 1 2
"""


def test_the_counters_of_tcp_by_name() -> None:
    assert parse_netstat(TEXT) == {
        b"SyncookiesSent": 0,
        b"ListenOverflows": 12,
        b"ListenDrops": 14,
        b"TCPTimeouts": 3,
    }


@pytest.mark.parametrize(
    "text", [b"", TEXT[: TEXT.index(b"TcpExt: 0")], TEXT.replace(b" 14", b""), TEXT + TEXT]
)
def test_what_is_no_netstat(text: bytes) -> None:
    with pytest.raises(ValueError, match="netstat: no line of names and one of numbers of TcpExt"):
        parse_netstat(text)


def test_a_number_that_is_none() -> None:
    with pytest.raises(ValueError):
        parse_netstat(TEXT.replace(b"12", b"x"))


def test_this_kernel_counts_them() -> None:
    assert read_listen_drops(None) is not None
