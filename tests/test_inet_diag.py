"""Netlink replies: recorded bytes to values, and every way they can be wrong."""

from __future__ import annotations

import struct
import sys

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.sockets import inet_diag, model
from check_pgsock.sockets.model import Query, Socket, Tally, TcpInfo
from check_pgsock.sockets.netlink_dump import Dump
from tests.details import DETAILS, TCP_LISTENERS, UNREAD, UNREADING
from tests.moment import LISTENERS, LOCAL4, LOCAL6, MOMENT, SOCKETS

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the moment was recorded on a little-endian host"
)
ALL = (MOMENT / "all.bin").read_bytes()
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def parsed(data: bytes, info: bool = True, cgroup: bool = False) -> list[Socket]:
    """The sockets of a whole dump."""
    dump = Dump(1, inet_diag.SHORTEST)
    found = [
        one for run in dump.runs(data) for one in inet_diag.parse_sockets(data, run, info, cgroup)
    ]
    assert dump.done
    return found


def counted(data: bytes, accepts: object = None) -> Tally:
    """The tally of a whole dump."""
    tally, dump = Tally(), Dump(1, inet_diag.SHORTEST)
    for run in dump.runs(data):
        inet_diag.count_sockets(data, run, tally, accepts)  # type: ignore[arg-type]
    return tally


def message(kind: int, payload: bytes, flags: int = 2, sequence: int = 1) -> bytes:
    """One netlink message."""
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def body(state: int = 1, inode: int = 7) -> bytes:
    """An inet_diag_msg from 127.0.0.1:5432 to 127.0.0.1:40000."""
    return struct.pack(
        "=BBBB2s2s16s16sIQIIIII",
        2, state, 0, 0, b"\x15\x38", b"\x9c\x40", LOCAL4, LOCAL4, 0, 99, 0, 0, 0, 0, inode,
    )  # fmt: skip


def test_every_field_of_every_socket() -> None:
    assert sorted(parsed(ALL)) == sorted(SOCKETS)


def test_every_field_of_every_listener() -> None:
    assert sorted(counted(ALL).listeners) == LISTENERS


def test_tally_by_state() -> None:
    tally = counted(ALL)
    states = [0] * len(model.STATE_NAMES)
    for one in SOCKETS:
        states[one.state] += 1
    assert tally.states == states
    assert tally.not_accepted == 2
    assert tally.count(model.SYN_RECV) == 1


def test_tally_of_a_filter_equals_the_filtered_sockets() -> None:
    tally = counted(ALL, lambda local, remote: local == LOCAL6)
    assert tally.count(model.ESTABLISHED) == 2
    assert sum(tally.states) == 2
    assert len(tally.listeners) == 3  # addresses filter no listener
    tally = counted(ALL, lambda local, remote: len(remote) == 4)
    assert (tally.count(model.ESTABLISHED), tally.not_accepted) == (9, 2)


def test_tcp_info() -> None:
    found = {one.remote_port: one.info for one in parsed((MOMENT / "info.bin").read_bytes())}
    assert found == {
        40001: TcpInfo(108, 108, 0, 5, 108, total_retransmits=0),
        40004: TcpInfo(108, 108, 0, 1, 108, total_retransmits=0),
        40006: TcpInfo(56, 56, 0, 0, 56, total_retransmits=0),
        40007: TcpInfo(56, 56, 0, 0, 56, total_retransmits=0),
    }


def test_cgroups_and_the_tcp_info_of_a_client_that_does_not_read() -> None:
    data = (DETAILS / "ends.bin").read_bytes()
    assert sorted(parsed(data, cgroup=True)) == [UNREAD, UNREADING]
    assert sorted(parsed(data)) == [UNREAD._replace(cgroup=None), UNREADING._replace(cgroup=None)]
    bare = [one._replace(info=None, cgroup=None) for one in (UNREAD, UNREADING)]
    assert sorted(parsed(data, info=False)) == bare


def test_what_listeners_dropped() -> None:
    tally = counted((DETAILS / "listeners.bin").read_bytes())
    assert sorted(tally.listeners, key=lambda one: one.port) == TCP_LISTENERS


@pytest.mark.parametrize(("room", "drops"), [(32, None), (36, 7), (40, 7)])
def test_an_older_kernel_tells_no_drops(room: int, drops: int | None) -> None:
    numbers = struct.pack("=10I", 0, 0, 0, 0, 0, 0, 0, 0, 7, 9)[:room]
    data = message(20, body(10) + struct.pack("=HH", 4 + room, 7) + numbers)
    (one,) = counted(data + DONE).listeners
    assert (one.drops, one.cgroup) == (drops, None)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (60, (None, None, None)),
        (104, (None, None, 23)),
        (128, (17, None, 23)),
        (136, (17, 19, 23)),
        (280, (17, 19, 23)),
    ],
)
def test_tcp_info_of_an_older_kernel_is_shorter(
    room: int, expected: tuple[int | None, int | None, int | None]
) -> None:
    info = bytearray(280)
    info[2:5] = b"\x05\x06\x07"
    struct.pack_into("=I", info, 24, 8)
    struct.pack_into("=IIII", info, 44, 1, 2, 3, 4)
    struct.pack_into("=I", info, 100, 23)
    struct.pack_into("=QQ", info, 120, 17, 19)
    data = message(20, body() + struct.pack("=HH", 4 + room, 2) + info[:room])
    acked, received, total = expected
    assert parsed(data + DONE)[0].info == TcpInfo(
        last_data_sent_ms=1,
        last_data_received_ms=3,
        last_ack_received_ms=4,
        bytes_acked=acked,
        bytes_received=received,
        retransmits=5,
        probes=6,
        backoff=7,
        unacked=8,
        total_retransmits=total,
    )


def test_a_due_timer_that_wraps_is_zero() -> None:
    raw = bytearray(message(20, body()))
    struct.pack_into("=I", raw, 16 + 52, 0xFFFFFFF0)
    assert parsed(bytes(raw) + DONE)[0].expires_ms == 0


def test_runs_of_unequal_messages_are_counted_apart() -> None:
    longer = message(20, body(8) + struct.pack("=HHI", 8, 15, 0))
    data = message(20, body()) * 3 + longer * 2 + message(20, body(6, 0)) * 300 + DONE
    tally = counted(data)
    assert (tally.states[1], tally.states[8], tally.states[6]) == (3, 2, 300)
    assert tally.not_accepted == 0


def test_inode_zero_is_found_in_every_byte() -> None:
    inodes = (0, 1, 1 << 8, 1 << 16, 1 << 24, 0)
    data = b"".join(message(20, body(1, inode)) for inode in inodes) + DONE
    assert counted(data).not_accepted == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (message(20, body()[:-4]), "netlink reply: bad socket message length 84"),
        (message(20, body(13)), "netlink reply: unknown socket state 13"),
        (message(20, body() + struct.pack("=HH", 2, 2)), "netlink reply: bad attribute length 2"),
        (message(20, body() + struct.pack("=HHI", 8, 2, 0)), "netlink reply: tcp_info of 4 bytes"),
        (message(20, body() + struct.pack("=HHI", 8, 21, 0)),
         "netlink reply: a number of 4 bytes, not 8"),
    ],
)  # fmt: skip
def test_malformed_replies_are_errors(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parsed(data, cgroup=True)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (message(20, body(10) + struct.pack("=HHI", 8, 21, 0)),
         "netlink reply: a number of 4 bytes, not 8"),
        (message(20, body(10) + struct.pack("=HH34x", 38, 7) + bytes(2)),
         "netlink reply: a number of 2 bytes, not 4"),
        (message(20, body(10) + struct.pack("=HH", 3, 7)), "netlink reply: bad attribute length 3"),
    ],
)  # fmt: skip
def test_malformed_listeners_are_errors(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        counted(data)
    assert str(caught.value) == sentence


def test_counting_refuses_an_unknown_state() -> None:
    with pytest.raises(MalformedError):
        counted(message(20, body(200)) + DONE)


def bytecode_accepts(code: bytes, local: int, remote: int) -> bool:
    """inet_diag_bc_run of the kernel for the operations that we use."""
    at = 0
    while at < len(code):
        operation, yes_offset, no_offset = struct.unpack_from("=BBH", code, at)
        port = struct.unpack_from("=BBH", code, at + 4)[2] if operation != 1 else 0
        yes = {1: False, 11: local == port, 12: remote == port}[operation]
        at += yes_offset if yes else no_offset
    return at == len(code)


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize("local", [True, False])
def test_port_filter(count: int, local: bool) -> None:
    ports = tuple(range(5432, 5432 + count))
    code = inet_diag.pack_port_filter(ports, local)
    for port in (5431, *ports, 5432 + count):
        ends = (port, 9) if local else (9, port)
        assert bytecode_accepts(code, *ends) == (port in ports)
        assert not bytecode_accepts(code, *ends[::-1])


def test_request_names_states_and_asks_for_no_extension() -> None:
    request = inet_diag.pack_request(Query((5432,), True, 1 << 8), 5)
    assert len(request) == 16 + 60 + 4 + 8
    assert struct.unpack_from("=IHHII", request) == (88, 18, 0x301, 5, 0)
    assert request[16:20] == bytes(4)
    assert struct.unpack_from("=II", request, 16 + 52) == (1 << 8, 0)
    query = Query((5432,), True, 2)
    for wish, extensions in (
        (query._replace(info=True), 2),
        (query._replace(drops=True), 64),
        (query._replace(info=True, drops=True), 66),
        (query._replace(cgroup=True), 0),  # always told
    ):
        assert inet_diag.pack_request(wish, 5)[19] == extensions


def test_query_for_syn_recv_includes_request_sockets() -> None:
    assert model.state_mask(model.SYN_RECV) == 1 << 3 | 1 << 12
    assert model.state_mask(model.ESTABLISHED, model.LISTEN) == 1 << 1 | 1 << 10


def test_mapped_addresses_fold() -> None:
    mapped = bytes(10) + b"\xff\xff" + LOCAL4
    assert model.fold_address(mapped) == LOCAL4
    assert model.fold_address(LOCAL6) == LOCAL6
    assert model.fold_address(LOCAL4) == LOCAL4
