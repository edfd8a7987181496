"""What the checks that ask the database have in common: which databases, and one connection.

The DSN may be a URI, key=value pairs or service=NAME; a password comes from ~/.pgpass, the service
file or the environment. The role needs LOGIN only for what is read here.
"""

from check_pgsock.dsn_option import add_dsn, libpq_environment
from check_pgsock.errors import SourceError, UsageError
from check_pgsock.postgres.client import connect
from check_pgsock.postgres.statistics import Statistics
from check_pgsock.store import make_key
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from check_pgsock.command_line import Parser
    from check_pgsock.contract import Run
    from check_pgsock.postgres.client import Client

EVERY_DATABASE = "all"
MOST_NAMED = 6  # each has three labels of up to 19 characters, in a first line of 990 bytes


def add_database_options(parser: "Parser", purpose: str) -> None:
    """The options dsn, database and state_key; `purpose` is what --database is named for."""
    group = parser.add_argument_group("database")
    add_dsn(group)
    group.add_argument(
        "--database", metavar="NAME", action="append", default=[],
        help=f"{purpose}; repeatable; all: every one but templates "
        "(default: the one connected to)",
    )  # fmt: skip
    group.add_argument(
        "--state-key", metavar="TEXT", default="",
        help="keep samples apart from those of services with the same --dsn and --database",
    )  # fmt: skip


def validate_database_options(options: "Namespace") -> None:
    """`all` leaves nothing to name besides, and a line of perfdata takes only so many names."""
    if "" in options.database:
        raise UsageError("--database is empty; name a database, or all")
    if EVERY_DATABASE in options.database and len(set(options.database)) > 1:
        raise UsageError("--database all takes in every database; drop the others, or all")
    if len(set(options.database)) > MOST_NAMED:
        raise UsageError(
            f"--database names {len(set(options.database))} databases, of which {MOST_NAMED} fit "
            "into a line; use all, or further services"
        )


def open_client(run: "Run") -> "Client":
    """The run's one connection, in a transaction; raises as connect() and begin() do."""
    client = connect(run.options.dsn, run.spec.executable, run.deadline)
    try:
        client.begin()
    except BaseException:
        client.close()
        raise
    return client


def read_statistics(
    client: "Client", server: "dict[str, Any]", names: "list[str]"
) -> "list[Statistics]":
    """The statistics of the databases asked for; raises SourceError where one is missing.

    `server` is the row of server.sql, `names` what --database says.
    """
    every = EVERY_DATABASE in names
    return choose_named(_read(client, server, names, every), server, names)


def read_all_statistics(
    client: "Client", server: "dict[str, Any]", names: "list[str]"
) -> "list[Statistics]":
    """The statistics of the databases asked for and of all others but templates."""
    return _read(client, server, names, True)


def choose_named(
    databases: "list[Statistics]", server: "dict[str, Any]", names: "list[str]"
) -> "list[Statistics]":
    """Those of `databases` that are asked for; raises SourceError where one is missing."""
    if EVERY_DATABASE in names:
        if not databases:
            raise SourceError("the server has no database besides templates; see to --database")
        return databases
    wanted = set(names or [server["database"]])
    missing = wanted - {one.name for one in databases}
    if missing:
        listed = ", ".join(clean(one) for one in sorted(missing))
        raise SourceError(f"the server has no database {listed}; see to --database")
    return [one for one in databases if one.name in wanted]


def _read(
    client: "Client", server: "dict[str, Any]", names: "list[str]", every: bool
) -> "list[Statistics]":
    wanted = [] if EVERY_DATABASE in names else names or [server["database"]]
    rows = client.query("statistics.sql", {"every": every, "names": wanted})
    return [
        Statistics(
            name=row["name"],
            oid=row["oid"],
            postmaster_start=server["postmaster_start"],
            address=server["address"],
            port=server["port"],
            stats_reset=row["stats_reset"],
            taken=row["taken"],
            active=row["active_time"] / 1000,
            idle=row["idle_in_transaction_time"] / 1000,
            session=row["session_time"] / 1000,
            sessions=row["sessions"],
            abandoned=row["sessions_abandoned"],
            fatal=row["sessions_fatal"],
            killed=row["sessions_killed"],
        )
        for row in rows
    ]


def service_key(run: "Run", *more: object) -> str:
    """What tells this service's samples (`more` besides) from those of another service."""
    options = run.options
    return make_key(run.spec.name, options.state_key, options.dsn, libpq_environment(), *more)
