"""The drill: every fault on a lab at work, every check beside it, and what they say before it,
during it and after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults import create, fault_class
from check_pgsock.pgsock.lab.faults.fault import PGBOUNCER, Fault
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.matrix import matrix
from check_pgsock.pgsock.lab.polling import VISIBLE, Poller
from check_pgsock.pgsock.lab.services import SERVICES, Run, Service, run_service
from check_pgsock.text import clean

# Seconds: between the starts of two runs, of observation at least and at most, and until all is
# OK again.
_INTERVAL = 1.0
_OBSERVE, _OBSERVE_AT_MOST, _RECOVER = 4.0, 25.0, 30.0
# Runs that an observation takes at least. Not more: against a stopped server each run of a check
# that asks it, and each poll, leaves one more connection that was given up.
_RUNS = 2
_SEVERITY = ("OK", "WARNING", "UNKNOWN", "CRITICAL")

Tick = Callable[[], None]


class Cell(NamedTuple):
    """One fault and one service: service states, and the seconds from the fault's start until a
    non-OK state was there for the first of two runs; None where there was none.

    A state is "" where too few runs of the check ended to tell one. `polling` is what polling
    pg_stat_activity said during the fault; "" where it cannot see.
    """

    fault: str
    service: str
    check: str
    expected: str
    before: str
    during: str
    after: str
    seconds: float | None
    polling: str
    polling_seconds: float | None
    line: str

    @property
    def as_expected(self) -> bool:
        """Whether it is what the matrix says, and OK before and after."""
        return (self.before, self.during, self.after) == ("OK", self.expected, "OK")


class Drill:
    """A drill of the faults `labels` (none: of the whole matrix); raises UsageError for one that
    is not in the matrix.

    `labels` are all of them. After run() `left_out` says which faults could not be made here, and
    why. `tick` is called all the time, and may raise to end it.
    """

    def __init__(
        self, labels: Sequence[str], pg_bin: str | Path | None, pooled: bool, tick: Tick
    ) -> None:
        known = matrix()
        if unknown := [label for label in labels if label not in known]:
            raise UsageError(
                f"the matrix has no fault '{clean(unknown[0])}' (of: {', '.join(known)})"
            )
        self.left_out: dict[str, str] = {}
        self.labels = list(labels or known)
        self._pg_bin = pg_bin
        self._pooled = pooled
        self._tick = tick

    def run(self) -> Iterator[list[Cell]]:
        """Run it; yields the cells of one fault at a time.

        Raises LabError when a fault that can be made here, or a check, cannot be run.
        """
        one_host = [label for label in self.labels if not fault_class(label).needs_two_hosts]
        two_hosts = [label for label in self.labels if label not in one_host]
        if two_hosts and os.geteuid() != 0:
            self.left_out.update(dict.fromkeys(two_hosts, "only root can make a second host"))
            two_hosts = []
        for labels, on_two_hosts in ((one_host, False), (two_hosts, True)):
            if labels:
                yield from self._run_on_one_lab(labels, on_two_hosts)

    def _run_on_one_lab(self, labels: Sequence[str], on_two_hosts: bool) -> Iterator[list[Cell]]:
        with contextlib.ExitStack() as stack:
            lab = Lab(pg_bin=self._pg_bin, with_pgbouncer=self._pooled, on_two_hosts=on_two_hosts)
            stack.enter_context(lab)
            self._tick()
            stack.enter_context(create(lab, "healthy"))
            services = [each for each in SERVICES if self._pooled or each.via != PGBOUNCER]
            watches = stack.enter_context(_Watches(lab, services))
            watches.wait_until_ok(time.monotonic(), self._tick)
            for label in labels:
                try:
                    cells = _one_fault(create(lab, label), label, watches, self._tick)
                except UsageError as error:
                    # This lab has not what it needs.
                    self.left_out[label] = str(error)
                else:
                    yield cells


def _one_fault(fault: Fault, label: str, watches: _Watches, tick: Tick) -> list[Cell]:
    expected = matrix()[label]
    begun = time.monotonic()
    # The application at work is there all the time.
    with contextlib.nullcontext() if label == "healthy" else fault:
        watches.observe(time.monotonic(), expected, tick)
        ending = time.monotonic()
    watches.begin_day()
    watches.wait_until_ok(time.monotonic(), tick)
    cells = []
    for service in watches.services:
        before, during, after = watches.phases(service.name, begun, ending)
        detected = first_telling(during)
        polls: list[Run] = []
        if service.name in VISIBLE:
            polls = watches.phases(service.name, begun, ending, watches.polls)[1]
        polled = first_telling(polls)
        cells.append(
            Cell(
                label,
                service.name,
                service.check,
                expected[service.name],
                settled(before),
                # A run that began before the fault may tell of it, but proves no OK.
                worst(during) if sum(run.started >= begun for run in during) > 1 else "",
                settled(after),
                None if detected is None else detected.ended - begun,
                said_by_polling(polls, begun) if service.name in VISIBLE else "",
                None if polled is None else polled.ended - begun,
                _telling_line(before, during, after),
            )
        )
    return cells


def settled(runs: Sequence[Run]) -> str:
    """OK where the last two runs were, else what the last that was not OK said; "" where there
    were fewer than two.
    """
    states = [run.state for run in runs[-2:]]
    if len(states) < 2:
        return ""
    return next((state for state in reversed(states) if state != "OK"), "OK")


def said_by_polling(polls: Sequence[Run], begun: float) -> str:
    """Their worst state; UNKNOWN where none that was sent during the fault was answered."""
    answered = any(run.state != "UNKNOWN" for run in polls if run.started >= begun)
    return worst(polls) if answered else "UNKNOWN"


def _telling_line(before: Sequence[Run], during: Sequence[Run], after: Sequence[Run]) -> str:
    """The line that a reader wants to see: of the phase that was wrong, or of the detection."""
    for runs in (before, after):
        wrong = [run for run in runs[-2:] if run.state != "OK"]
        if settled(runs) != "OK":
            return wrong[-1].line if wrong else "it hardly ran"
    telling = [run for run in during if run.state == worst(during)]
    return telling[0].line if telling else "it hardly ran"


def worst(runs: Sequence[Run]) -> str:
    """The worst service state that a second run confirmed, as max_check_attempts 2 has it."""
    confirmed = [b.state for a, b in zip(runs, runs[1:]) if a.state != "OK" != b.state]
    return max(confirmed, key=_SEVERITY.index, default="OK")


def first_telling(runs: Sequence[Run]) -> Run | None:
    """The first of the first two runs in a row that tell; an UNKNOWN tells nothing."""
    telling = ("WARNING", "CRITICAL")
    pairs = zip(runs, runs[1:])
    return next((a for a, b in pairs if a.state in telling and b.state in telling), None)


class _Watches:
    """A context manager: each service, and the poll of pg_stat_activity, run once a second."""

    def __init__(self, lab: Lab, services: Sequence[Service]) -> None:
        self.services = services
        self.runs: dict[str, list[Run]] = {service.name: [] for service in services}
        self.polls: dict[str, list[Run]] = {name: [] for name in VISIBLE}
        self._day = 0
        self._ending = threading.Event()
        self._failures: list[PgsockError] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=(self._run_once(service, lab),))
            for service in services
        ]
        poller = Poller(lab)
        self._threads.append(
            threading.Thread(target=self._repeat, args=(lambda: self._poll_once(poller),))
        )

    def __enter__(self) -> _Watches:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def phases(
        self, name: str, begun: float, ending: float, runs: dict[str, list[Run]] | None = None
    ) -> tuple[list[Run], list[Run], list[Run]]:
        """The runs of a service that ended before, during and after the fault."""
        all_runs = list((runs or self.runs)[name])
        return (
            [run for run in all_runs if run.ended <= begun],
            [run for run in all_runs if begun < run.ended <= ending],
            [run for run in all_runs if run.started > ending],
        )

    def begin_day(self) -> None:
        """From now on checks remember nothing that they remember for a day: of this fault the
        next one is to know nothing.
        """
        self._day += 1

    def observe(self, there: float, expected: dict[str, str], tick: Tick) -> None:
        """Wait until every service had its runs and said what is expected, or for long enough."""

        def is_seen() -> bool:
            if time.monotonic() - there < _OBSERVE:
                return False
            new = {name: self._since(name, there) for name in self.runs}
            return all(
                len(runs) >= _RUNS and (expected[name] == "OK" or worst(runs) == expected[name])
                for name, runs in new.items()
            )

        self._wait(is_seen, _OBSERVE_AT_MOST, tick)

    def wait_until_ok(self, since: float, tick: Tick) -> None:
        """Wait until two runs of every service since then are OK, or for long enough."""

        def is_ok() -> bool:
            new = (self._since(name, since)[-2:] for name in self.runs)
            return all([run.state for run in runs] == ["OK", "OK"] for runs in new)

        self._wait(is_ok, _RECOVER, tick)

    def _wait(self, condition: Callable[[], bool], seconds: float, tick: Tick) -> None:
        give_up = time.monotonic() + seconds
        while not condition() and time.monotonic() < give_up:
            tick()
            if self._failures:
                raise self._failures[0]
            time.sleep(0.05)

    def _since(self, name: str, since: float) -> list[Run]:
        return [run for run in list(self.runs[name]) if run.started >= since]

    def _run_once(self, service: Service, lab: Lab) -> Callable[[], None]:
        return lambda: self.runs[service.name].append(run_service(service, lab, self._day))

    def _poll_once(self, poller: Poller) -> None:
        for name, run in poller.poll().items():
            self.polls[name].append(run)

    def _repeat(self, work: Callable[[], None]) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(due - time.monotonic(), 0)):
            due = max(due + _INTERVAL, time.monotonic())
            try:
                work()
            except LabError as error:
                self._failures.append(error)
                return
