"""A throw-away PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Union

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.binaries import Binaries
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.processes import LabError
from check_pgsock.pgsock.lab.wire import Row, Session

Setting = Union[str, int, float, bool]

_MODES = {"immediate": signal.SIGQUIT, "fast": signal.SIGINT}

# Everything the server leaves lies in its directory, also when it is killed; nothing needs to
# outlive it.
_SETTINGS: Mapping[str, Setting] = {
    "listen_addresses": "127.0.0.1",
    "dynamic_shared_memory_type": "mmap",
    "fsync": False,
}


class PostgresServer:
    """A context manager: a new cluster, started on enter, killed and removed on exit.

    Started by root, it runs as `user`. The authentication is trust, the superuser `postgres`.
    `settings` go to postgresql.conf, `arguments` to the postmaster's command line, `hba` lines to
    pg_hba.conf. Without `port` a free one is chosen. `socket_directory` holds its Unix socket.
    """

    def __init__(
        self,
        binaries: Binaries,
        *,
        port: int = 0,
        settings: Mapping[str, Setting] | None = None,
        arguments: Sequence[str] = (),
        hba: Sequence[str] = (),
        user: str = "nobody",
    ) -> None:
        self.binaries = binaries
        self.port = port
        self.host = "127.0.0.1"
        self.arguments = tuple(arguments)
        self.data_directory = Path()
        self.socket_directory = Path()
        self.log = Path()
        self.version = binaries.major
        self._port_is_given = port != 0
        self._settings = {**_SETTINGS, **(settings or {})}
        self._hba = hba
        self._user = user
        self._account: processes.Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The postmaster's pid; raises LabError when the server is not running."""
        if self._process is None or self._process.poll() is not None:
            raise LabError("the server is not running")
        return self._process.pid

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """A conninfo string for the server's TCP port."""
        return f"host={self.host} port={self.port} dbname={database} user={user}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> Session:
        """A new raw session over TCP; raises as Session.connect() does."""
        return Session.connect(self.host, self.port, user, database)

    def execute(self, sql: str, database: str = "postgres") -> list[Row]:
        """The rows of `sql`, run over the Unix socket: no TCP socket is left behind."""
        directory = str(self.socket_directory)
        with Session.connect(directory, self.port, "postgres", database) as session:
            return session.query(sql)

    def process_ids(self) -> list[int]:
        """The pids of the postmaster and all its processes."""
        return processes.running_in(self.data_directory)

    def terminate(self, backend_pids: Iterable[int]) -> None:
        """End these backends as pg_terminate_backend() does, without a slot for the question."""
        for pid in set(backend_pids).intersection(self.process_ids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def configure(self, settings: Mapping[str, Setting]) -> None:
        """Append `settings` to postgresql.conf; restart() or a reload makes them hold."""
        lines = [f"{name} = {_literal(value)}\n" for name, value in settings.items()]
        with open(self.data_directory / "postgresql.conf", "a", encoding="utf-8") as stream:
            stream.writelines(lines)

    def start(self, seconds: float = 30.0) -> None:
        """Start the server on its cluster and wait until it takes connections.

        Raises LabError, with the end of its log, when it does not within `seconds`.
        """
        command = [self.binaries.path("postgres"), "-D", str(self.data_directory)]
        self._process = processes.spawn([*command, *self.arguments], self._account, self.log)
        give_up = time.monotonic() + seconds
        while not self._takes_connections():
            if self._process.poll() is not None:
                raise LabError(f"PostgreSQL did not start; {processes.tail(self.log)}")
            if time.monotonic() > give_up:
                raise LabError(f"PostgreSQL is not ready; {processes.tail(self.log)}")
            time.sleep(0.01)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server ("immediate" or "fast") and leave its cluster; it ends in any case."""
        if self._process is None:
            return
        try:
            # A postmaster that shuts down immediately kills what has not ended after 5 s.
            processes.end(self._process, _MODES[mode], 15)
        finally:
            processes.kill_all_in(self.data_directory)
            self._remove_shared_memory()

    def restart(self, mode: str = "immediate") -> None:
        """Stop and start; raises as start() does."""
        self.stop(mode)
        self.start()

    def __enter__(self) -> PostgresServer:
        try:
            self._create()
            self._start_on_free_port()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _create(self) -> None:
        self._account = processes.account_of(self._user)
        directory = self._stack.enter_context(fresh_directory("pgsock-postgres-"))
        self.data_directory = directory / "data"
        self.socket_directory = directory / "socket"
        self.log = directory / "log"
        for path, mode in ((self.data_directory, 0o700), (self.socket_directory, 0o755)):
            path.mkdir()
            path.chmod(mode)
            processes.own(path, self._account)
        command = [self.binaries.path("initdb"), "-D", str(self.data_directory)]
        command += ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust"]
        processes.run_to_end([*command, "--username=postgres"], self._account, self.log, 60)
        self.configure({"unix_socket_directories": str(self.socket_directory), **self._settings})
        with open(self.data_directory / "pg_hba.conf", "a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in self._hba)

    def _start_on_free_port(self) -> None:
        tries = 1 if self._port_is_given else 3
        for attempt in range(1, tries + 1):
            if not self._port_is_given:
                self.port = processes.free_port(self.host)
            self.configure({"port": self.port})
            try:
                self.start()
                return
            except LabError as error:
                # Somebody may have taken the port since it was found free.
                if attempt == tries or "could not bind" not in str(error):
                    raise

    def _takes_connections(self) -> bool:
        """Whether the postmaster says so on line 8 of its pid file (LOCK_FILE_LINE_PM_STATUS).

        A connection to find it out would leave a socket in TIME_WAIT.
        """
        lines = self._pid_file()
        return (
            self._process is not None
            and len(lines) >= 8
            and lines[0] == str(self._process.pid)
            and lines[7].strip() in ("ready", "standby")
        )

    def _pid_file(self) -> list[str]:
        try:
            text = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text.splitlines()

    def _remove_shared_memory(self) -> None:
        """Remove the System V segment that a killed postmaster leaves; line 7 is its key and id."""
        lines = self._pid_file()
        if len(lines) >= 7 and len(words := lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", words[1]], check=False, stderr=subprocess.DEVNULL)

    def _leave(self) -> None:
        with self._stack:
            self.stop("immediate")


def _literal(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return str(value)
