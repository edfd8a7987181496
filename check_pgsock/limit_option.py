"""`--limit N|auto|sql`: the connections that a leg's endpoint can hold, given or read."""

from check_pgsock.command_line import Parser, argument
from check_pgsock.dsn_option import add_dsn
from check_pgsock.errors import UsageError
from check_pgsock.option_values import parse_count
from check_pgsock.sockets.model import ESTABLISHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Callable, Optional, Union

    from check_pgsock.contract import Report, Run
    from check_pgsock.legs import Leg
    from check_pgsock.servers.limits import Limit
    from check_pgsock.sockets.model import Listener
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View


SQL = "sql"


def parse_limit(text: str) -> "Union[int, str, None]":
    """A number of slots, SQL, or None for auto."""
    if text in ("auto", SQL):
        return None if text == "auto" else SQL
    return parse_count(text)


def add_limit_option(parser: Parser) -> None:
    """The options `limit`, None where it is to be read without a connection, and `dsn`."""
    group = parser.add_argument_group("limit")
    group.add_argument(
        "--limit", metavar="N|auto|sql", type=argument(parse_limit), default=None,
        help="usable slots of the endpoint (nothing is subtracted), or auto: read it from the "
        "PostgreSQL server or the PgBouncer on this host, without a connection; or sql: ask the "
        "server that --dsn names, once an hour and before any state other than OK, and keep it in "
        "the state directory (default: auto)",
    )  # fmt: skip
    add_dsn(group, "with --limit sql the server to ask")


class GivenLimit:
    """The limit by --limit, and what is to be said of it: always (`notes`), at -v (`told`).

    `usable` slots there are; None where a server has none left for the question, as `refused`
    says, and no earlier answer is kept.
    """

    __slots__ = ("notes", "refused", "told", "usable")

    def __init__(self, usable: "Optional[int]", told: "list[str]") -> None:
        self.usable = usable
        self.told = told
        self.notes: list[str] = []
        self.refused: Optional[str] = None


def given_limit(run: "Run", view: "View") -> "Optional[GivenLimit]":
    """The limit that --limit says, or that the server says which --dsn names; None for auto.

    Raises LimitUnknown, StateError and UsageError.
    """
    limit = run.options.limit
    if limit != SQL:
        told = f"limit: {limit} usable, given by --limit"
        return None if limit is None else GivenLimit(limit, [told])
    if view.reader.saved:
        raise UsageError(
            "--limit sql asks a server as it is now, and a saved moment is of another time; name "
            "the limit with --limit N"
        )
    from check_pgsock.options import chosen_leg
    from check_pgsock.sql_limit import find_sql_limit  # many runs ask nobody

    leg = chosen_leg(run.options)

    def look() -> "list[int]":
        """The inodes of the leg's TCP connections: they grow, as sockets are made."""
        found = view.reader.sockets(leg.query(ESTABLISHED)) if leg.ports else []
        return sorted(one.inode for one in found if one.inode)

    return find_sql_limit(run, f"{leg.describe()} {run.options.netns}", look)


def with_fresh_limit(probe: "Callable[[Run], Report]") -> "Callable[[Run], Report]":
    """A check's `probe` that lets no state but OK hang on what --limit sql has kept for long."""

    def probe_again(run: "Run") -> "Report":
        report = probe(run)
        if run.options.limit != SQL:
            return report
        from check_pgsock.sql_limit import review

        return review(run, report, probe)

    return probe_again


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
    """Raise UsageError where there is no limit to be read of several servers, and for a DSN that
    nobody is asked by.
    """
    several = None if isinstance(options.limit, int) else name_pool_of_several(options)
    if several is not None:
        raise UsageError(f"{several} are one pool and need its size: name it with --limit N")
    validate_dsn(options)


def validate_dsn(options: "Namespace") -> None:
    """Raise UsageError for a DSN that nobody is asked by."""
    if options.dsn and options.limit != SQL:
        raise UsageError("--dsn is asked by --limit sql alone; add that, or drop it")


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
