"""Pool size: what a pool may be, by the server's own statistics; alerts on one that is larger.

    connections < min(cores, I/O limit) / (busy ratio * parallelism)

The busy ratio is the time sessions executed statements over that time and the time they were idle
in a transaction, from pg_stat_database (PostgreSQL 14 and later), per database, in thousandths. The
largest allowed pool is the greatest whole number up to the limit (up to 5 % of it, and half a
connection, are left to what is measured), and 1 at least; more connections only contend for the
cores. A ratio of 0 sets no limit. The smallest is the pool in which a client waits for a connection
with a probability of at most 1 % (Erlang C), at the highest load from one run to a next within a
day, and no more than were ever seen of a pool that never was full (or of one with far more sessions
than are configured). With session pooling (--pool-mode) a client holds its connection until it
leaves: the ratio is that of whole sessions, and the smallest pool is the highest number of sessions
at a time, or by the console of clients that hold or await one now.

The window begins with the newest run at least --since ago, or, while there is too little activity,
with an earlier one, up to a day ago; while none is so long ago, with the first one. Statements and
transactions in progress count in it; how the earlier part of a transaction was divided is not
known, and what sessions did before may come into the statistics late: where that matters the ratio
is said to be unreliable, and judged by the least that it may be. On a first run (a retry within a
minute keeps its evidence), after a reset, and without a state directory, the window is all that the
statistics hold: since their reset, or since an unknown time where PostgreSQL names none (15 and
later, never reset or crashed since). Of the latter there is a ratio and no average: it is judged
from 60 s of statements and transactions on, without --min-busy and the labels busy_sessions,
idle_in_transaction, pool_size_needed and window. After a restart, a crash or a fail-over they are
not judged: that is too early until a run is 60 s ago. Nor is there anything to judge in a window
shorter than --since or 60 s, whichever is less, and without enough activity: OK, without the labels
of what cannot be measured.

pool_size is what --pool-size, PgBouncer's console (--console) or its file (--ini) says, times
--poolers, or the client backends seen within ten minutes where they are more, or within an hour
where nothing is said; but those of checks of the same role (by their application_name). Of several
databases the one with the largest pool in terms of what it may be is judged; each that is named has
labels of its own. full_load is what all pools of the server come to, each in full use, in percent
of what the server can run; judged where there are two or more, or a threshold is named. A database
that is not named counts only where it is known since when its sessions were busy. Cores are those
that the postmaster may use (affinity, cpuset, CPU quota), where the server is proven to be on this
machine; else name them: --cores. Parallelism is measured by looks at the server's sessions, ten at
each run, added up over a day; of few it is assumed to be 1. Where active sessions wait for locks,
half of them or more, that is said.

A refused connection slot is CRITICAL, without perfdata: nothing was measured; the limit of the
check's own role is not what others meet: UNKNOWN. The DSN may be a URI, key=value pairs or
service=NAME; a password comes from ~/.pgpass, the service file or the environment. The role needs
LOGIN only; with pg_read_all_stats sessions of other roles show what they are and do. Services that
share DSN and databases share their samples unless --state-key differs. A database that is called
`all` is judged where it is the one connected to, without --database.
"""

from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import NOT_JUDGED, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import SlotsExhausted
from check_pgsock.labels import label_of
from check_pgsock.option_values import parse_age, parse_count, parse_number, parse_positive
from check_pgsock.plugin import run as run_check
from check_pgsock.pooling import pools, wording
from check_pgsock.pooling.assessment import assess
from check_pgsock.pooling.pool_store import PoolStore
from check_pgsock.pooling.pools import Pool, Terms
from check_pgsock.pooling.reading import read_server
from check_pgsock.pooling.samples import LONGEST, History
from check_pgsock.pooling.sizes import (
    add_size_options,
    find_sizes,
    read_configuration,
    validate_size_options,
)
from check_pgsock.sql_check import (
    add_database_options,
    open_client,
    validate_database_options,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

LAST = 60.0  # seconds to the last run that is not a retry


def parse_parallelism(text: str) -> float:
    """A number of processes for a statement: at least its own."""
    number = parse_positive(text)
    if number < 1:
        raise ValueError(f"'{text}' is below 1: a statement has one process at least")
    return number


def parse_share(text: str) -> float:
    """A number of sessions, 0 or more."""
    number = parse_number(text)
    if number < 0:
        raise ValueError(f"'{text}' is below 0")
    return number


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    add_database_options(parser, "judge this database's pool")
    add_size_options(parser)
    group = parser.add_argument_group("formula")
    group.add_argument(
        "--cores", metavar="N", type=argument(parse_positive),
        help="cores of the database server (default: those that it may use, if it is proven to be "
        "on this machine)",
    )  # fmt: skip
    group.add_argument(
        "--io-limit", metavar="N", type=argument(parse_count),
        help="concurrent requests the server's storage can serve (default: cores alone limit)",
    )  # fmt: skip
    group.add_argument(
        "--parallelism", metavar="X", type=argument(parse_parallelism),
        help="processes that work on a statement, on average (default: as seen in looks at the "
        "server's sessions)",
    )  # fmt: skip
    group.add_argument(
        "--min-busy", metavar="X", type=argument(parse_share), default=0.1,
        help="judge only with so many sessions busy or in transaction on average (default: 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--since", metavar="reset|last|SECONDS", type=argument(parse_since), default=LAST,
        help="judge since the newest run so long ago (last: 60 s), or an earlier one up to a day "
        "ago while there was too little activity, or since the statistics were reset "
        "(default: last)",
    )  # fmt: skip


def parse_since(text: str) -> "Optional[float]":
    """Seconds between two runs; None: since the reset."""
    if text in ("last", "reset"):
        return LAST if text == "last" else None
    seconds = parse_age(text)
    if seconds > LONGEST:
        raise ValueError(f"'{text}' is longer than a day, and runs are kept for no longer")
    return seconds


def validate(options: "Namespace") -> None:
    """Raise UsageError for what contradicts itself."""
    validate_database_options(options)
    validate_size_options(options)


def probe(run: Run) -> Report:
    """Read the statistics, put them beside the stored ones, assess each pool."""
    options = run.options
    configured = read_configuration(run)
    try:
        client = open_client(run)
    except SlotsExhausted as refused:
        return Report(str(refused), [], floor=("critical", ""))
    try:
        reading = read_server(run, client)
    finally:
        client.close()  # or this would be a session that was abandoned
    terms = Terms(
        reading.cores,
        options.io_limit,
        options.parallelism,
        options.min_busy,
        options.since,
        options.poolers,
    )
    store = PoolStore.open(run)
    samples = reading.samples()
    names = {oid: one.statistics.name for oid, one in samples.items()}
    histories = {
        oid: History(sample, None if store is None else store.read(names[oid]))
        for oid, sample in samples.items()
    }
    asked = {name: oid in reading.chosen for oid, name in names.items()}
    sizes = find_sizes(options, configured, asked, reading.server, client.user, client.host)
    assessed = {
        oid: assess(
            history,
            terms,
            sizes.get(names[oid]),
            sizes.is_session(names[oid]),
            reading.backends.get(oid, ()),
        )
        for oid, history in histories.items()
    }
    judged = {oid: pool for oid, pool in assessed.items() if oid in reading.chosen}
    worst = pools.find_worst(list(judged.values()))
    oid = next(oid for oid, pool in judged.items() if pool is worst)
    others = [one for one in judged.values() if one is not worst]
    told = [
        *(wording.describe(one, terms) for one in others),
        wording.describe_formula(worst, terms),
        *sizes.told,
        *reading.told,
        *wording.describe_workers(worst, reading.launched.get(oid)),
    ]
    working = pools.find_working(assessed, reading.chosen)
    share = pools.full_load(working, terms.capacity)
    is_shared = len(working) > 1 or "full_load" in options.given_thresholds
    crowded = is_shared and share is not None and run.exceeds("full_load", share)
    together = [wording.describe_together(working, terms)] if crowded else []
    return Report(
        headline(worst, others, terms, crowded),
        measure(worst, list(judged.values()), options.database, share, is_shared),
        notes=[*wording.qualify(worst, terms), *together, *sizes.notes, *reading.notes],
        who=lambda: wording.top_backends(worst, reading.backends.get(oid, [])),
        told=told,
        details=[*reading.details, f"state: {'none' if store is None else store.path}"],
        judged=None if worst.outcome == pools.JUDGED else NOT_JUDGED,
        commit=None if store is None else lambda: store.commit(samples.values(), run.now),
    )


def headline(worst: Pool, others: "list[Pool]", terms: Terms, crowded: bool) -> str:
    """`pool app/app may be 12 to 26, it is 60: lower default_pool_size; busy ratio 0.153 ...`"""
    sentence = wording.describe(worst, terms, not crowded)
    return f"{sentence}; the worst of {len(others) + 1} databases" if others else sentence


def measure(
    worst: Pool,
    judged: "list[Pool]",
    named: "list[str]",
    share: "Optional[float]",
    is_judged: bool,
) -> "list[Metric]":
    """The metrics of the worst pool, and those of each where several databases are named."""
    metrics = [Metric("pool_size", worst.size, base=worst.allowed)]
    if worst.allowed is not None:
        metrics.append(Metric("pool_size_limit", worst.allowed))
    if worst.needed is not None:
        metrics.append(Metric("pool_size_needed", worst.needed))
    if worst.ratio is not None:
        metrics.append(Metric("busy_ratio", worst.ratio, maximum=1))
        metrics.append(Metric("parallelism", worst.parallelism, minimum=1))
    if share is not None:
        # A single pool is judged by its size, unless a threshold is named.
        metrics.append(Metric("full_load", share, "%", judged=is_judged))
    for label, average in (
        ("busy_sessions", worst.window.busy_sessions),
        ("idle_in_transaction", worst.window.in_transaction_sessions),
    ):
        if average is not None:
            metrics.append(Metric(label, average))
    if worst.window.seconds is not None:
        metrics.append(Metric("window", worst.window.seconds, "s"))
    if len(set(named)) > 1:
        for one in judged:
            label = label_of(one.name)
            metrics.append(Metric(f"size_{label}", one.size))
            if one.allowed is not None:
                metrics.append(Metric(f"limit_{label}", one.allowed))
            if one.ratio is not None:
                metrics.append(Metric(f"ratio_{label}", one.ratio, maximum=1))
    return metrics


SPEC = CheckSpec(
    name="pool_size",
    description=__doc__,
    judged=(
        Judged("pool_size", "connections of a pool", "100%", percent_of="the largest allowed pool"),
        Judged("full_load", "percent of what the server can run, by all pools in full use", "105"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
    sockets=False,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_pool_size."""
    run_check(SPEC)
