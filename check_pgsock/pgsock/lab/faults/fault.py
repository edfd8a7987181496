"""What every fault is: a named thing with a size and a speed that can be started and stopped."""

from __future__ import annotations

import abc
import contextlib
import re
import threading
import time
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.text import plural

POSTGRESQL, PGBOUNCER = "postgresql", "pgbouncer"


class Stopped(LabError):
    """The fault is to stop before it was wholly there."""


class Wanted(NamedTuple):
    """What a user asks for; None and "" stand for the fault's own default.

    `size` is a count, or a percentage ("95%") of the connections that the endpoint can hold;
    `speed` is per second; `via` names the endpoint.
    """

    kind: str = ""
    size: str = ""
    speed: float | None = None
    via: str = ""


DEFAULT = Wanted()


class Fault(abc.ABC):
    """A fault on one lab; a context manager.

    start() returns when the fault is there: its size is reached, or its speed is held. What puts
    everything back it gives to `stack` as it goes; end() closes that. All raise LabError. The class
    says what it takes: `kinds` (the first is the default), `size` and `speed` with their defaults
    ("" and 0: takes none) and units, `vias` (the endpoints it can be made on), what it `needs`, and
    a `note` on what only some of its kinds take or need. Its docstring's first line is its help.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("",)
    size: ClassVar[str] = ""
    size_unit: ClassVar[str] = "sessions"
    speed: ClassVar[float] = 0.0
    speed_unit: ClassVar[str] = "connections/s"
    vias: ClassVar[tuple[str, ...]] = (POSTGRESQL,)
    note: ClassVar[str] = ""
    needs_pgbouncer: ClassVar[bool] = False
    needs_two_hosts: ClassVar[bool] = False
    # Over as soon as it was made: there is nothing to stop.
    is_instant: ClassVar[bool] = False

    def __init__(self, lab: Lab, wanted: Wanted = DEFAULT) -> None:
        """Raises UsageError where `wanted` is not what this fault takes, or the lab lacks what
        it needs.
        """
        self.lab = lab
        self.kind = _one_of(self, "kind", wanted.kind, self.kinds)
        self.via = _one_of(self, "endpoint", wanted.via, self.vias)
        self.count = self._parse_size(wanted.size)
        self.rate = self._parse_speed(wanted.speed)
        self.ending = threading.Event()
        self.stack = contextlib.ExitStack()
        self._background: list[threading.Thread] = []
        self._failures: list[str] = []
        self._held: list[Session] = []
        self._starting = threading.RLock()
        if (self.needs_pgbouncer or self.via == PGBOUNCER) and not lab.pooled:
            raise UsageError(f"{self.name} needs PgBouncer, which this lab has not")
        if self.needs_two_hosts and lab.client_host is lab.server_host:
            raise UsageError(f"{self.name} needs a lab on two hosts (--two-hosts, as root)")

    @abc.abstractmethod
    def start(self) -> None:
        """Make the fault; return when it is there."""

    @property
    def label(self) -> str:
        """How it is named: fault:kind@endpoint."""
        kind = f":{self.kind}" if self.kind else ""
        return f"{self.name}{kind}" + (f"@{self.via}" if self.via != self.vias[0] else "")

    def describe(self) -> str:
        """What is made: `orphan: 8 sessions`."""
        parts = [_say(self.count, self.size_unit)] if self.size else []
        parts += [_say(self.rate, self.speed_unit)] if self.rate else []
        return f"{self.label}: {', '.join(parts)}" if parts else self.label

    def __enter__(self) -> Fault:
        try:
            with self._starting:
                if self._dead_servers():
                    raise self._unanswered()
                self.start()
        except OSError as error:
            self.end()
            raise self._unanswered(error) from None
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop the fault, also while it starts; raises LabError when its load failed meanwhile."""
        self.ending.set()
        # What start() still makes must not come after it was put back.
        with self._starting:
            pass
        for thread in self._background:
            thread.join()
        try:
            self.stack.close()
        except OSError as error:
            raise self._unanswered(error) from None
        if self._failures:
            raise LabError(f"{self.name} stopped by itself: {self._failures[0]}")

    def hold(self, session: Session) -> Session:
        """Keep a session open until the end; trouble() tells when it was lost before."""
        self._held.append(session)
        return self.stack.enter_context(session)

    def trouble(self) -> str | None:
        """Why the fault is not what it says any more, or None."""
        if self._failures:
            return f"it stopped by itself: {self._failures[0]}"
        lost = sum(session.is_lost() for session in self._held)
        return f"{lost} of {plural(len(self._held), 'session')} lost" if lost else None

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as the fault is to end."""
        if self.ending.wait(seconds):
            raise Stopped(f"{self.name} was stopped while it started")

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
        """Wait until `condition` holds; raises Stopped as pause() does, LabError, naming `what`,
        when it does not.
        """
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                raise LabError(f"{self.name} waits in vain for {what}: end other faults first")
            self.pause(0.02)

    def in_background(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread until it returns; it is to do so soon after `ending` is set.

        When it raises LabError or OSError, end() tells.
        """

        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except (LabError, OSError) as error:
                self._failures.append(str(error))

        thread = threading.Thread(target=run, name=self.name)
        self._background.append(thread)
        thread.start()

    def _servers(self) -> list[Server]:
        """The servers that must be running for it to start."""
        pooled = self.needs_pgbouncer or self.via == PGBOUNCER
        return [self.lab.postgres, self.lab.pgbouncer] if pooled else [self.lab.postgres]

    def _dead_servers(self) -> list[str]:
        return [server.title for server in self._servers() if server.process_id is None]

    def _unanswered(self, error: OSError | None = None) -> LabError:
        """Why a server that was asked for something did not answer."""
        if dead := self._dead_servers():
            are = "is" if len(dead) == 1 else "are"
            return LabError(f"{' and '.join(dead)} {are} not running: start the fault 'restart'")
        return LabError(f"a server does not answer ({error}): is another fault on?")

    def _capacity(self) -> int:
        """The connections that the endpoint can hold."""
        if self.via == PGBOUNCER:
            return int(self.lab.pgbouncer.settings["max_client_conn"])
        return self.lab.slots

    def _parse_size(self, text: str) -> int:
        if text and not self.size:
            raise UsageError(f"{self.name} has no size")
        text = text or self.size
        if not text:
            return 0
        digits = text.removesuffix("%")
        if not digits.isdecimal() or int(digits) == 0:
            raise UsageError(f"'{text}' is no size: a count, or a percentage of the limit")
        if digits == text:
            return int(digits)
        return max(self._capacity() * int(digits) // 100, 1)

    def _parse_speed(self, speed: float | None) -> float:
        if speed is None:
            return self.speed
        if not self.speed:
            raise UsageError(f"{self.name} has no speed")
        if not 0 < speed <= 10_000:
            raise UsageError(f"{speed:g} is no speed: above 0, at most 10000 per second")
        return speed


def _say(amount: float, unit: str) -> str:
    """An amount of a unit, which is in the plural: `1 session each way`, `60 connections/s`."""
    return f"{amount:g} " + (unit if amount != 1 else re.sub(r"s\b", "", unit, count=1))


def _one_of(fault: Fault, what: str, given: str, allowed: tuple[str, ...]) -> str:
    if not given:
        return allowed[0]
    if given not in allowed:
        choices = ", ".join(filter(None, allowed)) or "none"
        raise UsageError(f"{fault.name} knows no {what} '{given}' (of: {choices})")
    return given
