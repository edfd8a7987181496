"""PgBouncer's configuration file: which one it is, and what its sections say.

Authorities: pgbouncer(1), pgbouncer(5), and its parsers (usual/cfparser.c in libusual, and of
connection strings src/loader.c).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.option_values import parse_address
from check_pgsock.proc_files import open_plain
from check_pgsock.text import clean

DEFAULTS = {"listen_addr": "", "listen_port": "6432", "max_client_conn": "100"}
SECTION, INCLUDE, SETTING = "section", "include", "setting"
_MOST_BYTES = 1 << 20
_MOST_NESTED = 10  # MAX_INCLUDE
_LONGEST = 300  # characters of a path in a sentence
_OPTIONS_WITH_VALUE = ("-u", "--user")
_SETTING = re.compile(r"(?:'([^']+)'|([^=']*))\s*=\s*(.*)")
# Neither a key nor a value may be empty.
_PAIR = re.compile(r"([^= ]+) *= *(?:'((?:[^']|'')+)'|([^' ][^ ]*)) *")


class Ini(NamedTuple):
    """What a configuration file says, with all that it includes."""

    path: str
    settings: dict[str, str]  # of [pgbouncer], with the DEFAULTS
    changed: float  # the newest modification of a file of it, seconds since the epoch
    databases: dict[str, str]  # connection strings by alias; `*` is any other
    users: dict[str, str]  # settings by user, in the same form


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
            found = _SETTING.match(line)
            if found is None:
                raise MalformedError(f"{source} line {number}: neither a setting nor a section")
            quoted, name, value = found.groups()
            yield SETTING, name.strip() if quoted is None else quoted, value


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
            named = parse_address(one.strip())
        except ValueError:
            if one.strip():
                return True  # *, or a host name, which may stand for any
        else:
            if named == address:
                return True
    return False


def parse_connection_string(text: str, source: str) -> dict[str, str]:
    """The values by key of an entry: `host=h pool_size=5 connect_query='select ''x'''`.

    Raises MalformedError for what PgBouncer would refuse, quoting `source`, and nothing of the
    text: it may hold a password.
    """
    values = {}
    rest = text.strip(" ")
    while rest:
        found = _PAIR.match(rest)
        if found is None:
            raise MalformedError(f"{source} is not of the form key=value key='value'")
        key, quoted, bare = found.groups()
        values[key] = bare if quoted is None else quoted.replace("''", "'")
        rest = rest[found.end() :]
    return values


def read_ini_at(path: str) -> Ini:
    """Read a configuration file that is named by its path, without its process.

    Raises SourceError, which names the file and the right that it needs.
    """

    def locate(found: str) -> str:
        if found != path and not found.startswith("/"):
            raise SourceError(
                f"{clean(path, _LONGEST)} includes {clean(found, _LONGEST)}: relative to where "
                "PgBouncer was started, which is not known; include it by its whole path"
            )
        return found

    try:
        return read_ini(path, locate)
    except OSError as error:
        sentence = f"{clean(str(error.filename), _LONGEST)}: {error.strerror}"
        if isinstance(error, PermissionError):
            sentence += (
                ": it needs the right to read it, as root, PgBouncer's own user or a member of the "
                "file's group"
            )
        raise SourceError(sentence) from None


def read_ini(path: str, locate: Callable[[str], str]) -> Ini:
    """Read a configuration file and what it includes; `locate` says where a path in it lies.

    Raises OSError where a file may not be read, SourceError for one that is not as it should be.
    """
    sections: dict[str, dict[str, str]] = {
        "pgbouncer": dict(DEFAULTS),
        "databases": {},
        "users": {},
    }
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
            elif section in sections:
                sections[section][name] = value

    read(path, 0)
    return Ini(path, sections["pgbouncer"], changed, sections["databases"], sections["users"])


def _read_file(path: str) -> tuple[str, float]:
    # It is another program's word what lies there: a device may act when it is opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MalformedError(f"{path} is no regular file")
    with open(open_plain(path), "rb", 0) as file:
        raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise MalformedError(f"{path} has more than {_MOST_BYTES} bytes")
        return raw.decode("utf-8", "replace"), os.fstat(file.fileno()).st_mtime
