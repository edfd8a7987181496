"""`--limit sql`: the usable slots of a server that is elsewhere, asked through --dsn and kept.

It is asked when what is kept is an hour old; in between nothing is connected to, unless it may have
changed: where a minute old it would make a state other than OK, and where after five minutes none
of the connections is left that were there when it was read, as after a restart of the server. While
it cannot be asked, what is kept holds on, and its age is said.
"""

from check_pgsock.deadline import Deadline
from check_pgsock.dsn_option import libpq_environment
from check_pgsock.errors import (
    DatabaseFull,
    DeadlineError,
    MalformedError,
    PgsockError,
    SlotsExhausted,
    SourceError,
    StateError,
    UsageError,
)
from check_pgsock.judging import judge
from check_pgsock.limit_option import GivenLimit
from check_pgsock.postgres.client import connect
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.socket_state import NO_DIRECTORY
from check_pgsock.store import Store, make_key
from check_pgsock.text import clean, write_seconds
from check_pgsock.waiting import call_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable, Optional

    from check_pgsock.contract import Report, Run

ASK_AFTER = 3600.0  # seconds
ASK_AFTER_RESTART = 300.0
ASK_BEFORE_ALERT = 60.0
_SHARE = 0.5  # of the time left: what is kept has to become a verdict when nobody answers
_MOST_KEPT = 20  # connections


class ServerLimit:
    """What a server said of its slots, `at` a wall-clock time: all, by the name of their `setting`,
    and those that are `reserved`.

    `database_limit` is the CONNECTION LIMIT of `database`, the one connected to; -1: it has none.
    `seen` are inodes of connections of `leg` that there were then.
    """

    __slots__ = ("at", "database", "database_limit", "leg", "reserved", "seen", "setting", "slots")

    def __init__(
        self, at: float, setting: str, slots: int, reserved: int, database: str,
        database_limit: int, leg: str = "", seen: "Sequence[int]" = (),
    ) -> None:  # fmt: skip
        self.at = at
        self.setting = setting
        self.slots = slots
        self.reserved = reserved
        self.database = database
        self.database_limit = database_limit
        self.leg = leg
        self.seen = seen

    @property
    def usable(self) -> int:
        """Connections that ordinary users can hold."""
        return self.slots - self.reserved

    def as_json(self) -> "dict[str, object]":
        """What _parse() reads again, less the time."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "at"}


def find_sql_limit(run: "Run", leg: str, look: "Callable[[], list[int]]") -> GivenLimit:
    """The limit of the server that --dsn names: kept, or asked for where that is an hour old, or
    none of the connections is left that `look` found on `leg` then: the inodes, the oldest first.

    Raises LimitUnknown where there is neither, UsageError for a DSN that is none, StateError.
    """
    store, key, last = _open(run)
    if last is not None and 0 <= run.now - last.at < ASK_AFTER:
        if run.now - last.at < ASK_AFTER_RESTART or last.leg != leg or not last.seen:
            return _tell(last, run.now)
        there = look()
        if not there or not set(there).isdisjoint(last.seen):
            return _tell(last, run.now)
    try:
        fresh = ask(run)
    except UsageError:
        raise
    except PgsockError as error:
        return _without_answer(last, run.now, error)
    fresh.leg, fresh.seen = leg, look()[:_MOST_KEPT]
    # At once: whatever else keeps this run from a verdict, the next one does not ask again.
    store.commit({key: fresh.as_json()}, run.now, ASK_AFTER)
    return _tell(fresh, run.now)


def review(run: "Run", report: "Report", probe: "Callable[[Run], Report]") -> "Report":
    """`report`, or where by a limit that is kept for a minute it is not OK that which `probe` makes
    once that is read anew. Where it is not OK by a kept one the age is said.
    """
    if judge(run, report)[0] == "OK":
        return report
    store, key, last = _open(run)
    if last is None or not 0 < run.now - last.at < ASK_AFTER:
        return report  # read now, or not to be read
    note = _say_kept(last, run.now)
    if run.now - last.at >= ASK_BEFORE_ALERT:
        try:
            fresh = ask(run)
        except PgsockError as error:
            note = _say_kept(last, run.now, error)
            if isinstance(error, SlotsExhausted) and report.floor is None:
                report.floor = "critical", str(error)
        else:
            fresh.leg, fresh.seen = last.leg, last.seen
            store.commit({key: fresh.as_json()}, run.now, ASK_AFTER)
            return probe(run)
    if note not in report.notes:
        report.notes.append(note)
    return report


def _open(run: "Run") -> "tuple[Store, str, Optional[ServerLimit]]":
    """The store, the key in it, and what is kept."""
    run.deadline.doing = "reading the limit by --dsn"
    store = Store.open(run.options.state_dir, run.deadline)
    if store is None:
        raise StateError(f"--limit sql keeps what it reads, and there is {NO_DIRECTORY}")
    key = make_key("limit", run.options.dsn, libpq_environment())
    kept = [one for one in map(_parse, store.samples(key)) if one is not None]
    return store, key, kept[-1] if kept else None


def ask(run: "Run") -> ServerLimit:
    """What the server says now; raises UsageError, SlotsExhausted, SourceError."""
    asking = Deadline(run.deadline.remaining() * _SHARE)
    try:
        read = call_within(asking, lambda: _read(run, asking))
    except DatabaseFull as full:
        # Those counted may be on others, and the CONNECTION LIMIT of one is not what is judged.
        raise SourceError(
            f"{full}, which is the limit of that alone; name another with --dsn"
        ) from None
    except DeadlineError:
        raise SourceError(
            f"nothing was heard of it for {asking.seconds:.1f} s, the time ran out while "
            f"{asking.doing}; see to the server and --dsn"
        ) from None
    if read.usable < 1:
        raise MalformedError(
            f"{read.reserved} of {read.setting} {read.slots} are reserved, says the server; see to "
            "what the role and --dsn set"
        )
    return read


def _read(run: "Run", deadline: Deadline) -> ServerLimit:
    client = connect(run.options.dsn, run.spec.executable, deadline)
    try:
        if client.is_console:
            return _parse_config(client.show("CONFIG"), run.now)
        client.begin()
        (row,) = client.query("limits.sql")
        is_direct = row.pop("backend_pid") == client.backend_pid
    finally:
        client.close()
    if not is_direct:
        raise SourceError(
            "--dsn leads through a pooler to a server, and either has a limit of its own; name "
            "the server itself, or PgBouncer's console (dbname=pgbouncer)"
        )
    return ServerLimit(run.now, "max_connections", **row)


def _parse_config(rows: "list[dict[str, Any]]", now: float) -> ServerLimit:
    """The limit in the rows of PgBouncer's SHOW CONFIG."""
    settings = {one["key"]: one["value"] for one in rows}
    if settings.get("so_reuseport") not in ("0", None):
        raise SourceError(
            "PgBouncer shares its port between processes (so_reuseport), and its console tells of "
            "one; add their max_client_conn up"
        )
    try:
        return ServerLimit(now, "max_client_conn", int(settings["max_client_conn"]), 0, "", -1)
    except (KeyError, TypeError, ValueError):
        raise MalformedError("PgBouncer's SHOW CONFIG has no max_client_conn") from None


def _parse(sample: "Any") -> "Optional[ServerLimit]":
    """What an earlier run has kept; None for what another version may have."""
    try:
        return ServerLimit(sample.at, **sample.data)
    except TypeError:
        return None


def _without_answer(last: "Optional[ServerLimit]", now: float, error: PgsockError) -> GivenLimit:
    """What is kept, or where nothing is: no limit for want of a slot; else raises LimitUnknown."""
    is_refused = isinstance(error, SlotsExhausted)
    if last is not None:
        found = _tell(last, now)
        found.notes.insert(0, _say_kept(last, now, error))
    elif is_refused:
        found = GivenLimit(None, ["limit: none was ever read"])
    else:
        raised = LimitUnknown(f"no limit is kept, and none can be read: {error}; or give --limit N")
        raised.why = str(error)
        raise raised
    if is_refused:
        found.refused = str(error)
    return found


def _say_kept(last: ServerLimit, now: float, error: "Optional[PgsockError]" = None) -> str:
    """How old the limit is, and why it is not read anew, where that is not for want of a slot."""
    text = f"the limit is as it was {_say_age(last, now)}"
    if error is None or isinstance(error, SlotsExhausted):
        return text
    return f"{text}, it cannot be read now: {error}"


def _tell(read: ServerLimit, now: float) -> GivenLimit:
    """What was read, and what is to be said of it."""
    told = (
        f"limit: {read.usable} usable of {read.setting} {read.slots}, read by --dsn "
        f"{_say_age(read, now)}"
    )
    found = GivenLimit(read.usable, [told])
    if 0 <= read.database_limit < read.usable:
        found.notes.append(
            f"database {clean(read.database, 100)} admits {read.database_limit} connections "
            "(CONNECTION LIMIT), which are not judged: where all counted here are on it, give "
            f"--limit {read.database_limit}"
        )
    return found


def _say_age(read: ServerLimit, now: float) -> str:
    return "now" if read.at == now else f"{write_seconds(max(now - read.at, 0))} ago"
