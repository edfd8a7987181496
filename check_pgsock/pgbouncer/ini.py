"""PgBouncer's configuration file: which one it is, and what its section [pgbouncer] says.

Authorities: pgbouncer(1), pgbouncer(5), and its parser (usual/cfparser.c in libusual).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from check_pgsock import options as opts
from check_pgsock.errors import MalformedError
from check_pgsock.proc_files import open_plain

DEFAULTS = {"listen_addr": "", "listen_port": "6432", "max_client_conn": "100"}
SECTION, INCLUDE, SETTING = "section", "include", "setting"
_MOST_BYTES = 1 << 20
_MOST_NESTED = 10  # MAX_INCLUDE
_OPTIONS_WITH_VALUE = ("-u", "--user")


class Ini(NamedTuple):
    """What a configuration file says, with all that it includes."""

    path: str
    settings: dict[str, str]  # of [pgbouncer], with the DEFAULTS
    changed: float  # the newest modification of a file of it, seconds since the epoch


def find_path(arguments: Sequence[str]) -> str | None:
    """The configuration file on PgBouncer's command line; it may be relative."""
    found = None
    words = iter(arguments[1:])
    for one in words:
        if one in _OPTIONS_WITH_VALUE:
            next(words, None)
        elif not one.startswith("-"):
            found = one
    return found


def parse_lines(text: str, source: str) -> Iterator[tuple[str, str, str]]:
    """Yield (SECTION, its name, ""), (INCLUDE, a path, "") and (SETTING, its name, its value).

    Raises MalformedError for what PgBouncer would refuse, quoting `source` and line.
    """
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("%include") and line[8:9].isspace():
            yield INCLUDE, line[8:].strip(), ""
        elif line.startswith("["):
            name, closing, _ = line[1:].partition("]")
            if not closing:
                raise MalformedError(f"{source} line {number}: a section without ']'")
            yield SECTION, name, ""
        else:
            name, equals, value = line.partition("=")
            if not equals:
                raise MalformedError(f"{source} line {number}: neither a setting nor a section")
            yield SETTING, name.strip().strip("'"), value.strip()


def names_listener(
    settings: Mapping[str, str], address: bytes | None, port: int, directory: str | None
) -> bool:
    """Whether the settings ask for the listener at a packed TCP address, or for that of a Unix
    socket in `directory`.
    """
    if settings["listen_port"] != str(port):
        return False
    if directory is not None:
        return settings.get("unix_socket_dir", directory) == directory
    for one in settings["listen_addr"].split(","):
        try:
            named = opts.parse_address(one.strip())
        except ValueError:
            if one.strip():
                return True  # *, or a host name, which may stand for any
        else:
            if named == address:
                return True
    return False


def read_ini(path: str, locate: Callable[[str], str]) -> Ini:
    """Read a configuration file and what it includes; `locate` says where a path in it lies.

    Raises OSError where a file may not be read, SourceError for one that is not as it should be.
    """
    settings = dict(DEFAULTS)
    changed = 0.0
    section = ""  # an included file goes on in it, and leaves another behind

    def read(path: str, depth: int) -> None:
        nonlocal changed, section
        if depth > _MOST_NESTED:
            raise MalformedError(f"{path}: files include each other more than {_MOST_NESTED} deep")
        text, modified = _read_file(locate(path))
        changed = max(changed, modified)
        for kind, name, value in parse_lines(text, path):
            if kind == INCLUDE:
                read(name, depth + 1)
            elif kind == SECTION:
                section = name
            elif section == "pgbouncer":
                settings[name] = value

    read(path, 0)
    return Ini(path, settings, changed)


def _read_file(path: str) -> tuple[str, float]:
    # It is another program's word what lies there: a device may act when it is opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MalformedError(f"{path} is no regular file")
    with open(open_plain(path), "rb", 0) as file:
        raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise MalformedError(f"{path} has more than {_MOST_BYTES} bytes")
        return raw.decode("utf-8", "replace"), os.fstat(file.fileno()).st_mtime
