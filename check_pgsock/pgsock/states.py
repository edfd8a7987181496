"""The subcommand `pgsock states`: sockets by TCP state, and what each state means for PostgreSQL.

JSON: `ports` (null with --all-ports), `legs` (those looked at), `source` (netlink, procfs,
recording or file), `states` and `not_accepted`. `states` is a list, in the order of the kernel's
numbers, of objects with `code` (two hexadecimal digits, as in /proc/net/tcp), `state`,
`server_leg_sockets` and `client_leg_sockets` (counts; null: the leg was not looked at, or the
state cannot be counted), `server_leg_meaning` and `client_leg_meaning` (null: this leg has none in
that state). `not_accepted` has the last four of these, of those ESTABLISHED sockets that no process
holds yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from check_pgsock import options as opts
from check_pgsock.command_line import argument
from check_pgsock.deadline import Deadline
from check_pgsock.errors import UsageError
from check_pgsock.host_names import resolve_peers
from check_pgsock.legs import Leg
from check_pgsock.option_values import parse_file
from check_pgsock.pgsock.output import (
    Column,
    add_view_options,
    open_tool_view,
    print_json,
    print_table,
    with_json,
)
from check_pgsock.pgsock.saved_tables import SavedTables
from check_pgsock.sockets import model
from check_pgsock.sockets.model import LISTEN, STATE_NAMES, Query, Tally
from check_pgsock.sockets.reader import Reader

if TYPE_CHECKING:
    Parsers = argparse._SubParsersAction[Any]

AnyReader = Union[Reader, SavedTables]

LEGS = ("server", "client")
_EVERY_STATE = range(1, len(STATE_NAMES))

_EPILOG = """\
FILE is a copy of /proc/net/tcp or tcp6, or both in one; what several hold is added:

  ssh db1 cat /proc/net/tcp /proc/net/tcp6 | pgsock states -
"""


class Meaning(NamedTuple):
    """What a socket in one state is on the server leg, and on the client leg, in a line each.

    None: this leg has none. "Here" is this end of the connection.
    """

    server: str | None
    client: str | None


def _same(text: str) -> Meaning:
    return Meaning(text, text)


# A socket is taken out of the kernel's tables before it is set to CLOSE (tcp_set_state in
# net/ipv4/tcp.c); one in NEW_SYN_RECV is shown as SYN_RECV (get_openreq4 in net/ipv4/tcp_ipv4.c,
# inet_req_diag_fill in net/ipv4/inet_diag.c).
MEANINGS = {
    model.ESTABLISHED: Meaning(
        "a session, idle or at work, in its slot; or the client's host vanished",
        "a connection, idle or in use; or the server's host vanished",
    ),
    model.SYN_SENT: Meaning(
        None, "connecting; over 1 s: host down, packets dropped or accept queue full"
    ),
    model.SYN_RECV: Meaning(
        "half-open, no slot: awaits the client's ACK (PgBouncer: first byte)", None
    ),
    model.FIN_WAIT1: Meaning(
        "closed here, no slot; for seconds: the client does not read, or vanished",
        "closed here; for seconds: the server does not read, or vanished",
    ),
    model.FIN_WAIT2: Meaning(
        "closed here (terminated, timed out), no slot; the client has not closed",
        "closed here; the server works on with its statement (CLOSE_WAIT there)",
    ),
    model.TIME_WAIT: Meaning(
        "closed here first, within 60 s, no slot; TLS and resets leave none",
        "closed here first, within 60 s; thousands can use up the local ports",
    ),
    model.CLOSE: _same("not connected: in no table of the kernel, so none can be counted"),
    model.CLOSE_WAIT: Meaning(
        "the client is gone, its backend works on: it holds the slot until the statement ends or "
        "client_connection_check_interval notices",
        "closed by the server, not noticed here: a pool without validation, or a leak",
    ),
    model.LAST_ACK: Meaning(
        "closed by the client, then here, no slot; for seconds: client vanished",
        "closed by the server, then here; for seconds: server vanished",
    ),
    model.LISTEN: Meaning("one socket an address; 0: the server is down or elsewhere", None),
    model.CLOSING: Meaning(
        "closed by both at once, no slot; for seconds: client vanished",
        "closed by both at once; for seconds: server vanished",
    ),
    model.NEW_SYN_RECV: _same("half-open, in the kernel's own words: it shows them as SYN_RECV"),
}
NOT_ACCEPTED = Meaning("connected, no slot: the server is stopped or too busy to accept", None)


def add_parser(parsers: Parsers) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "states",
        help="sockets by TCP state, and what each state means for PostgreSQL",
        description="Count the sockets of an endpoint by TCP state, with the codes of "
        "/proc/net/tcp, and say what each state means for PostgreSQL.",
        epilog=with_json(_EPILOG, __doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", type=argument(parse_file),
        help="read this copy of /proc/net/tcp or tcp6, not the kernel; - is standard input",
    )  # fmt: skip
    parser.add_argument(
        "--byteorder", choices=("little", "big"),
        help=f"that of the machine which wrote FILE (default: this one's, {sys.byteorder})",
    )  # fmt: skip
    group = parser.add_argument_group("connections")
    opts.add_leg_options(group, "both", *LEGS)
    group.add_argument(
        "--all-ports", action="store_true",
        help="of the whole host: server leg is what has a port that something listens on here, "
        "client leg all else",
    )  # fmt: skip
    add_view_options(parser)


def _run(options: argparse.Namespace) -> int:
    _validate(options)
    reader = _open(options)
    legs = {name: opts.chosen_leg(options, name) for name in LEGS if options.leg in (name, "both")}
    if options.all_ports:
        tallies = count_all(reader, legs)
        notes = ["server leg: on a port that something listens on here; client leg: all others"]
    else:
        tallies = {name: count(reader, leg) for name, leg in legs.items()}
        notes = _missing(legs, tallies)
    states = [
        {
            "code": f"{state:02X}",
            "state": STATE_NAMES[state],
            **_both_legs(
                {name: known_count(tally, state, name) for name, tally in tallies.items()},
                MEANINGS[state],
            ),
        }
        for state in _EVERY_STATE
    ]
    waiting = {name: tally.not_accepted for name, tally in tallies.items()}
    not_accepted = _both_legs(waiting, NOT_ACCEPTED)
    notes += [*reader.notes(), *reader.describe()]
    if options.json:
        values = {
            "ports": None if options.all_ports else next(iter(legs.values())).ports,
            "legs": list(legs),
            "source": reader.used,
            "states": states,
            "not_accepted": not_accepted,
        }
        print_json("states", values, notes)
    else:
        _print(legs, states, not_accepted, notes)
    return 0


def _validate(options: argparse.Namespace) -> None:
    """Raise UsageError for combinations that contradict each other."""
    opts.validate_view_options(options)
    if options.all_ports and options.port:
        raise UsageError("--all-ports and --port name different ports; drop one")
    if not options.files:
        if options.byteorder is not None:
            raise UsageError("--byteorder is of a FILE, and none is named")
        return
    if options.source != "auto" or options.proc_root is not None or options.netns:
        raise UsageError("FILE is read instead of --source, --proc-root and --netns; drop one")
    if len(set(options.files)) < len(options.files):
        raise UsageError("a FILE is named twice, and what the files hold is added; drop one")


def _open(options: argparse.Namespace) -> AnyReader:
    if not options.files:
        return open_tool_view(options).reader
    deadline = Deadline(options.timeout)
    resolve_peers(options, deadline)
    return SavedTables(options.files, options.byteorder or sys.byteorder, deadline)


def count(reader: AnyReader, leg: Leg) -> Tally:
    """The sockets of a leg, with those listeners that accept its connections."""
    tally = reader.count(leg.query(*_EVERY_STATE))
    tally.listeners = leg.listeners(tally.listeners)
    return tally


def count_all(reader: AnyReader, legs: Mapping[str, Leg]) -> dict[str, Tally]:
    """The sockets of all ports, by leg: of the server leg are those on a port listened on there.

    Two looks, the listeners first: a server that starts in between has its sockets on the wrong
    leg.
    """
    tallies = {name: Tally() for name in legs}
    one_leg = next(iter(legs.values()))
    query = Query((), True, model.state_mask(*_EVERY_STATE), one_leg.filter)
    for place in reader.each:
        found = place.count(Query((), True, 1 << LISTEN)).listeners
        listened = {one.port for one in found}
        for one in place.sockets(query):
            name = "server" if one.local_port in listened else "client"
            if name in tallies:
                tallies[name].add(one.state, one.inode)
        if "server" in tallies:
            server = Leg(tuple(listened), address=one_leg.address)
            tallies["server"].listeners += server.listeners(found)
    return tallies


def known_count(tally: Tally, state: int, leg: str) -> int | None:
    """How many sockets of a leg are in `state`; None where no source can tell."""
    if state == LISTEN:
        return len(tally.listeners) if leg == "server" else None
    if state == model.NEW_SYN_RECV:
        return None
    return tally.count(state) or (None if state == model.CLOSE else 0)


def _missing(legs: Mapping[str, Leg], tallies: Mapping[str, Tally]) -> list[str]:
    """A note where the server leg is of a port that nothing listens on."""
    if "server" not in legs:
        return []
    leg = legs["server"]
    missing = leg.missing_ports(tallies["server"].listeners)
    if not missing:
        return []
    where = Leg(tuple(missing), address=leg.address).describe()
    return [
        f"nothing listens {where}: the server is down or on another host, or the port another "
        "(--port)"
    ]


def _both_legs(counts: Mapping[str, int | None], meaning: Meaning) -> dict[str, Any]:
    return {
        **{f"{leg}_leg_sockets": counts.get(leg) for leg in LEGS},
        **{f"{leg}_leg_meaning": text for leg, text in zip(LEGS, meaning)},
    }


def _print(
    legs: Mapping[str, Leg],
    states: list[dict[str, Any]],
    not_accepted: dict[str, Any],
    notes: list[str],
) -> None:
    """Print a table: the meaning on the second leg has a line of its own."""
    counts = [f"{leg}_leg_sockets" for leg in legs]
    columns = [Column("code", "code"), Column("state", "state")]
    columns += [
        Column(key, key[: -len("_sockets")].replace("_", " "), right=True) for key in counts
    ]
    columns.append(Column("meaning", "what it means for PostgreSQL"))
    established, *others = states
    rows: list[dict[str, Any]] = []
    for state in (established, {"code": "", "state": "  not accepted", **not_accepted}, *others):
        meanings = {leg: state[f"{leg}_leg_meaning"] for leg in legs}
        lines = list(dict.fromkeys(meanings.values()))
        if len(lines) > 1:
            lines = [f"{leg}: {text}" for leg, text in meanings.items() if text is not None]
        rows.append({**state, "meaning": lines[0]})
        rows += [{**dict.fromkeys(state, ""), "meaning": line} for line in lines[1:]]
    print_table(columns, rows, notes)
