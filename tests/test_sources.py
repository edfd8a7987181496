"""The two sources on real sockets: parity, refusals, truncation, interruption."""

from __future__ import annotations

import ast
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError, SourceError
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Query, Socket
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.sources import netlink, procfs
from check_pgsock.sockets.sources.netlink import NetlinkSource
from tests import restricted, support
from tests.moment import MOMENT
from tests.restricted import DENY_NETLINK, HIDE_PROC

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
    return one._replace(cookie=None, expires_ms=0, cgroup=None)


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
    assert sorted(
        x._replace(cookie=None, backlog=None, cgroup=None) for x in one.listeners
    ) == sorted(other.listeners)
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


def test_tcp_info_of_a_peer_that_vanished(two_hosts: tuple[NamespaceHost, NamespaceHost]) -> None:
    near, far = two_hosts
    with ExitStack() as stack:
        with near.entered():
            server = stack.enter_context(socket.create_server((near.address, 0)))
        address = server.getsockname()
        accepted = []
        for _ in range(2):
            with far.entered():
                stack.enter_context(socket.create_connection(address))
            accepted.append(stack.enter_context(server.accept()[0]))
        sending, silent = accepted
        silent.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        silent.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        far.disappear(near)
        sending.send(b"hello")
        ports = [one.getpeername()[1] for one in accepted]
        found: list[Socket] = []

        def gave_no_answer() -> bool:
            with near.entered():
                reader = SocketReader("netlink", None, Deadline(5))
                query = Query((address[1],), True, 1 << model.ESTABLISHED, info=True)
                found[:] = sorted(
                    reader.sockets(query), key=lambda one: ports.index(one.remote_port)
                )
            return found[0].retransmits >= 2 and found[1].retransmits >= 2

        support.wait_until(gave_no_answer, "unanswered packets", 10)
        (data, first), (probe, second) = ((one, one.info) for one in found)
        assert first is not None
        assert (data.timer, data.send_queue, first.unacked, first.probes) == (1, 5, 1, 0)
        assert data.retransmits == first.retransmits == first.backoff
        assert first.total_retransmits is not None
        assert first.total_retransmits >= 2
        # Each retransmit is data sent.
        assert first.last_data_sent_ms < first.last_ack_received_ms
        assert second is not None
        assert (probe.timer, probe.send_queue, second.unacked, second.retransmits) == (2, 0, 0, 0)
        assert probe.retransmits == second.probes
        assert second.last_ack_received_ms >= 2000
        assert (second.backoff, second.total_retransmits) == (0, 0)


def cgroup_of_this_process() -> int | None:
    """The inode of its cgroup v2 directory, where that is mounted."""
    with open("/proc/self/cgroup", encoding="utf-8") as stream:
        (path,) = (line.strip()[3:] for line in stream if line.startswith("0::"))
    with open("/proc/self/mounts", encoding="utf-8") as stream:
        roots = [line.split()[1] for line in stream if line.split()[2] == "cgroup2"]
    return os.stat(roots[0] + path).st_ino if roots else None


def test_cgroups_are_read_only_when_asked_for(mixed: tuple[int, int]) -> None:
    reader = SocketReader("netlink", None, Deadline(5))
    query = Query(mixed, True, 1 << model.ESTABLISHED)
    assert {one.cgroup for one in reader.sockets(query)} == {None}
    assert {one.cgroup for one in reader.sockets(query._replace(info=True))} == {None}
    for info in (False, True):
        found = reader.sockets(query._replace(cgroup=True, info=info))
        assert len(found) == 6
        assert {one.info is not None for one in found} == {info}
        # Accepted sockets are in the cgroup of their listener.
        assert {one.cgroup for one in found} == {x.cgroup for x in reader.listeners(*mixed)}
        assert cgroup_of_this_process() in (None, found[0].cgroup)


def test_drops_are_read_only_when_asked_for() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        port = full.getsockname()[1]
        reader = SocketReader("netlink", None, Deadline(5))
        for _ in range(5):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        (listener,) = reader.listeners(port)
        assert (listener.accept_queue, listener.backlog, listener.drops) == (2, 1, None)
        (listener,) = reader.listeners(port, drops=True)
        assert listener.drops is not None
        assert listener.drops >= 3
        (listener,) = SocketReader("procfs", None, Deadline(5)).listeners(port, drops=True)
        assert (listener.accept_queue, listener.backlog, listener.drops) == (2, None, None)


def test_a_socket_listed_again_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read_lines = procfs.read_lines
    listed: list[tuple[bytes, ...]] = []
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        port = server.getsockname()[1]

        def connect() -> int:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            # It ends with a RST: sockets left in TIME_WAIT would shrink the table in a minute.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return os.fstat(stack.enter_context(server.accept()[0]).fileno()).st_ino

        def read_and_grow(descriptor: int, deadline: Deadline) -> Iterator[list[bytes]]:
            # A page that is not full is the last one. When sockets are added then, the kernel
            # lists as many behind it that it has listed already.
            grows = os.readlink(f"/proc/self/fd/{descriptor}").endswith("tcp")
            for lines in read_lines(descriptor, deadline):
                listed.extend(tuple(line.split()[1:4]) for line in lines)
                yield lines
                if grows and sum(map(len, lines)) < os.sysconf("SC_PAGE_SIZE") - 500:
                    grows = False
                    inodes.update({connect() for _ in range(50)})

        monkeypatch.setattr(procfs, "read_lines", read_and_grow)
        inodes = {connect() for _ in range(200)}
        query = Query((), True, model.state_mask(model.ESTABLISHED, model.TIME_WAIT))
        for _ in range(10):  # the table may shrink
            inodes.add(connect())  # where the last page was full, it is another then
            there = set(inodes)
            listed.clear()
            found = SocketReader("procfs", None, Deadline(5)).sockets(query)
            assert there <= {one.inode for one in found if one.local_port == port} <= inodes
            assert len({(one[1:5], one.state) for one in found}) == len(found)
            if len(listed) - len(set(listed)) >= 10:
                return
    pytest.fail("the kernel listed no socket twice: the test proves nothing any more")


def test_a_truncated_datagram_is_an_error(
    mixed: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "_BUFFER", 512)
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


def test_auto_goes_over_to_procfs_and_says_why(mixed: tuple[int, int]) -> None:
    arguments = ("-p", str(mixed[0]), "-w", "9")
    code, out, err = restricted.run(DENY_NETLINK, "close_wait", *arguments, "-vv")
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert first.startswith(
        f"PGSOCK_CLOSE_WAIT OK - 1 connection in CLOSE_WAIT on port {mixed[0]} | close_wait=1;"
    )
    assert "source: procfs (/proc/net)" in rest
    assert "netlink did not answer: the netlink socket dump failed: Permission denied" in rest


def test_a_source_chosen_by_name_is_never_replaced(mixed: tuple[int, int]) -> None:
    arguments = ("-p", str(mixed[0]), "--source", "netlink")
    assert restricted.run(DENY_NETLINK, "close_wait", *arguments) == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - the netlink socket dump failed: Permission denied\n",
        "",
    )


def test_no_source_answers(mixed: tuple[int, int]) -> None:
    support.require("root")
    arguments = ("-p", str(mixed[0]))
    assert restricted.run(HIDE_PROC + DENY_NETLINK, "close_wait", *arguments) == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - no source answers; netlink: the netlink socket dump failed: "
        "Permission denied; procfs: /proc/net/tcp cannot be read: No such file or directory\n",
        "",
    )


# What netlink sockets and files of /proc/net are opened by; a sentence only tells of such a file.
OPENING = re.compile(r"AF_NETLINK|open_channel|/proc/(?!sys/)([\w-]+/)?net(/\S*)?")


def words_of(path: Path) -> Iterator[str]:
    """The names, and the whole texts, in a module."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Constant):
            yield str(node.value)
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_sources_and_events_alone_open_netlink_and_proc_net() -> None:
    package = support.ROOT / "check_pgsock"
    found = {
        (str(path.relative_to(package)), word)
        for path in package.rglob("*.py")
        for word in words_of(path)
        if OPENING.fullmatch(word)
    }
    assert found == {
        ("sockets/events.py", "open_channel"),
        ("sockets/sources/netlink.py", "AF_NETLINK"),
        ("sockets/sources/netlink.py", "open_channel"),
        ("sockets/sources/netstat.py", "/proc/thread-self/net/netstat"),
        ("sockets/sources/procfs.py", "/proc/net"),
        ("sockets/sources/procfs.py", "/proc/thread-self/net"),
    }
