"""`-d/--dsn`: which server is asked, and what else decides that."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import _ArgumentGroup

# What names the server where the DSN does not (PostgreSQL manual, "Environment Variables").
_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")


def add_dsn(group: "_ArgumentGroup", purpose: str = "the database to connect to") -> None:
    """The option dsn; `purpose` says what it is for."""
    group.add_argument(
        "-d", "--dsn", metavar="CONNINFO", default="",
        help=f"{purpose}: a URI, key=value pairs or service=NAME, without a "
        "password (default: what libpq's environment says)",
    )  # fmt: skip


def libpq_environment() -> "list[str]":
    """What the environment says of the server: with the DSN it tells one server from another."""
    return [os.environ.get(name, "") for name in _ENVIRONMENT]
