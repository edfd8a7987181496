"""The lab's faults that are held sessions: as many as asked for, at that speed, and none after."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.faults.fault import Fault, Wanted
from check_pgsock.pgsock.lab.faults.held import Healthy, Hoard, Leak, Ramp, Saturate
from check_pgsock.pgsock.lab.lab import MAX_CLIENT_CONN, POOL_SIZE, Lab
from check_pgsock.pgsock.lab.wire import WireError
from tests import support
from tests.lab_faults import connections, end_while_it_starts, wait_for_connections
from tests.support import wait_until

VIAS = pytest.mark.parametrize("via", ["postgresql", "pgbouncer"])


@pytest.fixture(
    scope="module",
    params=[15, 18, *(pytest.param(n, marks=pytest.mark.prove) for n in (14, 16, 17))],
    ids=lambda major: f"pg{major}",
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of each major, with 47 slots."""
    support.require(f"postgresql-{request.param}")
    support.require("pgbouncer")
    with Lab(pg_bin=support.postgres_directories().get(request.param)) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the lab has no sessions of clients, no processes and no files more."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Lab = request.getfixturevalue("lab")
    files = sorted(os.listdir(lab.home.path))
    yield
    wait_for_connections(lab, "pgbouncer", 0)
    # Its own sessions it would keep for the next.
    lab.pgbouncer.console("RECONNECT")
    wait_for_connections(lab, "postgresql", 0)
    # A backend ends a moment after its connection.
    wait_until(lambda: lab.established() == 0, "no backend is left")
    assert sorted(os.listdir(lab.home.path)) == files
    servers = {lab.pgbouncer.pid, *lab.postgres.process_ids()}
    wait_until(lambda: set(janitor.working_below(lab.home.path)) <= servers, "no process is left")


def direct(lab: Lab) -> list[tuple[str, str]]:
    """State and client port of the application's sessions that are not PgBouncer's."""
    rows = lab.postgres.execute(
        "select state, client_port from pg_stat_activity where usename = 'app'"
    )
    pooled = {str(port) for port in lab.pgbouncer.server_ports()}
    return [(str(state), str(port)) for state, port in rows if port not in pooled]


def states(lab: Lab) -> list[str]:
    """The distinct states of the application's direct sessions."""
    return sorted({state for state, _ in direct(lab)})


def commits(lab: Lab) -> int:
    ((count,),) = lab.postgres.execute(
        "select xact_commit from pg_stat_database where datname = 'app'"
    )
    return int(count or 0)


def test_healthy_works_both_ways(lab: Lab) -> None:
    count = 4
    with Healthy(lab):
        assert len(direct(lab)) == count
        wait_for_connections(lab, "pgbouncer", count)
        wait_until(lambda: states(lab) == ["idle", "idle in transaction"], "both states seen")
        before = commits(lab)
        wait_until(lambda: commits(lab) > before, "it commits")
        assert len(direct(lab)) == count


def test_healthy_comes_back_after_its_sessions_were_ended(lab: Lab) -> None:
    with Healthy(lab, Wanted(size="3")):
        ports = {port for _, port in direct(lab)}
        lab.postgres.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'"
        )
        wait_until(lambda: not ports & {port for _, port in direct(lab)}, "the sessions ended")
        wait_until(lambda: len(direct(lab)) == 3, "all are there again")
        wait_for_connections(lab, "pgbouncer", 3)


@pytest.mark.parametrize(
    ("via", "size", "count"),
    [
        ("postgresql", "", 44),
        ("postgresql", "50%", 23),
        ("postgresql", "7", 7),
        ("postgresql", "100%", 47),
        ("pgbouncer", "", 95),
        ("pgbouncer", "9", 9),
    ],
)
def test_saturate_holds_so_many(lab: Lab, via: str, size: str, count: int) -> None:
    with contextlib.ExitStack() as others:
        for _ in range(3):
            others.enter_context(lab.connect(via))
        with Saturate(lab, Wanted(size=size, via=via)) as fault:
            assert fault.describe().endswith(f": {count} sessions")
            wait_for_connections(lab, via, count)
            if size == "100%":
                with pytest.raises(WireError, match=r"^53300 "):
                    lab.connect()
        wait_for_connections(lab, via, 3)  # those of others stay


def test_saturate_leaves_what_is_fuller_alone(lab: Lab) -> None:
    with Saturate(lab, Wanted(size="5")), Saturate(lab, Wanted(size="2")):
        wait_for_connections(lab, "postgresql", 5)


@VIAS
def test_ramp_rises_to_exhaustion_and_falls(lab: Lab, via: str) -> None:
    """20 a second by default; here faster."""
    top = lab.slots if via == "postgresql" else MAX_CLIENT_CONN
    assert Ramp(lab).describe() == "ramp: 20 connections/s"
    ramp = Ramp(lab, Wanted(speed=100.0, via=via))
    started = time.monotonic()
    with Moments(lab, via) as moments, ramp:
        rising = time.monotonic() - started
        wait_for_connections(lab, via, top)
        with pytest.raises(WireError, match=r"^53300 |max_client_conn"):
            lab.connect(via)
        time.sleep(0.1)
        ended = time.monotonic()
    falling = time.monotonic() - ended
    # Never faster; slower by what connecting takes. It is a ramp, no step.
    assert rising >= top / 100 <= falling
    assert is_ramp(moments.between(started, started + rising), top)
    assert is_ramp(moments.between(ended, ended + falling)[::-1], top)


def is_ramp(counts: list[int], top: int) -> bool:
    """Whether they rise, and were seen on the way."""
    return counts == sorted(counts) and any(top / 4 < one < top * 3 / 4 for one in counts)


class Moments:
    """A context manager: the established connections of an endpoint, again and again."""

    def __init__(self, lab: Lab, via: str) -> None:
        self.at: list[float] = []
        self.counts: list[int] = []
        self._lab = lab
        self._via = via
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def between(self, first: float, last: float) -> list[int]:
        """The counts of these moments, in their order."""
        return [count for at, count in zip(self.at, self.counts) if first <= at <= last]

    def __enter__(self) -> Moments:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ending.wait(0.01):
            self.counts.append(connections(self._lab, self._via))
            self.at.append(time.monotonic())


@pytest.mark.parametrize("kind", ["idle", "idle-in-transaction"])
@pytest.mark.parametrize(("size", "count"), [("", 10), ("3", 3)])
def test_leak_leaves_sessions_in_that_state(lab: Lab, kind: str, size: str, count: int) -> None:
    with Leak(lab, Wanted(kind, size)):
        before = direct(lab)
        assert len(before) == count
        wait_for_connections(lab, "postgresql", count)
        assert states(lab) == [kind.replace("-", " ")]
        time.sleep(0.2)
        assert direct(lab) == before


@pytest.mark.parametrize(("kind", "size", "active"), [
    ("idle", "10", 0),
    # Each holds one of the pool's sessions: there are no more by default.
    ("idle-in-transaction", "", POOL_SIZE),
    ("idle-in-transaction", "3", 3),
])  # fmt: skip
def test_leak_through_pgbouncer(lab: Lab, kind: str, size: str, active: int) -> None:
    with Leak(lab, Wanted(kind, size, via="pgbouncer")):
        wait_for_connections(lab, "pgbouncer", int(size or active))
        (pool,) = (p for p in lab.pgbouncer.console("SHOW POOLS") if p["database"] == "app")
        assert (pool["sv_active"], pool["cl_waiting"]) == (str(active), "0")
        assert direct(lab) == []


@VIAS
@pytest.mark.parametrize(("size", "count"), [("", 20), ("4", 4)])
def test_hoard_is_one_process_of_four(lab: Lab, via: str, size: str, count: int) -> None:
    with Hoard(lab, Wanted(size=size, via=via)):
        wait_for_connections(lab, via, count + 6)
        # The servers are nobody's of these: they work in directories of their own.
        clients = set(janitor.working_below(lab.home.path)) - {
            lab.pgbouncer.pid,
            *lab.postgres.process_ids(),
        }
        held = [
            sum(
                os.readlink(path).startswith("socket:")
                for path in Path(f"/proc/{pid}/fd").iterdir()
            )
            for pid in clients
        ]
        assert sorted(held) == [2, 2, 2, count]


@pytest.mark.parametrize(
    "wanted",
    [
        (Saturate, Wanted(size="100%")),
        (Ramp, Wanted(speed=10)),
        (Leak, Wanted(size="40")),
        (Hoard, Wanted(size="40")),
    ],
    ids=lambda wanted: str(wanted[0].name),
)
@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_it_can_be_stopped_while_it_starts(
    lab: Lab, wanted: tuple[type[Fault], Wanted], delay: float
) -> None:
    end_while_it_starts(wanted[0](lab, wanted[1]), delay)
    wait_for_connections(lab, "postgresql", 0)


@pytest.mark.parametrize(
    ("fault", "wanted", "message"),
    [
        (Leak, Wanted(kind="all"), "leak knows no kind 'all' (of: idle, idle-in-transaction)"),
        (Hoard, Wanted(kind="idle"), "hoard knows no kind 'idle' (of: none)"),
        (
            Leak,
            Wanted(via="pgpool"),
            "leak knows no endpoint 'pgpool' (of: postgresql, pgbouncer)",
        ),
        (
            Healthy,
            Wanted(via="pgbouncer"),
            "healthy knows no endpoint 'pgbouncer' (of: postgresql)",
        ),
        (Ramp, Wanted(size="5"), "ramp has no size"),
        (Leak, Wanted(size="0"), "'0' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="0%"), "'0%' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="-1"), "'-1' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="1.5"), "'1.5' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="5%%"), "'5%%' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="%"), "'%' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(size="many"), "'many' is no size: a count, or a percentage of the limit"),
        (Leak, Wanted(speed=5), "leak has no speed"),
        (Ramp, Wanted(speed=0), "0 is no speed: above 0, at most 10000 per second"),
        (Ramp, Wanted(speed=-2.5), "-2.5 is no speed: above 0, at most 10000 per second"),
        (Ramp, Wanted(speed=10001), "10001 is no speed: above 0, at most 10000 per second"),
        (Ramp, Wanted(speed=float("nan")), "nan is no speed: above 0, at most 10000 per second"),
        (Leak, Wanted(via="pgbouncer"), "leak needs PgBouncer, which this lab has not"),
    ],
)
def test_what_a_fault_does_not_take_is_one_sentence(
    fault: type[Fault], wanted: Wanted, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        fault(Lab(with_pgbouncer=False), wanted)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fault", "wanted", "text"),
    [
        (Healthy, Wanted(), "healthy: 4 sessions each way"),
        (Saturate, Wanted(), "saturate: 44 sessions"),
        (Saturate, Wanted(size="1%"), "saturate: 1 session"),
        (Healthy, Wanted(size="1"), "healthy: 1 session each way"),
        (Saturate, Wanted(size="200%"), "saturate: 94 sessions"),
        (Leak, Wanted(kind="idle"), "leak:idle: 10 sessions"),
        (Ramp, Wanted(speed=0.5), "ramp: 0.5 connections/s"),
    ],
)
def test_a_fault_says_what_it_makes(fault: type[Fault], wanted: Wanted, text: str) -> None:
    assert fault(Lab(with_pgbouncer=False), wanted).describe() == text
