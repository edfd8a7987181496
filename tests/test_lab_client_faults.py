"""The lab's faults of clients, each seen from outside: in /proc and in pg_stat_activity."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.churn import Churn
from check_pgsock.pgsock.lab.faults.clients import Orphan, SlowReader, Stall, Vanish
from check_pgsock.pgsock.lab.faults.fault import DEFAULT, Fault, Stopped, Wanted
from check_pgsock.pgsock.lab.faults.pace import Pace
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, MAX_CLIENT_CONN, Lab
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.wire import NoTlsError, Session, WireError
from tests.support import require, wait_until

VIAS = pytest.mark.parametrize("via", ["postgresql", "pgbouncer"])
KINDS = pytest.mark.parametrize("kind", Churn.kinds)
# include/net/tcp_states.h
ESTABLISHED, TIME_WAIT, CLOSE_WAIT, LISTEN = 1, 6, 8, 10
# The timers of /proc/net/tcp: a retransmit is due, or a probe of a closed window.
RETRANSMIT, WINDOW_PROBE = 1, 4


class End(NamedTuple):
    """One end of a connection, as in /proc/net/tcp."""

    local_port: int
    remote_port: int
    state: int
    inode: int
    send_queue: int
    receive_queue: int
    timer: int
    retransmits: int


def ends(server: Server) -> list[End]:
    """All sockets of the server's host; one that is listed twice counts once."""
    found = {}
    with open(f"/proc/{server.pid}/net/tcp", encoding="ascii") as stream:
        for line in stream.readlines()[1:]:
            _, local, remote, state, queues, timer, retransmits, _, _, inode = line.split()[:10]
            send_queue, _, receive_queue = queues.partition(":")
            found[local, remote] = End(
                int(local.rpartition(":")[2], 16),
                int(remote.rpartition(":")[2], 16),
                int(state, 16),
                int(inode),
                int(send_queue, 16),
                int(receive_queue, 16),
                int(timer[:2], 16),
                int(retransmits, 16),
            )
    return list(found.values())


def server_ends(lab: Lab) -> list[End]:
    """The server's ends of what clients have with PostgreSQL: not PgBouncer's, nor what is over."""
    pooled = lab.pgbouncer.server_ports() if lab.pooled else []
    return [
        end
        for end in ends(lab.postgres)
        if end.local_port == lab.postgres.port
        and end.remote_port not in pooled
        and end.state not in (LISTEN, TIME_WAIT)
    ]


def accept_queue(lab: Lab) -> int:
    """The connections that wait at PostgreSQL's listener."""
    listening = [end for end in ends(lab.postgres) if end.state == LISTEN]
    return sum(end.receive_queue for end in listening if end.local_port == lab.postgres.port)


def closed(server: Server) -> set[tuple[str, int]]:
    """The ends in TIME_WAIT of connections to `server`: whose they are, and the client's port."""
    waiting = [end for end in ends(server) if end.state == TIME_WAIT]
    return {("server", end.remote_port) for end in waiting if end.local_port == server.port} | {
        ("client", end.local_port) for end in waiting if end.remote_port == server.port
    }


def activity(lab: Lab) -> list[tuple[str | None, ...]]:
    """State, wait event and statement of the application's sessions that PostgreSQL knows of."""
    rows = lab.postgres.execute(
        "select state, wait_event, left(query, 15) from pg_stat_activity "
        f"where usename = '{APPLICATION}' and state is distinct from 'idle'"
    )
    return list(rows)


def sessions_so_far(lab: Lab) -> int:
    ((count,),) = lab.postgres.execute(
        f"select sessions from pg_stat_database where datname = '{DATABASE}'"
    )
    return int(count or 0)


def accepted_so_far(lab: Lab) -> int:
    """The connections that the kernel of the server's host took."""
    with open(f"/proc/{lab.postgres.pid}/net/snmp", encoding="ascii") as stream:
        names, values = (line.split() for line in stream if line.startswith("Tcp:"))
    return int(dict(zip(names, values))["PassiveOpens"])


@contextlib.contextmanager
def put_back(lab: Lab) -> Iterator[None]:
    """Afterwards everything is as it was before, but for what PgBouncer keeps."""

    def clients() -> tuple[int, set[int]]:
        """The connections of clients, and the processes that are not PostgreSQL's."""
        own = lab.postgres.process_ids()  # first: the backend of our last question is ending
        return len(server_ends(lab)), set(janitor.working_below(lab.home.path)).difference(own)

    before = clients()
    yield
    wait_until(lambda: activity(lab) == [], "no session at work", 2)
    wait_until(lambda: clients() == before, "everything as before", 2)
    assert accept_queue(lab) == 0


def end_within(fault: Fault, seconds: float) -> None:
    started = time.monotonic()
    fault.end()
    assert time.monotonic() - started < seconds


def skip_without(lab: Lab, via: str, kind: str = "") -> None:
    if via == "pgbouncer":
        require("pgbouncer")
    if kind == "tls" and via == "postgresql" and not lab.binaries.has_tls():
        pytest.skip("this PostgreSQL is built without TLS")


@KINDS
@VIAS
def test_churn_is_at_its_speed(two_host_lab: Lab, kind: str, via: str) -> None:
    skip_without(two_host_lab, via, kind)
    with put_back(two_host_lab), Churn(two_host_lab, Wanted(kind, via=via)) as fault:
        assert_rate(two_host_lab, 60)
        end_within(fault, 1)


@pytest.mark.parametrize("speed", [10, 200])
def test_churn_at_any_speed(two_host_lab: Lab, speed: float) -> None:
    with put_back(two_host_lab), Churn(two_host_lab, Wanted(speed=speed)):
        assert_rate(two_host_lab, speed)


def assert_rate(lab: Lab, speed: float) -> None:
    """The connections per second are as asked for, over as many that one is at most 5 %."""
    before, started = accepted_so_far(lab), time.monotonic()

    def is_held() -> bool:
        elapsed = time.monotonic() - started
        rate = (accepted_so_far(lab) - before) / elapsed
        return elapsed > max(20 / speed, 0.4) and abs(rate - speed) <= 0.05 * speed

    wait_until(is_held, f"{speed} connections per second")


@KINDS
@VIAS
def test_churn_leaves_what_its_kind_leaves(lab: Lab, kind: str, via: str) -> None:
    skip_without(lab, via, kind)
    server = lab.server(via)
    before, sessions = closed(server), sessions_so_far(lab)
    with put_back(lab), Churn(lab, Wanted(kind, "", 200, via)) as fault:
        assert fault.describe() == f"{fault.label}: 200 connections/s"
        time.sleep(0.15)
    if via == "postgresql" and kind not in ("failed-login", "probe"):
        wait_until(lambda: sessions_so_far(lab) - sessions > 20, "sessions counted")
    left = Counter(end for end, _ in closed(server) - before)
    if kind in ("tls", "reset"):
        assert left == {}
        return
    assert left["client"] + left["server"] > 20
    if kind in ("slow-closer", "failed-login"):
        assert left["client"] == 0
    else:
        assert left["client"] > left["server"]


def test_tls_is_refused_in_one_sentence(lab: Lab) -> None:
    server = lab.postgres
    if lab.binaries.has_tls():
        with Session.connect(server.host, server.port, "app", "app", tls=True) as session:
            rows = session.query("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert rows == [("t",)]
        return
    with pytest.raises(NoTlsError, match=r"^the server does not speak TLS$"):
        Session.connect(server.host, server.port, tls=True)
    with pytest.raises(UsageError) as caught, Churn(lab, Wanted("tls")):
        pass
    assert str(caught.value) == (
        "PostgreSQL takes no TLS here: that needs openssl for a certificate, and a server that is "
        "built with TLS (--pg-bin)"
    )


def test_churn_that_is_refused_says_so(lab: Lab) -> None:
    require("pgbouncer")
    with contextlib.ExitStack() as held:
        for _ in range(MAX_CLIENT_CONN):
            held.enter_context(lab.connect("pgbouncer"))
        with pytest.raises(WireError, match="max_client_conn"), Churn(lab, Wanted(via="pgbouncer")):
            pass


def test_churn_goes_on_after_a_restart_and_says_so_meanwhile(lab: Lab) -> None:
    with Churn(lab) as fault:
        assert fault.trouble() is None
        lab.postgres.stop("fast")
        wait_until(lambda: fault.trouble() is not None, "churn has trouble")
        assert str(fault.trouble()).startswith("its connections are refused: ")
        lab.postgres.start()
        wait_until(lambda: fault.trouble() is None, "churn goes on")


def test_pace_is_not_lost_silently() -> None:
    pace = Pace(1000, tolerance=0.05)
    assert 0 < pace.take_turn() <= 0.001
    time.sleep(0.02)
    assert pace.take_turn() == 0
    time.sleep(0.05)
    with pytest.raises(
        LabError, match=r"^1000 per second are more than can be made: ask for fewer"
    ):
        pace.take_turn()


@pytest.mark.parametrize("size", ["", "20"])
def test_orphan(lab: Lab, size: str) -> None:
    with put_back(lab), Orphan(lab, Wanted(size=size)) as fault:
        states = Counter((end.state, end.inode != 0) for end in server_ends(lab))
        assert states[CLOSE_WAIT, True] == fault.count == int(size or 8)
        statement = ("active", "PgSleep", "select pg_sleep")
        assert activity(lab) == [statement] * fault.count
        end_within(fault, 1)
        assert activity(lab) == []


def test_orphans_need_slots(lab: Lab) -> None:
    with put_back(lab), pytest.raises(LabError, match="53300"), Orphan(lab, Wanted(size="60")):
        pass


@pytest.mark.parametrize("size", ["", "20"])
def test_slow_reader(lab: Lab, size: str) -> None:
    with put_back(lab), SlowReader(lab, Wanted(size=size)) as fault:
        blocked = [end for end in server_ends(lab) if end.timer == WINDOW_PROBE]
        assert len(blocked) == fault.count == int(size or 8)
        assert {end.state for end in blocked} == {ESTABLISHED}
        assert min(end.send_queue for end in blocked) > 0
        assert Counter(activity(lab)) == {("active", "ClientWrite", "select repeat('"): fault.count}
        end_within(fault, 1)
        assert activity(lab) == []


def test_stall(lab: Lab) -> None:
    with put_back(lab), Stall(lab) as fault:
        assert not_accepted(lab) == {ESTABLISHED: 60}
        assert accept_queue(lab) == 60
        assert process_state(lab.postgres.pid) == "T"
        end_within(fault, 2)
        wait_until(lambda: process_state(lab.postgres.pid) == "S", "the postmaster goes on")


def test_stall_of_clients_that_give_up(lab: Lab) -> None:
    limit = backlog(lab) + 1
    with put_back(lab), Stall(lab, Wanted("giving-up", "40", 200)) as fault:
        assert not_accepted(lab)[CLOSE_WAIT] > 0
        # In the end the queue is full of those that gave up, and nobody gets in.
        wait_until(lambda: not_accepted(lab) == {CLOSE_WAIT: limit}, "a full queue")
        time.sleep(0.1)
        assert accept_queue(lab) == limit
        end_within(fault, 2)


def test_stall_takes_what_the_accept_queue_takes(lab: Lab) -> None:
    limit = backlog(lab) + 1
    with put_back(lab), Stall(lab, Wanted(size=str(limit), speed=2000)):
        assert not_accepted(lab) == {ESTABLISHED: limit}
    with put_back(lab), pytest.raises(LabError) as caught:
        Stall(lab, Wanted(size=str(limit + 1), speed=2000)).__enter__()
    assert str(caught.value) == (
        f"the server's accept queue takes {limit} of {limit + 1} connections: ask for fewer, or "
        "for a lab with a larger max_connections"
    )


def backlog(lab: Lab) -> int:
    """What PostgreSQL asks for: 2 x max_connections, before 16 2 x MaxBackends (pqcomm.c), with
    3 autovacuum workers and their launcher, 8 other workers and 10 WAL senders.
    """
    return 2 * (lab.max_connections + (22 if lab.binaries.major < 16 else 0))


def not_accepted(lab: Lab) -> Counter[int]:
    """The server's ends that no process holds, by state."""
    return Counter(end.state for end in server_ends(lab) if end.inode == 0)


def process_state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
        return stream.read().rpartition(")")[2].split()[0]


def test_vanish(two_host_lab: Lab) -> None:
    for _ in range(2):
        with put_back(two_host_lab):
            with Vanish(two_host_lab) as fault:
                unheard = [end for end in server_ends(two_host_lab) if end.timer == RETRANSMIT]
                assert len(unheard) == fault.count == 5
                assert {end.state for end in unheard} == {ESTABLISHED}
                assert min(end.send_queue for end in unheard) > 0
                assert min(end.retransmits for end in unheard) > 0
                assert len(activity(two_host_lab)) == 5
                end_within(fault, 2)
                assert activity(two_host_lab) == []
            with two_host_lab.connect() as session:
                assert session.query("select 1") == [("1",)]


def test_vanish_needs_two_hosts(lab: Lab) -> None:
    with pytest.raises(UsageError, match="needs a lab on two hosts"):
        Vanish(lab)


@pytest.mark.parametrize("kind", [Orphan, SlowReader, Stall, Vanish])
def test_faults_stop_while_they_start(two_host_lab: Lab, kind: type[Fault]) -> None:
    outcome: list[str] = []
    fault = kind(two_host_lab, Wanted(size="40") if kind is not Orphan else DEFAULT)

    def make() -> None:
        try:
            with fault:
                outcome.append("started")
        except Stopped:
            outcome.append("stopped")

    with put_back(two_host_lab):
        thread = threading.Thread(target=make)
        thread.start()
        time.sleep(0.05)
        started = time.monotonic()
        fault.end()
        thread.join()
        assert time.monotonic() - started < 3
    # What an orphan waits for may be there at the first look.
    assert outcome == ["stopped"] or kind is Orphan
