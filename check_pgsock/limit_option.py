"""`--limit N|auto`: the connections that a leg's endpoint can hold, given or read."""

from check_pgsock import options as opts
from check_pgsock.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Optional

    from check_pgsock.legs import Leg
    from check_pgsock.servers.limits import Limit
    from check_pgsock.sockets.model import Listener
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View


def parse_limit(text: str) -> "Optional[int]":
    """A number of slots, or None for auto."""
    return None if text == "auto" else opts.parse_count(text)


def add_limit_option(parser: opts.Parser) -> None:
    """The option `limit`: None where it is to be read."""
    parser.add_argument(
        "--limit", metavar="N|auto", type=opts.argument(parse_limit), default=None,
        help="usable slots of the endpoint (nothing is subtracted), or auto: read it from the "
        "PostgreSQL server or the PgBouncer on this host, without a connection (default: auto)",
    )  # fmt: skip


def name_pool_of_several(options: "Namespace") -> "Optional[str]":
    """What makes several endpoints of these options one pool of several servers, in words; None
    where they may be one server's: a port, and socket files.

    Whose limits add up to what, nothing but the administrator knows.
    """
    for name in ("port", "netns"):
        if len(set(getattr(options, name))) > 1:
            return f"several --{name}"
    return None


def validate_limit(options: "Namespace") -> None:
    """Raise UsageError where there is no limit to be read of several servers."""
    several = None if options.limit is not None else name_pool_of_several(options)
    if several is not None:
        raise UsageError(f"{several} are one pool and need its size: name it with --limit N")


def find_limit(
    leg: "Leg", view: "View", listeners: "list[Listener]", sessions: "Sessions"
) -> "tuple[Limit, str, Optional[str]]":
    """(limit, proof of whose server it is, pending change of it) of the one server of `leg`, which
    has `listeners` and those of `sessions`. Raises LimitUnknown.
    """
    from check_pgsock.servers.leg_owner import look_for_owner, read_limit  # many are told it

    return read_limit(view, look_for_owner(view, leg, listeners, sessions))


def limit_notes(limit: "Limit", pending: "Optional[str]") -> "list[str]":
    """What qualifies a limit that was read."""
    notes = [pending] if pending else []
    if limit.assumed:
        notes.append(
            f"{limit.reserved} reserved slots are assumed (the defaults; their settings cannot be "
            "read from here)"
        )
    return notes


def describe_limit(limit: "Limit", proof: str) -> str:
    """Where a limit was read."""
    return (
        f"limit: {limit.usable} usable of {limit.setting} {limit.max_connections}, "
        f"read from {limit.source}; whose server it is: {proof}"
    )
