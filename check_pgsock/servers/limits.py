"""The connections a PostgreSQL server can hold, from what can be read without connecting; pure.

usable = max_connections - superuser_reserved_connections - reserved_connections (16 and later),
as the PostgreSQL manual defines them (19.3 Connections and Authentication).
"""

import re
import sys

from check_pgsock.errors import PgsockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

DEFAULT_RESERVED = {"superuser_reserved_connections": 3, "reserved_connections": 0}
# Settings whose sum MaxBackends is (InitializeMaxBackends in PostgreSQL 14 and 15), less the
# autovacuum launcher's one.
BACKLOG_SETTINGS = (
    "max_connections",
    "autovacuum_max_workers",
    "max_worker_processes",
    "max_wal_senders",
)
KNOWN_MAJORS = range(14, 19)
_LISTEN_MAX_BEFORE_16 = 10000  # PG_SOMAXCONN
_MAX_BACKENDS = 262143
_CONTROL_VERSIONS = (1300, 1800)  # 14 to 17, 18
_CONTROL_MAX_CONNECTIONS_AT = 180
_DB_IN_PRODUCTION = 6
_SETTING = re.compile(r"([A-Za-z_][\w-]*)\s*=\s*(.*)", re.DOTALL)


class LimitUnknown(PgsockError):
    """No source tells the limit; the message says why and names --limit. `why` is the reason.

    It `is_settled` unless what stood against a proof may have passed a moment later.
    """

    why = ""
    is_settled = True


def unknown(endpoint: str, why: str) -> LimitUnknown:
    """The error for the limit of `endpoint`, such as `port 5432`, with its reason."""
    error = LimitUnknown(
        f"the limit of {endpoint} cannot be read: {why}; name the usable slots with --limit N"
    )
    error.why = why
    return error


class Limit:
    """Usable connection slots and how they are known; `setting` is what says their number."""

    __slots__ = ("assumed", "max_connections", "reserved", "source")
    setting = "max_connections"

    def __init__(self, max_connections: int, reserved: int, source: str, assumed: bool) -> None:
        self.max_connections = max_connections
        self.reserved = reserved
        self.source = source
        self.assumed = assumed  # whether the reserved settings are the defaults, unread

    @property
    def usable(self) -> int:
        """Connections that ordinary users can hold."""
        return self.max_connections - self.reserved


def parse_arguments(arguments: "list[str]") -> "dict[str, str]":
    """The settings on a postmaster's command line, by lower-case name; the last one wins.

    `-c name=value`, `--name=value` (with `-` for `_`), `-N` for max_connections and `-p` for port
    (postgres(1)). Arguments after a rewritten title are none.
    """
    settings: dict[str, str] = {}
    position = 1
    while position < len(arguments):
        one = arguments[position]
        position += 1
        for flag, name in (("-c", ""), ("-N", "max_connections"), ("-p", "port")):
            if one.startswith(flag):
                value = one[2:]
                if not value and position < len(arguments):
                    value = arguments[position]
                    position += 1
                _set(settings, f"{name}={value}" if name else value)
                break
        else:
            if one.startswith("--"):
                _set(settings, one[2:])
            elif one in ("-B", "-D", "-d", "-h", "-k", "-S", "-t", "-W", "-f"):
                position += 1  # these take a value, which is no setting
    return settings


def _set(settings: "dict[str, str]", text: str) -> None:
    match = _SETTING.fullmatch(text.strip())
    if match:
        settings[match[1].lower().replace("-", "_")] = match[2].strip()


def parse_whole(text: "Optional[str]") -> "Optional[int]":
    """A whole setting; None if there is none or it is no plain decimal number in range.

    PostgreSQL reads a leading 0 as octal: such a number is left to it.
    """
    if text is None or not re.fullmatch(r"0|[1-9]\d{0,5}", text) or int(text) > _MAX_BACKENDS:
        return None
    return int(text)


def parse_control_file(raw: bytes) -> "tuple[int, bool]":
    """(max_connections, whether this is a primary in production) of global/pg_control.

    Authority: struct ControlFileData in catalog/pg_control.h. Raises ValueError for a version or a
    content that is not known.
    """
    if len(raw) < _CONTROL_MAX_CONNECTIONS_AT + 4:
        raise ValueError(f"pg_control has {len(raw)} bytes")
    version = int.from_bytes(raw[8:12], sys.byteorder)
    if version not in _CONTROL_VERSIONS:
        raise ValueError(f"pg_control has the unknown version {version}")
    at = _CONTROL_MAX_CONNECTIONS_AT
    max_connections = int.from_bytes(raw[at : at + 4], sys.byteorder)
    if not 1 <= max_connections <= _MAX_BACKENDS:
        raise ValueError(f"pg_control says max_connections {max_connections}")
    return max_connections, int.from_bytes(raw[16:20], sys.byteorder) == _DB_IN_PRODUCTION


def backlog_for(major: int, settings: "dict[str, int]") -> int:
    """The backlog a postmaster asks listen(2) for, before the kernel caps it at somaxconn.

    16 and later: 2 * max_connections. 14 and 15: 2 * MaxBackends, at most 10,000
    (StreamServerPort in libpq/pqcomm.c).
    """
    if major >= 16:
        return 2 * settings["max_connections"]
    return min(2 * (sum(settings[name] for name in BACKLOG_SETTINGS) + 1), _LISTEN_MAX_BEFORE_16)


def backlog_confirms(
    major: "Optional[int]", settings: "dict[str, int]", backlog: "Optional[int]", somaxconn: int
) -> bool:
    """Whether `settings` are the running ones, since they reproduce the listener's backlog."""
    if major is None or major not in KNOWN_MAJORS or backlog is None or backlog >= somaxconn:
        return False
    return backlog_for(major, settings) == backlog


def max_connections_from_backlog(
    major: "Optional[int]", backlog: "Optional[int]", somaxconn: int
) -> "Optional[int]":
    """max_connections by the listener's backlog alone; None where it does not tell."""
    if major is None or major not in KNOWN_MAJORS or major < 16 or backlog is None:
        return None
    return backlog // 2 if backlog < somaxconn and backlog % 2 == 0 and backlog else None


def reserved_slots(settings: "dict[str, str]", major: "Optional[int]") -> "tuple[int, bool]":
    """(reserved slots, whether a default was assumed), from the settings that could be read."""
    total, assumed = 0, False
    for name, default in DEFAULT_RESERVED.items():
        if name == "reserved_connections" and major is not None and major < 16:
            continue
        value = parse_whole(settings.get(name))
        total += default if value is None else value
        assumed = assumed or value is None
    return total, assumed
