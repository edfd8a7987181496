"""What the checks that ask the database have in common: which databases, and one connection.

The DSN may be a URI, key=value pairs or service=NAME; a password comes from ~/.pgpass, the service
file or the environment. The role needs LOGIN only for what is read here.
"""

import os

from check_pgsock.errors import SourceError, UsageError
from check_pgsock.postgres.client import connect
from check_pgsock.postgres.statistics import Statistics
from check_pgsock.store import make_key
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace, _ArgumentGroup
    from typing import Any

    from check_pgsock.options import Parser
    from check_pgsock.plugin import Run
    from check_pgsock.postgres.client import Client

EVERY_DATABASE = "all"
MOST_NAMED = 6  # each has three labels of up to 19 characters, in a first line of 990 bytes
# What names the server where the DSN does not (PostgreSQL manual, "Environment Variables").
_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")


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


def add_dsn(group: "_ArgumentGroup") -> None:
    """The option dsn."""
    group.add_argument(
        "-d", "--dsn", metavar="CONNINFO", default="",
        help="the database to connect to: a URI, key=value pairs or service=NAME, without a "
        "password (default: what libpq's environment says)",
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
    """The run's one connection, in its one transaction; raises as connect() and begin() do."""
    client = connect(run.options.dsn, run.spec.executable, run.deadline)
    client.begin()
    return client


def read_statistics(
    client: "Client", server: "dict[str, Any]", names: "list[str]"
) -> "list[Statistics]":
    """The statistics of the databases asked for; raises SourceError where one is missing.

    `server` is the row of server.sql, `names` what --database says.
    """
    every = names == [EVERY_DATABASE] * len(names) and bool(names)
    wanted = list(dict.fromkeys(names or [server["database"]]))
    rows = client.query("statistics.sql", {"every": every, "names": wanted})
    missing = [] if every else sorted(set(wanted) - {row["name"] for row in rows})
    if missing or not rows:
        listed = ", ".join(clean(one) for one in missing) or "besides templates"
        raise SourceError(f"the server has no database {listed}; see to --database")
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
    environment = [os.environ.get(name, "") for name in _ENVIRONMENT]
    return make_key(run.spec.name, options.state_key, options.dsn, environment, *more)
