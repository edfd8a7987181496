"""Sessions counted by user, database or peer, each group against a limit of its own; pure."""

from check_pgsock.command_line import Parser, argument
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.labels import label_of
from check_pgsock.legs import format_address
from check_pgsock.option_values import parse_count_or_zero, parse_name, parse_network
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.legs import Network
    from check_pgsock.sessions.slots import Slots
    from check_pgsock.sockets.model import Socket

USER, DATABASE, PEER = "user", "database", "peer"
OTHERS = "*"
# What the perfdata of named groups may take of the first line, beside the check's other labels
# and its sentence.
_PERFDATA_BYTES = 400
_PREFIXES = {USER: "user_", DATABASE: "db_", PEER: "peer_"}


class Group:
    """A user, a database or peers: how many sessions it has, and how many it may."""

    __slots__ = ("count", "limit", "name")

    def __init__(self, name: str, limit: int, count: int = 0) -> None:
        self.name = name  # not fit to print before clean()
        self.limit = limit
        self.count = count

    @property
    def percent(self) -> float:
        """How full it is. Of a limit of 0, which admits nobody, each session is as if it were one
        more than all.
        """
        if self.limit == 0:
            return 100.0 * (self.count + 1) if self.count else 0.0
        return 100 * self.count / self.limit


class GroupLimits:
    """The limits of --group-limit: those of groups by name, and that of every other group."""

    __slots__ = ("by", "named", "networks", "others")

    def __init__(self, by: str, limits: "Iterable[tuple[str, int]]") -> None:
        """Raises UsageError for a name twice, and for what is none."""
        self.by = by
        self.named: dict[str, int] = {}
        self.others: Optional[int] = None
        self.networks: list[tuple[Network, str]] = []  # the narrowest first
        for name, limit in limits:
            if name in self.named or (name == OTHERS and self.others is not None):
                raise UsageError(f"--group-limit names {name} twice; drop one")
            if name == OTHERS:
                self.others = limit
                continue
            self.named[name] = limit
            if by == PEER:
                try:
                    self.networks.append((parse_network(name), name))
                except ValueError as error:
                    raise UsageError(f"--group-limit of --by peer: {error}") from None
        self.networks.sort(key=lambda pair: pair[0].host_bits)
        fitting = self._count_fitting()
        if fitting < len(self.named):
            raise UsageError(
                f"--group-limit names {len(self.named)} groups, of which the first {fitting} fit "
                "into the perfdata of one line; give the others a service of their own, or all "
                f"that have one limit: '{OTHERS}'=N"
            )

    def _count_fitting(self) -> int:
        """How many of the named groups there is room for, each as full as it may be."""
        left = _PERFDATA_BYTES
        for number, (name, limit) in enumerate(self.named.items()):
            left -= len(f" {self.label(name)}={limit};;;0;{limit}")
            if left < 0:
                return number
        return len(self.named)

    @property
    def is_by_slot(self) -> bool:
        """Whether sessions are counted that hold a slot of a server; else TCP connections."""
        return self.by != PEER

    def unknown(self, why: str) -> PgsockError:
        """The error where nothing is known of any session, with its reason."""
        return PgsockError(
            f"the {self.by}s of sessions are not known: {why}; drop --group-limit, or count --by "
            "peer"
        )

    def label(self, name: str) -> str:
        """The perfdata label of a named group."""
        return _PREFIXES[self.by] + label_of(name)

    def name_of(self, peer: bytes) -> str:
        """The group of a remote address: the narrowest network named that holds it, or itself."""
        for network, name in self.networks:
            if peer in network:
                return name
        return format_address(peer)


class Groups:
    """What was counted: `named` in the order of the options, `ranked` these and the others, the
    fullest first.

    `unknown` sessions belong to groups that are not known.
    """

    __slots__ = ("by", "named", "ranked", "unknown")

    def __init__(self, limits: GroupLimits, counts: "dict[str, int]", unknown: int = 0) -> None:
        self.by = limits.by
        self.named = [Group(name, most, counts.get(name, 0)) for name, most in limits.named.items()]
        every = list(self.named)
        if limits.others is not None:
            every += [
                Group(name, limits.others, count)
                for name, count in sorted(counts.items())
                if name not in limits.named
            ] or [Group("other", limits.others)]
        self.ranked = sorted(every, key=lambda one: -one.percent)
        self.unknown = unknown

    @property
    def fullest(self) -> Group:
        """The one that has most of its limit."""
        return self.ranked[0]

    @property
    def noun(self) -> str:
        """What is counted."""
        return "connections" if self.by == PEER else "sessions"

    def describe(self) -> str:
        """`user app has 38 of 40 sessions (95 %)`, of the fullest."""
        one = self.fullest
        share = f"{one.percent:.0f} %" if one.limit else "none allowed"
        return f"{self.by} {clean(one.name)} has {one.count} of {one.limit} {self.noun} ({share})"

    def note(self) -> "Optional[str]":
        """What qualifies the numbers."""
        if not self.unknown:
            return None
        return (
            f"the {self.by} of {self.unknown} of the sessions is not known: what groups have is a "
            "lower bound"
        )


def group_slots(limits: GroupLimits, slots: "Slots") -> Groups:
    """The sessions that hold a slot, by user or database.

    Raises PgsockError where there are some and it is known of none.
    """
    counts: dict[str, int] = {}
    for title in slots.holders.values():
        name = title.user if limits.by == USER else title.database
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    unknown = slots.used + slots.untold - sum(counts.values())
    if unknown and not counts:
        raise limits.unknown(f"the titles of all {unknown} do not tell for certain")
    return Groups(limits, counts, unknown)


def group_peers(limits: GroupLimits, connections: "Iterable[Socket]") -> Groups:
    """The TCP connections by peer."""
    peers: dict[bytes, int] = {}
    for one in connections:
        peers[one.remote_address] = peers.get(one.remote_address, 0) + 1
    counts: dict[str, int] = {}
    for peer, count in peers.items():
        name = limits.name_of(peer)
        counts[name] = counts.get(name, 0) + count
    return Groups(limits, counts)


def parse_group_limit(text: str) -> "tuple[str, int]":
    """NAME=N; the name may have a `=` in it."""
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise ValueError(f"'{text}' is not NAME=N, such as app=40")
    # 0 is a CONNECTION LIMIT, too: nobody may connect.
    return parse_name(name), parse_count_or_zero(number)


def add_group_options(parser: Parser) -> None:
    """The options `by` and `group_limit`: see chosen_groups()."""
    group = parser.add_argument_group("groups")
    group.add_argument(
        "--by", choices=(USER, DATABASE, PEER),
        help="what the groups of --group-limit are",
    )  # fmt: skip
    group.add_argument(
        "--group-limit", metavar="NAME=N", type=argument(parse_group_limit), action="append",
        default=[],
        help="the sessions that a user or a database may have (its CONNECTION LIMIT, or a pool's "
        "size; 0: none), or the connections of a peer, an address or a network; repeatable; "
        "'*'=N: each group that is not named",
    )  # fmt: skip


def chosen_groups(options: "Namespace") -> "Optional[GroupLimits]":
    """The groups that the options name; None without. Raises UsageError."""
    if options.by is None:
        given = options.given_thresholds.get("fullest_group")
        if options.group_limit or given:
            one = "--group-limit" if options.group_limit else given[0]
            raise UsageError(f"{one} needs --by user, --by database or --by peer")
        return None
    if not options.group_limit:
        raise UsageError(f"--by {options.by} needs --group-limit NAME=N, once at least")
    if options.by == PEER and options.socket and not options.port:
        raise UsageError("--by peer: connections over a Unix socket have no address; see --by user")
    if options.by != PEER and options.leg == "client":
        raise UsageError(
            f"--by {options.by} counts the sessions of a server, on the server leg; drop --leg "
            "client, or count --by peer"
        )
    return GroupLimits(options.by, options.group_limit)
