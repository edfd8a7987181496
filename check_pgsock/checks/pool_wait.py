"""Pool wait: clients of a PgBouncer that wait for a server connection.

    maxwait     seconds for which the client that has waited longest does (maxwait, maxwait_us)
    cl_waiting  clients that wait now, of all pools
    wait_ratio  clients that waited on average over --over seconds
    clients     client connections of the process; % is of max_client_conn

PgBouncer's console is asked (-d, dbname=pgbouncer is implied); a user in stats_users may. Nothing
but SHOW is sent. wait_ratio takes what earlier runs saw: it is the growth of total_wait_time, to
which PgBouncer adds a wait when that ends, and of the waits that have not ended. Clients that give
up are not in it, nor what a PgBouncer that was restarted had counted since the run before, which is
said: with those it is a lower bound. It has no label on a first run. cl_waiting and wait_ratio have
no default thresholds: how many may wait for a moment depends on how many there are. A client that
logs in while its pool has no server connection waits as well; PgBouncer's own maxwait leaves it
out, here it counts, from when it sent its request, to the second.

--database and --user choose pools, by the names that clients give; SHOW STATS knows no users, so
with --user there is no wait_ratio. clients is always that of the whole process, less the check's
own session, which PgBouncer lets in even where max_client_conn is used up. Of several processes
that share a port (so_reuseport) the one that answers tells of itself alone: ask each by its Unix
socket. A slot that is refused is CRITICAL, without perfdata.

Where the server lets PgBouncer in no more, clients are refused at once and nobody waits. A database
without a server connection is CRITICAL then: earlier runs tell that there were requests since, and
none was passed on; where nobody has asked again since the last run, nor within a minute, it is
WARNING, for --over seconds at most. Clients that are refused while they log in (auth_query;
PgBouncer before 1.17) leave no trace on the console, nor do sockets tell: OK, with a line where no
pool has a server connection; a check of the server itself, or a query through PgBouncer, tells
more.

Without console: -p PORT of the pooler on this host estimates from its sockets, unprivileged. Of the
clients that await an answer as many wait as there are more of them than busy server connections, at
least: maxwait and cl_waiting are lower bounds then, clients is not judged, and there is no
wait_ratio. Sockets do not always tell which connections are busy (over Unix sockets never); where
the verdict depends on it the check is UNKNOWN and says why.
"""

from check_pgsock import options as opts
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.dsn_option import add_dsn
from check_pgsock.errors import SlotsExhausted, SourceError, UsageError
from check_pgsock.option_values import names_recording, parse_name, parse_port, parse_seconds
from check_pgsock.plugin import run as run_check
from check_pgsock.text import plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn

    from check_pgsock.pooling.console_waits import ConsoleWaits
    from check_pgsock.sessions.waiting_clients import Bound, Estimate

OVER = 300.0


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    group = parser.add_argument_group("console")
    add_dsn(group, "PgBouncer's console")
    group.add_argument(
        "--database", metavar="NAME", type=argument(parse_name), action="append",
        default=[], help="only pools of this database, as clients name it; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--user", metavar="NAME", type=argument(parse_name), action="append",
        default=[], help="only pools of this user; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--over", metavar="SECONDS", type=argument(parse_seconds), default=OVER,
        help=f"wait_ratio is that of so long a time (default: {OVER:g})",
    )  # fmt: skip
    group.add_argument(
        "--state-key", metavar="TEXT", default="",
        help="keep samples apart from those of services with the same --dsn, --database and --user",
    )  # fmt: skip
    group = parser.add_argument_group("sockets, instead of the console")
    group.add_argument(
        "-p", "--port", metavar="PORT", type=argument(parse_port), action="append",
        default=[], help="estimate from the sockets of the pooler on this port; repeatable",
    )  # fmt: skip
    opts.add_view_options(group)


def validate(options: "Namespace") -> None:
    """Either the console or sockets; what only the console tells, and of all users alone."""
    if not options.port:
        if options.user and "wait_ratio" in options.given_thresholds:
            given = options.given_thresholds["wait_ratio"][0]
            raise UsageError(f"{given}: SHOW STATS tells of databases, not of users; drop --user")
        if options.netns or options.proc_root or options.source != "auto" or options.moment:
            raise UsageError(
                "--source, --moment, --proc-root and --netns are for sockets; name --port"
            )
        return
    opts.validate_view_options(options)
    if names_recording(options.source) or options.proc_root is not None:
        raise UsageError("a saved moment cannot be looked at twice; watch a live system")
    for name in ("dsn", "database", "user"):
        if getattr(options, name):
            raise UsageError(f"--{name} is for PgBouncer's console; drop it, or --port")
    for label in ("wait_ratio", "clients"):
        if label in options.given_thresholds:
            given = options.given_thresholds[label][0]
            raise UsageError(f"{given} takes PgBouncer's console; drop it, or --port")


def probe(run: Run) -> Report:
    """Ask the console, or estimate."""
    return estimate(run) if run.options.port else ask(run)


def ask(run: Run) -> Report:
    """What the console tells."""
    from check_pgsock.pooling.console_waits import (
        read_waits,  # with psycopg, which sockets do not take
    )

    try:
        found = read_waits(run)
    except SlotsExhausted as refused:
        return Report(str(refused), [], floor=("critical", ""))
    alerts = run.exceeds("clients", found.clients, found.most_clients)
    too_few = any(
        threshold.is_above(found.clients, found.most_clients)
        for one, _, threshold in opts.chosen_thresholds(run.options, run.spec.judged)
        if one.label == "clients"
    )
    return Report(
        headline(found, alerts),
        measure(found),
        notes=found.notes,
        who=lambda: found.who(alerts, too_few, WHO_LINES),
        told=found.told,
        details=found.details,
        floor=found.floor,
        commit=found.commit,
        unknown=found.unknown,
    )


def headline(found: "ConsoleWaits", alerts: bool) -> str:
    """`pool app/app: 12 clients wait, the first for 3.2 s; 20 of 20 server connections in use`, or
    first how many clients there are, where their number `alerts`.
    """
    sentence = found.describe()
    if found.average is not None:
        over = write_seconds(found.average.seconds)
        least = "at least " if found.average.is_bound else ""
        sentence += f"; {least}{found.average.mean:.2f} waited on average over {over}"
    if alerts:
        return f"{found.describe_clients()}; {sentence}"
    return f"{sentence}; {found.clients} of {found.most_clients} client connections"


def measure(found: "ConsoleWaits") -> "list[Metric]":
    """The metrics; what could not be measured is left out."""
    metrics = [
        Metric("maxwait", found.longest, "s"),
        Metric("cl_waiting", found.waiting),
    ]
    if found.average is not None:
        metrics.append(Metric("wait_ratio", found.average.mean))
    most = found.most_clients
    return [*metrics, Metric("clients", found.clients, maximum=most, base=most)]


def estimate(run: Run) -> Report:
    """What sockets tell, at least."""
    from check_pgsock.legs import Leg
    from check_pgsock.sessions.waiting_clients import estimate_waiting
    from check_pgsock.socket_check import open_view, refuse_forwarded

    view = open_view(run)
    leg = Leg(tuple(dict.fromkeys(run.options.port)))
    listeners = view.reader.listeners(*leg.ports)
    missing = leg.missing_ports(listeners)
    if missing:
        raise SourceError(
            f"nothing listens on port {', '.join(map(str, missing))}; is the pooler down or the "
            "port another (--port)?"
        )
    doubts = refuse_forwarded(view, leg, listeners)
    found = estimate_waiting(view, leg.ports)
    refuse_unclear(run, found, leg.describe())
    least = found.least
    return Report(
        say_estimate(found, leg.describe()),
        [
            Metric("maxwait", least.seconds, "s"),
            Metric("cl_waiting", least.waiting),
            Metric("clients", found.clients, judged=False),
        ],
        notes=[*doubts, *note_estimate(found)],
        told=found.owners,
        details=view.reader.describe(),
    )


def refuse_unclear(run: Run, found: "Estimate", where: str) -> None:
    """Raise SourceError where the verdict depends on what sockets do not tell."""
    least, most = found.least, found.most
    if _is_too_much(run, least) or not _is_too_much(run, most):
        return
    reasons = []
    if found.unclear:
        reasons.append(
            f"{plural(len(found.unclear), 'request')} came within one tick of the clock of an "
            "answer, before it or after it"
        )
    if found.maybe_busy:
        reasons.append(f"{plural(found.maybe_busy, 'server connection')} more may be busy")
    if found.local:
        reasons.append(
            f"{plural(found.local, 'server connection')} over Unix sockets, which have no clocks, "
            "may be busy"
        )
    raise SourceError(
        f"how many clients wait {where} is not known, {least.waiting} to {most.waiting}, the first "
        f"for up to {write_seconds(most.seconds)}: {'; '.join(reasons)}; ask PgBouncer's console "
        "(--dsn)"
    )


def _is_too_much(run: Run, bound: "Bound") -> bool:
    return run.exceeds("maxwait", bound.seconds) or run.exceeds("cl_waiting", bound.waiting)


def say_estimate(found: "Estimate", where: str) -> str:
    """`at least 3 clients wait on port 6432, the first for at least 1.3 s: estimated, ...`"""
    count = len(found.awaiting)
    verb = "awaits" if count == 1 else "await"
    basis = f"estimated, {plural(count, 'client')} {verb} an answer and {_say_busy(found)}"
    least = found.least
    if not least.waiting:
        return f"no client is seen to wait {where}: {basis}"
    verb = "client waits" if least.waiting == 1 else "clients wait"
    return (
        f"at least {least.waiting} {verb} {where}, the first for at least "
        f"{write_seconds(least.seconds)}: {basis}"
    )


def _say_busy(found: "Estimate") -> str:
    """`2 server connections are busy`, `up to 4 server connections may be busy`: as many as are
    taken for it.
    """
    most = found.busy + found.maybe_busy + found.local
    if not most:
        return "no server connection is busy"
    bound = "up to " if found.busy < most else ""
    verb = "may be" if bound else "is" if most == 1 else "are"
    return f"{bound}{plural(most, 'server connection')} {verb} busy"


def note_estimate(found: "Estimate") -> "list[str]":
    """What qualifies it."""
    notes = [
        "estimated from sockets: lower bounds; PgBouncer's console (--dsn) tells them, by pool"
    ]
    if not found.exact:
        notes.append(
            "which server connections are the pooler's is seen by root and its own user alone: "
            "those of all programs of its user are taken for its own"
        )
    if found.unclear:
        notes.append(f"{plural(len(found.unclear), 'client')} more may await an answer")
    if found.maybe_busy:
        some = plural(found.maybe_busy, "server connection")
        they = "it is" if found.maybe_busy == 1 else "they are"
        notes.append(f"of {some} it is not known whether {they} busy: taken for it")
    if found.local:
        notes.append(
            f"{plural(found.local, 'server connection')} over Unix sockets, which have no clocks: "
            "taken for busy"
        )
    return notes


SPEC = CheckSpec(
    name="pool_wait",
    description=__doc__,
    judged=(
        Judged("maxwait", "seconds that a client has waited", "1", "5"),
        Judged("cl_waiting", "clients that wait"),
        Judged("wait_ratio", "clients that waited on average"),
        Judged("clients", "client connections", "80%", "90%", "max_client_conn"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
    sockets=False,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_pool_wait."""
    run_check(SPEC)
