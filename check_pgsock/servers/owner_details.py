"""What is known of the program that owns an endpoint: where it keeps its data or configuration,
its version, and how many connections it can hold.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from check_pgsock.errors import SourceError
from check_pgsock.pgbouncer.ini import find_path
from check_pgsock.pgbouncer.process import read_process_ini
from check_pgsock.servers import limits
from check_pgsock.servers.auto_limit import LimitReader
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.programs import PGBOUNCER, POOLER, POSTGRESQL, pooler_of

if TYPE_CHECKING:
    from check_pgsock.processes import Process
    from check_pgsock.servers.listeners import Endpoint
    from check_pgsock.view import View

_CONFIGURATION_ENDINGS = (".conf", ".ini", ".json", ".toml", ".yaml", ".yml")


class Details:
    """What is known of an owner; absent is None. `unseen` says, by the names here (and `owner`),
    why what there should be could not be read.
    """

    __slots__ = (
        "assumed", "configuration_file", "data_directory", "limit", "limit_pending",
        "limit_source", "max_connections", "reserved", "unseen", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.data_directory: str | None = None
        self.version: int | None = None
        self.configuration_file: str | None = None
        self.limit: int | None = None  # usable slots
        self.max_connections: int | None = None
        self.reserved: int | None = None
        self.assumed: bool | None = None  # whether `reserved` is the default, unread
        self.limit_source: str | None = None
        self.limit_pending: str | None = None  # what a change of the configuration means
        self.unseen: dict[str, str] = {}


def read_details(view: View, one: Endpoint, backlog: int | None) -> Details:
    """Read what is known of the owner of an endpoint; `backlog` is the one that all listeners of
    it share, None where they do not.
    """
    found = Details()
    owner = one.owner
    if owner is None:
        return found
    if len(owner.processes) > 1:
        found.unseen["limit"] = "which of the processes it is is not known"
        return found
    (process,) = owner.processes
    if owner.kind == POSTGRESQL:
        _read_postgresql(view, process, found)
        if owner.proven:
            _read_postgresql_limit(view, one, process, backlog, found)
        else:
            found.unseen["limit"] = "whose server it is is not proven"
    elif pooler_of(process.command) == PGBOUNCER:
        _read_pgbouncer(view, process, found)
    elif owner.kind == POOLER:
        found.configuration_file = _find_configuration(process.arguments)
        found.unseen["limit"] = f"only of PostgreSQL and PgBouncer, not of {process.command}"
    return found


def _rights(process: Process) -> str:
    """The rights that what is not seen of a process takes, if we do not have them."""
    if os.geteuid() in (0, process.uid):
        return ""
    return f": that takes root, or the user of process {process.pid}"


def _read_postgresql(view: View, process: Process, found: Details) -> None:
    try:
        found.data_directory = view.files.link(str(process.pid), "cwd")
    except OSError as error:
        # To others it is what the command line says, where it does.
        found.data_directory = _find_data_directory(process.arguments)
        if found.data_directory is None:
            found.unseen["data_directory"] = f"{error.strerror}{_rights(process)}"


def _read_postgresql_limit(
    view: View, one: Endpoint, process: Process, backlog: int | None, found: Details
) -> None:
    endpoint = f"socket {one.path}" if one.address is None else f"port {one.port}"
    source = LimitReader(view, one.reader, process, endpoint, backlog)
    try:
        if view.recorded is not None:
            found.version = view.recorded.version(endpoint, [one.listener])
            limit, found.limit_pending = view.recorded.limit(endpoint, [one.listener])
        elif one.reader.saved:
            found.unseen["limit"] = "it is not in a saved moment"
            return
        else:
            found.version = source.major()
            limit, found.limit_pending = source.read(), source.pending
    except LimitUnknown as error:
        found.unseen["limit"] = f"{error.why or error}{_rights(process)}"
        return
    found.limit, found.limit_source = limit.usable, limit.source
    found.max_connections, found.reserved = limit.max_connections, limit.reserved
    found.assumed = limit.assumed
    if limit.assumed and not source.compared:
        why = f"postgres -C may not be run or does not answer{_rights(process)}"
        found.unseen["limit_pending"] = why


def _find_data_directory(arguments: list[str]) -> str | None:
    """The data directory on a postmaster's command line, if it is there and absolute."""
    found = limits.parse_arguments(arguments).get("data_directory")
    if found is None:
        for word, following in zip(arguments[1:], [*arguments[2:], ""]):
            if word == "-D":
                found = following
            elif word.startswith("-D"):
                found = word[2:]
    return found if found is not None and os.path.isabs(found) else None


def _find_configuration(arguments: list[str]) -> str | None:
    named = (one.rpartition("=")[2] for one in arguments[1:])
    return next((one for one in named if one.endswith(_CONFIGURATION_ENDINGS)), None)


def _read_pgbouncer(view: View, process: Process, found: Details) -> None:
    table = view.processes()
    found.configuration_file = find_path(process.arguments)
    try:
        ini = read_process_ini(table, process)
    except OSError as error:
        reason = f"{error.filename} cannot be read, {error.strerror}{_rights(process)}"
        found.unseen["limit"] = reason
        return
    except SourceError as error:
        found.unseen["limit"] = str(error)
        return
    found.configuration_file = ini.path
    value = limits.parse_whole(ini.settings["max_client_conn"])
    if value is None:
        found.unseen["limit"] = f"max_client_conn in {ini.path} is no number"
        return
    found.limit = found.max_connections = value
    found.limit_source = f"max_client_conn in {ini.path}"
    started = table.started(process.pid)
    if started is None or ini.changed > started[1] + 1:
        found.limit_pending = (
            f"{ini.path} has changed since the process started: SHOW CONFIG tells what is in effect"
        )
