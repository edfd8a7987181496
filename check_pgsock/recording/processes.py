"""Processes of a recording: read from a live /proc, and kept as JSON.

Of every process there are `stat` and `status`, and the sockets it holds where its descriptors may
be read. A command line may hold a password: it is kept for PostgreSQL, poolers and port forwarders
(programs.py), together with cgroup, program, working directory and network namespace; of forwarders
without what looks like a secret. Of a postmaster's environment there is only whether it names
libraries of its own, which decides how long titles may be.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from check_pgsock.errors import MalformedError
from check_pgsock.processes import POSTGRES_COMMANDS, parse_stat
from check_pgsock.recording.manifest import parse_json
from check_pgsock.servers.programs import FORWARDER, kind_of

if TYPE_CHECKING:
    from check_pgsock.deadline import Deadline
    from check_pgsock.proc_files import ProcFiles

_ALWAYS = ("stat", "status")
_OF_PROGRAMS = ("cmdline", "cgroup")
_LINKS = ("exe", "cwd")
_LIBRARY_PATH = b"LD_LIBRARY_PATH="
_FILES = frozenset((*_ALWAYS, *_OF_PROGRAMS, "environ"))
_TEXT = ("utf-8", "surrogateescape")  # how bytes are JSON strings
_SECRET = re.compile(
    rb"(.*(?:token|passw|passphrase|secret|credential|auth|api-?key)[^=]*)(=.*)?",
    re.IGNORECASE | re.DOTALL,
)


class Recorded(NamedTuple):
    """One process. What may not be read is not there."""

    files: dict[str, bytes]  # by their names in /proc/PID
    links: dict[str, str]
    sockets: dict[str, int] | None  # inode by descriptor; None: not readable
    network: int | None  # inode of its /proc/PID/net/dev: one for each network namespace

    @property
    def command(self) -> str:
        """Its task comm."""
        return parse_stat(self.files["stat"])[0]

    @property
    def parent(self) -> int:
        """Its parent's process id."""
        return parse_stat(self.files["stat"])[1]


def read_processes(files: ProcFiles, deadline: Deadline) -> dict[int, Recorded]:
    """All processes that can be seen, by process id; one that ends meanwhile is left out."""
    deadline.doing = f"reading the processes of {files.root}"
    try:
        names = files.names()
    except OSError:
        return {}
    found = {}
    for name in sorted((one for one in names if one.isdigit()), key=int):
        deadline.remaining()
        one = _read_process(files, name)
        if one is not None:
            found[int(name)] = one
    for pid, one in found.items():
        if one.command in POSTGRES_COMMANDS and not _is_postgres(found.get(one.parent)):
            one.files.update(_read_library_path(files, str(pid)))
    return found


def _read_process(files: ProcFiles, pid: str) -> Recorded | None:
    found = _read_files(files, pid, _ALWAYS)
    try:
        command = parse_stat(found["stat"])[0]
    except (KeyError, ValueError, IndexError):
        return None
    if "status" not in found:
        return None
    try:
        sockets = _read_sockets(files, pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    kind = kind_of(command)
    if kind is None:
        return Recorded(found, {}, sockets, None)
    found.update(_read_files(files, pid, _OF_PROGRAMS))
    if kind == FORWARDER and "cmdline" in found:
        found["cmdline"] = remove_secrets(found["cmdline"])
    links = {}
    for name in _LINKS:
        try:
            links[name] = files.link(pid, name)
        except OSError:
            continue
    return Recorded(found, links, sockets, identify_network(os.path.join(files.root, pid)))


def identify_network(process: str) -> int | None:
    """What tells the network namespace of a process (a directory of /proc) from others, for
    everybody: see namespaces.py. None where it cannot be seen.
    """
    try:
        return os.stat(os.path.join(process, "net", "dev")).st_ino
    except OSError:
        return None


def _read_files(files: ProcFiles, pid: str, names: Iterable[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        try:
            found[name] = files.read(pid, name)
        except OSError:
            continue
    return found


def _read_sockets(files: ProcFiles, pid: str) -> dict[str, int] | None:
    try:
        descriptors = files.names(pid, "fd")
    except (FileNotFoundError, ProcessLookupError):
        raise  # it has ended
    except OSError:
        return None
    found = {}
    for one in descriptors:
        try:
            target = files.link(pid, "fd", one)
        except OSError:
            continue
        if target.startswith("socket:["):
            found[one] = int(target[8:-1])
    return found


def _is_postgres(one: Recorded | None) -> bool:
    return one is not None and one.command in POSTGRES_COMMANDS


def _read_library_path(files: ProcFiles, pid: str) -> dict[str, bytes]:
    found = _read_files(files, pid, ("environ",))
    if found:
        names_one = any(one.startswith(_LIBRARY_PATH) for one in found["environ"].split(b"\0"))
        found["environ"] = _LIBRARY_PATH + b"\0" if names_one else b"\0"
    return found


def remove_secrets(command_line: bytes) -> bytes:
    """A command line without the values of what is named like a secret: --token=..., -secret ...,
    ...,proxyauth=...
    """
    kept, is_secret = [], False
    for one in command_line.split(b"\0"):
        if is_secret and not one.startswith(b"-"):
            one = b""
        match = _SECRET.fullmatch(one)
        is_secret = match is not None and match[2] is None and one.startswith(b"-")
        kept.append(one if match is None or match[2] is None else match[1] + match[2][:1])
    return b"\0".join(kept)


def pack_processes(processes: Mapping[int, Recorded]) -> bytes:
    """The JSON text."""
    whole = {
        str(pid): {
            **one._asdict(),
            "files": {name: raw.decode(*_TEXT) for name, raw in one.files.items()},
        }
        for pid, one in processes.items()
    }
    return json.dumps(whole, separators=(",", ":")).encode("ascii")


def parse_processes(raw: bytes) -> dict[int, Recorded]:
    """The processes by id; raises MalformedError."""
    try:
        whole = parse_json(raw)
        if not isinstance(whole, dict):
            raise ValueError("it is no object")
        return {_parse_pid(pid): _parse_process(one) for pid, one in whole.items()}
    except (ValueError, IndexError) as error:
        raise MalformedError(f"processes.json: {error}") from None


def _parse_pid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ValueError("a process id that is none")
    return int(text)


def _parse_process(values: object) -> Recorded:
    if not isinstance(values, dict):
        raise ValueError("a process is no object")
    files = _values(values.get("files"), str, "files")
    links = _values(values.get("links"), str, "links")
    sockets, network = values.get("sockets"), values.get("network")
    if sockets is not None:
        sockets = _values(sockets, int, "sockets")
    if type(network) not in (int, type(None)):
        raise ValueError("the network of a process is no number")
    if not {*_ALWAYS} <= set(files) <= _FILES:
        raise ValueError("a process has not the files that it should have")
    found = Recorded(
        {name: text.encode(*_TEXT) for name, text in files.items()}, links, sockets, network
    )
    parse_stat(found.files["stat"])
    return found


def _values(values: object, kind: type, what: str) -> dict[str, Any]:
    if not isinstance(values, dict) or any(type(one) is not kind for one in values.values()):
        raise ValueError(f"the {what} of a process are not {kind.__name__} by name")
    return values
