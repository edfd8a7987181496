"""slots_used of check_pgsock_saturation against real servers: what holds a slot, what does not."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, Lab
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import Installations, MakePg

STRANGER = "daemon"  # neither root nor the server's user
LIMIT = 17


@pytest.fixture(scope="module")
def server(every_major: int, installations: Installations) -> Iterator[PostgresServer]:
    """A server with room for replication, whose sessions each test ends."""
    settings: dict[str, Setting] = {
        "max_connections": LIMIT + 3, "max_wal_senders": 12, "wal_level": "logical"
    }  # fmt: skip
    with PostgresServer(installations.get(every_major), settings=settings) as running:
        yield running


@pytest.fixture
def stack(server: PostgresServer) -> Iterator[contextlib.ExitStack]:
    """What closes the sessions of a test, and waits until the server has ended them all."""
    before = set(server.process_ids())
    with contextlib.ExitStack() as opened:
        yield opened
    left = [pid for pid in server.process_ids() if pid not in before and _is_backend(pid)]
    server.terminate(left)
    support.wait_until(lambda: not any(map(_is_backend, left)), "all sessions ended")


def _is_backend(pid: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"127.0.0.1(" in title or b"[local]" in title


def over_unix(server: PostgresServer, stack: contextlib.ExitStack, count: int) -> None:
    """Open sessions over the server's Unix socket."""
    for _ in range(count):
        stack.enter_context(server.administrator())


def over_tcp(server: PostgresServer, stack: contextlib.ExitStack, count: int) -> None:
    """Open sessions over TCP."""
    for _ in range(count):
        stack.enter_context(server.connect())


def orphans(server: PostgresServer, count: int) -> None:
    """Leave sessions whose client is gone while its statement runs."""
    for _ in range(count):
        session = server.connect()
        session.simple_query("select pg_sleep(60)")
        session.kill()
    support.wait_until(
        lambda: support.tcp_states(server.port)["CLOSE_WAIT"] == count, "the orphans"
    )


def walsender(server: PostgresServer, stack: contextlib.ExitStack, start: str = "") -> None:
    """Open a replication connection; `start` is its command, a logical one's where it names it."""
    connected = stack.enter_context(socket.create_connection((server.host, server.port), 10))
    session = Session(connected)
    logical = {"database": "postgres", "replication": "database"}
    physical = {"replication": "true"}
    session.send_startup({"user": "postgres", **(logical if "LOGICAL" in start else physical)})
    session.wait_ready()
    if "LOGICAL" in start:
        session.query("CREATE_REPLICATION_SLOT sender TEMPORARY LOGICAL pgoutput")
    if start:
        session.simple_query(start)
        assert connected.recv(1) == b"W"  # CopyBothResponse


def line(
    server: PostgresServer, state: str, established: int, used: int, *, extra: str = "",
    close_wait: int = 0, at_least: str = "",
) -> str:  # fmt: skip
    """The whole first line."""
    where = f"on port {server.port}"
    text = f"{established} of {LIMIT} connections ({100 * established / LIMIT:.0f} %) {where}"
    if used != established or at_least:
        noun = "connection" if established == 1 else "connections"
        text = (
            f"{at_least}{used} of {LIMIT} connection slots used ({100 * used / LIMIT:.0f} %), "
            f"{established} {noun} {where}"
        )
    taken = max(established, used)
    return (
        f"PGSOCK_SATURATION {state} - {text}{extra} | established={established};13;15;0;17 "
        f"slots_used={used};13;15;0;17 limit=17;;;0 utilization={100 * taken / LIMIT:.1f}%;;;0 "
        f"free={LIMIT - taken};;;0;17 close_wait={close_wait};;;0 syn_recv=0;;;0 "
        "not_accepted=0;;;0\n"
    )


def run(server: PostgresServer, *arguments: str, user: str | None = STRANGER) -> support.Completed:
    """Run the check; a stranger cannot read the limit of PostgreSQL 14 and 15."""
    limit = () if user is None else ("--limit", str(LIMIT))
    return support.run("saturation", "-p", str(server.port), *limit, *arguments, user=user)


def test_orphans_and_unix_sessions_take_slots_and_walsenders_none(
    server: PostgresServer, stack: contextlib.ExitStack
) -> None:
    over_tcp(server, stack, 4)
    assert run(server) == (0, line(server, "OK", 4, 4), "")
    for _ in range(9):
        walsender(server, stack, "START_REPLICATION 0/1000000")
    walsender(
        server, stack,
        "START_REPLICATION SLOT sender LOGICAL 0/0 (proto_version '1', publication_names 'p')",
    )  # fmt: skip
    for user in (None, "nobody", STRANGER):
        assert run(server, user=user) == (0, line(server, "OK", 4, 4), "")
    done = run(server, "-v")
    assert done.out.splitlines()[-2] == (
        "not counted as established: 10 of walsenders, which hold no connection slot"
    )
    over_unix(server, stack, 5)
    orphans(server, 8)
    full = line(
        server, "CRITICAL", 4, 17, extra=" (slots_used outside range 0:15)", close_wait=8
    )  # fmt: skip
    who = [
        "peer 127.0.0.1: 12 of the slots",
        "peer [local]: 5 of the slots",
        "user postgres: 17 of the slots",
        "database postgres: 17 of the slots",
        "activity: 9 idle, 8 orphaned",
    ]
    assert run(server) == (2, full + "".join(f"{one}\n" for one in who), "")
    done = run(server, user=None)
    who.insert(4, f"process {support.own_command()}: 4 of the slots")
    assert done == (2, full + "".join(f"{one}\n" for one in who), "")
    done = run(server, "--slots-used-warning", "~:", "--slots-used-critical", "~:")
    assert (done.code, done.out.partition(" | ")[0]) == (
        0,
        "PGSOCK_SATURATION OK - 17 of 17 connection slots used (100 %), 4 connections on port "
        f"{server.port}",
    )


def test_what_holds_no_slot(server: PostgresServer, stack: contextlib.ExitStack) -> None:
    over_tcp(server, stack, 2)
    over_unix(server, stack, 1)
    with server.administrator() as session:
        session.query("create table if not exists many as select generate_series(1, 20000) n")
    worker = stack.enter_context(server.connect())
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        worker.query(f"set {setting} = 0")
    worker.simple_query("select max(length(pg_sleep(0.001)::text || n)) from many")
    support.wait_until(
        lambda: any(b"parallel worker" in _title(pid) for pid in server.process_ids()),
        "parallel workers",
    )
    for source in ("netlink", "procfs"):
        expected = (0, line(server, "OK", 3, 4), "")
        assert run(server, "--source", source) == expected
    # Connections without a startup packet, and one that only asked for TLS.
    silent = [
        stack.enter_context(socket.create_connection((server.host, server.port))) for _ in range(3)
    ]
    silent[0].sendall(struct.pack("!II", 8, 80877103))
    assert silent[0].recv(1) == b"N"
    for source in ("netlink", "procfs"):
        expected = (0, line(server, "OK", 6, 4), "")
        assert run(server, "--source", source) == expected
    server.terminate([worker.backend_pid])


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_walsender_at_rest_may_be_a_user_of_that_name(
    server: PostgresServer, stack: contextlib.ExitStack
) -> None:
    over_tcp(server, stack, 2)
    walsender(server, stack)
    note = (
        "a lower bound of the connection slots: 1 of the server's processes count neither as slots "
        "nor as established, since by the title they are walsenders at rest; sessions of a user "
        "named walsender, which hold slots, have the same title\n"
    )
    expected = (0, line(server, "OK", 2, 2, at_least="at least ") + note, "")
    for user in (None, STRANGER):
        assert run(server, user=user) == expected
    assert run(server, "-v").out.splitlines()[-2] == (
        "not counted as established: 1 of walsenders, by their titles; those at rest may be "
        "sessions of a user of that name"
    )


@pytest.mark.parametrize("setting", ["update_process_title", "log_hostname"])
def test_titles_that_tell_less(
    every_major: int, installations: Installations, setting: str
) -> None:
    settings = {"max_connections": LIMIT + 3, setting: setting == "log_hostname"}
    with (
        PostgresServer(installations.get(every_major), settings=settings) as server,
        contextlib.ExitStack() as stack,
    ):
        over_tcp(server, stack, 3)
        over_unix(server, stack, 2)
        for user in (None, "nobody"):
            assert run(server, user=user) == (0, line(server, "OK", 3, 5), "")
        # Where titles name no address, a stranger has nothing to prove whose the port is.
        done = run(server)
        if setting == "log_hostname":
            assert " slots_used=" not in done.out
        else:
            assert done == (0, line(server, "OK", 3, 5), "")


def test_connections_with_tls(lab: Lab) -> None:
    if not lab.binaries.has_tls():
        pytest.skip("this PostgreSQL has no TLS")
    server = lab.postgres
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            session = Session.connect(server.host, server.port, APPLICATION, DATABASE, tls=True)
            stack.enter_context(session)
        stack.enter_context(server.administrator())
        first, *_ = support.run("saturation", "-p", str(server.port), user=STRANGER).out.split(" |")
    assert first == (
        "PGSOCK_SATURATION OK - 4 of 47 connection slots used (9 %), 3 connections on port "
        f"{server.port}"
    )


def test_slots_are_not_shown_where_sessions_are_selected(
    server: PostgresServer, stack: contextlib.ExitStack
) -> None:
    over_tcp(server, stack, 2)
    over_unix(server, stack, 3)
    for arguments in (
        ("--peer", "127.0.0.0/8"),
        ("--exclude-peer", "10.0.0.0/8"),
        ("--user", "postgres"),
        ("--exclude-user", "app"),
        ("--database", "postgres"),
        ("--leg", "client"),
    ):
        done = run(server, *arguments)
        assert done.code == 0
        assert " established=2;13;15;0;17 limit=17;;;0 " in done.out
    assert " slots_used=5;" in run(server, "--address", "127.0.0.1").out


def test_slots_that_are_not_known_are_never_left_out_in_silence(
    make_pg: MakePg, server: PostgresServer, stack: contextlib.ExitStack
) -> None:
    """Two clusters of one user whose clients all come over Unix sockets, seen by a stranger."""
    support.require("root")
    make_pg()
    over_unix(server, stack, LIMIT)
    first = line(server, "OK", 0, 0).replace("slots_used=0;13;15;0;17 ", "")
    note = support.uncounted("which PostgreSQL server owns its listener cannot be proven from here")
    assert run(server) == (0, first + note, "")
    for option, value in (("--slots-used-critical", "90%"), ("--slots-used-warning", "5")):
        assert run(server, option, value) == (
            3,
            "PGSOCK_SATURATION UNKNOWN - slots_used cannot be judged: which PostgreSQL server owns "
            f"its listener cannot be proven from here; without {option} the rest is judged\n"
            f"0 of 17 connections (0 %) on port {server.port}\n{note}",
            "",
        )
    # Whoever switches it off does not rely on it, and what alerts alerts.
    assert run(server, "--slots-used-critical", "~:") == (0, first + note, "")
    done = run(server, "--slots-used-critical", "5", "-c", "1:")
    assert (done.code, done.out.splitlines()[1]) == (
        2,
        "slots_used cannot be judged: which PostgreSQL server owns its listener cannot be proven "
        "from here; without --slots-used-critical the rest is judged",
    )
    assert run(server, "--slots-used-critical", "5", user=None).code == 2
    with socket.create_server(("127.0.0.1", 0)) as other:  # root's, which PostgreSQL is never
        port = str(other.getsockname()[1])
        for user in (None, STRANGER):
            done = support.run("saturation", "-p", port, "--limit", "9", user=user)
            assert (done.code, done.out.count("\n")) == (0, 1)
    both = ("-p", str(server.port), "-p", port, "--no-listener", "ok", "--limit", "9")
    assert "not counted" not in support.run("saturation", *both).out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--slots-used-critical", "5", "--leg", "client"),
         "--slots-used-critical judges a server, on the server leg; drop it or --leg client"),
        (("--fullest-process-warning", "5", "--leg", "client"),
         "--fullest-process-warning judges a server, on the server leg; drop it or --leg client"),
        (("--slots-used-warning", "80%", "--exclude-user", "app"),
         "--slots-used-warning judges all slots of a server, and --exclude-user selects some; drop "
         "the one, or give it a service of its own"),
        (("--fullest-group-warning", "5"),
         "--fullest-group-warning needs --by user, --by database or --by peer"),
    ],
)  # fmt: skip
def test_thresholds_of_what_is_never_measured(arguments: tuple[str, ...], sentence: str) -> None:
    done = support.run("saturation", *arguments)
    assert done == (3, f"PGSOCK_SATURATION UNKNOWN - {sentence}\n", "")
