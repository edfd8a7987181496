"""Leak: ESTABLISHED connections that nobody uses any more.

    leaked = silent beyond what the pool keeps + idle in transaction + dead peers

silent: idle for longer than --idle-for. idle_in_transaction: for longer than
--idle-in-transaction-for. dead_peers: the other side does not acknowledge what was sent, nor
probes: its host or network is down (one that vanished while nothing was sent to it is silent). A
connection counts once; walsenders never do.

What the pool keeps idle is --keep N; --keep 0 for one that should be in use throughout. Without it
earlier runs tell, for which a state directory is needed, and an hour (or four times --idle-for):
silent connections are leaked where they come on top of the pool's usual size, the greater of the
most that were in use together for two times --idle-for, and what it had in nine tenths of the last
week. So a pool that is silent at night is none, nor is one that grows by day or was restarted, but
what has always been there is usual, too: for a pool whose size you know give --keep. One that was
enlarged on purpose and is hardly used is growth for up to a week: give --keep, or another
--state-key, with which history begins anew. Until earlier runs tell, all silent connections count,
and that is said.

The default thresholds are of the limit. Where no --limit is given and none can be read (a server on
another host, several endpoints, rights that do not suffice) silent connections are judged with
--keep alone, and the defaults are absolute: `-w 5 -c 20`. A server on another host can be asked:
--limit sql, as check_pgsock_saturation does.

Idle in transaction is told from idle by the titles of a PostgreSQL server's processes: on its own
host. Elsewhere (PgBouncer's port, a client leg to another host) all idle connections count as
silent, by --idle-for. So do those whose title does not tell it (it may be cut, the server is not
proven to be PostgreSQL, update_process_title is off); where the verdict depends on them the check
is UNKNOWN and says what it takes. Where not all are told, idle_in_transaction has no label. A
connection over a Unix socket has no clock: it is known to be idle for as long as earlier runs saw
its backend do nothing; those of the same PostgreSQL server are in the server leg of its port, once
it is proven whose that is. LISTEN sessions wait by design: see --exclude-user. A recording is
judged as it is, without earlier runs.
"""

from check_pgsock import options as opts
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import NOT_JUDGED, WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.leak_doubts import UNTITLED, count_beyond, refuse_blind, refuse_untitled
from check_pgsock.leak_state import Past
from check_pgsock.legs import Leg
from check_pgsock.limit_option import (
    SQL,
    add_limit_option,
    describe_limit,
    find_limit,
    given_limit,
    limit_notes,
    name_pool_of_several,
    validate_dsn,
    with_fresh_limit,
)
from check_pgsock.option_values import parse_age, parse_count_or_zero
from check_pgsock.plugin import run as run_check
from check_pgsock.servers.limits import LimitUnknown, unknown
from check_pgsock.sessions.leaks import (
    Leaks,
    count_possible,
    find_leaks,
    leak_lines,
    leave_out_walsenders,
    say_unjudged,
)
from check_pgsock.sessions.pool_history import (
    PoolSample,
    find_usual_size,
    span_needed,
    span_of,
)
from check_pgsock.sessions.selection import chosen_selection
from check_pgsock.sessions.survey import survey
from check_pgsock.sessions.unproven import may_be_unproven, say_unix_unseen, say_why
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
)
from check_pgsock.socket_state import add_state_key
from check_pgsock.sockets.model import ESTABLISHED, LISTEN
from check_pgsock.text import plural, write_seconds
from check_pgsock.unix.leg import read_sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

    from check_pgsock.sockets.model import Listener
    from check_pgsock.unix.leg import Sessions
    from check_pgsock.view import View

IDLE_FOR, IN_TRANSACTION_FOR = 900.0, 60.0


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--idle-for", metavar="SECONDS", type=argument(parse_age), default=IDLE_FOR,
        help=f"idle for longer than this is silent (default: {IDLE_FOR:g})",
    )  # fmt: skip
    parser.add_argument(
        "--idle-in-transaction-for", metavar="SECONDS", type=argument(parse_age),
        default=IN_TRANSACTION_FOR,
        help="idle in a transaction for longer than this is a leak "
        f"(default: {IN_TRANSACTION_FOR:g})",
    )  # fmt: skip
    parser.add_argument(
        "--keep", metavar="N", type=argument(parse_count_or_zero),
        help="so many silent connections are the pool's own; 0: none (default: what earlier runs "
        "tell of its usual size)",
    )  # fmt: skip
    add_limit_option(parser)
    add_state_key(parser)
    opts.add_session_options(parser)


def probe(run: Run) -> Report:
    """Find the connections that nobody uses; put them beside what the pool keeps, and the limit."""
    options = run.options
    leg = opts.chosen_leg(options)
    view = open_view(run)
    # A client leg has no listeners of its own.
    bound = count(view.reader, leg, LISTEN).listeners if leg.server else None
    listeners = bound or []
    sessions = read_sessions(view.reader, leg.paths)
    floor = listener_floor(run, leg, listeners, sessions.missing)
    doubts = refuse_forwarded(view, leg, listeners)
    notes, told = session_notes(view, leg, sessions)
    limit, why = None, "nothing listens"
    if floor is None:
        limit, why = chosen_limit(run, view, leg, listeners, sessions, notes, told)
    found = survey(view, leg, 1 << ESTABLISHED, not leg.paths, bound)
    if leg.paths:
        from check_pgsock.unix.survey import add_unix_socket

        for path in leg.paths:
            add_unix_socket(view, path, found)
    selection = chosen_selection(options)
    connections, doubtful = leave_out_walsenders(found.connections)
    connections, said = selection.choose(connections)
    past = Past(run, view, leg, connections, selection.describe(), options.idle_for)
    leaks = find_leaks(connections, options.idle_for, options.idle_in_transaction_for, past.watched)
    may_be = may_be_unproven(view, leg, found)
    sample = PoolSample(run.now, len(connections), len(connections) - len(leaks.silent))
    surplus, unsure = find_surplus(options, sample, limit, why, past, told)
    of = f"{leg.describe()}{selection.describe()}"
    if floor is None:
        refuse_blind(run, leaks, surplus, limit, past, of)
        stateful = [*found.of_postgresql, *(found.of_unproven if may_be else ())]
        bounds = options.idle_for, options.idle_in_transaction_for
        possible = count_possible(leaks, stateful, *bounds)
        why = say_why(view) if may_be else UNTITLED
        refuse_untitled(run, leaks, possible, surplus, limit, of, why)
    if may_be:
        notes += say_unix_unseen(view, leg)
    notes += [one for one in found.notes if one not in notes]
    notes += [*said, *unsure, *say_unjudged(leaks, doubtful)]
    tells_states = found.is_postgresql and not leaks.untitled
    if (found.proven or may_be) and leaks.untitled:
        notes.append(
            "whether they are idle or idle in transaction is not known, and they count as idle: "
            + plural(len(leaks.untitled), "connection")
        )
    beyond = count_beyond(len(leaks.silent), options.keep, surplus)
    is_judged = options.keep is not None or limit is not None
    return Report(
        headline(options, leaks, beyond if is_judged else None, sample.total, of),
        measure(options, leaks, beyond, sample.total, limit, tells_states),
        notes=[*view.reader.notes(), *doubts, *notes],
        who=lambda: leak_lines(leaks, WHO_LINES),
        told=told,
        details=[*view.reader.describe(), *sessions.describe()],
        floor=floor,
        judged=None if floor is None else NOT_JUDGED,
        commit=lambda: past.commit(sample),
    )


def chosen_limit(
    run: Run, view: "View", leg: Leg, listeners: "list[Listener]", sessions: "Sessions",
    notes: "list[str]", told: "list[str]",
) -> "tuple[Optional[int], str]":  # fmt: skip
    """(--limit or what is read, why there is none): a limit that is not known is no error, unless
    it was to be asked for, or a threshold is a share of it: then this raises LimitUnknown.
    """
    endpoint = leg.describe().partition(" ")[2]
    try:
        several = name_pool_of_several(run.options)
        if several is not None and not isinstance(run.options.limit, int):
            raise unknown(endpoint, f"{several} are one pool")
        given = given_limit(run, view)
        if given is not None:
            if given.usable is None:
                raise unknown(endpoint, given.refused or "")
            notes += given.notes
            told += given.told
            return given.usable, ""
        limit, proof, pending = find_limit(leg, view, listeners, sessions)
    except LimitUnknown as error:
        if run.options.limit == SQL or run.needs_base("leaked"):
            raise
        return None, error.why or str(error)
    notes += limit_notes(limit, pending)
    told.append(describe_limit(limit, proof))
    return limit.usable, ""


def find_surplus(
    options: "Namespace", now: PoolSample, limit: "Optional[int]", why: str, past: Past,
    told: "list[str]",
) -> "tuple[Optional[int], list[str]]":  # fmt: skip
    """By how many connections the pool is larger than it usually is, None where that does not
    matter or is not known; and what is to be said of it.
    """
    if options.keep is not None:
        return None, []
    if limit is None:
        return 0, [
            f"silent connections are not judged: no limit is known ({why}); name it (--limit N), "
            "or how many the pool keeps (--keep N)"
        ]
    usual = find_usual_size(past.pools, now, options.idle_for)
    if usual is not None:
        told.append(f"the pool's usual size by earlier runs: {plural(usual, 'connection')}")
        return max(now.total - usual, 0), []
    if now.in_use == now.total:
        return None, []
    lack = past.refusal
    if lack is None:
        span, needed = span_of(past.pools, now), span_needed(options.idle_for)
        lack = f"they reach back {write_seconds(span)} of the {write_seconds(needed)} needed"
    return None, [
        "all silent connections count: whether they are the pool's own is told by --keep N, or by "
        f"earlier runs ({lack})"
    ]


def headline(
    options: "Namespace", leaks: Leaks, beyond: "Optional[int]", total: int, of: str
) -> str:
    """`30 of 90 connections leaked on port 5432: 20 silent for more than 15 min, 10 idle in ...`"""
    parts = []
    silent = len(leaks.silent)
    if silent:
        kept = " (not judged)"
        if beyond is not None:
            kept = "" if beyond == silent else f" ({silent - beyond} of them the pool's own)"
        parts.append(f"{silent} silent for more than {write_seconds(options.idle_for)}{kept}")
    if leaks.idle_in_transaction:
        bound = write_seconds(options.idle_in_transaction_for)
        parts.append(f"{len(leaks.idle_in_transaction)} idle in transaction for more than {bound}")
    if leaks.dead_peers:
        parts.append(f"{plural(len(leaks.dead_peers), 'suspected dead peer')}")
    leaked = (beyond or 0) + leaks.others
    details = f": {', '.join(parts)}" if parts else ""
    return f"{leaked} of {plural(total, 'connection')} leaked {of}{details}"


def measure(
    options: "Namespace", leaks: Leaks, beyond: int, total: int, limit: "Optional[int]",
    tells_states: bool,
) -> "list[Metric]":  # fmt: skip
    """The metrics; left out are those in transactions where titles do not tell all of them from the
    others.
    """
    metrics = [
        Metric("leaked", beyond + leaks.others, maximum=limit, base=limit),
        Metric("silent", len(leaks.silent)),
    ]
    if tells_states:
        metrics.append(Metric("idle_in_transaction", len(leaks.idle_in_transaction)))
    metrics += [Metric("dead_peers", len(leaks.dead_peers)), Metric("established", total)]
    for label, value in (("limit", limit), ("keep", options.keep)):
        if value is not None:
            metrics.append(Metric(label, value))
    return metrics


SPEC = CheckSpec(
    name="leak",
    description=__doc__,
    judged=(
        Judged("leaked", "connections that nobody uses", "25%", "50%", "the limit", ("5", "20")),
    ),
    probe=with_fresh_limit(probe),
    add_options=add_options,
    validate=validate_dsn,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_leak."""
    run_check(SPEC)
