"""The options that executables share, by group: added, checked against each other, and chosen.

What one value may be is option_values.py's to say, what a usage error is command_line.py's.
"""

import argparse

from check_pgsock.command_line import Parser, Show, argument
from check_pgsock.errors import UsageError
from check_pgsock.legs import Leg, Network
from check_pgsock.option_values import (
    names_recording,
    parse_address,
    parse_count,
    parse_directory,
    parse_name,
    parse_namespace,
    parse_peer,
    parse_port,
    parse_seconds,
    parse_socket,
    parse_source,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

    from check_pgsock.contract import Judged
    from check_pgsock.thresholds import Threshold

DEFAULT_PORT = 5432
DEFAULT_TIMEOUT = 8.0
DEFAULT_SETTLE = 1.0
_NO_ALERT = "~:"  # the range that nothing is outside of


def add_common(parser: Parser) -> None:
    """The options of every executable but its thresholds."""
    parser.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=argument(parse_seconds), default=DEFAULT_TIMEOUT,
        help="the whole run ends by then, as UNKNOWN if there is no verdict (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--state-dir", metavar="DIR", type=argument(parse_directory),
        help="an existing directory where checks that need history keep it "
        "(default: /var/lib/check_pgsock where it is ours, else $XDG_STATE_HOME/check_pgsock)",
    )  # fmt: skip
    parser.add_argument(
        "-v", "--verbose", action="count", default=0,
        help="add lines: who holds the connections (-v), how it was measured (-vv), "
        "everything (-vvv)",
    )  # fmt: skip
    parser.add_argument(
        "-V", "--version", action=Show, nargs=0, default=argparse.SUPPRESS,
        help="show the version and exit 3",
    )  # fmt: skip
    parser.add_argument(
        "-h", "--help", action=Show, nargs=0, default=argparse.SUPPRESS,
        help="show this help and exit 3",
    )  # fmt: skip


def add_threshold_options(parser: Parser, judged: "tuple[Judged, ...]") -> None:
    """Add -w/-c for the first judged label, long options for each further one."""
    group = parser.add_argument_group("thresholds")
    for one in judged:
        of = f"; % is of {one.percent_of}" if one.percent_of else ""
        for word in ("warning", "critical"):
            option = _threshold_option(judged, one, word)
            names = (f"-{word[0]}", option) if one is judged[0] else (option,)
            default = one.warning if word == "warning" else one.critical
            meaning = f"{word} range of {one.label}, {one.meaning}{of}"
            if one.baseless:
                alone = one.baseless[word == "critical"]
                meaning += f"; where that is not known, the default is {alone}"
            parser.add_range(group, *names, default=default, help=meaning)


def add_socket_options(parser: Parser) -> None:
    """The options of every check that reads sockets."""
    group = parser.add_argument_group("sockets")
    add_leg_options(group, "server", "client")
    add_socket_path(group)
    add_view_options(group)
    group.add_argument(
        "--no-listener", choices=("ok", "warning", "critical", "unknown"), default="unknown",
        help="service state when nothing listens on the port or socket, server leg (default: "
        "unknown)",
    )  # fmt: skip


def add_leg_options(group: "argparse._ArgumentGroup", *legs: str) -> None:
    """The options that choose connections: see chosen_leg(). `legs` are those that --leg can
    name, the default one first.
    """
    group.add_argument(
        "-p", "--port", metavar="PORT", type=argument(parse_port), action="append", default=[],
        help=f"port of the endpoint; repeated, the ports form one pool (default: {DEFAULT_PORT})",
    )  # fmt: skip
    group.add_argument(
        "--leg", choices=legs, default=legs[0],
        help="server: connections accepted on the port here; "
        f"client: connections opened from here to the port (default: {legs[0]})",
    )  # fmt: skip
    group.add_argument(
        "--address", metavar="ADDR", type=argument(parse_address),
        help="only sockets with this local address",
    )  # fmt: skip
    group.add_argument(
        "--peer", metavar="CIDR|HOST", type=argument(parse_peer), action="append", default=[],
        help="only sockets whose remote address lies in this network, or is one of those that the "
        "host of this name has when the check runs; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--exclude-peer", metavar="CIDR|HOST", type=argument(parse_peer), action="append",
        default=[],
        help="no sockets whose remote address lies in this network, or is this host's; repeatable",
    )  # fmt: skip


def add_socket_path(group: "argparse._ArgumentGroup") -> None:
    """The option that chooses a Unix socket."""
    group.add_argument(
        "--socket", metavar="PATH", type=argument(parse_socket), action="append", default=[],
        help="Unix socket of the endpoint, such as /run/postgresql/.s.PGSQL.5432, or @NAME of an "
        "abstract one, instead of the default port; repeated, or with -p, they form one pool",
    )  # fmt: skip


def add_view_options(group: "argparse._ArgumentGroup") -> None:
    """The options that choose where to look: see view.open_view()."""
    group.add_argument(
        "--source", metavar="auto|netlink|procfs|FILE", type=argument(parse_source), default="auto",
        help="where sockets are read; auto: netlink, and procfs where that fails; FILE: a "
        "recording of `pgsock record`, processes and limits too (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--moment", metavar="N", type=argument(parse_count),
        help="with --source FILE: which of its moments, counted from 1 (default: the last)",
    )  # fmt: skip
    group.add_argument(
        "--proc-root", metavar="DIR", type=argument(parse_directory),
        help="read DIR/net/tcp, of a saved copy, or DIR/1/net/tcp where DIR is a host's live /proc",
    )  # fmt: skip
    group.add_argument(
        "--netns", metavar="NAME|PID", type=argument(parse_namespace), action="append", default=[],
        help="read this network namespace instead, by its name (ip netns) or a process in it; "
        "repeatable: all together, each once; `self` is the check's own",
    )  # fmt: skip


def add_session_options(parser: Parser) -> None:
    """The options that choose sessions: see sessions.selection.chosen_selection()."""
    group = parser.add_argument_group("sessions")
    for option, what in (
        ("--user", "only sessions of this user"),
        ("--exclude-user", "no sessions of this user"),
        ("--database", "only sessions on this database"),
    ):
        group.add_argument(
            option, metavar="NAME", type=argument(parse_name), action="append", default=[],
            help=f"{what}, as its backend's title tells it; repeatable",
        )  # fmt: skip


def add_settle(parser: Parser) -> None:
    """The option of the checks that look twice, `settle` apart."""
    parser.add_argument(
        "--settle", metavar="SECONDS", type=argument(parse_seconds), default=DEFAULT_SETTLE,
        help=f"time between the two looks (default: {DEFAULT_SETTLE:g})",
    )  # fmt: skip


def validate_thresholds(
    options: argparse.Namespace, parser: Parser, judged: "tuple[Judged, ...]"
) -> None:
    """Set `given_thresholds`: by label, the options of the thresholds on the command line.

    Raises UsageError for a % that is of nothing.
    """
    options.given_thresholds = {}
    for one, word, threshold in chosen_thresholds(options, judged):
        if threshold.has_percent and one.percent_of is None:
            raise UsageError(
                f"'{threshold}': {one.label} is judged in absolute numbers, without %; "
                f"see {parser.prog} --help"
            )
        option = _threshold_option(judged, one, word)
        # One that was given is another object than the default, though it may say the same.
        is_given = threshold is not parser.get_default(_destination(option))
        if is_given and str(threshold) != _NO_ALERT:
            options.given_thresholds.setdefault(one.label, []).append(option)


def validate_view_options(options: argparse.Namespace) -> None:
    """Raise UsageError for combinations that contradict each other."""
    if names_recording(options.source):
        if options.proc_root is not None:
            raise UsageError(
                "--proc-root and --source FILE name different places to read; drop one"
            )
    elif options.moment is not None:
        raise UsageError("--moment is one of a recording, and --source names none")
    if options.proc_root is not None and options.source == "netlink":
        raise UsageError("--proc-root is read by procfs and --source names netlink; drop one")
    if options.proc_root is not None and options.netns:
        raise UsageError("--proc-root and --netns name different places to read; drop one")


def validate_socket_options(options: argparse.Namespace) -> None:
    """Raise UsageError for what does not apply to Unix sockets, nor to a pool with some."""
    if not options.socket:
        return
    if options.leg == "client":
        raise UsageError(
            "--socket is looked at on the server leg alone: the connecting end of a Unix socket "
            "has no name; drop --leg client or --socket"
        )
    for name in ("address", "peer", "exclude_peer"):
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} selects by an address, which connections over a Unix "
                "socket have not; drop it, or give --socket a service of its own"
            )


def require_below_timeout(options: argparse.Namespace, name: str) -> None:
    """Raise UsageError unless the time that the option `name` takes fits into the deadline."""
    seconds = getattr(options, name)
    if seconds >= options.timeout:
        raise UsageError(
            f"--{name} {seconds:g} is not below --timeout {options.timeout:g}; "
            "lower the one or raise the other"
        )


def chosen_thresholds(
    options: argparse.Namespace, judged: "tuple[Judged, ...]"
) -> "Iterator[tuple[Judged, str, Threshold]]":
    """(judged label, `warning` or `critical`, range) of each threshold, given or default."""
    for one in judged:
        for word in ("warning", "critical"):
            option = _threshold_option(judged, one, word)
            threshold: Optional[Threshold] = getattr(options, _destination(option))
            if threshold is not None:
                yield one, word, threshold


def _threshold_option(judged: "tuple[Judged, ...]", one: "Judged", word: str) -> str:
    return f"--{word}" if one is judged[0] else f"--{one.label.replace('_', '-')}-{word}"


def _destination(option: str) -> str:
    return option[2:].replace("-", "_")


def chosen_leg(options: argparse.Namespace, leg: "Optional[str]" = None) -> Leg:
    """The leg that the socket options name, or the one of their endpoint that `leg` does.

    Names of hosts among the peers are resolved before: see host_names.resolve_peers().
    """
    paths = tuple(dict.fromkeys(getattr(options, "socket", ())))  # an option of checks alone
    return Leg(
        tuple(dict.fromkeys(options.port)) or (() if paths else (DEFAULT_PORT,)),
        (leg or options.leg) == "server",
        options.address,
        tuple(options.peer),
        tuple(options.exclude_peer),
        paths,
    )


def names_host(options: argparse.Namespace) -> bool:
    """Whether a peer is a host, by its name: see host_names.resolve_peers()."""
    peers = (*getattr(options, "peer", ()), *getattr(options, "exclude_peer", ()))
    return not all(isinstance(one, Network) for one in peers)
