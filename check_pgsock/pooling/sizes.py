"""How large pools are configured: as named, by PgBouncer's console, or by its ini file."""

from check_pgsock.command_line import argument
from check_pgsock.errors import SourceError, UsageError
from check_pgsock.option_values import parse_count, parse_file
from check_pgsock.pooling.pools import SESSION, TRANSACTION, Size
from check_pgsock.text import clean, name_some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence
    from typing import Any, Optional

    from check_pgsock.command_line import Parser
    from check_pgsock.contract import Run
    from check_pgsock.pgbouncer.pool_limits import Configured, ConfiguredPools

_SOURCES = ("pool_size", "console", "ini")


def add_size_options(parser: "Parser") -> None:
    """The options pool_size, console, ini, poolers and pool_mode."""
    group = parser.add_argument_group("pool")
    group.add_argument(
        "--pool-size", metavar="N", type=argument(parse_count),
        help="size of each pool as configured (default: the most client backends seen within an "
        "hour)",
    )  # fmt: skip
    group.add_argument(
        "--console", metavar="CONNINFO",
        help="read the sizes from PgBouncer's console there, as one of its stats_users",
    )  # fmt: skip
    group.add_argument(
        "--ini", metavar="FILE", type=argument(parse_file),
        help="read the sizes from this configuration file of PgBouncer",
    )  # fmt: skip
    group.add_argument(
        "--poolers", metavar="N", type=argument(parse_count), default=1,
        help="poolers with pools of this size: processes (so_reuseport), hosts (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--pool-mode", choices=(TRANSACTION, SESSION),
        help="whether a client holds its connection for a transaction or until it leaves "
        "(default: as PgBouncer says, else transaction)",
    )  # fmt: skip


def validate_size_options(options: "Namespace") -> None:
    """Raise UsageError where several options say how large a pool is."""
    named = [f"--{name.replace('_', '-')}" for name in _SOURCES if getattr(options, name)]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} each say how large a pool is; name one of them")
    if options.poolers > 1 and not named:
        raise UsageError(
            "--poolers is how many have a pool of the size that --pool-size, --console or --ini "
            "says; name one of these"
        )


class Sizes:
    """The configured sizes by database, which of them are of session pooling, what is to be said of
    those that are not known, and what is told at -v.
    """

    def __init__(
        self,
        sizes: "Mapping[str, Size]",
        session: "set[str]",
        mode: "Optional[str]",
        notes: "Sequence[str]" = (),
        told: "Sequence[str]" = (),
    ) -> None:
        self._sizes = sizes
        self._session = session
        self._mode = mode
        self.notes = notes
        self.told = told

    def get(self, database: str) -> "Optional[Size]":
        """None where none is configured, or none is known."""
        return self._sizes.get(database)

    def is_session(self, database: str) -> bool:
        """Whether clients hold their connection until they leave."""
        return self._mode == SESSION if self._mode else database in self._session


def find_sizes(
    options: "Namespace",
    configured: "Optional[Configured]",
    databases: "Mapping[str, bool]",
    server: "dict[str, Any]",
    role: str,
    host: str,
) -> Sizes:
    """The sizes of the pools of `databases`, which are true where they are asked for, as options or
    PgBouncer's configuration say. `server` is the row of server.sql, `role` who asked it, `host`
    by what name. Of a database that is not asked for, pools that nobody uses now are none.

    Raises SourceError where a database that is asked for has no pool in a file, or none of a size.
    """
    if options.pool_size is not None:
        size = Size(options.pool_size, "--pool-size")
        named = {name: size for name, asked in databases.items() if asked}
        return Sizes(named, set(), options.pool_mode)
    if configured is None:
        return Sizes({}, set(), options.pool_mode)
    hosts = {server["address"], host} - {None, ""}
    own = {role, configured.asker}
    found = {
        name: configured.pools_of(name, hosts=hosts, port=server["listens_at"], own=own)
        for name in databases
    }
    left: list[str] = []
    for name, asked in databases.items():
        if not asked or found[name].size is not None:
            continue
        if options.console and not found[name].pools:
            left.append(name)  # the entry that `*` has made is dropped while nobody uses it
            continue
        raise SourceError(
            f"the size of the pool of database {clean(name)} is not known: {found[name].why}; "
            "name it with --pool-size"
        )
    session = {
        name
        for name, pools in found.items()
        if pools.pools and all(one.is_session for one in pools.pools)
    }
    more = []
    if configured.so_reuseport and options.poolers == 1:
        more.append("so_reuseport is on: --poolers says how many processes have such pools")
    sizes = {
        name: _size_of(pools, configured.source, more)
        for name, pools in found.items()
        if databases[name] or pools.in_use
    }
    known = {name: one for name, one in sizes.items() if one is not None}
    told = _say_left_out(
        [one for name in databases if databases[name] for one in found[name].left_out]
    )
    return Sizes(known, session, options.pool_mode, _say_missing(left), told)


def _say_left_out(pools: "list[str]") -> "list[str]":
    if not pools:
        return []
    return [f"not counted, for nobody uses them now, or the check alone: {name_some(pools)}"]


def _say_missing(databases: "list[str]") -> "list[str]":
    if not databases:
        return []
    named = name_some([clean(one) for one in databases])
    return [f"no entry in the console leads to database {named} now"]


def _size_of(found: "ConfiguredPools", source: str, notes: "list[str]") -> "Optional[Size]":
    if found.size is None:
        return None
    name = found.pools[0].name if len(found.pools) == 1 else ""
    sum_of = [] if name else [_say_sum(found, found.size, source)]
    session = [one.name for one in found.pools if one.is_session]
    if 0 < len(session) < len(found.pools):
        notes = [*notes, f"{session[0]} is of session pooling, and judged as the others"]
    setting = next(iter(found.settings), "")
    return Size(found.size, source, setting, name, [*sum_of, *found.notes, *notes], found.held)


def _say_sum(found: "ConfiguredPools", size: int, source: str) -> str:
    """`30 connections are those of 2 pools by the console: shop/app 15, shop/dba 15`"""
    pools = name_some([f"{one.name} {one.size or 'without limit'}" for one in found.pools])
    capped = f", within {name_some(list(found.capped_by))}" if found.capped_by else ""
    return f"{size} connections are those of {len(found.pools)} pools by {source}{capped}: {pools}"


def read_configuration(run: "Run") -> "Optional[Configured]":
    """What PgBouncer's configuration says; None where none is asked for.

    Raises SourceError where it cannot be had, MalformedError for what PgBouncer would refuse.
    """
    options = run.options
    if options.console:
        return _ask(run)
    if options.ini is None:
        return None
    from check_pgsock.pgbouncer.configured import from_ini
    from check_pgsock.pgbouncer.ini import read_ini_at

    run.deadline.doing = f"reading {options.ini}"
    return from_ini(read_ini_at(options.ini))


def _ask(run: "Run") -> "Configured":
    from check_pgsock.pgbouncer.configured import from_console
    from check_pgsock.postgres.client import connect_console

    name = run.spec.executable
    client = connect_console(run.options.console, name, run.deadline, "--console")
    try:
        rows = [client.show(what) for what in ("DATABASES", "CONFIG", "POOLS", "USERS")]
    finally:
        client.close()
    return from_console(*rows, asker=client.user)
