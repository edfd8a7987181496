"""/proc/net/tcp and tcp6: recorded text to values, and every way it can be wrong."""

from __future__ import annotations

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Query, Socket, Tally
from check_pgsock.sockets.proc_net import Table
from tests.moment import (
    BYTE_ORDER,
    LISTENERS,
    LOCAL4,
    LOCAL6,
    NET,
    OTHER_ORDER,
    SOCKETS,
    other_byte_order,
)

EVERYTHING = Query((), True, 0xFFFF)
HEADER, *LINES = (NET / "tcp").read_bytes().splitlines(keepends=True)


def lines_of(name: str, byteorder: str) -> list[bytes]:
    """The recorded file as a host of this byte order prints it."""
    text = (NET / name).read_bytes()
    if byteorder == OTHER_ORDER:
        text = other_byte_order(text)
    return text.splitlines(keepends=True)


def as_procfs(one: Socket) -> Socket:
    """What procfs says of a socket that netlink showed a moment earlier: no cookie."""
    return one._replace(cookie=None, expires_ms=0)


@pytest.mark.parametrize("byteorder", [BYTE_ORDER, OTHER_ORDER])
def test_every_field_of_every_socket_is_netlinks(byteorder: str) -> None:
    found = [
        one
        for name in ("tcp", "tcp6")
        for one in Table(name, EVERYTHING, byteorder, name == "tcp6").sockets(
            lines_of(name, byteorder)
        )
    ]
    assert sorted(one._replace(expires_ms=0) for one in found) == sorted(map(as_procfs, SOCKETS))
    timers = {one.remote_port: one.expires_ms for one in found if one.timer}
    assert timers == {40001: 7199890, 40008: 940, 5432: 59930}


@pytest.mark.parametrize("byteorder", [BYTE_ORDER, OTHER_ORDER])
def test_tally_and_listeners_are_netlinks(byteorder: str) -> None:
    tally = Tally()
    for name in ("tcp", "tcp6"):
        Table(name, EVERYTHING, byteorder, name == "tcp6").count(lines_of(name, byteorder), tally)
    expected = Tally()
    for one in SOCKETS:
        expected.add(one.state, one.inode)
    assert tally.states == expected.states
    assert tally.not_accepted == expected.not_accepted == 2
    assert sorted(tally.listeners) == [
        one._replace(cookie=None, backlog=None, cgroup=None) for one in LISTENERS
    ]


@pytest.mark.parametrize(
    ("query", "ports"),
    [
        (Query((5432,), True, 1 << 1), {40001, 40006, 40007}),
        (Query((5432,), True, 1 << 8), {40004}),
        (Query((5432, 6432), True, 1 << 1), {40001, 40002, 40003, 40006, 40007}),
        (Query((5432,), True, 2, lambda local, remote: remote != LOCAL4), set()),
        (Query((6432,), True, 2, lambda local, remote: remote == LOCAL6), {40002}),
        (Query((7432,), True, model.state_mask(model.SYN_RECV)), {40008}),
    ],
)
def test_queries_filter_states_ports_and_addresses(query: Query, ports: set[int]) -> None:
    found = [
        one
        for name in ("tcp", "tcp6")
        for one in Table(name, query, BYTE_ORDER, name == "tcp6").sockets(
            lines_of(name, BYTE_ORDER)
        )
    ]
    assert {one.remote_port for one in found} == ports
    client = query._replace(local=False)
    found = [
        one
        for name in ("tcp", "tcp6")
        for one in Table(name, client, BYTE_ORDER, name == "tcp6").sockets(
            lines_of(name, BYTE_ORDER)
        )
    ]
    assert {one.remote_port for one in found} <= set(query.ports)


def states_of(*lines: bytes) -> list[tuple[int, int]]:
    """(state, inode) of the sockets that a file of these lines shows, however it is fed."""
    whole = list(Table("tcp", EVERYTHING, BYTE_ORDER).sockets([HEADER, *lines]))
    table, tally = Table("tcp", EVERYTHING, BYTE_ORDER), Tally()
    for line in (HEADER, *lines):
        table.count([line], tally)
    assert sum(tally.states) == len(whole)
    return [(one.state, one.inode) for one in whole]


OWNED = LINES[2]  # ESTABLISHED, inode 40809
ENDS = b"0100007F:1538 0100007F:9C41"
UNOWNED = OWNED.replace(b"40809", b"0")
IN_TIME_WAIT = UNOWNED.replace(b" 01 ", b" 06 ")


def test_a_socket_listed_again_is_one() -> None:
    assert ENDS in OWNED
    changed = OWNED.replace(b"   2: ", b"  99: ").replace(
        b"00000000:00000005", b"00000001:00000000"
    )
    assert changed != OWNED
    assert states_of(OWNED, changed, OWNED) == [(1, 40809)]
    assert states_of(UNOWNED, UNOWNED) == [(1, 0)]
    assert states_of(IN_TIME_WAIT, IN_TIME_WAIT) == [(6, 0)]
    tally = Tally()
    Table("tcp", EVERYTHING, BYTE_ORDER).count([HEADER, *LINES, *LINES], tally)
    once = Tally()
    Table("tcp", EVERYTHING, BYTE_ORDER).count([HEADER, *LINES], once)
    assert (tally.states, tally.listeners) == (once.states, once.listeners)
    assert len(tally.listeners) == 2


def test_a_socket_that_changed_before_it_was_listed_again_is_one() -> None:
    assert states_of(OWNED, OWNED.replace(b" 01 ", b" 08 ")) == [(1, 40809)]  # its client left
    assert states_of(UNOWNED, OWNED) == [(1, 0)]  # it was accepted
    half_open = UNOWNED.replace(b" 01 ", b" 03 ")
    assert states_of(half_open, UNOWNED, OWNED) == [(3, 0)]  # the handshake ended
    # What closes meanwhile is in both states, and is what it was when it was listed.
    assert states_of(OWNED, IN_TIME_WAIT) == [(1, 40809), (6, 0)]


def test_another_socket_with_the_same_ends_is_another() -> None:
    # A new connection has taken the place of one in TIME_WAIT.
    assert states_of(IN_TIME_WAIT, OWNED) == [(6, 0), (1, 40809)]
    assert states_of(IN_TIME_WAIT, UNOWNED) == [(6, 0), (1, 0)]
    # Bound to different devices (a VRF) two live sockets may have the same ends.
    assert states_of(OWNED, OWNED.replace(b"40809", b"7")) == [(1, 40809), (1, 7)]
    other_port = OWNED.replace(b":9C41", b":9C42")
    assert states_of(OWNED, other_port) == [(1, 40809)] * 2  # inodes are used again


def test_retransmits_are_those_of_the_running_timer() -> None:
    line = LINES[2]
    for timer, expected in ((b"00", 0), (b"01", 3), (b"02", 2), (b"03", 0), (b"04", 2)):
        changed = line.replace(
            b"02:000AFC75 00000000     0        0", timer + b":000AFC75 00000003     0        2"
        )
        assert changed != line
        (found,) = Table("tcp", EVERYTHING, BYTE_ORDER).sockets([HEADER, changed])
        assert found.retransmits == expected


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([b""], "proc/net/tcp line 1: no header, but ''"),
        ([b"nonsense\n"], "proc/net/tcp line 1: no header, but 'nonsense'"),
        ([LINES[0]], "proc/net/tcp line 1: no header, but '0: 0100007F:1D08"),
        ([HEADER, LINES[2].replace(b" 01 ", b" ZZ ")], "proc/net/tcp line 2: bad st 'ZZ'"),
        ([HEADER, LINES[2].replace(b" 01 ", b" 0D ")], "proc/net/tcp line 2: bad st '0D'"),
        ([HEADER, LINES[0], LINES[2].replace(b":1538", b":15G8")],
         "proc/net/tcp line 3: bad local_address '0100007F:15G8'"),
        ([HEADER, LINES[2].replace(b"40809", b"4080x")], "proc/net/tcp line 2: bad inode '4080x'"),
        ([HEADER, LINES[2].replace(b"02:000AFC75", b"09:000AFC75")],
         "proc/net/tcp line 2: bad tr:tm->when '09:000AFC75'"),
        ([HEADER, LINES[0][:60]], "proc/net/tcp line 2: the file ends within a line, '0: 01"),
        ([HEADER, b"   0: 0100007F:1D08 00000000:0000 0A\n"],
         "proc/net/tcp line 2: 4 fields, 10 are needed, '0: 0100007F:1D08 00000000:0000 0A'"),
        ([HEADER, b"\xff\xfe\n"], "proc/net/tcp line 2: bad sl '\\\\xff\\\\xfe'"),
        ([HEADER, b"\n"], "proc/net/tcp line 2: 0 fields, 10 are needed, ''"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named_by_file_line_and_text(lines: list[bytes], sentence: str) -> None:
    # Also lines of ports that nobody asked for.
    for query in (EVERYTHING, Query((1,), False, 2)):
        table = Table("proc/net/tcp", query, BYTE_ORDER)
        with pytest.raises(MalformedError) as caught:
            table.count(lines, Tally())
        assert str(caught.value).startswith(sentence)


def test_the_files_are_not_taken_for_each_other() -> None:
    header, *lines = lines_of("tcp6", BYTE_ORDER)
    with pytest.raises(MalformedError, match=r"line 2: bad local_address '0{32}:1920'"):
        Table("tcp", EVERYTHING, BYTE_ORDER).count([header, *lines], Tally())
    with pytest.raises(MalformedError, match=r"line 2: bad local_address '0100007F:1D08'"):
        Table("tcp6", EVERYTHING, BYTE_ORDER, ipv6=True).count([HEADER, *LINES], Tally())


def test_an_empty_file_is_no_empty_table() -> None:
    table = Table("proc/net/tcp", EVERYTHING, BYTE_ORDER)
    with pytest.raises(MalformedError, match="proc/net/tcp is empty"):
        table.close()
