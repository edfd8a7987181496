"""Processes with other names, command lines, paths and titles; pure."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from check_pgsock.processes import (
    POSTGRES_COMMANDS,
    TITLE_PREFIX,
    parse_command_line,
    parse_title_area,
)
from check_pgsock.recording.anonymize.stand_ins import StandIns
from check_pgsock.recording.anonymize.titles import anonymize_titles
from check_pgsock.recording.processes import Recorded
from check_pgsock.servers import limits
from check_pgsock.servers.limits import parse_arguments, parse_whole
from check_pgsock.servers.programs import kind_of

# What is read from a postmaster's command line.
_SETTINGS = ("port", *limits.BACKLOG_SETTINGS, *limits.DEFAULT_RESERVED)
_NAME_LINE = re.compile(rb"\AName:.*$", re.MULTILINE)
_ENV_END = 48  # field 51 of /proc/PID/stat, counted from behind the command
_DELETED = " (deleted)"


def anonymize_processes(
    processes: Mapping[int, Recorded], stand_ins: StandIns
) -> dict[int, Recorded]:
    """The processes with stand-ins."""
    found = {pid: _anonymize(one, stand_ins) for pid, one in processes.items()}
    families: dict[int, dict[int, bytes]] = {}
    for one_pid, one in processes.items():
        raw = one.files.get("cmdline", b"")
        if one.command in POSTGRES_COMMANDS and _is_childs(raw, processes.get(one.parent)):
            families.setdefault(one.parent, {})[one_pid] = raw
    for parent, raws in families.items():
        postmaster = processes.get(parent)
        before = b"" if postmaster is None else postmaster.files.get("cmdline", b"")
        area = None if postmaster is None else parse_title_area(postmaster.files["stat"])
        after = found[parent].files.get("cmdline", b"") if parent in found else b""
        new = anonymize_titles(raws, before, after, area, stand_ins)
        for pid, raw in new.children.items():
            found[pid].files["cmdline"] = raw
        for pid in (parent, *raws):
            if pid in found:
                files = found[pid].files
                files["stat"] = _lengthen_area(files["stat"], new.longer)
        if before:
            found[parent].files["cmdline"] = new.postmaster
    return found


def _is_childs(raw: bytes, parent: Recorded | None) -> bool:
    """Whether it is a title, or what a child has before it has written one."""
    if raw.startswith(TITLE_PREFIX.encode()):
        return True
    return parent is not None and raw != b"" and raw == parent.files.get("cmdline")


def _anonymize(one: Recorded, stand_ins: StandIns) -> Recorded:
    """A process with stand-ins, but for titles."""
    known = kind_of(one.command) is not None
    command = one.command if known else stand_ins.name("command", one.command)
    files = dict(one.files)
    raw = files["stat"]
    files["stat"] = raw[: raw.index(b"(") + 1] + command.encode() + raw[raw.rindex(b")") :]
    files["status"] = _NAME_LINE.sub(b"Name:\t" + command.encode(), files["status"])
    if "cmdline" in files:
        files["cmdline"] = _command_line(one, command, stand_ins)
    if "cgroup" in files:
        files["cgroup"] = _cgroups(files["cgroup"], stand_ins)
    links = {name: _path(path, stand_ins) for name, path in one.links.items()}
    return one._replace(files=files, links=links)


def _command_line(one: Recorded, command: str, stand_ins: StandIns) -> bytes:
    """The program, its data directory and the settings that are read; of others the program."""
    arguments = [command]
    if command in POSTGRES_COMMANDS:
        given = parse_command_line(one.files["cmdline"])
        directory = _data_directory(given)
        if directory:
            arguments += ["-D", stand_ins.directory(directory)]
        settings = parse_arguments(given)
        for name in _SETTINGS:
            if parse_whole(settings.get(name)) is not None:
                arguments += ["-c", f"{name}={settings[name]}"]
    return "\0".join(arguments).encode() + b"\0"


def _data_directory(arguments: list[str]) -> str:
    for at, one in enumerate(arguments):
        if one.startswith("-D"):
            return one[2:] or "".join(arguments[at + 1 : at + 2])
    return ""


def _cgroups(raw: bytes, stand_ins: StandIns) -> bytes:
    """/proc/PID/cgroup: lines of number, controllers and path (cgroups(7))."""
    lines = []
    for line in raw.decode("utf-8", "surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        lines.append(f"{number}:{controllers}:{stand_ins.cgroup(path)}\n")
    return "".join(lines).encode()


def _path(path: str, stand_ins: StandIns) -> str:
    """A path that keeps the name of a program that is known."""
    bare = path[: -len(_DELETED)] if path.endswith(_DELETED) else path
    directory, base = os.path.split(bare)
    if base and kind_of(base) is not None:
        return f"{stand_ins.directory(directory)}/{base}{path[len(bare) :]}"
    return stand_ins.directory(bare) + path[len(bare) :]


def _lengthen_area(stat: bytes, longer: int) -> bytes:
    """/proc/PID/stat of a process whose titles have so much more room; zeros stay zeros."""
    end = stat.rindex(b")") + 2
    fields = stat[end:].split(b" ")
    if len(fields) > _ENV_END and int(fields[_ENV_END]):
        fields[_ENV_END] = b"%d" % (int(fields[_ENV_END]) + longer)
    return stat[:end] + b" ".join(fields)
