"""The subcommand `pgsock connections`: everything about each connection, without a connection.

JSON: `read_at`, when it was read (seconds since 1970), and `connections`, a list of objects with
all keys; or with --by `count` and `groups`: `by` (the keys that are grouped by), `count`,
`activities` (counts by activity), `oldest_seconds`, `longest_idle_seconds`. Times are in seconds,
sizes in bytes; what is not known is null.
"""

from __future__ import annotations

import argparse
import fnmatch
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from check_pgsock import options as opts
from check_pgsock.command_line import argument
from check_pgsock.errors import PgsockError
from check_pgsock.option_values import parse_count, parse_number
from check_pgsock.pgsock.cgroups import find_names
from check_pgsock.pgsock.output import (
    Column,
    add_view_options,
    open_tool_view,
    print_json,
    print_table,
    with_json,
)
from check_pgsock.sessions.activity import ACTIVITIES
from check_pgsock.sessions.connections import (
    KEYS,
    Connection,
    activity_counts,
    count_by,
    say_counts,
)
from check_pgsock.sessions.survey import survey
from check_pgsock.text import plural, write_seconds
from check_pgsock.unix.leg import read_sessions
from check_pgsock.unix.server import say_elsewhere
from check_pgsock.unix.survey import add_unix_socket

if TYPE_CHECKING:
    Parsers = argparse._SubParsersAction[Any]

_EPILOG = """\
KEY is one of: {keys}.

  pgsock connections -p 5432 --by peer_address
  pgsock connections -p 5432 --by user,database --where activity=idle --where 'idle_seconds>300'
  pgsock connections -p 5432 --sort age_seconds --top 20
  pgsock connections -p 6432 --leg client
""".format(keys=", ".join(KEYS))

_NUMBER_ENDS = ("_port", "_seconds", "_bytes", "pid", "uid", "retransmits", "workers", "inode")
_NUMBERS = {key for key in KEYS if key.endswith(_NUMBER_ENDS)}
# Names that people type for keys.
_ALIASES = {"peer": "peer_address", "age": "age_seconds", "idle": "idle_seconds"}
_COMPARISON = re.compile(r"([a-z_]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition:
    """KEY=VALUE, with =, != (both take * and ?), or <, <=, >, >= for numbers; an empty VALUE is
    what is not known. Raises ValueError.
    """

    def __init__(self, text: str) -> None:
        match = _COMPARISON.fullmatch(text)
        if match is None:
            raise ValueError(f"'{text}' is no condition such as user=app or idle_seconds>300")
        self.key, self._operator, self._value = parse_key(match[1]), match[2], match[3]
        self._number = 0.0
        if self._operator in _OPERATORS:
            if self.key not in _NUMBERS:
                raise ValueError(f"{self.key} is no number: '{text}' cannot be told")
            self._number = parse_number(self._value)

    def holds(self, one: Connection) -> bool:
        """Whether it holds of a connection; a comparison never does of what is not known."""
        value = one[self.key]
        if self._operator in _OPERATORS:
            return isinstance(value, (int, float)) and _OPERATORS[self._operator](
                value, self._number
            )
        if value is None:
            same = not self._value
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            same = fnmatch.fnmatchcase(text, self._value)
        return same == (self._operator == "=")


def parse_key(text: str) -> str:
    """The name of a key; raises ValueError."""
    key = _ALIASES.get(text, text)
    if key not in KEYS:
        raise ValueError(f"'{text}' is no key of a connection; they are {', '.join(KEYS)}")
    return key


def _parse_keys(text: str) -> tuple[str, ...]:
    return tuple(parse_key(one) for one in text.split(","))


def add_parser(parsers: Parsers) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "connections",
        help="everything about each connection, without a connection",
        description="What the kernel and the process titles tell of each connection of an "
        "endpoint: peer, user, database, session state, activity, ages, bytes, queues.",
        epilog=with_json(_EPILOG, __doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    connections = parser.add_argument_group("connections")
    opts.add_leg_options(connections, "server", "client")
    opts.add_socket_path(connections)
    group = parser.add_argument_group("which of them, and how they are shown")
    group.add_argument(
        "--where", metavar="KEY=VALUE", type=argument(Condition), action="append", default=[],
        help="only those of which this holds; = and != take * and ?, and an empty VALUE for what "
        "is not known; <, <=, >, >= compare numbers; repeatable: all must hold",
    )  # fmt: skip
    for name in ("user", "database"):
        group.add_argument(f"--{name}", metavar="NAME", help=f"only sessions of this {name}")
    group.add_argument(
        "--activity", choices=ACTIVITIES, metavar="ACTIVITY",
        help=f"only connections that are: {', '.join(ACTIVITIES)}",
    )  # fmt: skip
    group.add_argument(
        "--by", metavar="KEY[,KEY]", type=argument(_parse_keys),
        help="count by these, the largest group first: `--by peer` says who holds the connections",
    )  # fmt: skip
    group.add_argument(
        "--sort", metavar="KEY", type=argument(parse_key),
        help="the highest first; what is not known last",
    )  # fmt: skip
    group.add_argument(
        "--top", metavar="N", type=argument(parse_count), help="show no more than these"
    )
    group.add_argument(
        "--no-unix", action="store_true",
        help="without the sessions over Unix sockets of the same server (server leg)",
    )  # fmt: skip
    add_view_options(parser)


def _run(options: argparse.Namespace) -> int:
    conditions = list(options.where)
    for name in ("user", "database", "activity"):
        if getattr(options, name) is not None:
            conditions.append(Condition(f"{name}={_literal(getattr(options, name))}"))
    opts.validate_socket_options(options)
    view = open_tool_view(options)
    leg = opts.chosen_leg(options)
    sessions = read_sessions(view.reader, leg.paths)
    if sessions.missing:
        raise PgsockError(f"{'; '.join(sessions.missing)}; name another (--socket)")
    if leg.server and leg.ports and not view.reader.listeners(*leg.ports):
        raise PgsockError(
            f"nothing listens on port {', '.join(map(str, leg.ports))}; name another (--port), or "
            "the side that connects (--leg client)"
        )
    found = survey(view, leg, unix=not options.no_unix)
    for path in leg.paths:
        add_unix_socket(view, path, found)
    ids = {one["cgroup"] for one in found.connections if one["cgroup"] is not None}
    names = find_names(ids) if view.recorded is None else view.recorded.cgroups()
    for one in found.connections:
        one["cgroup"] = names.get(one["cgroup"], one["cgroup"])
    chosen = [one for one in found.connections if all(each.holds(one) for each in conditions)]
    notes = [*view.reader.notes(), *found.notes]
    elsewhere = say_elsewhere(view, sessions) if leg.paths else None
    if elsewhere is not None:
        notes.append(elsewhere)
    if options.sort is not None:
        chosen.sort(key=lambda one: _order(one[options.sort]))
    if options.by is not None:
        _show_groups(options, chosen, found.read_at, notes)
        return 0
    shown = chosen[: options.top]
    if len(shown) < len(chosen):
        notes.append(f"{len(chosen) - len(shown)} more are not shown")
    if options.json:
        print_json("connections", {"read_at": found.read_at, "connections": shown}, notes)
    else:
        print_table(_columns(shown), shown, [plural(len(chosen), "connection"), *notes])
    return 0


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _order(value: Any) -> tuple[bool, bool, Any]:
    # The highest first; numbers before names.
    if value is None:
        return True, True, 0
    if isinstance(value, (int, float)):
        return False, False, -value
    return False, True, tuple(-ord(letter) for letter in str(value))


def _show_groups(
    options: argparse.Namespace, chosen: list[Connection], read_at: float, notes: list[str]
) -> None:
    groups = count_by(chosen, *options.by)
    shown = groups[: options.top]
    if len(shown) < len(groups):
        notes = [*notes, f"{len(groups) - len(shown)} more groups are not shown"]
    rows = []
    for values, ones in shown:
        rows.append(
            {
                "by": dict(zip(options.by, values)),
                "count": len(ones),
                "activities": activity_counts(ones),
                "oldest_seconds": _highest(ones, "age_seconds"),
                "longest_idle_seconds": _highest(ones, "idle_seconds"),
            }
        )
    if options.json:
        whole = {"read_at": read_at, "count": len(chosen), "groups": rows}
        print_json("connections", whole, notes)
        return
    columns = [Column(key, key.replace("_", " "), right=False) for key in options.by]
    columns += [
        Column("count", "connections", right=True),
        Column("activities", "activity", say_counts),
        Column("oldest_seconds", "oldest", write_seconds, right=True),
        Column("longest_idle_seconds", "longest idle", write_seconds, right=True),
    ]
    flat = [{**row, **row["by"]} for row in rows]  # type: ignore[dict-item]
    print_table(columns, flat, [plural(len(chosen), "connection"), *notes])


def _highest(ones: list[Connection], key: str) -> float | None:
    return max((one[key] for one in ones if one[key] is not None), default=None)


def _columns(rows: list[Connection]) -> list[Column]:
    """The columns that say something here; the JSON has all keys."""
    for one in rows:
        one["peer"] = one["peer_address"]
        if one["peer_port"] is not None:
            one["peer"] += f" {one['peer_port']}"
        one["age"] = None
        if one["age_seconds"] is not None:
            least = "at least " if one["age_is_lower_bound"] else ""
            one["age"] = f"{least}{write_seconds(one['age_seconds'])}"
        one["local"] = None
        if one["local_port"] is not None and one["leg"] == "client":
            one["local"] = f"{one['local_address']} {one['local_port']}"
        one["client"] = None
        which = "" if one["leg"] == "client" else "peer_"
        if one[f"{which}pid"] is not None:
            one["client"] = f"{one[f'{which}process']} {one[f'{which}pid']}"
    every = [
        Column("namespace", "namespace"),
        Column("local", "local"),
        Column("peer", "peer"),
        Column("state", "state"),
        Column("user", "user"),
        Column("database", "database"),
        Column("backend_pid", "backend", right=True),
        Column("client", "client process"),
        Column("activity", "activity"),
        Column("session_state", "session state"),
        Column("idle_seconds", "idle", write_seconds, right=True),
        Column("age", "age", right=True),
        Column("received_bytes", "received", right=True),
        Column("sent_bytes", "sent", right=True),
        Column("receive_queue_bytes", "to read", right=True),
        Column("send_queue_bytes", "to send", right=True),
        Column("retransmits", "retransmits", right=True),
        Column("cgroup", "cgroup"),
    ]
    always = {"peer", "activity"}
    if len({one["cgroup"] for one in rows} - {None}) < 2:
        every.pop()  # it tells nothing apart
    return [
        column for column in every if column.key in always or any(one[column.key] for one in rows)
    ]
