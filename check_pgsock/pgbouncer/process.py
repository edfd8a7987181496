"""The configuration file of a running PgBouncer, found by its command line."""

from __future__ import annotations

import os

from check_pgsock.errors import SourceError
from check_pgsock.pgbouncer.ini import Ini, find_path, read_ini
from check_pgsock.processes import Process, ProcessTable


def read_process_ini(table: ProcessTable, process: Process) -> Ini:
    """Read the configuration file of a process, as it is now; its path is absolute.

    A relative path is relative to where the process works, which root and its own user may see.
    Raises OSError where something may not be read, SourceError where there is nothing to read.
    """
    if not table.files.is_live:
        raise SourceError("a saved moment holds no configuration files")
    path = find_path(process.arguments)
    if path is None:
        raise SourceError("its command line names no configuration file")

    def absolute(path: str) -> str:
        return path if path.startswith("/") else os.path.join(working_directory(), path)

    def working_directory() -> str:
        return table.files.link(str(process.pid), "cwd")

    def locate(path: str) -> str:
        """Where it lies, as seen from here: the process may see other file systems."""
        root = table.path(process.pid, "root")
        return f"{root}{absolute(path)}" if os.access(root, os.X_OK) else absolute(path)

    return read_ini(path, locate)._replace(path=absolute(path))
