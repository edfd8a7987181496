"""`--limit auto`: the limit of a PostgreSQL server that is proven to have an endpoint.

Nothing that belongs to another user is ever executed with more rights than that user's.
"""

import contextlib
import os
import stat

from check_pgsock.processes import Process
from check_pgsock.servers import limits
from check_pgsock.servers.limits import Limit
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.reader import SocketReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional, Union

    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.view import View

    AnyListener = Union[Listener, UnixListener]


def read_limit_of(
    view: "View", reader: SocketReader, postmaster: Process, endpoint: str,
    listeners: "Sequence[AnyListener]",
) -> "tuple[Limit, Optional[str]]":  # fmt: skip
    """The limit of the postmaster that is proven to own `listeners`, and a pending change of it;
    of a recording both as they were then. Raises LimitUnknown.
    """
    if view.recorded is not None:
        return view.recorded.limit(endpoint, listeners)
    backlogs = {one.backlog for one in listeners if reader.of_this_host}
    backlog = backlogs.pop() if len(backlogs) == 1 else None
    source = LimitReader(view, reader, postmaster, endpoint, backlog)
    return source.read(), source.pending


class LimitReader:
    """Reads the limit of a proven postmaster, source after source in their order of trust."""

    def __init__(
        self, view: "View", reader: SocketReader, postmaster: Process, endpoint: str,
        backlog: "Optional[int]",
    ) -> None:  # fmt: skip
        self._table = view.processes()
        self._deadline = view.deadline
        self._reader = reader
        self._process = postmaster
        self._endpoint = endpoint
        self._backlog = backlog
        self._data = self._table.path(postmaster.pid, "cwd")
        self._settings = limits.parse_arguments(postmaster.arguments)
        self.pending: Optional[str] = None
        self.compared = False  # whether the configuration file was asked what is pending

    def read(self) -> Limit:
        """The limit; raises LimitUnknown with every source's reason."""
        self._deadline.doing = f"reading the limit of {self._endpoint}"
        # Without it every backlog counts as capped by it.
        somaxconn = self._reader.setting("net/core/somaxconn") or 0
        reasons = []
        major = self.major()
        given = limits.parse_whole(self._settings.get("max_connections"))
        if given is not None:
            return self._limit(given, "the postmaster's command line", major)
        reasons.append("its command line does not set max_connections")
        try:
            value, primary = self._control()
            if primary:
                return self._limit(value, "pg_control", major)
            reasons.append("pg_control of a standby may name its primary's")
        except (OSError, ValueError) as error:
            reasons.append(f"pg_control: {getattr(error, 'strerror', None) or error}")
        file = self._file_settings(limits.BACKLOG_SETTINGS)
        if len(file) == len(limits.BACKLOG_SETTINGS):
            if limits.backlog_confirms(major, file, self._backlog, somaxconn):
                return self._limit(
                    file["max_connections"], "postgres -C, confirmed by the backlog", major
                )
            reasons.append("what postgres -C says is not confirmed by the listener's backlog")
        else:
            reasons.append("postgres -C may not be run or does not answer")
        value_or_none = limits.max_connections_from_backlog(major, self._backlog, somaxconn)
        if value_or_none is not None:
            return self._limit(value_or_none, f"the listener's backlog of {self._backlog}", major)
        reasons.append(self._backlog_reason(major, somaxconn))
        raise limits.unknown(self._endpoint, ", ".join(reasons))

    def _backlog_reason(self, major: "Optional[int]", somaxconn: int) -> str:
        if self._backlog is None:
            return "no one backlog of its listeners is known"
        if major is None:
            return "the backlog does not tell it without the server's version"
        if not somaxconn:
            return "somaxconn, which may cap the backlog, cannot be read"
        if self._backlog >= somaxconn:
            return f"the backlog is capped by somaxconn {somaxconn}"
        return f"the backlog does not tell it on version {major}"

    def _limit(self, value: int, source: str, major: "Optional[int]") -> Limit:
        settings = dict(self._settings)
        missing = [
            name
            for name in limits.DEFAULT_RESERVED
            if limits.parse_whole(settings.get(name)) is None
            and not (name == "reserved_connections" and major is not None and major < 16)
        ]
        if missing:
            file = self._file_settings(("max_connections", *missing))
            self.compared = "max_connections" in file
            if file.get("max_connections") == value:
                settings.update({name: str(file[name]) for name in missing if name in file})
                if self._file_has_changed():
                    self.pending = (
                        "reserved slots are those of the configuration file, which has changed "
                        "since the server started"
                    )
            elif "max_connections" in file:
                self.pending = (
                    f"the configuration file says max_connections {file['max_connections']}, "
                    "in effect after a restart"
                )
        reserved, assumed = limits.reserved_slots(settings, major)
        if value <= reserved:
            raise limits.unknown(
                self._endpoint, f"max_connections {value} with {reserved} reserved"
            )
        return Limit(value, reserved, source, assumed)

    def _control(self) -> "tuple[int, bool]":
        path = os.path.join(self._data, "global", "pg_control")
        seen = b""
        for _ in range(3):  # two equal readings: not caught within a write
            with open(path, "rb", 0) as file:
                raw = file.read(8192)
            if raw == seen:
                break
            seen = raw
        else:
            raise ValueError("pg_control changes too fast to be read")
        return limits.parse_control_file(raw)

    def major(self) -> "Optional[int]":
        """The server's major version, from its data directory or its root-owned program."""
        try:
            with open(os.path.join(self._data, "PG_VERSION"), "rb", 0) as file:
                return int(file.read(16))
        except (OSError, ValueError):
            pass
        program = self._process.arguments[0]
        if not _is_roots(program):
            return None
        (answer,) = self._execute(program, [[program, "--version"]])
        words = (answer or "").split()
        if len(words) < 3:
            return None
        return limits.parse_whole(words[2].partition(".")[0])

    def _file_settings(self, names: "tuple[str, ...]") -> "dict[str, int]":
        """What `postgres -C` says of `names`; those without an answer are left out.

        Asked only with the postmaster's own rights: another user's answer lacks
        postgresql.auto.conf without saying so. Never asked of a container's server: its program
        would run outside the container.
        """
        if os.geteuid() not in (0, self._process.uid):
            return {}
        if not self._table.shares_namespaces(self._process.pid):
            return {}
        try:
            program = os.readlink(self._table.path(self._process.pid, "exe"))
            data = os.readlink(self._data)
        except OSError:
            return {}
        executable = self._table.path(self._process.pid, "exe")
        arguments = [*self._process.arguments[1:], "-D", data]
        answers = self._execute(executable, [[program, "-C", name, *arguments] for name in names])
        values = {name: limits.parse_whole(answer) for name, answer in zip(names, answers)}
        return {name: value for name, value in values.items() if value is not None}

    def _file_has_changed(self) -> bool:
        """Whether a configuration file is newer than the server, which so may run with others."""
        started = self._table.started(self._process.pid)
        names = ["postgresql.conf", "postgresql.auto.conf"]
        named = self._settings.get("config_file")
        for name in [*names, named] if named else names:
            try:
                changed = os.stat(os.path.join(self._data, name)).st_mtime
            except OSError:
                continue
            if started is None or changed > started[1] + 1:
                return True
        return False

    def _execute(self, executable: str, commands: "list[list[str]]") -> "list[Optional[str]]":
        """What the commands print, run side by side with the postmaster's rights at most; None
        for one that fails.
        """
        import subprocess

        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            group = self._table.group(self._process.pid)
            if group is None or self._process.uid == 0:
                return [None] * len(commands)
            identity = {"user": self._process.uid, "group": group, "extra_groups": []}
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                running.append(
                    subprocess.Popen(
                        command,
                        executable=executable,
                        cwd="/",
                        env={"LC_ALL": "C"},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        **identity,
                    )
                )
            answers = [one.communicate(timeout=self._deadline.remaining())[0] for one in running]
        except subprocess.TimeoutExpired:
            self._deadline.remaining()
            raise
        except OSError:
            return [None] * len(commands)
        finally:
            for one in running:
                if one.returncode is None:
                    one.kill()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        one.communicate(timeout=1)  # or it would be a zombie for as long as we run
        return [
            answer.decode("ascii", "replace").strip() if one.returncode == 0 else None
            for one, answer in zip(running, answers)
        ]


def _is_roots(path: str) -> bool:
    """Whether `path` is a program that only root can have put there: it and every directory
    above it are root's, and nobody else may write to them (a sticky directory keeps others from
    replacing root's entries).
    """
    if not path.startswith("/"):
        return False
    try:
        real = os.path.realpath(path)
        if not stat.S_ISREG(os.stat(real).st_mode):
            return False
        while True:
            status = os.stat(real)
            writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_uid != 0 or (writable and not sticky):
                return False
            if real == "/":
                return True
            real = os.path.dirname(real)
    except OSError:
        return False
