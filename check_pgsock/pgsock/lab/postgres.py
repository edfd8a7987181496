"""A throw-away PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Union

from check_pgsock.pgsock.lab import janitor, processes
from check_pgsock.pgsock.lab.binaries import Binaries
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.hosts import LOCAL, Host
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.wire import Row, Session

Setting = Union[str, int, float, bool]

_MODES = {"immediate": signal.SIGQUIT, "fast": signal.SIGINT}

# Everything the server leaves lies in its directory, also when it is killed; nothing needs to
# outlive it.
_SETTINGS: Mapping[str, Setting] = {
    "dynamic_shared_memory_type": "mmap",
    "fsync": False,
}


class PostgresServer(Server):
    """A context manager: a new cluster, started on enter, killed and removed on exit.

    Beyond what Server says: the authentication is trust, the superuser `postgres`. `settings` go
    to postgresql.conf, `arguments` to the postmaster's command line, `hba` lines to the head of
    pg_hba.conf, `ident` lines to pg_ident.conf.
    """

    title = "PostgreSQL"
    taken = "could not bind"

    def __init__(
        self,
        binaries: Binaries,
        *,
        port: int = 0,
        settings: Mapping[str, Setting] | None = None,
        arguments: Sequence[str] = (),
        hba: Sequence[str] = (),
        ident: Sequence[str] = (),
        user: str = "nobody",
        host: Host = LOCAL,
        parent: Path | None = None,
    ) -> None:
        super().__init__(port=port, user=user, host=host, parent=parent)
        self.binaries = binaries
        self.version = binaries.major
        self.arguments = tuple(arguments)
        self.data_directory = Path()
        self._settings = {"listen_addresses": self.host, **_SETTINGS, **(settings or {})}
        self._hba = hba
        self._ident = ident

    def execute(self, sql: str, database: str = "postgres") -> list[Row]:
        """The rows of `sql`, run over the Unix socket: no TCP socket is left behind."""
        with self.administrator(database) as session:
            return session.query(sql)

    def administrator(self, database: str = "postgres") -> Session:
        """A new session of the superuser over the Unix socket; raises as Session.connect() does."""
        return Session.connect(str(self.socket_directory), self.port, "postgres", database)

    def process_ids(self) -> list[int]:
        """The pids of the postmaster and all its processes."""
        return janitor.working_below(self.data_directory)

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

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server ("immediate" or "fast") and leave its cluster; it ends in any case.

        Raises LabError where a process of it cannot be killed.
        """
        if self.data_directory == Path():
            return  # nothing was made yet
        try:
            if self._process is not None:
                # A postmaster that shuts down immediately kills what has not ended after 5 s.
                processes.end(self._process, _MODES[mode], 15)
        finally:
            # Also what initdb left that was ended: it runs servers, too.
            left = janitor.kill_below(self.data_directory)
            janitor.remove_shared_memory(self.data_directory)
            if left:
                raise LabError(f"processes {left} of {self.data_directory} do not end")

    def restart(self, mode: str = "immediate") -> None:
        """Stop and start; raises as start() does."""
        self.stop(mode)
        self.start()

    def _create(self, directory: Path) -> None:
        self.data_directory = directory / "data"
        self.log = directory / "log"
        self._make_own(self.data_directory, 0o700)
        self._make_socket_directory(directory)
        self._make_cluster()
        self.configure({"unix_socket_directories": str(self.socket_directory), **self._settings})
        for name, lines in (("pg_hba.conf", self._hba), ("pg_ident.conf", self._ident)):
            path = self.data_directory / name
            given = path.read_text(encoding="utf-8")
            path.write_text("".join(f"{line}\n" for line in lines) + given, encoding="utf-8")

    def _make_cluster(self) -> None:
        """Fill the data directory."""
        command = [self.binaries.path("initdb"), "-D", str(self.data_directory)]
        command += ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust"]
        processes.run_to_end([*command, "--username=postgres"], self._account, self.log, 60)

    def _set_port(self) -> None:
        self.configure({"port": self.port})

    def _command(self) -> list[str]:
        return [
            self.binaries.path("postgres"), "-D", str(self.data_directory), *self.arguments,
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        """Whether the postmaster says so on line 8 of its pid file (LOCK_FILE_LINE_PM_STATUS).

        A connection to find it out would leave a socket in TIME_WAIT. It goes on to say so while
        the postmaster recovers from a crash of a backend.
        """
        try:
            text = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        lines = text.splitlines()
        return (
            self._process is not None
            and len(lines) >= 8
            and lines[0] == str(self._process.pid)
            and lines[7].strip() in ("ready", "standby")
        )


def _literal(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return str(value)
