"""Starting and stopping faults on a running lab, from another process of the same user.

A lab listens on the Unix socket `control` in its home. A request and its answer are one line of
JSON each; an answer has `error` or `result`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults import create
from check_pgsock.pgsock.lab.faults.fault import Fault
from check_pgsock.pgsock.lab.home import homes
from check_pgsock.pgsock.lab.lab import APPLICATION, DATABASE, PREFIX, Lab
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.signals import Signals
from check_pgsock.text import clean

_SOCKET = "control"
_MOST = 65536  # bytes of a request or an answer
# A client that sends nothing holds a thread for so many seconds.
_PATIENCE = 5.0
# Seconds that a fault may take to start or to stop before nobody waits for it any more.
_LONGEST = 600.0


class _Running:
    """A fault that was started: `there` is set when it is there or failed."""

    def __init__(self, fault: Fault, duration: float | None) -> None:
        self.fault = fault
        self.started = time.monotonic()
        self.duration = duration
        self.there = threading.Event()
        self.lock = threading.Lock()


class Controller:
    """The faults on one lab; a context manager that ends all of them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._is_ending = False

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_ending = True
        self._lab.ending.set()
        for timer in self._timers:
            timer.cancel()
        for label in list(self._running):
            with contextlib.suppress(PgsockError):
                self.stop(label)

    def start(self, label: str, size: str, speed: float | None, duration: float | None) -> str:
        """Start a fault and wait until it is there; what was made, in words.

        It stops by itself after `duration` seconds. Raises PgsockError where it cannot be made.
        """
        fault = create(self._lab, label, size, speed)
        if fault.is_instant and duration is not None:
            raise UsageError(f"{fault.name} is over at once: it has no duration")
        with self._lock:
            if self._is_ending:
                raise LabError("this lab is ending")
            if fault.label in self._running:
                raise UsageError(f"{fault.label} is running already: stop it first")
            running = self._running[fault.label] = _Running(fault, duration)
        try:
            fault.__enter__()
        except (PgsockError, OSError) as error:
            with contextlib.suppress(PgsockError):
                self._end(fault.label, running)
            raise LabError(f"{fault.label} cannot be made: {error}") from None
        finally:
            running.there.set()
        if fault.is_instant:
            self._end(fault.label, running)
            return f"{fault.label}: done"
        if duration is not None:
            timer = threading.Timer(duration, self._end_quietly, (fault.label, running))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
        return fault.describe()

    def stop(self, label: str) -> str:
        """Stop a fault, also one that is starting; raises LabError where its load had failed."""
        with self._lock:
            # Its name is enough where it says which.
            found = [each for each in self._running if label in (each, re.split("[:@]", each)[0])]
            label = label if label in found else found[0] if len(found) == 1 else label
            running = self._running.get(label)
            running_now = ", ".join(self._running) or "none"
        if running is None:
            why = "is several faults: name one" if found else "is not running"
            raise UsageError(f"{clean(label)} {why} (running: {running_now})")
        running.fault.ending.set()
        running.there.wait()
        self._end(label, running)
        return f"{label} stopped"

    def status(self) -> dict[str, Any]:
        """The lab's name, process, endpoints and running faults; durations in seconds."""
        now = time.monotonic()
        with self._lock:
            running = list(self._running.items())
        faults = [
            {
                "fault": label,
                "description": each.fault.describe(),
                "state": "running" if each.there.is_set() else "starting",
                "trouble": each.fault.trouble() if each.there.is_set() else None,
                "since_seconds": round(now - each.started, 1),
                "duration_seconds": each.duration,
            }
            for label, each in running
        ]
        return {**describe(self._lab), "faults": faults}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        try:
            what = request.get("do")
            if what == "status":
                return {"result": self.status()}
            if what == "stop":
                return {"result": self.stop(str(request["fault"]))}
            if what == "start":
                wanted = (request["size"], request["speed"], request["duration"])
                return {"result": self.start(str(request["fault"]), *wanted)}
        except PgsockError as error:
            return {"error": str(error)}
        return {"error": f"a lab does not know how to do '{what}'"}

    def _end(self, label: str, running: _Running) -> None:
        with running.lock:
            try:
                running.fault.end()
            finally:
                with self._lock:
                    if self._running.get(label) is running:
                        del self._running[label]

    def _end_quietly(self, label: str, running: _Running) -> None:
        with contextlib.suppress(PgsockError):
            self._end(label, running)


def describe(lab: Lab) -> dict[str, Any]:
    """A lab's name, process and endpoints, as JSON has them."""
    endpoints = []
    servers: list[tuple[str, Server, int]] = [("postgresql", lab.postgres, lab.slots)]
    if lab.pooled:
        servers.append(("pgbouncer", lab.pgbouncer, int(lab.pgbouncer.settings["max_client_conn"])))
    for kind, server, limit in servers:
        endpoints.append(
            {
                "kind": kind,
                "address": server.host,
                "port": server.port,
                "limit": limit,
                "running": server.process_id is not None,
                "pid": server.process_id,
                "socket": f"{server.socket_directory}/.s.PGSQL.{server.port}",
                "dsn": server.dsn(DATABASE, APPLICATION),
            }
        )
    return {
        "name": lab.name,
        "pid": os.getpid(),
        "postgresql_version": lab.binaries.major,
        "directory": str(lab.home.path),
        "endpoints": endpoints,
    }


def serve(lab: Lab, controller: Controller, signals: Signals) -> None:
    """Answer requests until a signal comes; then raises Interrupted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # Only its owner may connect: made before anybody can, with the mode that it keeps.
        old = os.umask(0o177)
        try:
            listener.bind(str(lab.home.path / _SOCKET))
        finally:
            os.umask(old)
        listener.listen(8)
        while True:
            signals.check()
            ready, _, _ = select.select([listener.fileno(), signals.wakeup], [], [])
            if listener.fileno() in ready:
                connection, _ = listener.accept()
                threading.Thread(
                    target=_converse, args=(connection, controller), daemon=True
                ).start()


def _converse(connection: socket.socket, controller: Controller) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_PATIENCE)
        try:
            request = json.loads(_read_line(connection))
            answer = controller.answer(request)
        except (ValueError, KeyError, TypeError, AttributeError):
            answer = {"error": "the request is no line of JSON that a lab knows"}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def ask(name: str | None, request: dict[str, Any]) -> Any:
    """The result of a request to the lab `name`, or to the only one that runs.

    Raises LabError where there is no such lab, several, or it answers with an error.
    """
    path = _choose(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE if request["do"] == "status" else _LONGEST)
        name = path.name.removeprefix(PREFIX)
        try:
            connection.connect(str(path / _SOCKET))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_read_line(connection))
        except socket.timeout:
            raise LabError(f"the lab {name} does not answer: is it stopped?") from None
        except (OSError, ValueError):
            raise LabError(f"the lab {name} has ended") from None
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]


def running_labs() -> list[Path]:
    """The homes of this user's labs that take requests."""
    found = []
    for path in homes(PREFIX):
        control = path / _SOCKET
        with contextlib.suppress(OSError):
            status = control.lstat()
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.settimeout(_PATIENCE)
                    connection.connect(str(control))  # refused where its lab was killed
                found.append(path)
    return found


def _choose(name: str | None) -> Path:
    labs = {path.name.removeprefix(PREFIX): path for path in running_labs()}
    if name is not None:
        if name not in labs:
            raise LabError(f"no lab '{name}' is running (running: {', '.join(labs) or 'none'})")
        return labs[name]
    if not labs:
        raise LabError("no lab of this user is running: start one with 'pgsock lab'")
    if len(labs) > 1:
        raise LabError(f"several labs are running: name one with --lab (of: {', '.join(labs)})")
    return next(iter(labs.values()))


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        received = connection.recv(_MOST)
        if not received or len(data) > _MOST:
            raise OSError("no whole line")
        data += received
    return data
