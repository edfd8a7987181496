"""Pool size: a pool larger than the server's own statistics allow.

    connections < min(cores, I/O limit) / (busy ratio * parallelism)

The busy ratio is the time sessions executed statements over that time and the time they were
idle in a transaction, from pg_stat_database (PostgreSQL 14 and later), per database, in
thousandths, over the window since the newest run at least --min-window ago. The largest allowed
pool is the greatest whole number below the limit, and 1 at least; more connections than that only
contend for the cores. A busy ratio of 0 (transactions, in which nothing executed) sets no limit.

Until a run is so long ago (a retry keeps the evidence of the first run), after a restart, a reset
or a fail-over, and without a state directory, the window is all that the statistics hold: since
their reset, or since an unknown time where PostgreSQL names none (15 and later, never reset or
crashed since). Of the latter there is a ratio and no average: it is judged from 60 s of
statements and transactions on, without --min-busy and the labels busy_sessions,
idle_in_transaction and window.

Without enough activity in the window there is nothing to judge: OK, without the labels busy_ratio
and pool_size_limit, which cannot be measured. Statements and transactions in progress come into
the statistics when they end: sessions that are in one for a second or more are counted and said.

pool_size is --pool-size, or the client backends seen now. Of several databases the one with the
largest pool in terms of what it may be is judged; each that is named has labels of its own.
cores are those of this machine where the server is proven to be on it; else name them: --cores.

A refused connection slot is CRITICAL, without perfdata: nothing was measured; the limit of the
check's own role is not what others meet: UNKNOWN. The DSN may be a URI, key=value pairs or
service=NAME; a password comes from ~/.pgpass, the service file or the environment. The role needs
LOGIN only; with pg_read_all_stats sessions of other roles show what they are. Services that share
DSN and database share their samples unless --state-key differs. A database that is called `all`
is judged where it is the one connected to, without --database.
"""

import os

from check_pgsock import options as opts
from check_pgsock import pools
from check_pgsock.errors import SlotsExhausted, SourceError
from check_pgsock.labels import label_of
from check_pgsock.plugin import NOT_JUDGED, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.plugin import run as run_check
from check_pgsock.pools import Backends, Pool, Terms
from check_pgsock.postgres.locality import find_locality
from check_pgsock.postgres.statistics import Statistics, parse_statistics
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
    from typing import Any, NoReturn

KEPT = 3600.0  # seconds that samples are kept; the newest older one is kept, too


def parse_positive(text: str) -> float:
    """A number above 0."""
    number = opts.parse_number(text)
    if not 0 < number <= 10**6:
        raise ValueError(f"'{text}' is no number above 0, at most {10**6}")
    return number


def parse_parallelism(text: str) -> float:
    """A number of processes for a statement: at least its own."""
    number = parse_positive(text)
    if number < 1:
        raise ValueError(f"'{text}' is below 1: a statement has one process at least")
    return number


def parse_share(text: str) -> float:
    """A number of sessions, 0 or more."""
    number = opts.parse_number(text)
    if number < 0:
        raise ValueError(f"'{text}' is below 0")
    return number


def add_options(parser: opts.Parser) -> None:
    """The options of this check alone."""
    add_database_options(parser, "judge this database's pool")
    group = parser.add_argument_group("formula")
    group.add_argument(
        "--pool-size", metavar="N", type=opts.argument(opts.parse_count),
        help="size of each pool as configured (default: the client backends seen now)",
    )  # fmt: skip
    group.add_argument(
        "--cores", metavar="N", type=opts.argument(parse_positive),
        help="cores of the database server (default: this machine's, if the server is proven to "
        "be on it)",
    )  # fmt: skip
    group.add_argument(
        "--io-limit", metavar="N", type=opts.argument(opts.parse_count),
        help="concurrent requests the server's storage can serve (default: cores alone limit)",
    )  # fmt: skip
    group.add_argument(
        "--parallelism", metavar="X", type=opts.argument(parse_parallelism), default=1.0,
        help="processes that work on a statement, on average (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--min-busy", metavar="X", type=opts.argument(parse_share), default=0.1,
        help="judge only with so many sessions busy or in transaction on average (default: 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--min-window", metavar="SECONDS", type=opts.argument(opts.parse_seconds), default=60.0,
        help="judge since a run at least so long ago, until then as on a first run (default: 60)",
    )  # fmt: skip


def probe(run: Run) -> Report:
    """Read the statistics, put them beside the stored ones, assess each pool."""
    options = run.options
    try:
        client = open_client(run)
    except SlotsExhausted as refused:
        return Report(str(refused), [], floor=("critical", ""))
    server = client.query("server.sql")[0]
    databases = read_statistics(client, server, options.database)
    backends = [Backends(**row) for row in client.query("pool_backends.sql")]
    told: list[str] = []
    cores = chosen_cores(run, server, told)  # while our backend lives: it is the proof
    details = [client.describe()]
    client.close()

    terms = Terms(
        cores,
        options.io_limit,
        options.parallelism,
        options.min_busy,
        options.pool_size,
        options.min_window,
    )
    told.append(
        f"formula: min({terms.cores:g} cores, "
        f"{'no I/O limit' if terms.io_limit is None else f'I/O limit {terms.io_limit}'}) / "
        f"(busy ratio * parallelism {terms.parallelism:g}); what statements and transactions in "
        "progress have spent so far is not in the statistics"
    )
    store = Store.open(options.state_dir, run.deadline)
    keys = {one.oid: service_key(run, one.name) for one in databases}
    assessed = {
        one.oid: pools.assess(one, stored(store, keys[one.oid]), backends, terms)
        for one in databases
    }
    worst = pools.find_worst(list(assessed.values()))
    oid = next(oid for oid, pool in assessed.items() if pool is worst)

    def commit() -> None:
        if store is not None:
            store.commit({keys[one.oid]: one.as_json() for one in databases}, run.now, KEPT)

    notes = pools.describe_size(worst, terms)
    origin = pools.describe_origin(worst.window, terms.min_window)
    if origin:
        notes.insert(0, origin)
    if worst.outcome == pools.JUDGED and worst.unflushed:
        notes.append(pools.describe_progress(worst))
    others = [one for one in assessed.values() if one is not worst]
    return Report(
        headline(worst, others, terms),
        measure(worst, list(assessed.values()), options.database),
        notes=notes,
        who=lambda: pools.top_backends(worst, oid, backends),
        told=[*(pools.describe(one, terms.least_busy) for one in others), *told],
        details=[*details, f"state: {'none' if store is None else store.path}"],
        judged=None if worst.outcome == pools.JUDGED else NOT_JUDGED,
        commit=commit,
    )


def chosen_cores(run: Run, server: "dict[str, Any]", told: "list[str]") -> float:
    """--cores, or this machine's where the server is proven to be on it."""
    if run.options.cores is not None:
        return float(run.options.cores)
    locality = find_locality(server["backend_pid"], server["backend_start"], run.deadline)
    if not locality.proven:
        raise SourceError(
            f"whether the server is on this machine is not proven ({locality.reason}); name the "
            "server's cores with --cores"
        )
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    told.append(f"cores: {cores} of this machine; {locality.reason}")
    return float(cores)


def stored(store: "Store | None", key: str) -> "list[Statistics] | None":
    """The samples of earlier runs; None where nothing keeps them."""
    if store is None:
        return None
    parsed = (parse_statistics(one.data) for one in store.samples(key))
    return [one for one in parsed if one is not None]


def headline(worst: Pool, others: "list[Pool]", terms: Terms) -> str:
    """`pool of 60 on database app, largest allowed is 26: busy ratio 0.153 over 300 s`"""
    sentence = pools.describe(worst, terms.least_busy)
    return f"{sentence}; the worst of {len(others) + 1} databases" if others else sentence


def measure(worst: Pool, assessed: "list[Pool]", named: "list[str]") -> "list[Metric]":
    """The metrics of the worst pool, and those of each where several databases are named."""
    metrics = [Metric("pool_size", worst.size, base=worst.allowed)]
    if worst.allowed is not None:
        metrics.append(Metric("pool_size_limit", worst.allowed))
    if worst.ratio is not None:
        metrics.append(Metric("busy_ratio", worst.ratio, maximum=1))
    for label, average in (
        ("busy_sessions", worst.window.busy_sessions),
        ("idle_in_transaction", worst.window.in_transaction_sessions),
    ):
        if average is not None:
            metrics.append(Metric(label, average))
    if worst.window.seconds is not None:
        metrics.append(Metric("window", worst.window.seconds, "s"))
    if len(set(named)) > 1:
        for one in assessed:
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
    ),
    probe=probe,
    add_options=add_options,
    validate=validate_database_options,
    sockets=False,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_pool_size."""
    run_check(SPEC)
