"""check_pgsock_accept_queue on real listeners: whole output and exit code, as a stranger."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.sockets.reader import SocketReader
from tests import support
from tests.conftest import MakePg, OpenSessions, Servers
from tests.forwarding import docker_proxy, forwarder
from tests.moment import MOMENT

STRANGER = "daemon"
BACKLOG = {15: 84, 18: 40}  # of `pg`
SETTLE = ("--settle", "0.2")
STAYED = ", unchanged for 0.2 s"
NO_STATE = (
    "drops are not judged, the queue is: each run needs the counters of earlier ones, and there is "
    "no directory to keep it in: make /var/lib/check_pgsock, owned by the user that runs the "
    "check, or name one with --state-dir\n"
)
FIRST = "drops are judged from the next run on: this one is the first\n"


@pytest.fixture
def state() -> Iterator[str]:
    """A directory that the stranger may keep samples in."""
    with fresh_directory("pgsock-state-") as directory:
        accounts.own(directory, accounts.account_of(STRANGER))
        yield str(directory)


@contextlib.contextmanager
def stopped(server: PostgresServer | PgBouncerServer) -> Iterator[None]:
    """Its first process does not run."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def clients(server: PostgresServer | PgBouncerServer, count: int) -> Iterator[None]:
    """So many that have connected to it, sent their startup packet and wait."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((server.host, server.port)))
            Session(one).send_startup({"user": "postgres", "database": "postgres"})
        yield


@contextlib.contextmanager
def refused(port: int, count: int) -> Iterator[None]:
    """So many whose handshake a full queue does not take."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield


def drops_of(port: int) -> int:
    """What the listener on a port has dropped, as the kernel counts."""
    (one,) = SocketReader("netlink", None, Deadline(5)).listeners(port, drops=True)
    assert one.drops is not None
    return one.drops


def queue_of(port: int) -> int:
    """The length of the accept queues of a port."""
    return sum(
        one.accept_queue for one in SocketReader("netlink", None, Deadline(5)).listeners(port)
    )


def run(*arguments: str, user: str | None = STRANGER) -> support.Completed:
    """Run the check; times that the test does not choose become #."""
    done = support.run("accept_queue", *arguments, user=user)
    out = re.sub(r"(oldest (?:at least )?|accept_wait=|last )[\d.]+", r"\1#", done.out)
    return done._replace(out=re.sub(r"(process )\d+", r"\1#", out))


def line(
    state: str,
    queue: int,
    backlog: int,
    where: str,
    extra: str = "",
    *,
    reason: str = "",
    wait: str = "#s;5;30;0",
    rate: str | None = None,
    waiting: int | None = None,
) -> str:
    """The whole first line under netlink, at the default thresholds of the queue."""
    drops = "" if rate is None else f"listen_drops_rate={rate} "
    waited = f"accept_wait={wait} " if wait else ""
    return (
        f"PGSOCK_ACCEPT_QUEUE {state} - {queue} of {backlog} in {where}{extra}{reason} | "
        f"accept_queue={queue};{backlog // 10};{backlog * 3 // 4};0;{backlog} {waited}{drops}"
        f"backlog={backlog};;;0 waiting={queue if waiting is None else waiting};;;0\n"
    )


def on(port: int) -> str:
    """Which queue a first line names."""
    return f"the accept queue on port {port}"


def listener(pg: PostgresServer, queue: int, *, stopped: bool = True) -> str:
    """The line on the one listener of `pg` and its program."""
    oldest = ", oldest # s" if queue else ""
    held_up = ", stopped by a signal" if stopped else ""
    return (
        f"listener 127.0.0.1:{pg.port}: {queue} of {BACKLOG[pg.version]} waiting{oldest}; "
        f"process # (postgres){held_up}\n"
    )


def test_a_healthy_server(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 3)
    arguments = ("-p", str(pg.port))
    first = line("OK", 0, BACKLOG[pg.version], on(pg.port))
    assert run(*arguments) == (0, first + NO_STATE, "")
    more = listener(pg, 0, stopped=False) + "looked once\n"
    assert run(*arguments, "-v") == (0, first + NO_STATE + more, "")


def test_a_stopped_postmaster_fills_its_queue(pg: PostgresServer, sessions: OpenSessions) -> None:
    backlog = BACKLOG[pg.version]
    sessions(pg)
    arguments = ("-p", str(pg.port), *SETTLE)
    few, many = backlog // 10 + 1, backlog * 3 // 4 + 1
    with stopped(pg), clients(pg, few):
        reason = f" (accept_queue outside range 0:{few - 1})"
        expected = line(
            "WARNING", few, backlog, on(pg.port), f"{STAYED}, oldest # s", reason=reason
        )
        expected += NO_STATE + listener(pg, few) + f"peer 127.0.0.1: {few} waiting\n"
        assert run(*arguments) == (1, expected, "")
        with clients(pg, many - few):
            reason = f" (accept_queue outside range 0:{many - 1})"
            expected = line(
                "CRITICAL", many, backlog, on(pg.port), f"{STAYED}, oldest # s", reason=reason
            )
            expected += NO_STATE + listener(pg, many) + f"peer 127.0.0.1: {many} waiting\n"
            assert run(*arguments) == (2, expected, "")
    support.wait_until(lambda: not queue_of(pg.port), "accepted")
    assert run(*arguments) == (0, line("OK", 0, backlog, on(pg.port)) + NO_STATE, "")


def test_three_clients_of_a_stopped_postmaster(pg: PostgresServer, sessions: OpenSessions) -> None:
    """They are far from filling its queue."""
    sessions(pg)
    bounds = ("--accept-wait-warning", "0", "--accept-wait-critical", "0.01")
    with stopped(pg), clients(pg, 3):
        done = run("-p", str(pg.port), *SETTLE, *bounds)
    first = line(
        "CRITICAL", 3, BACKLOG[pg.version], on(pg.port), f"{STAYED}, oldest # s",
        reason=" (accept_wait outside range 0:0.01)", wait="#s;0;0.01;0",
    )  # fmt: skip
    assert done == (2, first + NO_STATE + listener(pg, 3) + "peer 127.0.0.1: 3 waiting\n", "")


def test_a_postmaster_that_was_starved_for_a_moment(servers: Servers) -> None:
    """What waits at the first look is accepted at the second."""
    pg = servers.get(15)
    with clients_of_a_moment(pg):
        done = run("-p", str(pg.port), "-w", "0", "--settle", "1.8", "-v")
    assert done.code == 0
    assert done.out.startswith(
        f"PGSOCK_ACCEPT_QUEUE OK - 0 of {BACKLOG[pg.version]} in {on(pg.port)} | accept_queue=0;0;"
    )
    assert "\nlooked twice\n" in done.out


@contextlib.contextmanager
def clients_of_a_moment(pg: PostgresServer) -> Iterator[None]:
    with stopped(pg), clients(pg, 3):
        timer = threading.Timer(1.3, os.kill, (pg.pid, signal.SIGCONT))
        timer.start()
        try:
            yield
        finally:
            timer.join()


def test_a_full_queue_drops_and_a_restart_begins_anew(make_pg: MakePg, state: str) -> None:
    server = make_pg(settings={"max_connections": 10}, arguments=("-c", "max_wal_senders=0"))
    kept = ("-p", str(server.port), "--state-dir", state, *SETTLE)
    long, short = ("--over", "600"), ("--over", "0.5")
    where = on(server.port)
    first_run = line("OK", 0, 20, where) + FIRST
    none = line("OK", 0, 20, where, ", 0 drops per second", rate="0.0;0;1;0")
    proof = server.connect()  # of whose listener it is
    assert run(*kept, *long) == (0, first_run, "")
    assert run(*kept, *long) == (0, none, "")
    with stopped(server), clients(server, 21), refused(server.port, 3):
        support.wait_until(lambda: drops_of(server.port) >= 3, "dropped")
        done = run(*kept, *long)
        who = (
            f"listener 127.0.0.1:{server.port}: 21 of 20 waiting, oldest # s; process # "
            "(postgres), stopped by a signal\npeer 127.0.0.1: 21 waiting\n"
        )
        assert (done.code, done.out.partition("\n")[2]) == (2, who)
        assert "; listen_drops_rate outside range 0:0) | " in done.out
    support.wait_until(lambda: not queue_of(server.port), "accepted")
    # What was proven holds for as long as the listener is the same.
    proof.close()
    rate = drops_of(server.port) / 600
    reason = " (listen_drops_rate outside range 0:0)"
    first = line(
        "WARNING", 0, 20, where, f", {rate:.3g} drops per second", reason=reason,
        rate=f"{round(rate, 3)};0;1;0",
    )  # fmt: skip
    done = run(*kept, *long)
    assert (done.code, done.out.partition("\n")[0]) == (1, first.rstrip())
    with server.connect():
        assert run(*kept, *short) == (0, first_run, "")
    server.restart()
    with server.connect():
        assert drops_of(server.port) == 0
        assert run(*kept, *short) == (0, none, "")


def test_what_is_dropped_without_being_refused(
    make_pg: MakePg, sessions: OpenSessions, state: str
) -> None:
    """As SYNs that are repeated, and a port scan's packets, are."""
    support.require("root")
    pg = make_pg(settings={"max_connections": 20})
    sessions(pg)
    arguments = ("-p", str(pg.port), "--state-dir", state)
    assert run(*arguments) == (0, line("OK", 0, BACKLOG[pg.version], on(pg.port)) + FIRST, "")
    before = drops_of(pg.port)
    send_stray_fins(pg.port, 5)
    assert drops_of(pg.port) == before + 5
    extra = ", 0 drops per second"
    first = line("OK", 0, BACKLOG[pg.version], on(pg.port), extra, rate="0.0;0;1;0")
    assert run(*arguments) == (0, first, "")


def send_stray_fins(port: int, count: int) -> None:
    """Send FINs of connections that there are none of to a port on loopback."""
    address = socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        for number in range(count):
            segment = struct.pack("!HHIIBBHHH", 9, port, number, 0, 5 << 4, 1, 8192, 0, 0)
            pseudo_header = address * 2 + struct.pack("!HH", socket.IPPROTO_TCP, len(segment))
            total = sum(struct.unpack("!16H", pseudo_header + segment))
            total = (total & 0xFFFF) + (total >> 16)
            checksum = struct.pack("!H", ~total & 0xFFFF)
            raw.sendto(segment[:16] + checksum + segment[18:], ("127.0.0.1", 0))


def test_a_pooler_defers_accepting_and_its_drops_are_not_judged(
    pg: PostgresServer, pgbouncer: PgBouncerServer, state: str
) -> None:
    arguments = ("-p", str(pgbouncer.port), "--state-dir", state)
    first = line("OK", 0, 128, on(pgbouncer.port))
    for _ in range(2):
        before = drops_of(pgbouncer.port)
        for _ in range(10):
            pgbouncer.connect().close()
        assert drops_of(pgbouncer.port) >= before + 10
        assert run(*arguments) == (0, first, "")
        done = run(*arguments, "-v")
        assert done.out.splitlines()[-1] == (
            f"drops on 127.0.0.1:{pgbouncer.port} are not judged: its program is a pooler, whose "
            "listener may count connections that were made"
        )


def test_whose_listener_it_is_may_not_be_known(state: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=9) as one:
        port = one.getsockname()[1]
        for _ in range(2):
            assert run("-p", str(port), "--state-dir", state) == (
                0,
                line("OK", 0, 9, on(port))
                + f"drops on 127.0.0.1:{port} are not judged: whose listener it is cannot be told "
                "from here (to root it is, and to all while there are sessions over TCP, or if its "
                "unit has one server alone), and a pooler's may count connections that were made\n",
                "",
            )


def test_a_stopped_pooler(pgbouncer: PgBouncerServer) -> None:
    arguments = ("-p", str(pgbouncer.port), *SETTLE)
    with stopped(pgbouncer), clients(pgbouncer, 13):
        support.wait_until(lambda: queue_of(pgbouncer.port) == 13, "waiting")
        done = run(*arguments)
    reason = " (accept_queue outside range 0:12)"
    first = line("WARNING", 13, 128, on(pgbouncer.port), f"{STAYED}, oldest # s", reason=reason)
    assert done == (
        1,
        f"{first}{NO_STATE}listener 127.0.0.1:{pgbouncer.port}: 13 of 128 waiting, oldest # s; "
        "probably process # (pgbouncer), stopped by a signal\npeer 127.0.0.1: 13 waiting\n",
        "",
    )


def test_a_unix_socket_of_a_stopped_postmaster(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg)  # proves whose its port is, and so the socket that was made with it
    path = f"{pg.socket_directory}/.s.PGSQL.{pg.port}"
    backlog = BACKLOG[pg.version]
    count = backlog // 10 + 1
    arguments = ("--socket", path, *SETTLE)
    where = f"the accept queue on socket {path}"
    assert run(*arguments) == (0, line("OK", 0, backlog, where), "")
    with stopped(pg), contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
        reason = f" (accept_queue outside range 0:{count - 1})"
        oldest = ", oldest at least # s"
        first = line("WARNING", count, backlog, where, STAYED + oldest, reason=reason)
        listens = f"listener {path}: {count} of {backlog} waiting{oldest}; {STOPPED}"
        for user in (STRANGER, None):
            assert run(*arguments, user=user) == (1, f"{first}{NO_PAST}{listens}", "")
        assert run(*arguments, "--source", "procfs") == (3, PERCENT_OF_WHAT, "")
        bounds = ("-w", str(count - 1), "-c", str(count), "--source", "procfs")
        assert run(*arguments, *bounds) == (
            1,
            f"PGSOCK_ACCEPT_QUEUE WARNING - {count} in {where}{STAYED}{reason} | "
            f"accept_queue={count};{count - 1};{count};0 waiting={count};;;0\n"
            "procfs does not tell apart a socket file and an earlier one of the same name: "
            "sessions that an earlier server accepted are counted too\n"
            f"of {path} procfs tells the connections of this network namespace alone\n"
            "for how long connections wait on a Unix socket is not told here\n"
            f"listener {path}: {count} waiting\n",
            "",
        )


STOPPED = "process # (postgres), stopped by a signal\n"
NO_PAST = (
    "connections to a Unix socket may have waited for longer than 0.2 s: that takes what earlier "
    "runs saw, and there is no directory to keep it in: make /var/lib/check_pgsock, owned by the "
    "user that runs the check, or name one with --state-dir\n"
)


@pytest.mark.parametrize("user", [STRANGER, None])
def test_eight_clients_of_a_stopped_postmaster_s_unix_socket(
    make_pg: MakePg, state: str, tmp_path: Path, user: str | None
) -> None:
    """They are far from filling its queue: for how long they wait is known by earlier runs."""
    server = make_pg(settings={"max_connections": 60})
    path = f"{server.socket_directory}/.s.PGSQL.{server.port}"
    directory = state if user else str(tmp_path)
    bounds = ("--accept-wait-warning", "1", "--accept-wait-critical", "2.5")
    arguments = ("--socket", path, "--state-dir", directory, *SETTLE, *bounds)

    def measured() -> tuple[int, float]:
        done = support.run("accept_queue", *arguments, user=user)
        found = re.search(
            r" accept_wait=([\d.]+)s;1;2\.5;0 backlog=\d+;;;0 waiting=8;;;0$",
            done.out.splitlines()[0],
        )
        assert found is not None, done.out
        assert ("is not told" in done.out, "takes what earlier" in done.out) == (False, False)
        return done.code, float(found[1])

    with stopped(server), contextlib.ExitStack() as stack:
        began = time.monotonic()
        for _ in range(8):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
        assert measured() == (0, 0.2)
        time.sleep(1.2)
        code, waited = measured()
        assert (code, 1.2 < waited <= time.monotonic() - began) == (1, True)
        time.sleep(max(2.8 - waited, 0))
        code, waited = measured()
        assert (code, 2.5 < waited <= time.monotonic() - began) == (2, True)
    server.execute("select 1")  # accepted after those that have waited
    # Who comes then has not waited: a queue that moves on is no stall.
    with stopped(server), contextlib.ExitStack() as stack:
        for _ in range(8):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
        assert measured() == (0, 0.2)


def test_tcp_and_a_unix_socket_of_a_stopped_postmaster(pg: PostgresServer) -> None:
    path = f"{pg.socket_directory}/.s.PGSQL.{pg.port}"
    arguments = ("-p", str(pg.port), "--socket", path, *SETTLE)
    with stopped(pg), socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        done = support.run("accept_queue", *arguments, user=STRANGER)
    assert (done.code, " accept_wait=0.2s;5;30;0 " in done.out) == (0, True)
    assert "unchanged for 0.2 s, oldest at least 0.2 s | " in done.out


def test_a_proof_holds_when_all_sessions_are_closed(make_pg: MakePg, state: str) -> None:
    """Of two servers of one user, stopped with a full queue, each title names nobody any more."""
    server, _ = (
        make_pg(settings={"max_connections": 10}, arguments=("-c", "max_wal_senders=0"))
        for _ in range(2)
    )
    arguments = ("-p", str(server.port), "--state-dir", state, *SETTLE)
    # (Several: a client whose port another connection of this machine has, too, proves nothing.)
    with server.connect(), server.connect(), server.connect():
        assert run(*arguments) == (0, line("OK", 0, 20, on(server.port)) + FIRST, "")
    support.wait_until(lambda: not set(support.tcp_states(server.port)) & {"ESTABLISHED"}, "closed")
    with stopped(server), clients(server, 21), refused(server.port, 3):
        support.wait_until(lambda: drops_of(server.port) >= 3, "dropped")
        for _ in range(2):
            done = run(*arguments)
            assert (done.code, "; listen_drops_rate outside range 0:0) | " in done.out) == (2, True)
            assert done.out.partition("\n")[2] == (
                f"listener 127.0.0.1:{server.port}: 21 of 20 waiting, oldest # s; {STOPPED}"
                "peer 127.0.0.1: 21 waiting\n"
            )


PERCENT_OF_WHAT = (
    "PGSOCK_ACCEPT_QUEUE UNKNOWN - procfs does not tell the backlog, which % of accept_queue is "
    "of: give -w and -c as numbers of connections, or use --source netlink\n"
)


def test_procfs_tells_the_queue_alone(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg)
    procfs = ("-p", str(pg.port), *SETTLE, "--source", "procfs")
    assert run(*procfs) == (3, PERCENT_OF_WHAT, "")
    told = "drops are not judged, the queue is: procfs does not tell them\n"
    with stopped(pg), clients(pg, 4):
        done = run(*procfs, "-w", "2", "-c", "3")
    assert done == (
        2,
        f"PGSOCK_ACCEPT_QUEUE CRITICAL - 4 in {on(pg.port)}{STAYED} (accept_queue outside range "
        f"0:3) | accept_queue=4;2;3;0 waiting=4;;;0\n{told}"
        f"listener 127.0.0.1:{pg.port}: 4 waiting; process # (postgres), stopped by a signal\n"
        "peer 127.0.0.1: 4 waiting\n",
        "",
    )


def test_clients_that_gave_up_keep_their_places() -> None:
    """One that closed is in CLOSE_WAIT, one that reset its connection is no socket any more."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as one:
        port = one.getsockname()[1]
        for close in (False, True, True):
            client = socket.create_connection(("127.0.0.1", port))
            if close:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        done = run("-p", str(port), *SETTLE)
    reason = " (accept_queue outside range 0:2)"
    first = line("WARNING", 3, 20, on(port), f"{STAYED}, oldest # s", reason=reason)
    assert done == (
        1,
        f"{first}{NO_STATE}listener 127.0.0.1:{port}: 3 of 20 waiting, oldest # s, 2 of them reset "
        "by their clients\npeer 127.0.0.1: 1 waiting\n",
        "",
    )


def test_the_fullest_of_several_listeners_on_one_address() -> None:
    """Whose of them a connection waits for is not told, but how long their queues are."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        port = first.getsockname()[1]
        stack.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True))
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        found = SocketReader("netlink", None, Deadline(5)).listeners(port)
        fullest = max(one.accept_queue for one in found)
        done = run("-p", str(port), *SETTLE, "-w", "14")
    where = f"the fullest of 2 accept queues on port {port}, unchanged for 0.2 s, oldest # s "
    assert done.code == 1
    assert f"- {fullest} of 128 in {where}(accept_queue outside range 0:14) | " in done.out
    assert " backlog=128;;;0 waiting=30;;;0\n" in done.out
    assert f"\nlistener 127.0.0.1:{port}: {30 - fullest} of 128 waiting\n" in done.out


def test_several_namespaces(two_hosts: tuple[NamespaceHost, NamespaceHost]) -> None:
    with contextlib.ExitStack() as stack:
        for host, backlog in zip(two_hosts, (10, 100)):
            with host.entered():
                ends = (host.address, 5432)
                stack.enter_context(socket.create_server(ends, backlog=backlog))
                for _ in range(3):
                    stack.enter_context(socket.create_connection(ends))
        pids = [str(host.process.pid) for host in two_hosts]
        done = run("--netns", pids[0], "--netns", pids[1], *SETTLE, user=None)
    where = "the fullest of 2 accept queues on port 5432"
    reason = " (accept_queue outside range 0:1)"
    extra = f"{STAYED}, oldest # s"
    listeners = [
        f"listener {host.address}:5432 in {pid}: 3 of {backlog} waiting, oldest # s\n"
        for host, pid, backlog in zip(two_hosts, pids, (10, 100))
    ]
    assert done == (
        1,
        line("WARNING", 3, 10, where, extra, reason=reason, waiting=6)
        + NO_STATE
        + "".join(listeners)
        + "".join(f"peer {host.address}: 3 waiting\n" for host in two_hosts),
        "",
    )


def test_forwarders(pg: PostgresServer) -> None:
    """The queue of one that may be full itself is judged; what a container's port has is not."""
    support.require("root")
    with forwarder(
        "haproxy", ["-f", f"127.0.0.2:{pg.port}"], ("127.0.0.2", pg.port), become="nobody"
    ) as pid:
        done = support.run("accept_queue", "-p", str(pg.port), "--address", "127.0.0.2")
        assert done.code == 0
        assert done.out.splitlines()[1] == (
            "a forwarder's queue is judged, not its server's: "
            f"port {pg.port} at 127.0.0.2 is only forwarded here, by haproxy (process {pid}): the "
            "connections of the server behind it are on that server's own host and port; run the "
            "check there, or name its network namespace with --netns PID if it is on this host"
        )
    arguments = docker_proxy("127.0.0.2", pg.port)
    with forwarder("docker-proxy", arguments, ("127.0.0.2", pg.port)) as pid:
        done = support.run(
            "accept_queue", "-p", str(pg.port), "--address", "127.0.0.2", user=STRANGER
        )
    assert done == (
        3,
        f"PGSOCK_ACCEPT_QUEUE UNKNOWN - port {pg.port} at 127.0.0.2 is probably only forwarded "
        f"here, by docker-proxy (process {pid}): its connections are in another network "
        "namespace; run the check there or name it with --netns PID\n",
        "",
    )


def test_saved_moments(servers: Servers, tmp_path: Path) -> None:
    pg = servers.get(15)
    done = run("--proc-root", str(MOMENT), "-w", "1", "-c", "~:", user=None)
    assert done == (
        1,
        "PGSOCK_ACCEPT_QUEUE WARNING - 2 in the accept queue on port 5432 (accept_queue outside "
        "range 0:1) | accept_queue=2;1;~:;0 waiting=2;;;0\n"
        "a saved moment, judged as it is: which of them stay cannot be told\n"
        "drops are not judged, the queue is: procfs does not tell them\n"
        "listener 127.0.0.1:5432: 2 waiting\npeer 127.0.0.1: 2 waiting\n",
        "",
    )
    file = str(tmp_path / "moments.zip")
    with stopped(pg), clients(pg, 9):
        done = support.run("pgsock", "record", file, "--for", "0.5", "--interval", "0.5")
        assert done.code == 0
    arguments = ("-p", str(pg.port), "--source", file, "-w", "8", "-c", "~:", *SETTLE)
    reason = " (accept_queue outside range 0:8)"
    for extra, note, number in (
        (STAYED, "", "2"),
        ("", "a saved moment, judged as it is: which of them stay cannot be told\n", "1"),
    ):
        done = run(*arguments, "--moment", number, user=None)
        backlog = BACKLOG[pg.version]
        first = line("WARNING", 9, backlog, on(pg.port), f"{extra}, oldest # s", reason=reason)
        first = first.replace(f";{backlog // 10};{backlog * 3 // 4};", ";8;~:;")
        lines = done.out.splitlines(keepends=True)
        assert (done.code, lines[0]) == (1, first)
        assert lines[1].startswith("as recorded at ")
        assert "".join(lines[2:]).partition("listener ")[0] == (
            f"{note}drops are not judged, the queue is: a saved moment tells no rate\n"
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--leg", "client"],
            "--leg client has no accept queue: run the check where the server or pooler listens; "
            "drop it",
        ),
        (
            ["--peer", "10.0.0.0/8"],
            "--peer does not go with an accept queue, which is one for all peers; drop it",
        ),
        (
            ["--exclude-peer", "10.0.0.0/8"],
            "--exclude-peer does not go with an accept queue, which is one for all peers; drop it",
        ),
        (
            ["--settle", "9"],
            "--settle 9 is not below --timeout 8; lower the one or raise the other",
        ),
        (
            ["--accept-wait-warning", "10%"],
            "'10%': accept_wait is judged in absolute numbers, without %; see "
            "check_pgsock_accept_queue --help",
        ),
        (
            ["-p", "1"],
            "nothing listens on port 1; is the server down or the port another (--port)? "
            "--no-listener decides what this means",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(arguments: list[str], sentence: str) -> None:
    assert run(*arguments) == (3, f"PGSOCK_ACCEPT_QUEUE UNKNOWN - {sentence}\n", "")


def test_no_listener_has_no_queue_at_all() -> None:
    done = run("-p", "1", "--no-listener", "critical")
    sentence = "no accept queue on port 1 (nothing listens on port 1)"
    assert done == (2, f"PGSOCK_ACCEPT_QUEUE CRITICAL - {sentence}\n", "")


@pytest.mark.prove
def test_200_clients_of_a_stopped_postmaster(every_major: int, make_pg: MakePg, state: str) -> None:
    """The queue tells, while what asks the database hangs."""
    server = make_pg(settings={"max_connections": 100}, major=every_major)
    arguments = ("-p", str(server.port), "--state-dir", state)
    with server.connect():
        assert run(*arguments).code == 0
        with stopped(server), clients(server, 200):
            done = run(*arguments)
            assert (done.code, " waiting=200;;;0\n" in done.out) == (2, True)
            asked = support.run("pool_size", "-d", server.dsn(), "-t", "2", user=STRANGER)
            assert (asked.code, "no verdict within 2 s" in asked.out) == (3, True)
        support.wait_until(lambda: not queue_of(server.port), "accepted", 20)
        done = run(*arguments)
        assert (done.code, "PGSOCK_ACCEPT_QUEUE OK - 0 of " in done.out) == (0, True)
