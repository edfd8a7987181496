"""The life of a throw-away server: a directory, a free port, a process, and nothing after it."""

from __future__ import annotations

import abc
import contextlib
import subprocess
import time
from pathlib import Path
from typing import ClassVar, TypeVar

from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.hosts import Host
from check_pgsock.pgsock.lab.wire import Session

# Times that a free port is looked for: somebody may take it before the server does.
_TRIES = 3


AnyServer = TypeVar("AnyServer", bound="Server")


class Server(abc.ABC):
    """A context manager: a new server, started on enter, killed and removed on exit.

    It listens on `host`. Started by root, it runs as `user`. Without `port` a free one is chosen.
    Its directory lies in `parent`, or below that for temporary files; `socket_directory` in it
    holds its Unix socket.
    """

    title: ClassVar[str]
    # What its error says when the port is another's.
    taken: ClassVar[str]

    def __init__(self, *, port: int, user: str, host: Host, parent: Path | None) -> None:
        self.on = host
        self.host = host.address
        self.port = port
        self.socket_directory = Path()
        self.log = Path()
        self._port_is_given = port != 0
        self._user = user
        self._parent = parent
        self._account: accounts.Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The pid of its (first) process; raises LabError when it is not running."""
        pid = self.process_id
        if pid is None:
            raise LabError(f"{self.title} is not running")
        return pid

    @property
    def process_id(self) -> int | None:
        """Its pid, or None when it is not running."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """A conninfo string for its TCP port."""
        return f"host={self.host} port={self.port} dbname={database} user={user}"

    def connect(
        self, database: str = "postgres", user: str = "postgres", *, from_host: Host | None = None
    ) -> Session:
        """A new raw session over TCP, from its own host or another; raises as
        Session.connect() does.
        """
        with (from_host or self.on).entered():
            return Session.connect(self.host, self.port, user, database)

    def start(self, seconds: float = 30.0) -> None:
        """Start it and wait until it takes connections.

        Raises LabError, with the end of its log, when it does not within `seconds`.
        """
        self._before_start()
        self._process = processes.spawn(self._command(), self._account, self.log, self.on)
        give_up = time.monotonic() + seconds
        while not self._is_ready():
            if self._process.poll() is not None:
                raise LabError(f"{self.title} did not start; {processes.tail(self.log)}")
            if time.monotonic() > give_up:
                raise LabError(f"{self.title} is not ready; {processes.tail(self.log)}")
            time.sleep(0.01)

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop it at once and leave its files; it ends in any case."""

    def restart(self) -> None:
        """Stop and start; raises as start() does."""
        self.stop()
        self.start()

    def ensure_running(self) -> None:
        """Start it when it is not running; raises as start() does."""
        if self.process_id is None:
            self.start()

    def __enter__(self: AnyServer) -> AnyServer:
        try:
            self._account = accounts.account_of(self._user)
            name = f"pgsock-{self.title.lower()}-"
            self._create(self._stack.enter_context(fresh_directory(name, parent=self._parent)))
            self._start_on_free_port()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _make_socket_directory(self, directory: Path) -> None:
        self.socket_directory = directory / "socket"
        self._make_own(self.socket_directory, 0o755)

    def _make_own(self, path: Path, mode: int) -> None:
        path.mkdir()
        path.chmod(mode)
        accounts.own(path, self._account)

    def _start_on_free_port(self) -> None:
        for attempt in range(1, _TRIES + 1):
            if not self._port_is_given:
                with self.on.entered():
                    self.port = processes.free_port(self.host)
            self._set_port()
            try:
                self.start()
                return
            except LabError as error:
                self.stop()
                if self._port_is_given or attempt == _TRIES or self.taken not in str(error):
                    raise

    @abc.abstractmethod
    def _create(self, directory: Path) -> None:
        """Make its files in `directory`, which is removed with it."""

    @abc.abstractmethod
    def _set_port(self) -> None:
        """Write `port` to its configuration."""

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """The command line that runs it in the foreground."""

    def _before_start(self) -> None:  # noqa: B027  # most need nothing
        """Take note of what _is_ready() needs."""

    @abc.abstractmethod
    def _is_ready(self) -> bool:
        """Whether it takes connections; raises LabError when it never will."""

    def _leave(self) -> None:
        with self._stack:
            self.stop()
