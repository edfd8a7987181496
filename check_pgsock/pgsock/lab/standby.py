"""A streaming standby of a throw-away PostgreSQL, which can take its place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import copy_tree
from check_pgsock.pgsock.lab.postgres import PostgresServer

# Another address of the loopback of every Linux host: 127.0.0.0/8 is all local.
ADDRESS = "127.0.0.2"


class Standby(PostgresServer):
    """A context manager: a copy of the running `primary` that follows it, on the same host and
    port but at another address.

    `tick` is called all the time while it copies, and may raise to end it.
    """

    def __init__(
        self, primary: PostgresServer, tick: Callable[[], None], address: str = ADDRESS
    ) -> None:
        # Over the Unix socket: the primary's TCP sockets are its clients' alone.
        source = f"host='{primary.socket_directory}' port={primary.port} user=postgres"
        super().__init__(
            primary.binaries,
            port=primary.port,
            settings={"listen_addresses": address, "primary_conninfo": source},
            arguments=primary.arguments,
            user=primary._user,
            host=primary.on,
            parent=primary._parent,
        )
        self.host = address
        self._primary = primary
        self._tick = tick

    def is_streaming(self) -> bool:
        """Whether it has all that the primary wrote, and gets what it writes next."""
        # It is the only standby of this primary.
        return self._primary.execute("select state from pg_stat_replication") == [("streaming",)]

    def promote(self) -> None:
        """Ask it to become a primary; is_primary() says when it is one."""
        self.execute("select pg_promote(wait => false)")

    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return self.execute("select pg_is_in_recovery()") == [("f",)]

    def move(self, address: str) -> None:
        """Restart it at another address; its statistics stay."""
        self.configure({"listen_addresses": address})
        self.host = address
        self.restart("fast")

    def _make_cluster(self) -> None:
        """Copy the primary's data as the manual has it: "Making a Base Backup Using the Low Level
        API".
        """
        if self.version < 15:
            start, stop = "pg_start_backup('standby', true, false)", "pg_stop_backup(false)"
        else:
            start, stop = "pg_backup_start('standby', true)", "pg_backup_stop()"
        with self._primary.administrator() as session:
            session.query(f"select {start}")
            copy_tree(
                self._primary.data_directory,
                self.data_directory,
                ignore=self._not_copied,
                copy=self._copy_if_there,
            )
            ((label,),) = session.query(f"select labelfile from {stop}")
        (self.data_directory / "backup_label").write_text(label or "", encoding="utf-8")
        (self.data_directory / "standby.signal").touch()
        for directory, _, names in os.walk(self.data_directory):
            for path in (directory, *(os.path.join(directory, name) for name in names)):
                accounts.own(Path(path), self._account)

    def _not_copied(self, directory: str, names: list[str]) -> list[str]:
        below = os.path.relpath(directory, self._primary.data_directory)
        # It streams all WAL since the backup began.
        if below in ("pg_wal", "pg_replslot"):
            return names
        return ["postmaster.pid", "postmaster.opts"] if below == "." else []

    def _copy_if_there(self, source: str, target: str) -> None:
        self._tick()
        # A running server removes files.
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, target)
