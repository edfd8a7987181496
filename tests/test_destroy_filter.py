"""Destroy events: the filter run on recorded datagrams, and their parsing; no I/O."""

from __future__ import annotations

import struct

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.destroy_filter import MOST_PORTS, pack_filter, parse_events
from check_pgsock.sockets.model import CLOSE, Socket, TcpInfo
from tests.destroy_events import DATAGRAMS, PORT, event

SERVER = {
    "close_ipv4_server", "probe_ipv4_server", "client_abort_server", "server_abort_server",
    "close_ipv6_server", "close_mapped_server", "server_abort_ipv6_server",
}  # fmt: skip
CLIENT = {
    "close_ipv4_client", "probe_ipv4_client", "server_abort_client", "refused_client",
    "close_ipv6_client", "close_mapped_client", "server_abort_ipv6_client",
}  # fmt: skip
LOOPBACK4 = bytes((127, 0, 0, 1))
LOOPBACK6 = bytes(15) + b"\1"


def passes(program: bytes, message: bytes) -> bool:
    """Run a classic BPF program as the kernel does (net/core/filter.c)."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        if code == 0x28:  # BPF_LD | BPF_H | BPF_ABS
            (accumulator,) = struct.unpack_from("!H", message, k)
        elif code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("!I", message, k)
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if accumulator == k else if_false
        elif code == 0x05:  # BPF_JMP | BPF_JA
            at += k
        else:
            assert code == 0x06  # BPF_RET | BPF_K
            return bool(k)


def passing(ports: tuple[int, ...], local: bool) -> set[str]:
    """The names of the recorded events that the filter passes."""
    program = pack_filter(ports, local)
    return {name for name, data in DATAGRAMS.items() if passes(program, data)}


MANY = tuple(range(20000, 20000 + MOST_PORTS - 1))


@pytest.mark.parametrize(
    "ports",
    [(PORT,), (PORT, 6432), (6432, PORT), (PORT, *MANY), (*MANY, PORT)],
    ids=["one", "first", "last", "first-of-most", "last-of-most"],
)
def test_filter_passes_connections_of_the_leg_alone(ports: tuple[int, ...]) -> None:
    assert passing(ports, True) == SERVER
    # An abort by this end has lost its remote port, also where it is the server's.
    aborts = {"client_abort_client", "server_abort_server", "server_abort_ipv6_server"}
    assert passing(ports, False) == CLIENT | aborts


def test_filter_of_another_port() -> None:
    assert passing((6432,), True) == set()
    assert passing((6432, 1), False) == {
        "client_abort_client", "server_abort_server", "server_abort_ipv6_server",
    }  # fmt: skip


def test_filter_bytes() -> None:
    assert pack_filter((5432,), True).hex(" ", 8) == struct.pack(
        "=" + "HBBI" * 20,
        *(0x28, 0, 0, 20, 0x15, 0, 1, 5432, 0x05, 0, 0, 1, 0x06, 0, 0, 0),
        *(0x28, 0, 0, 22, 0x15, 1, 0, 0, 0x06, 0, 0, 0xFFFFFFFF),
        *(0x20, 0, 0, 40, 0x15, 1, 0, 0, 0x06, 0, 0, 0xFFFFFFFF),
        *(0x20, 0, 0, 44, 0x15, 1, 0, 0, 0x06, 0, 0, 0xFFFFFFFF),
        *(0x20, 0, 0, 48, 0x15, 1, 0, 0, 0x06, 0, 0, 0xFFFFFFFF),
        *(0x20, 0, 0, 52, 0x15, 1, 0, 0, 0x06, 0, 0, 0xFFFFFFFF),
        *(0x06, 0, 0, 0),
    ).hex(" ", 8)


@pytest.mark.parametrize("count", [0, MOST_PORTS + 1])
def test_filter_of_no_or_too_many_ports(count: int) -> None:
    with pytest.raises(ValueError, match=f"^{count} ports, not 1 to {MOST_PORTS}$"):
        pack_filter(tuple(range(1, count + 1)), True)


def told(sent: int, received: int, acked: int, got: int, last_ack: int = 0) -> TcpInfo:
    """The tcp_info of an event: times, bytes, and no retransmits."""
    return TcpInfo(sent, received, acked, got, last_ack, total_retransmits=0)


def closed(
    local: tuple[bytes, int], remote: tuple[bytes, int], cookie: int, queues: tuple[int, int],
    info: TcpInfo,
) -> Socket:  # fmt: skip
    """A socket as an event shows it: without uid, inode and timer."""
    return Socket(CLOSE, *local, *remote, 0, 0, cookie, 0, 0, 0, *queues, info)


def test_parsed_close_of_ipv4() -> None:
    assert event("close_ipv4_server") == closed(
        (LOOPBACK4, 15432), (LOOPBACK4, 52716), 105023, (1, 0), told(20, 20, 51, 21)
    )
    assert event("close_ipv4_client") == closed(
        (LOOPBACK4, 52716), (LOOPBACK4, 15432), 105022, (1, 0), told(20, 20, 22, 51)
    )


def test_parsed_close_of_ipv6() -> None:
    assert event("close_ipv6_server") == closed(
        (LOOPBACK6, 15432), (LOOPBACK6, 40130), 105033, (1, 0), told(20, 20, 51, 21)
    )


def test_parsed_close_of_a_mapped_address_is_folded() -> None:
    assert event("close_mapped_server") == closed(
        (LOOPBACK4, 15432), (LOOPBACK4, 51256), 105035, (1, 0), told(24, 24, 51, 21)
    )


def test_parsed_abort_keeps_the_remote_address() -> None:
    assert event("client_abort_client") == closed(
        (bytes(4), 52724), (LOOPBACK4, 0), 105026, (0, 65538), told(0, 2280372, 0, 0)
    )
    assert event("server_abort_ipv6_server") == closed(
        (bytes(16), 15432), (LOOPBACK6, 0), 4735, (0, 65538), told(0, 2281316, 0, 0)
    )


def test_parsed_listener_has_no_remote_address() -> None:
    assert event("listener_ipv4")[1:5] == (LOOPBACK4, 15432, bytes(4), 0)
    assert event("listener_ipv6")[1:5] == (bytes(16), 15432, bytes(16), 0)


def test_parsed_refused_connect_and_probe() -> None:
    assert event("refused_client").info == told(2280824, 2280824, 0, 0, last_ack=2280824)
    assert event("probe_ipv4_server").info == told(40, 40, 1, 1)
    assert event("probe_ipv4_client").info == told(24, 24, 2, 0)


def test_several_messages_in_one_datagram() -> None:
    data = bytearray(DATAGRAMS["close_ipv4_server"] + DATAGRAMS["close_ipv6_server"])
    assert [one.cookie for one in parse_events(data)] == [105023, 105033]
    assert list(parse_events(b"")) == []


GOOD = DATAGRAMS["close_ipv4_server"]


def without_info(data: bytes) -> bytes:
    """The message alone, without its attributes."""
    return struct.pack("=I", 88) + data[4:88]


def with_short_info(data: bytes) -> bytes:
    """The message with a tcp_info of 104 bytes, as before Linux 4.1."""
    at = 88
    while struct.unpack_from("=HH", data, at)[1] != 2:
        at += struct.unpack_from("=H", data, at)[0] + 3 & ~3
    info = struct.pack("=HH", 108, 2) + data[at + 4 : at + 108]
    return struct.pack("=I", 88 + 108) + data[4:88] + info


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (GOOD[:10], "destroy event: 10 stray bytes at 0"),
        (GOOD + b"\0\0\0", "destroy event: 3 stray bytes at 380"),
        (GOOD[:200], "destroy event: message of 380 bytes in 200 at 0"),
        (struct.pack("=I", 16) + GOOD[4:], "destroy event: message of 16 bytes in 380 at 0"),
        (GOOD[:4] + struct.pack("=H", 2) + GOOD[6:], "destroy event: message type 2"),
        (without_info(GOOD), "destroy event: no byte counts in its tcp_info"),
        (with_short_info(GOOD), "destroy event: no byte counts in its tcp_info"),
        (GOOD[:17] + b"\x63" + GOOD[18:], "netlink reply: unknown socket state 99"),
        (GOOD[:88] + b"\1\0" + GOOD[90:], "netlink reply: bad attribute length 1"),
    ],
)
def test_malformed(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as raised:
        list(parse_events(data))
    assert str(raised.value) == sentence
