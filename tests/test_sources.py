"""The two sources on real sockets: parity, refusals, truncation, interruption."""

from __future__ import annotations

import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError, SourceError
from check_pgsock.sockets import model, sources
from check_pgsock.sockets.model import Query, Socket
from check_pgsock.sockets.sources import NetlinkSource, SocketReader
from tests import support
from tests.moment import MOMENT

EVERY_STATE = 0xFFFF


@pytest.fixture
def mixed() -> Iterator[tuple[int, int]]:
    """An IPv4 and a dual-stack port with sockets in several states."""
    with ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        six = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        ports = four.getsockname()[1], six.getsockname()[1]

        def connect(address: str, port: int) -> socket.socket:
            return stack.enter_context(socket.create_connection((address, port)))

        for address, server, port in (
            ("127.0.0.1", four, ports[0]),
            ("127.0.0.1", six, ports[1]),
            ("::1", six, ports[1]),
        ):
            connect(address, port)
            stack.enter_context(server.accept()[0]).send(b"unread")
            leaving = connect(address, port)
            stack.enter_context(server.accept()[0])
            leaving.shutdown(socket.SHUT_WR)
            quick = connect(address, port)
            accepted = server.accept()[0]
            quick.close()
            accepted.close()
        for _ in range(3):
            connect("127.0.0.1", ports[0])  # not accepted
        time.sleep(0.1)  # closes are acknowledged: no socket moves on any more
        yield ports


def same(one: Socket) -> Socket:
    """What both sources can say of a socket; a timer goes on between two readings."""
    return one._replace(cookie=None, expires_ms=0)


@pytest.mark.parametrize("local", [True, False])
def test_both_sources_agree_on_one_moment(mixed: tuple[int, int], local: bool) -> None:
    query = Query(mixed, local, EVERY_STATE)
    netlink = SocketReader("netlink", None, Deadline(5))
    procfs = SocketReader("procfs", None, Deadline(5))
    by_netlink = sorted(map(same, netlink.sockets(query)))
    assert by_netlink == sorted(map(same, procfs.sockets(query)))
    assert len(by_netlink) >= 9
    one, other = netlink.count(query), procfs.count(query)
    assert one.states == other.states
    assert one.not_accepted == other.not_accepted == (3 if local else 0)
    assert sum(one.states) == len(by_netlink)
    assert sorted(x._replace(cookie=None, backlog=None) for x in one.listeners) == sorted(
        other.listeners
    )
    assert {x.backlog for x in one.listeners} == ({128} if local else set())


@pytest.mark.parametrize("states", [1 << model.CLOSE_WAIT, model.state_mask(model.ESTABLISHED)])
def test_the_kernel_filters_states_and_ports(mixed: tuple[int, int], states: int) -> None:
    reader = SocketReader("netlink", None, Deadline(5))
    everything = reader.sockets(Query((), True, EVERY_STATE))
    for ports in (mixed, mixed[:1]):
        expected = [x for x in everything if states >> x.state & 1 and x.local_port in ports]
        assert sorted(reader.sockets(Query(ports, True, states))) == sorted(expected)


def test_tcp_info_is_read_only_when_asked_for(mixed: tuple[int, int]) -> None:
    reader = SocketReader("netlink", None, Deadline(5))
    query = Query(mixed, True, 1 << model.ESTABLISHED)
    assert {one.info for one in reader.sockets(query)} == {None}
    infos = [one.info for one in reader.sockets(query._replace(info=True))]
    assert len(infos) == 6
    assert all(info is not None and info.bytes_received == 0 for info in infos)


def test_a_truncated_datagram_is_an_error(
    mixed: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BUFFER", 512)
    with pytest.raises(SourceError, match="sent more than 512 bytes at once and was truncated"):
        NetlinkSource(Deadline(5)).count(Query(mixed, True, EVERY_STATE))


class Interrupted(NetlinkSource):
    """Replays the recorded dump, its first `times` with the flag of an inconsistent one."""

    def __init__(self, times: int) -> None:
        super().__init__(Deadline(5))
        self.times = times
        self.dumps = 0

    def _datagrams(self, request: bytes, dump: object) -> Iterator[bytearray]:
        data = bytearray((MOMENT / "all.bin").read_bytes())
        sequence = struct.unpack_from("=IHHI", request)[3]
        at = 0
        while at < len(data):
            (length,) = struct.unpack_from("=I", data, at)
            struct.pack_into("=I", data, at + 8, sequence)
            if self.dumps < self.times:
                data[at + 6] |= 0x10
            at += (length + 3) & ~3
        self.dumps += 1
        yield data


@pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian host")
def test_an_interrupted_dump_is_retried_and_then_said() -> None:
    query = Query((), True, EVERY_STATE)
    whole = Interrupted(0).count(query)
    retried = Interrupted(2)
    assert retried.count(query).states == whole.states
    assert retried.dumps == 3
    with pytest.raises(SourceError, match="inconsistent 3 times in a row"):
        Interrupted(3).count(query)


def test_reading_keeps_the_deadline(mixed: tuple[int, int]) -> None:
    for choice in ("netlink", "procfs", "auto"):
        deadline = Deadline(0.001)
        while True:
            try:
                deadline.remaining()
            except DeadlineError:
                break
        with pytest.raises(DeadlineError, match=r"no verdict within 0\.001 s"):
            SocketReader(choice, None, deadline).count(Query(mixed, True, EVERY_STATE))


# A process that may not open netlink sockets: seccomp, as container runtimes use it.
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_DENY_NETLINK = """
import ctypes, struct, sys
def op(code, jt, jf, k):
    return struct.pack("=HBBI", code, jt, jf, k)
program = b"".join((
    op(0x20, 0, 0, 0), op(0x15, 0, 3, {call}),      # the call is socket()
    op(0x20, 0, 0, 16), op(0x15, 0, 1, 16),         # its family is AF_NETLINK
    op(0x06, 0, 0, 0x00050000 | 13),                # EACCES
    op(0x06, 0, 0, 0x7FFF0000),
))
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0, ctypes.get_errno()
"""
_HIDE_PROC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
"""


def run_restricted(preparation: str, check: str, *arguments: str) -> tuple[int, str, str]:
    """Run a check in a process that first takes something away from itself."""
    call = _SOCKET_CALL.get(platform.machine())
    if call is None:
        pytest.skip(f"the number of socket(2) on {platform.machine()} is not known here")
    code = preparation.replace("{call}", str(call)) + support.command(check)[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.returncode, done.stdout, done.stderr


def test_auto_goes_over_to_procfs_and_says_why(mixed: tuple[int, int]) -> None:
    arguments = ("-p", str(mixed[0]), "-w", "9")
    code, out, err = run_restricted(_DENY_NETLINK, "close_wait", *arguments, "-vv")
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert first.startswith(
        f"PGSOCK_CLOSE_WAIT OK - 1 connection in CLOSE_WAIT on port {mixed[0]} | close_wait=1;"
    )
    assert "source: procfs (/proc/net)" in rest
    assert "netlink did not answer: the netlink socket dump failed: Permission denied" in rest


def test_a_source_chosen_by_name_is_never_replaced(mixed: tuple[int, int]) -> None:
    arguments = ("-p", str(mixed[0]), "--source", "netlink")
    assert run_restricted(_DENY_NETLINK, "close_wait", *arguments) == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - the netlink socket dump failed: Permission denied\n",
        "",
    )


def test_no_source_answers(mixed: tuple[int, int]) -> None:
    support.require("root")
    arguments = ("-p", str(mixed[0]))
    assert run_restricted(_HIDE_PROC + _DENY_NETLINK, "close_wait", *arguments) == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - no source answers; netlink: the netlink socket dump failed: "
        "Permission denied; procfs: /proc/net/tcp cannot be read: No such file or directory\n",
        "",
    )
