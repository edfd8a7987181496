"""A throw-away PgBouncer in front of a throw-away PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.processes import LabError
from check_pgsock.pgsock.lab.wire import Session

EXECUTABLE = "/usr/sbin/pgbouncer"


class PgBouncerServer:
    """A context manager: a PgBouncer, started on enter, killed and removed on exit.

    Started by root, it runs as `user`. Every database name leads to that of `server`, unless
    `databases` gives the entries of [databases] by name. `settings` go to [pgbouncer] and win
    over the named ones. The users are postgres, admin (admin_users) and stats (stats_users), none
    with a password. Without `port` a free one is chosen.
    """

    def __init__(
        self,
        server: PostgresServer,
        *,
        port: int = 0,
        databases: Mapping[str, str] | None = None,
        pool_mode: str = "session",
        auth_type: str = "trust",
        max_client_conn: int = 100,
        default_pool_size: int = 20,
        settings: Mapping[str, str | int] | None = None,
        user: str = "nobody",
        executable: str = EXECUTABLE,
    ) -> None:
        self.server = server
        self.port = port
        self.host = "127.0.0.1"
        self.socket_directory = Path()
        self.ini = Path()
        self.log = Path()
        self._port_is_given = port != 0
        self._databases = databases
        self._settings: dict[str, str | int] = {
            "listen_addr": self.host,
            "pool_mode": pool_mode,
            "auth_type": auth_type,
            "max_client_conn": max_client_conn,
            "default_pool_size": default_pool_size,
            "admin_users": "postgres, admin",
            "stats_users": "stats",
            **(settings or {}),
        }
        self._user = user
        self._executable = executable
        self._account: processes.Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The pooler's pid; raises LabError when it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise LabError("PgBouncer is not running")
        return self._process.pid

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """A conninfo string for the pooler's TCP port; the console is database `pgbouncer`."""
        return f"host={self.host} port={self.port} dbname={database} user={user}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> Session:
        """A new raw session over TCP; raises as Session.connect() does."""
        return Session.connect(self.host, self.port, user, database)

    def console(self, command: str) -> list[dict[str, str | None]]:
        """The rows of a console command by column name, run over the Unix socket."""
        directory = str(self.socket_directory)
        with Session.connect(directory, self.port, "admin", "pgbouncer") as session:
            rows = session.query(command)
            return [dict(zip(session.columns, row)) for row in rows]

    def server_ports(self) -> list[int]:
        """The pooler's own ports of its connections to PostgreSQL."""
        return [int(row["local_port"] or 0) for row in self.console("SHOW SERVERS")]

    def start(self, seconds: float = 10.0) -> None:
        """Start the pooler and wait until it takes connections.

        Raises LabError, with the end of its log, when it does not within `seconds`.
        """
        seen = self.log.stat().st_size if self.log.exists() else 0
        command = [self._executable, str(self.ini)]
        self._process = processes.spawn(command, self._account, self.log)
        give_up = time.monotonic() + seconds
        # A TCP port in use is no error to PgBouncer as long as there is a Unix socket.
        while b"process up: " not in (text := self.log.read_bytes()[seen:]):
            if self._process.poll() is not None:
                raise LabError(f"PgBouncer did not start; {processes.tail(self.log)}")
            if time.monotonic() > give_up:
                raise LabError(f"PgBouncer is not ready; {processes.tail(self.log)}")
            time.sleep(0.01)
        if not re.search(rb"listening on \S+:%d\b" % self.port, text):
            raise LabError(f"PgBouncer does not listen; {processes.tail(self.log)}")

    def stop(self) -> None:
        """Stop the pooler at once and leave its files."""
        if self._process is not None:
            processes.end(self._process, signal.SIGTERM, 5)

    def restart(self) -> None:
        """Stop and start; raises as start() does."""
        self.stop()
        self.start()

    def __enter__(self) -> PgBouncerServer:
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
        if not os.access(self._executable, os.X_OK):
            raise LabError(f"there is no PgBouncer at {self._executable}; install pgbouncer")
        self._account = processes.account_of(self._user)
        directory = self._stack.enter_context(fresh_directory("pgsock-pgbouncer-"))
        self.socket_directory = directory / "socket"
        self.ini = directory / "pgbouncer.ini"
        self.log = directory / "log"
        self.socket_directory.mkdir()
        self.socket_directory.chmod(0o755)
        processes.own(self.socket_directory, self._account)
        users = directory / "users"
        users.write_text('"postgres" ""\n"admin" ""\n"stats" ""\n', encoding="ascii")
        users.chmod(0o644)

    def _write_ini(self) -> None:
        databases = self._databases
        if databases is None:
            entry = f"host={self.server.host} port={self.server.port}"
            # auth_type any takes no user from the client, so the entry has to name one.
            if self._settings["auth_type"] == "any":
                entry += " user=postgres"
            databases = {"*": entry}
        settings = {
            "listen_port": self.port,
            "unix_socket_dir": str(self.socket_directory),
            "auth_file": str(self.ini.with_name("users")),
            **self._settings,
        }
        lines = ["[databases]", *(f"{name} = {entry}" for name, entry in databases.items())]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        self.ini.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.ini.chmod(0o644)

    def _start_on_free_port(self) -> None:
        tries = 1 if self._port_is_given else 3
        for attempt in range(1, tries + 1):
            if not self._port_is_given:
                self.port = processes.free_port(self.host)
            self._write_ini()
            try:
                self.start()
                return
            except LabError as error:
                # Somebody may have taken the port since it was found free.
                self.stop()
                if attempt == tries or "does not listen" not in str(error):
                    raise

    def _leave(self) -> None:
        with self._stack:
            self.stop()
