"""Netlink dumps: messages walked, and every way they can be wrong."""

from __future__ import annotations

import errno
import struct

import pytest

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.sockets.netlink_dump import Dump, attributes, pack_dump_request

SHORTEST = 32
SOCKET = bytes(16)
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def message(kind: int, payload: bytes, flags: int = 2, sequence: int = 1) -> bytes:
    """One netlink message."""
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def runs(data: bytes) -> list[tuple[int, int, int]]:
    """The runs of a whole dump."""
    dump = Dump(1, SHORTEST)
    found = list(dump.runs(data))
    assert dump.done
    assert not dump.interrupted
    return found


@pytest.mark.parametrize("kind", [18, 20])
def test_runs_of_unequal_messages_are_kept_apart(kind: int) -> None:
    short, long = message(kind, SOCKET), message(kind, SOCKET + bytes(8))
    data = short * 3 + long * 2 + short * 300 + DONE
    assert runs(data) == [(0, 32, 3), (96, 40, 2), (176, 32, 300)]


def test_a_header_that_differs_ends_a_run() -> None:
    data = message(18, SOCKET) * 2 + message(20, SOCKET) * 2 + DONE
    assert runs(data) == [(0, 32, 2), (64, 32, 2)]


def test_what_says_nothing_is_passed_over() -> None:
    assert runs(message(1, b"abc") + b"\0" + message(20, SOCKET) + DONE) == [(20, 32, 1)]
    dump = Dump(1, SHORTEST)
    assert list(dump.runs(message(20, SOCKET))) == [(0, 32, 1)]
    assert not dump.done
    assert list(dump.runs(message(3, b"") + message(20, SOCKET))) == []
    assert dump.done


def test_errno_in_an_error_message() -> None:
    with pytest.raises(SourceError) as caught:
        runs(message(2, struct.pack("=i", -errno.EPERM)))
    assert str(caught.value) == (
        "the netlink socket dump was refused with EPERM (Operation not permitted)"
    )


def test_errno_inside_done() -> None:
    with pytest.raises(SourceError) as caught:
        runs(message(20, SOCKET) + message(3, struct.pack("=i", -errno.ENOENT)))
    assert str(caught.value) == (
        "the netlink socket dump ended with ENOENT (No such file or directory)"
    )


def test_interrupted_is_said_by_the_flag_of_any_message() -> None:
    dump = Dump(1, SHORTEST)
    list(dump.runs(message(20, SOCKET) + message(20, SOCKET, flags=0x12) + DONE))
    assert dump.interrupted


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (message(20, SOCKET)[:10], "netlink reply: 10 stray bytes at 0"),
        (message(20, SOCKET)[:-4], "netlink reply: bad message length 32 at 0"),
        (struct.pack("=IHHII", 8, 20, 2, 1, 0), "netlink reply: bad message length 8 at 0"),
        (message(20, SOCKET[:-4]), "netlink reply: bad socket message length 28"),
        (message(20, SOCKET + b"\0\0"), "netlink reply: bad socket message length 34"),
        (message(20, SOCKET, sequence=7), "netlink reply: sequence 7, not 1"),
        (message(99, b""), "netlink reply: unknown message type 99"),
        (message(2, struct.pack("=i", 0)),
         "netlink reply: an acknowledgement where sockets belong"),
    ],
)  # fmt: skip
def test_malformed_replies_are_errors(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        runs(data)
    assert str(caught.value) == sentence


def test_attributes() -> None:
    data = struct.pack("=HHB3xHHHHQ", 5, 8, 7, 4, 3, 12, 21, 25)
    assert list(attributes(data, 0, len(data))) == [(8, 4, 1), (3, 12, 0), (21, 16, 8)]
    assert list(attributes(data, 8, 12)) == [(3, 12, 0)]
    assert list(attributes(data, 8, 11)) == []


@pytest.mark.parametrize("length", [0, 3, 9])
def test_malformed_attributes_are_errors(length: int) -> None:
    data = struct.pack("=HHI", length, 8, 0)
    with pytest.raises(MalformedError) as caught:
        list(attributes(data, 0, len(data)))
    assert str(caught.value) == f"netlink reply: bad attribute length {length}"


def test_request() -> None:
    assert pack_dump_request(20, b"body", 5) == struct.pack("=IHHII", 20, 20, 0x301, 5, 0) + b"body"
