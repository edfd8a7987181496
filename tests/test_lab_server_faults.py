"""The lab's faults of servers: pools, parallel and long work, a crash, a restart, a fail-over."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Callable, TypeVar

import pytest

from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults.fault import Fault, Wanted
from check_pgsock.pgsock.lab.faults.held import Healthy
from check_pgsock.pgsock.lab.faults.incidents import Crash, Failover, ResetStatistics, Restart
from check_pgsock.pgsock.lab.faults.work import LongTransactions, Oversize, Parallel, Undersize
from check_pgsock.pgsock.lab.lab import POOL_SIZE, Lab
from check_pgsock.pgsock.lab.wire import WireError
from tests import support
from tests.lab_faults import connections, end_while_it_starts, wait_for_connections
from tests.support import tcp_states, wait_until

Value = TypeVar("Value")

FAULTS: tuple[type[Fault], ...] = (
    Oversize, Undersize, Parallel, LongTransactions, Crash, ResetStatistics, Restart, Failover,
)  # fmt: skip
MAJORS = (15, 18, *(pytest.param(n, marks=pytest.mark.prove) for n in (14, 16, 17)))


def new_lab(major: int, *, on_two_hosts: bool = False) -> Lab:
    """A lab of that major; skips the test where this machine has none."""
    support.require(f"postgresql-{major}")
    support.require("pgbouncer")
    directory = support.postgres_directories().get(major)
    return Lab(pg_bin=directory, on_two_hosts=on_two_hosts)


@pytest.fixture(scope="module", params=MAJORS, ids=lambda major: f"pg{major}")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of each major."""
    with new_lab(request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def all_is_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the lab's servers, processes, files, settings and sessions are as before."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Lab = request.getfixturevalue("lab")
    before = picture(lab)
    yield
    wait_for_connections(lab, "pgbouncer", 0)
    lab.pgbouncer.console("RECONNECT")
    wait_until(lambda: sessions(lab) == [], "no session of an application is left")
    wait_until(lambda: picture(lab) == before, f"{before}, not {picture(lab)}")
    servers = {lab.pgbouncer.pid, *lab.postgres.process_ids()}
    wait_until(lambda: set(janitor.working_below(lab.home.path)) <= servers, "no process is left")


def picture(lab: Lab) -> tuple[object, ...]:
    config = {row["key"]: row["value"] for row in lab.pgbouncer.console("SHOW CONFIG")}
    return (
        lab.postgres,
        lab.postgres.host,
        lab.pgbouncer.pid,
        sorted(path.name for path in lab.home.path.iterdir()),
        config["default_pool_size"],
        lab.postgres.execute("select relname from pg_class where relname ~ 'parallel'", "app"),
        tcp_states(lab.postgres.port)["LISTEN"],
    )


def sessions(lab: Lab, what: str = "pid", where: str = "true") -> list[str]:
    """A column of pg_stat_activity for the application's sessions."""
    rows = lab.postgres.execute(
        f"select {what} from pg_stat_activity where usename = 'app'"
        f" and backend_type = 'client backend' and {where}"
    )
    return [str(value) for (value,) in rows]


def pool(lab: Lab) -> dict[str, int]:
    """The numbers of SHOW POOLS for the application's pool."""
    (row,) = (r for r in lab.pgbouncer.console("SHOW POOLS") if r["database"] == "app")
    return {name: int(value) for name, value in row.items() if value and value.isdecimal()}


def statistics(lab: Lab) -> tuple[float, float, str | None]:
    """Active and idle-in-transaction seconds of the application's database, and their reset."""
    ((active, idle, reset),) = lab.postgres.execute(
        "select active_time, idle_in_transaction_time, stats_reset from pg_stat_database"
        " where datname = 'app'"
    )
    return float(active or 0) / 1000, float(idle or 0) / 1000, reset


def assert_healthy(lab: Lab) -> None:
    """The application's four sessions each way are there, and commit."""

    def is_there() -> bool:
        pooled = {str(port) for port in lab.pgbouncer.server_ports()}
        direct = set(sessions(lab, "client_port")) - pooled
        return len(direct) == connections(lab, "pgbouncer") == 4

    wait_until(is_there, "the application has its sessions again", 8)
    with lab.connect("pgbouncer") as session:
        assert session.query("select 1") == [("1",)]
    sql = "select sum(xact_commit) from pg_stat_database where datname = 'app'"
    before = lab.postgres.execute(sql)
    wait_until(lambda: lab.postgres.execute(sql) != before, "the application commits")


def serves(lab: Lab) -> None:
    """Applications reach the server in charge at the address they know, also through PgBouncer."""
    where = "select inet_server_addr(), inet_server_port(), pg_is_in_recovery()"
    with lab.connect() as session:
        assert session.query(where) == [(lab.server_host.address, str(lab.postgres.port), "f")]

    def is_pooled() -> bool:
        with contextlib.suppress(WireError), lab.connect("pgbouncer") as session:
            return session.query("select 1") == [("1",)]
        return False

    wait_until(is_pooled, "PgBouncer reaches it")


def sample(value: Callable[[], Value], seconds: float) -> list[Value]:
    """Many values over that time."""
    give_up = time.monotonic() + seconds
    values = []
    while time.monotonic() < give_up:
        values.append(value())
        time.sleep(0.02)
    return values


@pytest.mark.parametrize(("size", "count"), [("", 20), ("7", 7)])
def test_oversize_keeps_a_large_pool_busy(lab: Lab, size: str, count: int) -> None:
    with Oversize(lab, Wanted(size=size)) as fault:
        assert fault.describe() == f"oversize: {count} sessions"
        wait_for_connections(lab, "postgresql", count)
        wait_for_connections(lab, "pgbouncer", count + 1)
        assert {*sessions(lab, "client_port")} == {*map(str, lab.pgbouncer.server_ports())}
        active = sample(lambda: len(sessions(lab, where="state = 'active'")), 1)
        assert 0.9 * count < mean(active) <= count
        assert len(sessions(lab)) == count
        # No client waits for longer than a statement takes.
        assert pool(lab)["maxwait"] == 0
    assert pool(lab)["sv_active"] == 0
    assert pool(lab)["sv_idle"] <= POOL_SIZE


def test_oversize_shows_in_the_statistics(lab: Lab) -> None:
    before = statistics(lab)
    begun = time.monotonic()
    with Oversize(lab):
        time.sleep(2)
        seconds = time.monotonic() - begun
    # Sessions write what they did as they end; PostgreSQL 14 shows it half a second later.
    wait_until(lambda: statistics(lab)[0] - before[0] > 0.7 * 20 * seconds, "their active time")
    after = statistics(lab)
    busy, idle = after[0] - before[0], after[1] - before[1]
    assert busy / (busy + idle) > 0.98


@pytest.mark.parametrize(
    ("size", "count", "waits"),
    [("5", 5, 1), ("", 8, 1), pytest.param("20", 20, 5, marks=pytest.mark.prove)],
)
def test_undersize_lets_clients_wait(lab: Lab, size: str, count: int, waits: int) -> None:
    with Undersize(lab, Wanted(size=size)) as fault:
        assert fault.describe() == f"undersize: {count} clients"
        wait_for_connections(lab, "pgbouncer", count)
        assert set(sample(lambda: len(sessions(lab)), 0.5)) == {1}
        assert pool(lab)["cl_waiting"] == count - 1
        wait_until(lambda: pool(lab)["maxwait"] >= waits, f"a client waits {waits} s", 10)
    # Nobody is left in the queue, and the pool has its size again.
    wait_for_connections(lab, "pgbouncer", 0)
    assert pool_holds(lab) == POOL_SIZE


def pool_holds(lab: Lab) -> int:
    """The transactions that the pool has at once."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(POOL_SIZE + 1):
            opened.append(stack.enter_context(lab.connect("pgbouncer")))
            opened[-1].simple_query("begin; select 1")
        wait_until(lambda: pool(lab)["cl_waiting"] == 1, "one waits")
        return pool(lab)["sv_active"]


@pytest.mark.parametrize(("size", "count"), [("", 4), ("7", 7)])
def test_parallel_has_so_many_workers(lab: Lab, size: str, count: int) -> None:
    with Parallel(lab, Wanted(size=size)) as fault:
        assert fault.describe() == f"parallel: {count} workers"
        used = processor_ticks(lab)
        leaders = sessions(lab)
        assert len(leaders) == 1
        # By their titles. Between two statements there are none, or not all yet.
        seen = sample(lambda: workers(lab), 1.2)
        assert {leader for one in seen for leader in one.values()} == set(leaders)
        width = [len(one) for one in seen]
        assert max(width) == count
        assert mean(width) > 0.7 * count
        assert processor_ticks(lab) > used
        if lab.postgres.version >= 18:
            wait_until(lambda: launches(lab)[1] > 0, "a session wrote its statistics")
            launched, wanted = launches(lab)
            assert launched == wanted
    assert workers(lab) == {}


def workers(lab: Lab) -> dict[int, str]:
    """The parallel workers of the lab's server and their leaders, by their titles."""
    found = {}
    for pid in lab.postgres.process_ids():
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()
            if match := re.fullmatch(r"postgres: parallel worker for PID (\d+)", title):
                found[pid] = match[1]
    return found


def processor_ticks(lab: Lab) -> int:
    """The processor time of the server's processes."""
    ticks = 0
    for pid in lab.postgres.process_ids():
        with contextlib.suppress(OSError):
            fields = (
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            )
            ticks += int(fields[11])
    return ticks


def launches(lab: Lab) -> tuple[int, int]:
    """Parallel workers launched, and wanted."""
    ((launched, wanted),) = lab.postgres.execute(
        "select parallel_workers_launched, parallel_workers_to_launch from pg_stat_database"
        " where datname = 'app'"
    )
    return int(launched or 0), int(wanted or 0)


def test_long_transactions_do_not_end(lab: Lab) -> None:
    what = "row(pid, state, xact_start, query_start, query)"
    for size, count in (("", 5), ("2", 2)):
        with LongTransactions(lab, Wanted(size=size)) as fault:
            assert fault.describe() == f"long-transactions: {count} sessions"
            before = sessions(lab, what)
            assert len(before) == count
            wait_for_connections(lab, "postgresql", count)
            assert sessions(lab, "state") == ["active"] * count
            time.sleep(0.3)
            assert sessions(lab, what, "xact_start < now() - interval '0.2 s'") == before
        # At once, and without a backend whose client is gone.
        assert sessions(lab) == []
        wait_until(lambda: not left(lab), "no socket is left")


def left(lab: Lab) -> set[str]:
    """The states of what sessions left."""
    return set(tcp_states(lab.postgres.port)) - {"LISTEN", "TIME_WAIT"}


def test_crash_ends_every_session_and_the_server_recovers(lab: Lab) -> None:
    started = lab.postgres.execute("select pg_postmaster_start_time()")
    pid, others = lab.postgres.pid, set(lab.postgres.process_ids()) - {lab.postgres.pid}
    with lab.connect() as session, since(lab) as log:
        session.query("select 1")
        with ResetStatistics(lab):
            reset = statistics(lab)[2]
        with Crash(lab):
            assert is_forgotten(lab, reset)
            serves(lab)
            assert others.isdisjoint(lab.postgres.process_ids())
            with pytest.raises(WireError):
                session.query("select 1")
    assert "was terminated by signal 9" in log()
    assert "all server processes terminated; reinitializing" in log()
    assert "automatic recovery in progress" in log()
    assert lab.postgres.pid == pid
    assert lab.postgres.execute("select pg_postmaster_start_time()") == started


def is_forgotten(lab: Lab, reset: str | None) -> bool:
    """Whether the statistics are not those of that reset; 14 has a time once there are any."""
    now = statistics(lab)[2]
    return now != reset if lab.postgres.version == 14 else now is None


def test_crash_finds_a_slot_where_applications_find_none(lab: Lab) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(lab.slots):
            stack.enter_context(lab.connect())
        with pytest.raises(WireError, match=r"^53300 "):
            lab.connect()
        with Crash(lab):
            serves(lab)


@contextlib.contextmanager
def since(lab: Lab) -> Iterator[Callable[[], str]]:
    """What the server logged since then."""
    log = lab.postgres.log
    size = log.stat().st_size
    yield lambda: log.read_bytes()[size:].decode()


def test_reset_statistics(lab: Lab) -> None:
    with lab.connect() as session:
        session.query("select pg_sleep(0.2) from (select from pg_class limit 1) as one")
    wait_until(lambda: statistics(lab)[0] >= 0.2, "the session's statistics are there")
    before = statistics(lab)[2]
    with ResetStatistics(lab):
        active, _, first = statistics(lab)
        assert active < 0.2
        assert first not in (None, before)
    with ResetStatistics(lab):
        assert statistics(lab)[2] not in (None, first)


def test_restart_is_clean_and_keeps_the_data(lab: Lab) -> None:
    pid, port = lab.postgres.pid, lab.postgres.port
    lab.postgres.execute("create table kept ()", "app")
    with lab.connect() as session, since(lab) as log, Restart(lab):
        assert (lab.postgres.pid != pid, lab.postgres.port) == (True, port)
        serves(lab)
        with pytest.raises(WireError):
            session.query("select 1")
    assert "received fast shutdown request" in log()
    assert "not properly shut down" not in log()
    lab.postgres.execute("drop table kept", "app")


def test_failover_moves_the_address_to_another_server(lab: Lab) -> None:
    primary = lab.postgres
    identity = "select system_identifier from pg_control_system()"
    before = primary.execute(identity)
    primary.execute("create table written as select 1 as number", "app")
    primary.execute("grant select on written to app", "app")
    pid, files = primary.pid, set(lab.home.path.iterdir())
    with ResetStatistics(lab):
        reset = statistics(lab)[2]
    with lab.connect() as session, Failover(lab):
        assert lab.postgres is not primary
        assert lab.postgres.execute(identity) == before
        assert (lab.postgres.host, lab.postgres.port) == (primary.host, primary.port)
        serves(lab)
        with pytest.raises(WireError):
            session.query("select 1")
        # Promoted: another timeline; what was written is there, and more can be.
        timeline = "select timeline_id from pg_control_checkpoint()"
        assert lab.postgres.execute(timeline) == [("2",)]
        lab.postgres.execute("insert into written values (2)", "app")
        assert count_written(lab) == "2"
        assert is_forgotten(lab, reset)
        # One listener, and the old server is gone with all of its processes.
        wait_until(lambda: tcp_states(primary.port)["LISTEN"] == 1, "one listener")
        assert primary.process_ids() == []
        assert lab.postgres.process_ids() != []
        (copy,) = set(lab.home.path.iterdir()) - files
        assert lab.postgres.data_directory.parent == copy
    assert lab.postgres is primary
    assert primary.pid != pid
    serves(lab)
    # As it was when it died.
    assert count_written(lab) == "1"
    primary.execute("drop table written", "app")


def count_written(lab: Lab) -> str | None:
    """The rows of the table, as an application's new session sees them."""
    with lab.connect() as session:
        ((count,),) = session.query("select count(*) from written")
        return count


@pytest.mark.parametrize("major", MAJORS)
def test_failover_on_two_hosts(major: int) -> None:
    support.require("root")
    with new_lab(major, on_two_hosts=True) as lab, Healthy(lab):
        primary = lab.postgres
        assert primary.host != "127.0.0.1"
        primary.execute("create table written as select 1 as number", "app")
        primary.execute("grant select on written to app", "app")
        with Failover(lab):
            assert lab.postgres is not primary
            assert lab.postgres.host == primary.host
            serves(lab)
            assert count_written(lab) == "1"
        assert lab.postgres is primary
        serves(lab)


def test_each_can_be_made_again_and_again_beside_an_application(lab: Lab) -> None:
    with Healthy(lab):
        for fault in FAULTS:
            for _ in range(2):
                with fault(lab):
                    pass
                serves(lab)
        assert_healthy(lab)


@pytest.mark.parametrize(
    ("fault", "delay"),
    # A fail-over copies for a second before anything fails.
    [*((fault, 0.03) for fault in FAULTS), (Crash, 0), (Restart, 0), (Failover, 0.5)],
)
def test_it_can_be_stopped_while_it_starts(lab: Lab, fault: type[Fault], delay: float) -> None:
    end_while_it_starts(fault(lab), delay)
    serves(lab)


@pytest.mark.parametrize(
    ("fault", "size", "message"),
    [
        (
            Oversize,
            "48",
            "a pool of 48 does not fit into PostgreSQL's 47 slots: name a smaller size",
        ),
        (
            Parallel,
            "8",
            "PostgreSQL has 7 parallel workers at most (max_worker_processes), not 8: "
            "name a smaller size",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    lab: Lab, fault: type[Fault], size: str, message: str
) -> None:
    with pytest.raises(LabError) as caught, fault(lab, Wanted(size=size)):
        pass
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Oversize, r"^pgbench lost clients; its log ends: .*abort"),
        (Parallel, r"^parallel stopped by itself: "),
    ],
)
def test_a_load_that_stopped_by_itself_is_told(lab: Lab, fault: type[Fault], message: str) -> None:
    made = fault(lab)
    made.__enter__()
    lab.postgres.restart()
    time.sleep(0.3)
    with pytest.raises(LabError, match=message):
        made.end()
