"""`pgsock states`: every state made for real and counted on both legs; saved copies; refusals."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.pgsock import states
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.processes import free_port
from check_pgsock.pgsock.saved_tables import SavedTable, split_tables
from check_pgsock.sockets import model
from check_pgsock.sockets.model import Tally
from tests import restricted, support
from tests.moment import MOMENT, NET, other_byte_order
from tests.restricted import DENY_NETLINK
from tests.support import Completed

Counts = dict[str, tuple[Optional[int], Optional[int]]]
Pair = tuple[socket.socket, socket.socket]

TCP, TCP6 = NET / "tcp", NET / "tcp6"
BOTH = TCP.read_text() + TCP6.read_text()
HEADER = TCP.read_bytes().splitlines(keepends=True)[0]


def pgsock_states(
    *arguments: str | Path, user: str | None = "nobody", stdin: str = ""
) -> Completed:
    """Run it to its end; the blanks that pad lines of its table are left out."""
    done = support.run("pgsock", "states", *map(str, arguments), user=user, stdin=stdin)
    return done._replace(out="".join(f"{line.rstrip()}\n" for line in done.out.splitlines()))


def counts_of(text: str) -> Counts:
    """By state, and for `not accepted`: sockets of the server leg, and of the client leg."""
    found = json.loads(text)
    rows = [*found["states"], {"state": "not accepted", **found["not_accepted"]}]
    return {row["state"]: (row["server_leg_sockets"], row["client_leg_sockets"]) for row in rows}


def fill(one: socket.socket) -> None:
    """Send until the peer's buffer is full and this one's too: what follows stays here."""
    one.setblocking(False)
    while select.select([], [one], [], 0.01)[1]:
        with contextlib.suppress(BlockingIOError):
            one.send(bytes(1 << 16))


def await_end(one: socket.socket) -> None:
    """Wait until the peer's FIN has come."""
    one.settimeout(5)
    assert one.recv(1) == b""


class Endpoints:
    """Listeners whose connections are left in one state each."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.ports: list[int] = []

    def listen(self, address: str, backlog: int = 128) -> socket.socket:
        """A listener; one of IPv6 takes IPv4 too."""
        six = ":" in address
        family = socket.AF_INET6 if six else socket.AF_INET
        # Below the ephemeral ports: nobody has left sockets in TIME_WAIT to it.
        server = socket.create_server(
            (address, free_port()), family=family, backlog=backlog, dualstack_ipv6=six
        )
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.ports.append(server.getsockname()[1])
        return self._stack.enter_context(server)

    def connect(self, address: str, server: socket.socket) -> socket.socket:
        """A connection that waits to be accepted, if there is room for it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = self._stack.enter_context(socket.socket(family))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.setblocking(False)
        client.connect_ex((address, server.getsockname()[1]))
        return client

    def pairs(self, address: str, server: socket.socket) -> Iterator[Pair]:
        """Three connections: the client's end first, the server's end first, and once more."""
        for number in range(3):
            client = self.connect(address, server)
            accepted = self._stack.enter_context(server.accept()[0])
            yield (accepted, client) if number else (client, accepted)

    def make_states(self, address: str, server: socket.socket) -> None:
        """Leave the first ends of pairs in each state that a connection can stay in."""
        for first, second in self.pairs(address, server):  # TIME_WAIT
            first.close()
            await_end(second)
            second.close()
        for first, _ in self.pairs(address, server):  # FIN_WAIT1: the FIN is behind the data
            fill(first)
            first.shutdown(socket.SHUT_WR)
        for first, second in self.pairs(address, server):  # CLOSING: and the peer's has come
            fill(first)
            first.shutdown(socket.SHUT_WR)
            second.shutdown(socket.SHUT_WR)
        for first, second in self.pairs(address, server):  # LAST_ACK: it had come before
            second.shutdown(socket.SHUT_WR)
            await_end(first)
            fill(first)
            first.shutdown(socket.SHUT_WR)
        for _, second in self.pairs(address, server):  # CLOSE_WAIT
            second.shutdown(socket.SHUT_WR)


@pytest.fixture
def every_state() -> Iterator[list[str]]:
    """The options that name ports whose sockets are in every state: those of EVERY_STATE."""
    with ExitStack() as stack:
        made = Endpoints(stack)
        four, six = made.listen("127.0.0.1"), made.listen("::")
        places = (("127.0.0.1", four), ("127.0.0.1", six), ("::1", six))
        for address, server in places:
            made.make_states(address, server)
        for address, server in places:
            for _ in range(2):
                made.connect(address, server)  # not accepted
        full = made.listen("127.0.0.1", backlog=1)
        for _ in range(2):
            made.connect("127.0.0.1", full)
        support.wait_until(
            lambda: support.tcp_states(made.ports[-1])["ESTABLISHED"] == 2, "a full accept queue"
        )
        for _ in range(3):
            made.connect("127.0.0.1", full)  # not answered
        deferring = made.listen("127.0.0.1")
        deferring.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        for _ in range(2):
            made.connect("127.0.0.1", deferring)  # as to PgBouncer: SYN_RECV without a first byte
        time.sleep(0.1)  # closes are acknowledged: no socket moves on any more
        yield [option for port in made.ports for option in ("-p", str(port))]


EVERY_STATE: Counts = {
    "ESTABLISHED": (11, 16),
    "SYN_SENT": (0, 3),
    "SYN_RECV": (2, 0),
    "FIN_WAIT1": (6, 3),
    "FIN_WAIT2": (9, 18),
    "TIME_WAIT": (6, 3),
    "CLOSE": (None, None),
    "CLOSE_WAIT": (6, 3),
    "LAST_ACK": (6, 3),
    "LISTEN": (4, None),
    "CLOSING": (6, 3),
    "NEW_SYN_RECV": (None, None),
    "not accepted": (8, 0),
}


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_every_state_is_counted_on_both_legs(every_state: list[str], source: str) -> None:
    done = pgsock_states(*every_state, "--source", source, "--json")
    assert (done.code, done.err) == (0, "")
    assert counts_of(done.out) == EVERY_STATE
    for number, leg in enumerate(("server", "client")):
        done = pgsock_states(*every_state, "--source", source, "--leg", leg, "--json")
        one: Counts = {
            state: (both[0], None) if number == 0 else (None, both[1])
            for state, both in EVERY_STATE.items()
        }
        assert counts_of(done.out) == one


def test_a_copy_says_what_the_kernel_says(every_state: list[str], tmp_path: Path) -> None:
    for name in ("tcp", "tcp6"):
        shutil.copy(f"/proc/net/{name}", tmp_path)
    copies = [tmp_path / "tcp6", tmp_path / "tcp"]
    done = pgsock_states(*every_state, *copies, "--json", user=None)
    assert counts_of(done.out) == EVERY_STATE


# The moment of tests/data.
TABLE = """\
code  state           server leg  client leg  what it means for PostgreSQL
01    ESTABLISHED              5           5  server: a session, idle or at work, in its slot; or the client's host vanished
                                              client: a connection, idle or in use; or the server's host vanished
        not accepted           2           0  server: connected, no slot: the server is stopped or too busy to accept
02    SYN_SENT                 0           0  client: connecting; over 1 s: host down, packets dropped or accept queue full
03    SYN_RECV                 0           0  server: half-open, no slot: awaits the client's ACK (PgBouncer: first byte)
04    FIN_WAIT1                0           0  server: closed here, no slot; for seconds: the client does not read, or vanished
                                              client: closed here; for seconds: the server does not read, or vanished
05    FIN_WAIT2                0           1  server: closed here (terminated, timed out), no slot; the client has not closed
                                              client: closed here; the server works on with its statement (CLOSE_WAIT there)
06    TIME_WAIT                0           1  server: closed here first, within 60 s, no slot; TLS and resets leave none
                                              client: closed here first, within 60 s; thousands can use up the local ports
07    CLOSE                    -           -  not connected: in no table of the kernel, so none can be counted
08    CLOSE_WAIT               1           0  server: the client is gone, its backend works on: it holds the slot until the statement ends or client_connection_check_interval notices
                                              client: closed by the server, not noticed here: a pool without validation, or a leak
09    LAST_ACK                 0           0  server: closed by the client, then here, no slot; for seconds: client vanished
                                              client: closed by the server, then here; for seconds: server vanished
0A    LISTEN                   2           -  server: one socket an address; 0: the server is down or elsewhere
0B    CLOSING                  0           0  server: closed by both at once, no slot; for seconds: client vanished
                                              client: closed by both at once; for seconds: server vanished
0C    NEW_SYN_RECV             -           -  half-open, in the kernel's own words: it shows them as SYN_RECV
"""  # noqa: E501
CLIENT_TABLE = """\
code  state           client leg  what it means for PostgreSQL
01    ESTABLISHED              2  a connection, idle or in use; or the server's host vanished
        not accepted           0  -
02    SYN_SENT                 0  connecting; over 1 s: host down, packets dropped or accept queue full
03    SYN_RECV                 0  -
04    FIN_WAIT1                0  closed here; for seconds: the server does not read, or vanished
05    FIN_WAIT2                0  closed here; the server works on with its statement (CLOSE_WAIT there)
06    TIME_WAIT                0  closed here first, within 60 s; thousands can use up the local ports
07    CLOSE                    -  not connected: in no table of the kernel, so none can be counted
08    CLOSE_WAIT               0  closed by the server, not noticed here: a pool without validation, or a leak
09    LAST_ACK                 0  closed by the server, then here; for seconds: server vanished
0A    LISTEN                   -  -
0B    CLOSING                  0  closed by both at once; for seconds: server vanished
0C    NEW_SYN_RECV             -  half-open, in the kernel's own words: it shows them as SYN_RECV
"""  # noqa: E501
PORTS = ("-p", "5432", "-p", "6432")


def test_the_table_of_both_legs() -> None:
    done = pgsock_states("-", *PORTS, stdin=BOTH)
    source = "source: standard input (tcp), standard input, table 2 (tcp6)\n"
    assert done == (0, TABLE + source, "")


def test_the_table_of_one_leg() -> None:
    done = pgsock_states("--proc-root", MOMENT, "-p", "6432", "--leg", "client", user=None)
    assert done == (0, f"{CLIENT_TABLE}source: procfs ({NET})\n", "")


def test_json() -> None:
    done = pgsock_states("-", *PORTS, "--json", stdin=BOTH)
    assert (done.code, done.err) == (0, "")
    sockets = {
        "01": (5, 5), "05": (0, 1), "06": (0, 1), "07": (None, None), "08": (1, 0),
        "0A": (2, None), "0C": (None, None),
    }  # fmt: skip

    def row(counts: tuple[int | None, int | None], meaning: states.Meaning) -> dict[str, object]:
        return {
            "server_leg_sockets": counts[0],
            "client_leg_sockets": counts[1],
            "server_leg_meaning": meaning.server,
            "client_leg_meaning": meaning.client,
        }

    assert json.loads(done.out) == {
        "command": "states",
        "version": 1,
        "ports": [5432, 6432],
        "legs": ["server", "client"],
        "source": "file",
        "states": [
            {
                "code": f"{number:02X}",
                "state": model.STATE_NAMES[number],
                **row(sockets.get(f"{number:02X}", (0, 0)), states.MEANINGS[number]),
            }
            for number in range(1, 13)
        ],
        "not_accepted": row((2, 0), states.NOT_ACCEPTED),
        "notes": ["source: standard input (tcp), standard input, table 2 (tcp6)"],
    }


def test_a_copy_from_a_host_of_the_other_byte_order(tmp_path: Path) -> None:
    other = tmp_path / "tcp"
    other.write_bytes(other_byte_order(TCP.read_bytes()))
    options = ("-p", "5432", "--json", "--peer", "127.0.0.0/8")
    expected = counts_of(pgsock_states(TCP, *options, user=None).out)
    assert expected["ESTABLISHED"] == (3, 3)
    assert counts_of(pgsock_states(other, *options, user=None).out)["ESTABLISHED"] == (0, 0)
    done = pgsock_states(other, *options, "--byteorder", "big", user=None)
    assert counts_of(done.out) == expected


@pytest.mark.parametrize(
    ("file", "note"),
    [
        (TCP, "no tcp6 was given: IPv6 connections, and those of listeners that take IPv4 and "
              "IPv6, are not counted"),
        (TCP6, "no tcp was given: IPv4 connections are not counted"),
    ],
)  # fmt: skip
def test_the_family_that_is_missing_is_said(file: Path, note: str) -> None:
    done = pgsock_states(file, "-p", "6432", "--leg", "server", user=None)
    notes = [f"source: {file} ({file.name})"]
    if file == TCP:
        notes.insert(0, "nothing listens on port 6432: the server is down or on another host, or "
                        "the port another (--port)")  # fmt: skip
    assert done.out.splitlines()[14:] == [*notes[:-1], note, notes[-1]]


def test_no_listener_is_said_and_is_no_error(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        at = ("--address", "127.0.0.1")
        done = pgsock_states("-p", port, *at, "--source", "netlink", "--json")
        assert done.code == 0
        assert counts_of(done.out)["LISTEN"] == (0, None)
        assert json.loads(done.out)["notes"] == [
            f"nothing listens on port {port} at 127.0.0.1: the server is down or on another host, "
            "or the port another (--port)",
            "source: netlink",
        ]
        done = pgsock_states("-p", port, "--source", "netlink", "--leg", "client", "--json")
        assert json.loads(done.out)["notes"] == ["source: netlink"]


def test_all_ports_of_a_copy() -> None:
    done = pgsock_states("-", "--all-ports", "--json", stdin=BOTH)
    found = json.loads(done.out)
    assert (found["ports"], found["notes"][0]) == (
        None,
        "server leg: on a port that something listens on here; client leg: all others",
    )
    counts = counts_of(done.out)
    assert counts["ESTABLISHED"] == (5, 6)
    assert (counts["SYN_RECV"], counts["CLOSE_WAIT"]) == ((1, 0), (1, 0))
    assert (counts["FIN_WAIT2"], counts["TIME_WAIT"]) == ((0, 1), (0, 1))
    assert (counts["LISTEN"], counts["not accepted"]) == ((3, None), (2, 0))
    done = pgsock_states("-", "--all-ports", "--json", "--address", "::1", stdin=BOTH)
    counts = counts_of(done.out)
    assert (counts["ESTABLISHED"], counts["LISTEN"]) == ((1, 1), (1, None))


def test_all_ports_of_two_hosts(two_hosts: tuple[NamespaceHost, NamespaceHost]) -> None:
    near, far = two_hosts
    with ExitStack() as stack:
        with near.entered():
            server = stack.enter_context(socket.create_server((near.address, 0)))
        port = server.getsockname()[1]
        with far.entered():
            stack.enter_context(socket.create_connection(server.getsockname()))
            # It listens where the other host connects from: each host has its own listeners.
            client_port = stack.enter_context(
                socket.create_connection(server.getsockname())
            ).getsockname()[1]
        with near.entered():
            stack.enter_context(socket.create_server((near.address, client_port)))
        hosts = [option for one in two_hosts for option in ("--netns", str(one.process.pid))]
        for options in (("--all-ports",), ("-p", str(port))):
            done = pgsock_states(*hosts, *options, "--json", user=None)
            counts = counts_of(done.out)
            listening = 2 if "--all-ports" in options else 1
            assert (counts["ESTABLISHED"], counts["LISTEN"]) == ((2, 2), (listening, None))


def test_auto_says_why_netlink_did_not_answer(every_state: list[str]) -> None:
    code, out, err = restricted.run(DENY_NETLINK, "pgsock", "states", *every_state, "--json")
    assert (code, err) == (0, "")
    assert counts_of(out) == EVERY_STATE
    assert json.loads(out)["source"] == "procfs"
    assert json.loads(out)["notes"] == [
        "source: procfs (/proc/net)",
        "netlink did not answer: the netlink socket dump failed: Permission denied",
    ]
    assert restricted.run(DENY_NETLINK, "pgsock", "states", "--source", "netlink") == (
        3,
        "",
        "pgsock: the netlink socket dump failed: Permission denied\n",
    )


LINE = TCP.read_text().splitlines(keepends=True)[1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "standard input is empty; name a whole copy of /proc/net/tcp or tcp6"),
        ("garbage\n", "standard input does not begin with the header of one; name a whole copy of "
                      "/proc/net/tcp or tcp6"),
        (LINE, "standard input does not begin with the header of one; name a whole copy of "
               "/proc/net/tcp or tcp6"),
        ("sl \n", "standard input line 1: no header, but 'sl'"),
        (BOTH[:-20], "standard input, table 2 line 5: the file ends within a line, "
                     f"{BOTH.splitlines()[-1].strip()[:60] + '...'!r}"),
        (HEADER.decode() + LINE.replace(" 0A ", " ZZ "), "standard input line 2: bad st 'ZZ'"),
        (HEADER.decode() + "\x1b[2J\n", "standard input line 2: bad sl '\\x1b[2J'"),
    ],
)  # fmt: skip
def test_what_is_no_copy(text: str, sentence: str) -> None:
    assert pgsock_states("-", stdin=text) == (3, "", f"pgsock: {sentence}\n")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty\x1b"
    empty.touch()
    copy = "name a whole copy of /proc/net/tcp or tcp6"
    for file, sentence in (
        (tmp_path, f"{tmp_path} cannot be read: Is a directory"),
        ("/nonexistent", "/nonexistent cannot be read: No such file or directory"),
        ("/proc/1/environ", "/proc/1/environ cannot be read: Permission denied"),
        (empty, f"{tmp_path}/empty? is empty; {copy}"),
        ("/dev/zero", "/dev/zero holds more than 256 MiB; name a copy of /proc/net/tcp or tcp6"),
    ):
        user = None if str(file).startswith(str(tmp_path)) else "nobody"
        done = pgsock_states(file, user=user)
        assert done == (3, "", f"pgsock: {sentence}\n")


def test_a_pipe_is_read() -> None:
    done = support.run("pgsock", "states", "/dev/fd/0", "-p", "5432", "--json", stdin=BOTH)
    assert counts_of(done.out)["ESTABLISHED"] == (3, 3)


def test_a_pipe_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    os.mkfifo(silent)
    begun = time.monotonic()
    assert pgsock_states(silent, "-t", "0.5", user=None) == (
        3,
        "",
        f"pgsock: no verdict within 0.5 s, the time ran out while reading {silent}; see what hangs "
        "there, or raise --timeout\n",
    )
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--all-ports", "-p", "1"], "--all-ports and --port name different ports; drop one"),
        (["--byteorder", "big"], "--byteorder is of a FILE, and none is named"),
        (["x", "--source", "netlink"],
         "FILE is read instead of --source, --proc-root and --netns; drop one"),
        (["x", "--proc-root", "/proc"],
         "FILE is read instead of --source, --proc-root and --netns; drop one"),
        (["x", "--netns", "self"],
         "FILE is read instead of --source, --proc-root and --netns; drop one"),
        (["x", "--moment", "1"], "--moment is one of a recording, and --source names none"),
        (["x", "y", "x"], "a FILE is named twice, and what the files hold is added; drop one"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(arguments: list[str], sentence: str) -> None:
    assert pgsock_states(*arguments) == (3, "", f"pgsock: {sentence}\n")


def test_headers_begin_tables() -> None:
    six = TCP6.read_bytes().splitlines(keepends=True)
    assert split_tables("f", HEADER + b"rest\n" + b"".join(six)) == [
        SavedTable("f", False, [HEADER, b"rest\n"]),
        SavedTable("f, table 2", True, six),
    ]
    with pytest.raises(MalformedError, match="f does not begin with the header of one"):
        split_tables("f", b"first\n" + HEADER)


def test_what_cannot_be_counted_is_none_and_the_rest_0() -> None:
    tally = Tally()
    every = range(1, 13)
    unknown = {model.CLOSE, model.NEW_SYN_RECV}
    for leg in ("server", "client"):
        nothing = unknown | ({model.LISTEN} if leg == "client" else set())
        known = {state: states.known_count(tally, state, leg) for state in every}
        assert {state for state, count in known.items() if count is None} == nothing
        assert {count for count in known.values() if count is not None} == {0}
    for state in every:
        tally.add(state, 1)
    assert states.known_count(tally, model.SYN_RECV, "server") == 2
    assert states.known_count(tally, model.NEW_SYN_RECV, "server") is None
    assert states.known_count(tally, model.CLOSE, "server") == 1


def test_every_state_has_a_meaning_of_one_line() -> None:
    assert list(states.MEANINGS) == list(range(1, len(model.STATE_NAMES)))
    for meaning in (*states.MEANINGS.values(), states.NOT_ACCEPTED):
        assert any(meaning)
        # The table cuts at 200 characters.
        assert all(text is None or (text.isprintable() and len(text) <= 180) for text in meaning)
