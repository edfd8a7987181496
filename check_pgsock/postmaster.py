"""Whose postmaster a listener is, and what limit it runs with: read without a connection.

A process title proves nothing by itself, since any process may call itself `postgres: ...`. A
postmaster counts as the owner of a port only by the proofs of `prove`; nothing that belongs to
another user is ever executed with more rights than that user's.
"""

import os
import stat

from check_pgsock import limits
from check_pgsock.deadline import Deadline
from check_pgsock.errors import PgsockError
from check_pgsock.limits import Limit
from check_pgsock.processes import (
    POSTGRES_COMMANDS,
    TITLE_PREFIX,
    Process,
    ProcessTable,
    parse_title_peer,
)
from check_pgsock.sockets.model import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Callable, Optional

    Peer = tuple[bytes, int]

# Programs that listen as the database's user on some systems: with one of them around, a uid
# alone does not say who listens.
_POOLERS = frozenset(
    ("pgbouncer", "odyssey", "pgcat", "pgdog", "pgpool", "haproxy", "envoy", "nginx", "socat",
     "ssh", "stunnel4", "stunnel", "docker-proxy", "rootlessport")
)  # fmt: skip


class LimitUnknown(PgsockError):
    """No source tells the limit; the message says why and names --limit."""


class Cluster:
    """A postmaster and the clients that its children's titles name (read when first asked)."""

    __slots__ = ("_children", "_peers", "_table", "postmaster")

    def __init__(
        self, postmaster: Process, children: "list[tuple[int, str]]", table: ProcessTable
    ) -> None:
        self.postmaster = postmaster
        self._children = children
        self._table = table
        self._peers: Optional[set[Peer]] = None

    @property
    def peers(self) -> "set[Peer]":
        """Address and port of each client named in a title; only children with the postmaster's
        own uid count.
        """
        if self._peers is None:
            self._peers = set()
            for pid, command in self._children:
                child = self._table.process(pid, command, self.postmaster.pid)
                if (
                    child is not None
                    and child.uid == self.postmaster.uid
                    and child.title.startswith(TITLE_PREFIX)
                ):
                    peer = parse_title_peer(child.title)
                    if peer is not None:
                        self._peers.add(peer)
        return self._peers


def read_clusters(table: ProcessTable, uids: "Collection[int]") -> "tuple[list[Cluster], set[str]]":
    """The clusters whose postmaster runs with one of `uids`, and the commands of all processes
    that are no PostgreSQL's.
    """
    commands = table.commands()
    servers = {
        pid: (command, parent)
        for pid, (command, parent) in commands.items()
        if command in POSTGRES_COMMANDS
    }
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, (command, parent) in servers.items():
        children.setdefault(parent, []).append((pid, command))
    clusters = []
    for pid, (command, parent) in servers.items():
        if parent in servers or pid not in children:
            continue
        process = table.process(pid, command, parent)
        if process is not None and process.uid in uids:
            clusters.append(Cluster(process, children[pid], table))
    others = {command for command, _ in commands.values() if command not in POSTGRES_COMMANDS}
    return clusters, others


def prove(
    port: int,
    clusters: "list[Cluster]",
    held: "Callable[[int], Optional[set[int]]]",
    listeners: "list[Listener]",
    peers: "Collection[Peer]",
    all_listeners: "list[Listener]",
    others: "Collection[str]",
) -> "tuple[Process, str]":
    """The postmaster that owns `listeners` on `port`, and the proof in words.

    `held` gives the socket inodes of a process or None, `peers` the remote ends of the port's
    connections. Raises LimitUnknown.
    """
    inodes = {one.inode for one in listeners}
    readable = [(one, held(one.postmaster.pid)) for one in clusters]
    for cluster, found in readable:
        if found is not None and found & inodes:
            return cluster.postmaster, "it holds the listener"
    candidates = [cluster for cluster, found in readable if found is None]
    if not candidates:
        raise _unknown(port, "no PostgreSQL server that may be seen from here owns its listener")
    ports = {
        one: limits.parse_whole(limits.parse_arguments(one.postmaster.arguments).get("port"))
        for one in candidates
    }
    named = [one for one in candidates if ports[one] == port]
    if len(named) == 1:
        return named[0].postmaster, "its command line names the port"
    candidates = [one for one in candidates if ports[one] in (None, port)]
    # A peer that two clusters claim (same address and port, to two servers) proves neither.
    claims: dict[Peer, int] = {}
    for one in candidates:
        for peer in one.peers:
            claims[peer] = claims.get(peer, 0) + 1
    joined = [
        one for one in candidates if any(peer in peers and claims[peer] == 1 for peer in one.peers)
    ]
    if len(joined) == 1:
        return joined[0].postmaster, "the titles of its backends name connections of the port"
    uids = {one.uid for one in listeners}
    listened = {one.port for one in all_listeners if one.uid in uids}
    if len(candidates) == 1 and listened == {port} and not _POOLERS.intersection(others):
        return candidates[0].postmaster, "it is the only one with the listener's uid"
    raise _unknown(port, "which PostgreSQL server owns its listener cannot be proven from here")


def _unknown(port: int, why: str) -> LimitUnknown:
    return LimitUnknown(
        f"the limit of port {port} cannot be read: {why}; name the usable slots with --limit N"
    )


class LimitReader:
    """Reads the limit of a proven postmaster, source after source in their order of trust."""

    def __init__(
        self, table: ProcessTable, postmaster: Process, port: int, backlog: "Optional[int]",
        deadline: Deadline,
    ) -> None:  # fmt: skip
        self._table = table
        self._process = postmaster
        self._port = port
        self._backlog = backlog
        self._deadline = deadline
        self._data = table.path(postmaster.pid, "cwd")
        self._settings = limits.parse_arguments(postmaster.arguments)
        self.pending: Optional[str] = None

    def read(self) -> Limit:
        """The limit; raises LimitUnknown with every source's reason."""
        self._deadline.doing = f"reading the limit of port {self._port}"
        somaxconn = self._somaxconn()
        reasons = []
        major = self._major()
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
        raise _unknown(self._port, ", ".join(reasons))

    def _backlog_reason(self, major: "Optional[int]", somaxconn: int) -> str:
        if self._backlog is None:
            return "procfs tells no backlog"
        if major is None:
            return "the backlog does not tell it without the server's version"
        if self._backlog >= somaxconn:
            return f"the backlog is capped by somaxconn {somaxconn}"
        return f"the backlog does not tell it on version {major}"

    def _limit(self, value: int, source: str, major: "Optional[int]") -> Limit:
        settings = dict(self._settings)
        missing = [
            name
            for name in limits.DEFAULT_RESERVED
            if name not in settings
            and not (name == "reserved_connections" and major is not None and major < 16)
        ]
        if missing:
            file = self._file_settings(("max_connections", *missing))
            if file.get("max_connections") == value:
                settings.update({name: str(file[name]) for name in missing if name in file})
            elif "max_connections" in file:
                self.pending = (
                    f"the configuration file says max_connections {file['max_connections']}, "
                    "in effect after a restart"
                )
        reserved, assumed = limits.reserved_slots(settings, major)
        if value <= reserved:
            raise _unknown(self._port, f"max_connections {value} with {reserved} reserved")
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

    def _somaxconn(self) -> int:
        try:
            with open("/proc/sys/net/core/somaxconn", "rb", 0) as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0  # every backlog counts as capped

    def _major(self) -> "Optional[int]":
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
        postgresql.auto.conf without saying so.
        """
        if os.geteuid() not in (0, self._process.uid):
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
