"""The command line all executables share: parsing, validation, and what argparse gets wrong.

argparse exits 2 on a usage error, which a monitoring system reads as CRITICAL, and takes a range
that begins with `-` for an option. Here every usage error is a UsageError: one sentence, exit 3.
"""

import argparse
import math
import socket

from check_pgsock import __version__
from check_pgsock.errors import UsageError
from check_pgsock.host_names import HostName, parse_host_name
from check_pgsock.legs import Leg, Network
from check_pgsock.sockets.model import fold_address
from check_pgsock.thresholds import LOOKS_LIKE_RANGE, Threshold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, Optional, Union

DEFAULT_PORT = 5432
DEFAULT_TIMEOUT = 8.0
DEFAULT_SETTLE = 1.0
LIVE_SOURCES = ("auto", "netlink", "procfs")
LONGEST_TIMEOUT = 3600.0
LONGEST_AGE = 30 * 86400.0  # what the store keeps of a service that does not run is 40 days


class Shown(Exception):
    """Help or version was asked for: the text to print, instead of a check."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that neither prints nor exits, and knows options that take ranges."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._range_options: set[str] = set()

    def add_range(
        self,
        group: "argparse._ArgumentGroup",
        *names: str,
        default: "Optional[str]",
        help: str,
    ) -> None:
        """Add an option whose value is a threshold range to `group`."""
        self._range_options.update(names)
        group.add_argument(
            *names,
            metavar="RANGE",
            type=argument(Threshold),
            default=None if default is None else Threshold(default),
            help=f"{help} (default: {default or 'none'})".replace("%", "%%"),
        )

    def parse(self, arguments: "Sequence[str]") -> argparse.Namespace:
        """Parse; raises UsageError, or Shown for --help and --version."""
        joined: list[str] = []
        pending: Optional[str] = None
        for one in arguments:
            if pending is not None and one[:1] == "-" and LOOKS_LIKE_RANGE.fullmatch(one):
                joined[-1] = f"{pending}={one}" if pending.startswith("--") else pending + one
                pending = None
                continue
            joined.append(one)
            pending = one if one in self._range_options else None
        options, rest = self.parse_known_args(joined)
        if rest:
            self.error(f"unknown option {' '.join(rest)}")
        return options

    def error(self, message: str) -> "NoReturn":
        """Raise what argparse would print."""
        raise UsageError(f"{message}; see {self.prog} --help")


class _Show(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: "Optional[str]" = None,
    ) -> None:
        if self.dest == "help":
            raise Shown(parser.format_help())
        raise Shown(f"{parser.prog} {__version__}\n")


class argument:
    """Wrap a parser of one value so that its ValueError becomes argparse's error sentence."""

    def __init__(self, parse: "object") -> None:
        self._parse = parse

    def __call__(self, text: str) -> object:
        try:
            return self._parse(text)  # type: ignore[operator]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def add_common(parser: Parser) -> None:
    """The options of every executable but its thresholds."""
    parser.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=argument(parse_seconds), default=DEFAULT_TIMEOUT,
        help="the whole run ends by then, as UNKNOWN if there is no verdict (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--state-dir", metavar="DIR", type=argument(parse_directory),
        help="where checks that need history keep it "
        "(default: /var/lib/check_pgsock where it is ours, else $XDG_STATE_HOME/check_pgsock)",
    )  # fmt: skip
    parser.add_argument(
        "-v", "--verbose", action="count", default=0,
        help="add lines: who holds the connections (-v), how it was measured (-vv), "
        "everything (-vvv)",
    )  # fmt: skip
    parser.add_argument(
        "-V", "--version", action=_Show, nargs=0, default=argparse.SUPPRESS,
        help="show the version and exit 3",
    )  # fmt: skip
    parser.add_argument(
        "-h", "--help", action=_Show, nargs=0, default=argparse.SUPPRESS,
        help="show this help and exit 3",
    )  # fmt: skip


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


def names_recording(source: str) -> bool:
    """Whether --source is the file of a recording, and none of the live sources."""
    return source not in LIVE_SOURCES


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


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 65535:
        raise ValueError(f"'{text}' is no port, 1 to 65535")
    return int(text)


def parse_source(text: str) -> str:
    """A source's name, or that of a file; whether it is there is seen when it is used."""
    if not text or "\0" in text:
        raise ValueError(f"'{text}' is neither {', '.join(LIVE_SOURCES)} nor a file")
    return text


def parse_seconds(text: str) -> float:
    """A positive time in seconds."""
    seconds = parse_number(text)
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"'{text}' is no time in seconds, above 0, at most {LONGEST_TIMEOUT:g}")
    return seconds


def parse_age(text: str) -> float:
    """A positive time in seconds; it may be longer than a run."""
    seconds = parse_number(text)
    if not 0 < seconds <= LONGEST_AGE:
        raise ValueError(f"'{text}' is no time in seconds, above 0, at most {LONGEST_AGE:.0f}")
    return seconds


def parse_number(text: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"'{text}' is no number")
    return number


def parse_count(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:19]) <= 10**9:
        raise ValueError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def parse_directory(text: str) -> str:
    """The name of a directory; whether it is there is seen when it is used."""
    if not text or "\0" in text:
        raise ValueError(f"'{text}' is no directory")
    return text


def parse_name(text: str) -> str:
    """The name of a user or a database."""
    if not text or "\0" in text:
        raise ValueError(f"'{text}' is no name of a user or a database")
    return text


def parse_namespace(text: str) -> str:
    """The name of a network namespace or a process id; whether it is there is seen later."""
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise ValueError(f"'{text}' is neither a name (ip netns) nor a process id")
    return text


def parse_socket(text: str) -> str:
    """The path of a Unix socket, or @ and an abstract name; what lies there is seen later."""
    if "\0" in text or not (text.startswith("/") or (text.startswith("@") and len(text) > 1)):
        raise ValueError(
            f"'{text}' is neither the absolute path of a Unix socket nor @NAME of an abstract one"
        )
    return text


def parse_address(text: str) -> bytes:
    """An IPv4 or IPv6 address, packed and folded."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return fold_address(socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    raise ValueError(f"'{text}' is no IPv4 or IPv6 address")


def parse_network(text: str) -> Network:
    """A network in CIDR notation, or a single address."""
    import ipaddress  # 4 ms, and rarely needed

    if "%" in text:
        raise ValueError(f"'{text}' has a zone; name the network alone")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            right = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"'{text}' has host bits set; did you mean {right}?") from None
        raise ValueError(f"'{text}' is no network such as 10.0.0.0/8 or 2001:db8::/32") from None
    packed = network.network_address.packed
    folded = fold_address(packed)
    length = network.prefixlen
    if len(folded) < len(packed) and length >= 96:
        return Network(folded, length - 96, text)
    return Network(packed, length, text)


def parse_peer(text: str) -> "Union[Network, HostName]":
    """A network as parse_network() takes it, or the name of a host, without asking a resolver."""
    is_network = any(one in text for one in "/:%") or text.replace(".", "").isdigit()
    return parse_network(text) if is_network else parse_host_name(text)
