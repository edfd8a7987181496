"""The subcommand `pgsock listeners`: every PostgreSQL and pooler endpoint of this host.

JSON: `endpoints`, a list of objects with these keys; what is not known is null.

- `network_namespace` (null: the one it runs in), `family` (ipv4, ipv6, unix), `address`, `port`
  (of a Unix socket the one in its name), `path` (null for TCP; an abstract name begins with @)
- `kind` (postgresql, pooler, forwarder, other), `program`, `pids` (several: they share it, or,
  where that is not proven, one of them has it), `uid` (the listener's), `user`,
  `owner_is_proven` (else probable), `owner_known_by`, `started_seconds_ago`, `forwards_to`
- `data_directory` (to those who may not see it, what the command line says), `major_version`,
  `configuration_file`
- `accept_queue`, `backlog`, `drops` (SYNs and handshakes refused since the listener was made: of
  TCP and PostgreSQL alone, since a listener that defers its connections, as PgBouncer's does,
  counts those that were made among them), in connections
- `limit_usable_slots`, `limit_max_connections` (of PgBouncer the max_client_conn in its file),
  `limit_reserved_slots`, `limit_reserved_is_assumed`, `limit_source`, `limit_pending` (what a
  change of the configuration means)
- `not_seen`: an object that says why what could not be seen is missing: `owner`,
  `data_directory`, `backlog` (with `drops`), `drops`, `limit`, `limit_pending`

With --map it has `nodes` and `edges`, too: see architecture.py.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from check_pgsock.command_line import argument
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.option_values import parse_port
from check_pgsock.pgsock.architecture import build_graph
from check_pgsock.pgsock.links import read_links, say_other_unix
from check_pgsock.pgsock.listener_rows import (
    describe_gone,
    describe_limits,
    describe_not_seen,
    find_user,
    read_rows,
)
from check_pgsock.pgsock.map_output import dot_lines, text_lines
from check_pgsock.pgsock.output import (
    Column,
    add_view_options,
    open_tool_view,
    print_json,
    print_table,
    with_json,
)
from check_pgsock.servers.listeners import Endpoint, Found, find_endpoints
from check_pgsock.servers.programs import FORWARDER
from check_pgsock.text import clean

if TYPE_CHECKING:
    from check_pgsock.view import View

    Parsers = argparse._SubParsersAction[Any]

_EPILOG = """\
  pgsock listeners                    PostgreSQL, poolers, and what else is on their ports
  pgsock listeners -p 6432 --json
  pgsock listeners --map              who connects to them, and where they connect on
  pgsock listeners --dot | dot -Tsvg -o map.svg
"""


def add_parser(parsers: Parsers) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "listeners",
        help="every PostgreSQL and pooler endpoint of this host",
        description="Every PostgreSQL and pooler endpoint of this host, over TCP and Unix sockets: "
        "whose it is, how full its queue is, and how many connections it can hold.",
        epilog=with_json(_EPILOG, __doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    group = parser.add_argument_group("which of them")
    group.add_argument(
        "-p", "--port", metavar="PORT", type=argument(parse_port), action="append",
        default=[], help="only those of this port, whoever listens on it; repeatable",
    )  # fmt: skip
    group.add_argument("--all", action="store_true", help="every listener, whatever it is")
    group = parser.add_argument_group("the pooler architecture")
    group.add_argument(
        "--map", action="store_true",
        help="who connects to which endpoint, and where its owner connects on, with counts",
    )  # fmt: skip
    group.add_argument("--dot", action="store_true", help="that map, for Graphviz")
    add_view_options(parser)


def _run(options: argparse.Namespace) -> int:
    if options.dot and options.json:
        raise UsageError("--dot and --json are two forms of the map; drop one")
    view = open_tool_view(options)
    found = find_endpoints(view, options.port, options.all)
    missing = sorted(set(options.port) - {one.port for one in found.endpoints})
    if missing:
        raise PgsockError(f"nothing listens on port {', '.join(map(str, missing))}; see --all")
    rows = read_rows(view, found)
    notes = [*view.reader.notes(), *found.notes]
    notes += describe_limits(found.endpoints, rows)
    notes += describe_gone(view, found.endpoints)
    is_text_map = (options.map or options.dot) and not options.json
    left_out = ("backlog", "drops") if is_text_map else ()
    notes += describe_not_seen(found.endpoints, rows, left_out)
    if not rows:
        notes.append("nothing here listens for clients of PostgreSQL; --all shows what listens")
    if options.map or options.dot:
        _show_map(options, view, found, rows, notes)
    elif options.json:
        print_json("listeners", {"endpoints": rows}, notes)
    else:
        shown = [_readable(one, row) for one, row in zip(found.endpoints, rows)]
        print_table(_columns(shown), shown, notes)
    return 0


def _show_map(
    options: argparse.Namespace,
    view: View,
    found: Found,
    rows: list[dict[str, Any]],
    notes: list[str],
) -> None:
    def user_name(uid: int) -> str:
        name = find_user(uid) if view.files.is_live else None
        return f"user {clean(name or str(uid))}"

    links, missing = read_links(view, found.endpoints)
    notes = [*notes, *missing]
    if options.port:
        notes += say_other_unix(view, found.endpoints)
    graph = build_graph(found.endpoints, links, user_name, found.programs)
    if options.json:
        values = {
            "endpoints": rows,
            "nodes": [one._asdict() for one in graph.nodes],
            "edges": [one._asdict() for one in graph.edges],
        }
        print_json("listeners", values, notes)
        return
    limits = {one.label: row["limit_usable_slots"] for one, row in zip(found.endpoints, rows)}
    lines = dot_lines(graph) if options.dot else [*text_lines(graph, limits), *notes]
    for line in lines:
        print(clean(line, 500) if not options.dot else line)
    sys.stdout.flush()


def _readable(one: Endpoint, row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the table says in a few words."""
    holder = None
    if row["program"] is not None:
        pids = ", ".join(map(str, row["pids"]))
        holder = f"{'' if row['owner_is_proven'] else 'probably '}{row['program']} {pids}"
    files = row["data_directory"] or row["configuration_file"]
    if row["kind"] == FORWARDER and row["forwards_to"]:
        files = f"to {row['forwards_to']}"
    return {
        **row,
        "endpoint": one.name,
        "kind": row["kind"] or "unknown",
        "owner": holder,
        "files": files,
        "user": row["user"] or row["uid"],
    }


def _columns(rows: list[dict[str, Any]]) -> list[Column]:
    every = [
        Column("network_namespace", "namespace"),
        Column("endpoint", "endpoint"),
        Column("kind", "kind"),
        Column("owner", "owner"),
        Column("user", "user"),
        Column("files", "data directory, ini"),
        Column("accept_queue", "queue", right=True),
        Column("backlog", "backlog", right=True),
        Column("drops", "drops", right=True),
        Column("limit_usable_slots", "limit", right=True),
        Column("limit_source", "limit read from"),
    ]
    if all(row["network_namespace"] is None for row in rows):
        del every[0]
    return every
