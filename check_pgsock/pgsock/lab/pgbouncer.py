"""A throw-away PgBouncer in front of a throw-away PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.server import Server
from check_pgsock.pgsock.lab.wire import Session

EXECUTABLE = "/usr/sbin/pgbouncer"


class PgBouncerServer(Server):
    """A context manager: a PgBouncer, started on enter, killed and removed on exit.

    Beyond what Server says: every database name leads to that of `server`, unless `databases`
    gives the entries of [databases] by name. `settings` go to [pgbouncer] and win over the named
    ones. The users are postgres, admin (admin_users), stats (stats_users) and `users`, none with a
    password. It runs on the server's host.
    """

    title = "PgBouncer"
    taken = "does not listen"

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
        users: Sequence[str] = (),
        user: str = "nobody",
        executable: str = EXECUTABLE,
        parent: Path | None = None,
    ) -> None:
        super().__init__(port=port, user=user, host=server.on, parent=parent)
        self.server = server
        self.ini = Path()
        self.databases = databases
        self.settings: dict[str, str | int] = {
            "listen_addr": self.host,
            "pool_mode": pool_mode,
            "auth_type": auth_type,
            "max_client_conn": max_client_conn,
            "default_pool_size": default_pool_size,
            "admin_users": "postgres, admin",
            "stats_users": "stats",
            **(settings or {}),
        }
        self._users = users
        self._executable = executable
        self._seen = 0

    @property
    def pool_size(self) -> int:
        """The server connections that each pool has at most (default_pool_size)."""
        return int(self.settings["default_pool_size"])

    def console(self, command: str) -> list[dict[str, str | None]]:
        """The rows of a console command by column name, run over the Unix socket."""
        directory = str(self.socket_directory)
        with Session.connect(directory, self.port, "admin", "pgbouncer") as session:
            rows = session.query(command)
            return [dict(zip(session.columns, row)) for row in rows]

    def server_ports(self) -> list[int]:
        """The pooler's own ports of its connections to PostgreSQL."""
        return [int(row["local_port"] or 0) for row in self.console("SHOW SERVERS")]

    def reload(self) -> None:
        """Let it read `settings` and `databases` as they are now."""
        self._set_port()
        self.console("RELOAD")

    def stop(self) -> None:
        """Stop the pooler at once and leave its files."""
        if self._process is not None:
            processes.end(self._process, signal.SIGTERM, 5)

    def _create(self, directory: Path) -> None:
        if not os.access(self._executable, os.X_OK):
            raise LabError(f"there is no PgBouncer at {self._executable}; install pgbouncer")
        self.ini = directory / "pgbouncer.ini"
        self.log = directory / "log"
        self._make_socket_directory(directory)
        users = directory / "users"
        names = ("postgres", "admin", "stats", *self._users)
        users.write_text("".join(f'"{name}" ""\n' for name in names), encoding="ascii")
        users.chmod(0o644)

    def _set_port(self) -> None:
        databases = self.databases
        if databases is None:
            entry = f"host={self.server.host} port={self.server.port}"
            # auth_type any takes no user from the client, so the entry has to name one.
            if self.settings["auth_type"] == "any":
                entry += " user=postgres"
            databases = {"*": entry}
        settings = {
            "listen_port": self.port,
            "unix_socket_dir": str(self.socket_directory),
            "auth_file": str(self.ini.with_name("users")),
            **self.settings,
        }
        lines = ["[databases]", *(f"{name} = {entry}" for name, entry in databases.items())]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        self.ini.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.ini.chmod(0o644)

    def _command(self) -> list[str]:
        return [self._executable, str(self.ini)]

    def _before_start(self) -> None:
        self._seen = self.log.stat().st_size if self.log.exists() else 0

    def _is_ready(self) -> bool:
        text = self.log.read_bytes()[self._seen :]
        if b"process up: " not in text:
            return False
        # A TCP port in use is no error to PgBouncer as long as there is a Unix socket.
        if not re.search(rb"listening on \S+:%d\b" % self.port, text):
            raise LabError(f"PgBouncer does not listen; {processes.tail(self.log)}")
        return True
