"""A recording's sockets: recorded bytes to the answers that the live sources give."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError, MalformedError, SourceError
from check_pgsock.recording.messages import clear_keys, datagrams, find_cgroups
from check_pgsock.recording.replay import open_recording
from check_pgsock.sockets import model, sources
from check_pgsock.sockets.inet_diag import pack_request
from check_pgsock.sockets.model import LISTEN, Query, Socket
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.unix_sockets import UnixListener
from tests.details import ABSTRACT, PATH, SESSION, UNIX_LISTENERS, UNIX_SOCKETS, WAITING
from tests.moment import LISTENERS, LOCAL6, OTHER_ORDER, SOCKETS, other_byte_order
from tests.recordings import BY_NETLINK, BY_PROCFS, HEADER, captured, place, replay, write

EVERY_STATE = 0x1FFE
little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="recorded on a little-endian host"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a recording is to be written."""
    return tmp_path / "one.zip"


def answers(query: Query, one: Socket) -> bool:
    """Whether a socket answers a query, by the words of Query."""
    port = one.local_port if query.local else one.remote_port
    return (
        bool(query.states >> one.state & 1)
        and (not query.ports or port in query.ports)
        and (query.accepts is None or query.accepts(one.local_address, one.remote_address))
    )


QUERIES = [
    Query(ports, local, states, accepts)
    for ports in ((), (5432,), (5432, 6432), (9,))
    for local in (True, False)
    for states in (
        EVERY_STATE, 1 << LISTEN, model.state_mask(model.ESTABLISHED, model.CLOSE_WAIT),
        model.state_mask(model.SYN_RECV, LISTEN),
    )
    for accepts in (None, lambda local, remote: remote == LOCAL6)
]  # fmt: skip


@little_endian
@pytest.mark.parametrize("tables", [BY_NETLINK, BY_PROCFS], ids=["netlink", "procfs"])
def test_every_query_is_answered_as_the_kernel_does(path: Path, tables: dict[str, bytes]) -> None:
    reader = replay(write(path, captured([tables]))).reader
    known = tables is BY_NETLINK
    for query in QUERIES:
        expected = [one for one in SOCKETS if answers(query, one)]
        found = reader.sockets(query)
        if known:
            assert sorted(found) == sorted(expected)
        else:
            assert len(found) == len(expected)
            assert {(one.state, *one[1:5], one.inode) for one in found} == {
                (one.state, *one[1:5], one.inode) for one in expected
            }
        tally = reader.count(query)
        assert tally.states == [
            sum(one.state == state for one in expected) for state in range(len(tally.states))
        ]
        assert tally.not_accepted == sum(
            one.state == model.ESTABLISHED and not one.inode for one in expected
        )
        asked = query.states >> LISTEN & 1
        listeners = [
            one
            for one in LISTENERS
            if asked and (not query.ports or (query.local and one.port in query.ports))
        ]
        if not known:
            listeners = [one._replace(cookie=None, backlog=None, cgroup=None) for one in listeners]
        assert sorted(tally.listeners) == sorted(listeners)


@pytest.mark.parametrize("tables", [BY_NETLINK, BY_PROCFS], ids=["netlink", "procfs"])
@little_endian
def test_unix_sockets(path: Path, tables: dict[str, bytes]) -> None:
    reader = replay(write(path, captured([tables]))).reader
    assert {one.path for one in reader.unix_listeners()} == {one.path for one in UNIX_LISTENERS}
    found = reader.unix(1 << model.ESTABLISHED, lambda one: True)
    if tables is BY_NETLINK:
        assert sorted(found, key=lambda one: one.inode) == sorted(
            UNIX_SOCKETS, key=lambda one: one.inode
        )
    else:
        assert WAITING in found
        assert len(found) == len([*UNIX_SOCKETS, WAITING])
    assert not any(isinstance(one, UnixListener) for one in found)
    endpoint = reader.unix_sockets(PATH.decode())
    assert SESSION.inode in {one.inode for one in endpoint.sessions}
    assert len(reader.unix_sockets(ABSTRACT.decode().replace("\0", "@")).sessions) == 1


def test_what_was_recorded_of_a_kernel_that_lacks_something(path: Path) -> None:
    tables = {"tcp": BY_PROCFS["tcp"]}
    reader = replay(write(path, captured([tables]))).reader
    assert len(reader.sockets(Query((), True, EVERY_STATE))) == len(SOCKETS) - 3  # those of IPv6
    assert "no tcp6 beside tcp: a kernel without IPv6" in reader.describe()
    with pytest.raises(SourceError) as caught:
        reader.unix_listeners()
    assert str(caught.value) == f"{path}, moments/1/1/unix: no Unix sockets were recorded"


def test_the_other_byte_order(path: Path) -> None:
    header = HEADER._replace(byte_order=OTHER_ORDER)
    swapped = {name: other_byte_order(BY_PROCFS[name]) for name in ("tcp", "tcp6")}
    reader = replay(write(path, captured([swapped]), header=header)).reader
    found = reader.sockets(Query((), True, EVERY_STATE))
    assert {one[1:5] for one in found} == {one[1:5] for one in SOCKETS}
    path.unlink()
    write(path, header=header)
    with pytest.raises(SourceError) as caught:
        replay(path)
    assert str(caught.value) == (
        f"{path}, moments/1/1/tcp.netlink was written by a {OTHER_ORDER}-endian machine, and what "
        "netlink says can be read on such a one alone: replay it there"
    )


def message(kind: int, payload: bytes, length: int | None = None, sequence: int = 1) -> bytes:
    """One netlink message."""
    return struct.pack("=IHHII", length or 16 + len(payload), kind, 2, sequence, 0) + payload


DONE = message(3, bytes(4))


@pytest.mark.parametrize(
    ("table", "raw", "sentence"),
    [
        ("tcp.netlink", b"", "a dump of 0 bytes"),
        ("tcp.netlink", b"\0" * 16, "bad message length 0 at 0"),
        ("tcp.netlink", message(20, bytes(200), 400), "bad message length 400 at 0"),
        ("tcp.netlink", message(18, bytes(72)), "the dump has no end"),
        ("tcp.netlink", message(18, bytes(71) + b"\x0f") + DONE, None),
        ("tcp.netlink", message(18, b"\2\x0f" + bytes(70)) + DONE,
         "netlink reply: unknown socket state 15"),
        ("tcp.netlink", message(18, bytes(72)) + DONE[:-1], "bad message length 20 at 88"),
        ("tcp.netlink", message(18, bytes(72)) + DONE[:9], "9 stray bytes at 88"),
        ("tcp.netlink", message(18, bytes(72)) + message(18, bytes(76), sequence=2) + DONE,
         "netlink reply: sequence 2, not 1"),
        ("tcp.netlink", message(18, b"\2\1" + bytes(70) + b"\x09\0\2\0") + DONE,
         "netlink reply: bad attribute length 9"),
        ("unix.netlink", message(20, b"\2" + bytes(15)) + DONE,
         "netlink reply: a socket of family 2 among Unix sockets"),
        ("unix.netlink", b"xx", "a dump of 2 bytes"),
    ],
)  # fmt: skip
def test_a_dump_that_cannot_be(path: Path, table: str, raw: bytes, sentence: str | None) -> None:
    reader = replay(write(path, captured([{**BY_NETLINK, table: raw}]))).reader

    def read() -> None:
        reader.sockets(Query((), True, 0xFFFF, info=True))
        reader.unix_listeners()

    if sentence is None:
        read()
        return
    with pytest.raises(MalformedError) as caught:
        read()
    assert str(caught.value) == f"{path}, moments/1/1/{table}: {sentence}"


@pytest.mark.parametrize("table", ["tcp", "tcp6", "unix"])
@pytest.mark.parametrize("cut", [0, 50, -20])
def test_a_file_that_ends_too_soon(path: Path, table: str, cut: int) -> None:
    tables = {**BY_PROCFS, table: BY_PROCFS[table][:cut]}
    reader = replay(write(path, captured([tables]))).reader
    read = reader.unix_listeners if table == "unix" else reader.listeners
    with pytest.raises(MalformedError, match=f"^{path}, moments/1/1/{table} "):
        read()


def test_the_deadline_holds(path: Path) -> None:
    write(path)
    deadline = Deadline(0.2)
    reader = open_recording(str(path), None, (), deadline).reader
    time.sleep(0.21)
    with pytest.raises(DeadlineError, match="the time ran out while reading "):
        reader.sockets(Query((), True, EVERY_STATE))


def test_a_file_that_is_replaced_meanwhile(path: Path) -> None:
    reader = replay(write(path)).reader
    os.unlink(path)
    write(path, captured([BY_PROCFS]))
    with pytest.raises(SourceError) as caught:
        reader.sockets(Query((), True, EVERY_STATE))
    assert str(caught.value) == f"{path} was changed while it was read; try again"


def test_settings(path: Path) -> None:
    made = place(BY_NETLINK, settings={"net/core/somaxconn": "4096\n", "x": "?", "y": ""})
    (reader,) = replay(write(path, captured(places=[made]))).reader.each
    assert [reader.setting(name) for name in ("net/core/somaxconn", "x", "y", "z")] == [
        4096, None, None, None,
    ]  # fmt: skip


def places(path: Path, *names: str, own: str | None = None) -> Path:
    """A recording of namespaces of these names; the last one is read by procfs."""
    made = [
        place(BY_PROCFS if name == names[-1] else BY_NETLINK, name=name, asked=True,
              default=name == own)
        for name in names
    ]  # fmt: skip
    tables = [BY_PROCFS if one == names[-1] else BY_NETLINK for one in names]
    return write(path, captured(tables, made))


def test_namespaces_by_name(path: Path) -> None:
    places(path, "blue", "red")
    query = Query((5432,), True, EVERY_STATE)
    blue, red = replay(path, netns=["blue"]).reader, replay(path, netns=["red"]).reader
    assert blue.describe()[0] == f"source: recording ({path}), network namespace blue"
    assert [one.cookie is None for one in (*blue.sockets(query)[:1], *red.sockets(query)[:1])] == [
        False, True,
    ]  # fmt: skip
    both = replay(path, netns=["blue", "red", "blue"]).reader
    assert len(both.each) == 2
    assert both.count(query).states[model.ESTABLISHED] == 6
    with pytest.raises(SourceError) as caught:
        replay(path)
    assert str(caught.value) == (f"{path} holds network namespaces blue, red; choose with --netns")
    with pytest.raises(SourceError) as caught:
        replay(path, netns=["green|"])
    assert str(caught.value) == (
        f"{path} holds no network namespace green?, but network namespaces blue, red"
    )


def test_the_recorders_own_namespace_is_replayed_where_none_is_named(path: Path) -> None:
    places(path, "blue", "red", own="blue")
    for netns in ((), ("self",), ("blue", "self")):
        (reader,) = replay(path, netns=netns).reader.each
        assert reader.namespace is not None
        assert reader.namespace.name == "blue"
        with pytest.raises(SourceError, match="may not be entered"):
            reader.namespace.call(lambda: None)


def test_moments_by_number(path: Path) -> None:
    write(path, captured(since_boot=10.0), captured([BY_PROCFS], since_boot=12.0),
          captured(since_boot=13.5))  # fmt: skip
    assert replay(path).reader.notes() == ["as recorded at 2023-11-14 22:13:20 UTC, moment 3 of 3"]
    assert replay(path, 2).files.since_boot() == 12.0
    with pytest.raises(SourceError) as caught:
        replay(path, 4)
    assert str(caught.value) == f"{path} holds 3 moments: there is no --moment 4"
    last = replay(path).recorded
    assert last is not None
    # The second was 1.5 s before: a little late itself, it would have been 1.51 s.
    for seconds, number in ((1.5, 2), (1.51, 2), (1.6, 1), (2.0, 1)):
        earlier = last.earlier(seconds)
        assert earlier is not None
        assert earlier.notes() == [f"as recorded at 2023-11-14 22:13:20 UTC, moment {number} of 3"]
    assert last.earlier(3.6) is None
    first = replay(path, 1).recorded
    assert first is not None
    assert first.earlier(0.1) is None


def test_what_was_not_seen_is_said(path: Path) -> None:
    made = place(BY_PROCFS, refusal="the netlink socket dump was refused with EPERM")
    header = HEADER._replace(uid=26, anonymized=True)
    write(path, captured([BY_PROCFS], [made], hidden=True, unreadable=2), header=header)
    reader = replay(path).reader
    assert reader.notes() == [
        "as recorded at 2023-11-14 22:13:20 UTC",
        "not recorded: descriptors of 2 of 3 processes, which uid 26 may not read",
        "not recorded: processes that could not be seen, if any (the recorder was in a container, "
        "or /proc has hidepid)",
    ]
    assert reader.describe() == [
        f"source: recording ({path})",
        "recorded by check_pgsock 0.1.0 as uid 26 on Linux 6.1.0 (x86_64), from tcp, tcp6, unix, "
        "anonymized",
        "netlink did not answer then: the netlink socket dump was refused with EPERM",
    ]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_keys_are_cleared() -> None:
    """What the kernel shows to CAP_NET_ADMIN of TCP-MD5: include/uapi/linux/inet_diag.h."""
    keys = struct.pack("=BBH16s80s", 2, 32, 6, b"\xc0\0\2\1", b"secret") * 2
    rest = attribute(2, bytes(120)), attribute(21, struct.pack("=Q", 4711))
    raw = message(18, bytes(72) + rest[0] + attribute(14, keys) + rest[1]) + DONE
    cleared = clear_keys(raw)
    assert cleared == raw.replace(keys, bytes(len(keys)))
    assert b"secret" not in cleared
    assert find_cgroups(cleared) == {4711}


def test_pieces_are_whole_messages() -> None:
    raw = b"".join(message(18, bytes(72 + 4 * (size % 9))) for size in range(3000)) + DONE
    pieces = list(datagrams(raw))
    assert b"".join(pieces) == raw
    assert len(pieces) > 3
    assert all(len(piece) <= 1 << 16 for piece in pieces)
    assert all(struct.unpack_from("=IH", piece)[1] in (18, 3) for piece in pieces)


# Live sockets, and the recording of them.


@pytest.fixture
def mixed() -> Iterator[tuple[int, int]]:
    """An IPv4 and a dual-stack port with sockets that stay in several states."""
    with ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        six = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        for address, server in (("127.0.0.1", four), ("127.0.0.1", six), ("::1", six)):
            port = server.getsockname()[1]
            for closes in (False, True):
                client = stack.enter_context(socket.create_connection((address, port)))
                stack.enter_context(server.accept()[0]).send(b"unread")
                if closes:
                    client.shutdown(socket.SHUT_WR)
        stack.enter_context(socket.create_connection(("127.0.0.1", four.getsockname()[1])))
        bound = stack.enter_context(socket.socket())  # bound, and no more
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.2", four.getsockname()[1]))
        time.sleep(0.1)  # closes are acknowledged: no socket moves on any more
        yield four.getsockname()[1], six.getsockname()[1]


def still(one: Socket) -> Socket:
    """What does not go on between two readings."""
    if one.info is not None:
        one = one._replace(
            info=one.info._replace(
                last_data_sent_ms=0, last_data_received_ms=0, last_ack_received_ms=0
            )
        )
    return one._replace(expires_ms=0)


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_live_and_replayed_agree(mixed: tuple[int, int], path: Path, source: str) -> None:
    live = SocketReader(source, None, Deadline(30))
    (replayed,) = replay(write(path, captured([live.raw()]))).reader.each
    for query in (
        Query(mixed, True, EVERY_STATE, info=True, drops=True, cgroup=True),
        Query(mixed, False, EVERY_STATE, info=True),
        Query(mixed[:1], True, 0xFFFF),  # with what is bound, and no more
        Query(mixed[1:], False, 0xFFFF, cgroup=True),
        Query(mixed, True, 1 << LISTEN),
        Query(mixed, True, EVERY_STATE, lambda own, peer: peer == LOCAL6, drops=True),
        Query(mixed[1:], False, model.state_mask(model.CLOSE_WAIT, model.FIN_WAIT2)),
    ):
        found = sorted(map(still, replayed.sockets(query)))
        assert found == sorted(map(still, live.sockets(query)))
        assert found or query.states == 1 << LISTEN
        one, other = replayed.count(query), live.count(query)
        assert (one.states, one.not_accepted) == (other.states, other.not_accepted)
        assert sorted(one.listeners) == sorted(other.listeners)
    assert (replayed.used, replayed.saved, replayed.of_this_host) == ("recording", True, False)


def test_a_dump_is_what_ss_writes(mixed: tuple[int, int], path: Path) -> None:
    """Messages one behind the other, as `ss -D FILE` has them: `TCPDIAG_FILE=FILE ss` reads it."""
    raw = SocketReader("netlink", None, Deadline(5)).raw()
    assert list(raw) == [sources.TCP_DUMP, sources.UNIX_DUMP]
    kinds = set()
    offset = 0
    while offset < len(raw[sources.TCP_DUMP]):
        length, kind = struct.unpack_from("=IH", raw[sources.TCP_DUMP], offset)
        kinds.add(kind)
        offset += length + 3 & ~3
    assert offset == len(raw[sources.TCP_DUMP])
    assert kinds == {18, 3}
    assert struct.unpack("=H", pack_request(Query((), True, 2), 1)[4:6]) == (18,)
