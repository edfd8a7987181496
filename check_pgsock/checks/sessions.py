"""Sessions: abandoned, ended by fatal errors or killed, per second and of those that ended.

From pg_stat_database (PostgreSQL 14 and later), counted over the last --over seconds from several
runs, so that a retry keeps the evidence. abandoned: the client was gone without saying so, as one
that crashed or never closes its connections. fatal: the session ended by an error (a timeout of
idle sessions, a client lost while a statement ran or rows were sent, a broken protocol), or the
database refused it before it was one (no right to CONNECT, its connection limit, a setting that is
unknown); a wrong password, an unknown role or database, and the limit of a role or of the server
are not counted by PostgreSQL. killed: pg_terminate_backend(), or a server that stops.

Judged are the shares of ended sessions, by default abandoned_share and fatal_share with
`WARNING above 10 %`: of a sound application hardly any session ends so, whatever its size, while no
rate fits all sizes. Rates and killed_share have no default: who kills a session knows of it. A
share is judged from --min-sessions ended sessions on. There is no counter of ended sessions: they
are the new ones less the growth of the open ones, at least the sum of the three kinds. Until runs
reach back --over seconds, rates are per second over --over all the same: a lower bound.

On a first run, and after a restart or a fail-over to another server, with a database made anew or
a clock set back, there is nothing to compare with: OK, without rates and shares, which are judged
from the next run on. A reset or crash between two runs loses what came before it: a lower bound.
Without a state directory shares are judged over all that the statistics hold, and there are no
rates; thresholds given for these are UNKNOWN.

session_length (the time of sessions, per session) and in_transaction_share (the percentage of it
that they were in a transaction) are of all that the statistics hold, and tell the mode of pooling:
from 50 % on session pooling suffices; below, transaction pooling would pay where it is not in use
already (the counters do not tell), with so many times fewer server connections; sessions below 10 s
are so short that either pays by saving their starts. Of the sessions of a pooler, which are no
clients', it tells how much larger its pool is than what is in use; clients that vanish behind it
abandon no session, but a PgBouncer that stops abandons all of its own. The time of open sessions
counts up to the end of their last transaction. Where one may have failed while it started, which
PostgreSQL counts with all time since 2000, what was counted since an earlier run is used instead,
or nothing.

The check's own session counts in the database it connects to: name those to be judged with
--database and connect to another. Of several, their sum is judged; each that is named, of which
four fit into a line of perfdata (`all` takes in any number, as a sum), has rates of its own
(aband_, fail_ and kill_ with its name, new_ for new sessions). A refused connection slot is
CRITICAL, without perfdata. The role needs LOGIN only; with pg_read_all_stats parallel workers of
other roles are told from open sessions, and client addresses are shown. Services that share DSN and
database share their samples unless --state-key or --over differs.
"""

from contextlib import closing

from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import SlotsExhausted, UsageError
from check_pgsock.labels import label_of
from check_pgsock.option_values import parse_count, parse_seconds
from check_pgsock.plugin import run as run_check
from check_pgsock.pooling import session_ends
from check_pgsock.pooling.mode import Usage, describe_usage, find_usage
from check_pgsock.pooling.origins import NO_DIRECTORY
from check_pgsock.pooling.session_ends import Ends, Sample, add_up, find_ends, parse_sample
from check_pgsock.pooling.session_holders import Holder, holder_lines, kind_lines
from check_pgsock.pooling.session_wording import describe, describe_each, qualify
from check_pgsock.sql_check import (
    add_database_options,
    open_client,
    read_statistics,
    service_key,
    validate_database_options,
)
from check_pgsock.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

OVER = 300.0
LEAST_SESSIONS = 20
MOST_NAMED = 4  # each has four labels of up to 18 characters
_RATES = {kind: f"{kind}_rate" for kind in session_ends.KINDS}
_RATES["new"] = "sessions_rate"
_PREFIXES = {"abandoned": "aband", "fatal": "fail", "killed": "kill", "new": "new"}


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    add_database_options(parser, f"judge this database's sessions, of up to {MOST_NAMED}")
    group = parser.add_argument_group("sessions")
    group.add_argument(
        "--over", metavar="SECONDS", type=argument(parse_seconds), default=OVER,
        help=f"count over the runs of so long (default: {OVER:g})",
    )  # fmt: skip
    group.add_argument(
        "--min-sessions", metavar="N", type=argument(parse_count), default=LEAST_SESSIONS,
        help=f"judge shares of so many ended sessions at least (default: {LEAST_SESSIONS})",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """A line of perfdata takes only so many databases."""
    validate_database_options(options)
    named = len(set(options.database))
    if named > MOST_NAMED:
        raise UsageError(
            f"--database names {named} databases, of which {MOST_NAMED} fit into a line; use all, "
            "or further services"
        )


def probe(run: Run) -> Report:
    """Read the counters and the open sessions; count what became of sessions since earlier runs."""
    options = run.options
    try:
        client = open_client(run)
    except SlotsExhausted as refused:
        return Report(str(refused), [], floor=("critical", ""))
    with closing(client):
        server = client.query("server.sql")[0]
        databases = read_statistics(client, server, options.database)
        holders = [Holder(**row) for row in client.query("session_holders.sql")]
        details = [client.describe()]

    samples = {
        one.name: Sample(one, sum(each.count for each in holders if each.oid == one.oid))
        for one in databases
    }
    store = Store.open(options.state_dir, run.deadline)
    keys = {name: service_key(run, name, options.over) for name in samples}
    each = {
        name: find_ends(sample, read_earlier(store, keys[name]), options.over)
        for name, sample in samples.items()
    }
    total = add_up(each.values())
    usage = find_usage(databases, total, options.min_sessions)
    oids = {one.oid for one in databases}
    shown = [one for one in holders if one.oid in oids]

    def commit() -> None:
        if store is not None:
            new = {keys[name]: sample.as_json() for name, sample in samples.items()}
            store.commit(new, run.now, options.over)

    metrics = measure(total, usage, options, each)
    return Report(
        describe(total, list(each)),
        metrics,
        notes=[
            *qualify(
                total, each, options.over, options.min_sessions, any(one.hidden for one in shown)
            ),
            describe_usage(usage, options.min_sessions),
        ],
        who=lambda: [*kind_lines(each, WHO_LINES // 2), *holder_lines(shown, WHO_LINES // 2)],
        told=describe_each(each, databases, options.min_sessions),
        details=[*details, f"state: {'none' if store is None else store.path}"],
        floor=None if metrics else ("ok", ""),
        commit=commit,
        unknown=dict.fromkeys(_RATES.values(), NO_DIRECTORY) if store is None else None,
    )


def read_earlier(store: "Store | None", key: str) -> "Optional[list[Sample]]":
    """The samples of earlier runs; None where nothing keeps them."""
    if store is None:
        return None
    parsed = (parse_sample(one.data) for one in store.samples(key))
    return [one for one in parsed if one is not None]


def measure(
    total: Ends, usage: "Optional[Usage]", options: "Namespace", each: "dict[str, Ends]"
) -> "list[Metric]":
    """The metrics of all together, and the rates of each where several databases are named."""
    metrics = [Metric(label, total.rates[kind]) for kind, label in _RATES.items() if total.rates]
    for kind in session_ends.KINDS:
        share = total.share(kind)
        if share is not None:
            judged = total.ended >= options.min_sessions
            label = f"{kind}_share"
            metrics.append(Metric(label, share, "%", maximum=100, base=100, judged=judged))
    if usage is not None and usage.length is not None:
        metrics.append(Metric("session_length", usage.length, "s"))
    if usage is not None and usage.share is not None:
        metrics.append(Metric("in_transaction_share", usage.share, "%", maximum=100))
    if len(set(options.database)) > 1:
        metrics += [
            Metric(f"{prefix}_{label_of(name)}", ends.rates[kind], minimum=None)
            for name, ends in each.items()
            for kind, prefix in _PREFIXES.items()
            if ends.rates
        ]
    return metrics


_OF_ENDED = "the ended sessions"

SPEC = CheckSpec(
    name="sessions",
    description=__doc__,
    judged=(
        Judged("abandoned_rate", "sessions per second that their clients abandoned"),
        Judged("fatal_rate", "sessions per second that ended by a fatal error"),
        Judged("killed_rate", "sessions per second that were killed"),
        Judged("abandoned_share", "percent of ended sessions", "10", percent_of=_OF_ENDED),
        Judged("fatal_share", "percent of ended sessions", "10", percent_of=_OF_ENDED),
        Judged("killed_share", "percent of ended sessions", percent_of=_OF_ENDED),
        Judged("sessions_rate", "new sessions per second"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
    sockets=False,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_sessions."""
    run_check(SPEC)
