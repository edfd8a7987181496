"""Netlink replies about Unix sockets: recorded bytes to values, and every way they can be wrong."""

from __future__ import annotations

import struct
import sys

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.sockets import unix_diag
from check_pgsock.sockets.netlink_dump import HEADER, Dump
from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket
from tests.details import DETAILS, UNIX_LISTENERS, UNIX_SOCKETS

ALL = (DETAILS / "unix.bin").read_bytes()
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def parsed(data: bytes) -> list[UnixListener | UnixSocket]:
    """The sockets of a whole dump."""
    dump = Dump(1, unix_diag.SHORTEST)
    found = [one for run in dump.runs(data) for one in unix_diag.parse_sockets(data, run)]
    assert dump.done
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def reply(*attributes: bytes, state: int = 1, family: int = 1) -> bytes:
    """A dump of one socket, inode 7 and cookie 9, with these attributes."""
    body = struct.pack("=BBBxIQ", family, 1, state, 7, 9) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body + DONE


@pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian host")
def test_every_field_of_every_socket() -> None:
    found = parsed(ALL)
    by_inode = sorted(found, key=lambda one: one.inode)
    expected: list[UnixListener | UnixSocket] = [*UNIX_LISTENERS, *UNIX_SOCKETS]
    assert by_inode == sorted(expected, key=lambda one: one.inode)


def test_a_kernel_that_tells_less_leaves_the_rest_absent() -> None:
    assert parsed(reply()) == [UnixSocket(1, None, None, 1, 7, None, 9, None, None, None, None)]
    assert parsed(reply(attribute(0, b"/s\0"), state=10)) == [
        UnixListener(b"/s", None, 1, 7, None, 9, None, None)
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/s\0", b"/s"),
        (b"/s", b"/s"),  # 108 bytes have no room for the NUL
        (b"/a b\nc\0", b"/a b\nc"),
        (b"\0name", b"\0name"),
        (b"\0name\0\0", b"\0name\0\0"),
        (b"\0", b"\0"),
    ],
)
def test_names(name: bytes, path: bytes) -> None:
    (one,) = parsed(reply(attribute(0, name)))
    assert one.path == path


def test_the_device_is_that_of_stat() -> None:
    (one,) = parsed(reply(attribute(1, struct.pack("=II", 2315826, 254 << 20 | 3))))
    assert one.file == (254 << 8 | 3, 2315826)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (reply(family=2), "netlink reply: a socket of family 2 among Unix sockets"),
        (reply(state=10), "netlink reply: a listening Unix socket without a name"),
        (reply(attribute(1, bytes(4))), "netlink reply: an attribute of 4 bytes, not 8"),
        (reply(attribute(2, b"")), "netlink reply: an attribute of 0 bytes, not 4"),
        (reply(attribute(4, bytes(4))), "netlink reply: an attribute of 4 bytes, not 8"),
        (reply(attribute(6, b"")), "netlink reply: an attribute of 0 bytes, not 1"),
        (reply(attribute(7, b"")), "netlink reply: an attribute of 0 bytes, not 4"),
        (reply(struct.pack("=HH", 3, 0)), "netlink reply: bad attribute length 3"),
        (reply(struct.pack("=HH", 99, 0)), "netlink reply: bad attribute length 99"),
        (struct.pack("=IHHII", 28, 20, 2, 1, 0) + bytes(12) + DONE,
         "netlink reply: bad socket message length 28"),
    ],
)  # fmt: skip
def test_malformed_replies_are_errors(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parsed(data)
    assert str(caught.value) == sentence


def test_request_names_states_and_what_to_show() -> None:
    request = unix_diag.pack_request(1 << 10, 5)
    assert struct.unpack_from("=IHHII", request) == (40, 20, 0x301, 5, 0)
    assert struct.unpack_from("=BBHIIIII", request, 16) == (1, 0, 0, 1 << 10, 0, 0x57, 0, 0)


def test_who_waits_on_a_listener_is_told_in_order() -> None:
    message = struct.pack("=BBBxIQ", 1, 1, 10, 77, 9) + struct.pack("=HH3I", 16, 3, 21, 0, 23)
    data = HEADER.pack(HEADER.size + len(message), 20, 2, 1, 0) + message
    run = (0, len(data), 2)
    assert dict(unix_diag.parse_queues(data * 2, run)) == {77: (21, 0, 23)}
    bare = HEADER.pack(32, 20, 2, 1, 0) + message[:16]
    assert list(unix_diag.parse_queues(bare, (0, 32, 1))) == []
    request = unix_diag.pack_queues_request(5)
    assert struct.unpack("=BBHIIIII", request[HEADER.size :]) == (1, 0, 0, 1 << 10, 0, 8, 0, 0)
