"""What PgBouncer's configuration says of its pools, from the console's rows or its file; pure.

The console: SHOW DATABASES, CONFIG, POOLS and USERS of PgBouncer 1.12 to 1.25 (src/admin.c), with
what is in effect. It does not say where a size is set, which follows from the global setting: one
that is equal is taken for it. Nor does it tell the entry `*` from those that it stands for. The
file says both, and not who connects, nor which release reads it: it is read as 1.23 and later do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from check_pgsock.errors import MalformedError
from check_pgsock.pgbouncer.ini import Ini, parse_connection_string
from check_pgsock.pgbouncer.pool_choice import Use
from check_pgsock.pgbouncer.pool_limits import Alias, Configured, Setting, User
from check_pgsock.postgres.client import CONSOLE
from check_pgsock.text import clean

Row = Mapping[str, object]  # a row of the console by column name: text, numbers and NULL

DEFAULTS = {  # bouncer_params in src/main.c
    "default_pool_size": "20",
    "reserve_pool_size": "0",
    "reserve_pool_timeout": "5",
    "max_db_connections": "0",
    "max_user_connections": "0",
    "pool_mode": "session",
    "so_reuseport": "0",
}
NUMBERS = ("default_pool_size", "reserve_pool_size", "max_db_connections", "max_user_connections")
RESERVE = ("reserve_pool_size", "reserve_pool")  # since 1.24, and before


def from_console(
    databases: Iterable[Row],
    config: Iterable[Row],
    pools: Iterable[Row],
    users: Sequence[Row],
    *,
    asker: str = "",
) -> Configured:
    """What the rows of SHOW DATABASES, SHOW CONFIG, SHOW POOLS and SHOW USERS say to `asker`.

    Columns that are missing leave unknown what they hold; others are ignored. The users of an
    alias are those that have pools now: any that connected since PgBouncer started.
    """
    settings = {str(row.get("key")): _text(row.get("value")) for row in config}
    seen: dict[str, dict[str, Use]] = {}
    for row in pools:
        seen.setdefault(str(row.get("database")), {})[str(row.get("user"))] = _use_of(row)
    aliases = tuple(
        _alias_of(row, settings, seen.get(str(row.get("name")), {}))
        for row in databases
        if row.get("name") != CONSOLE
    )
    listed = all("max_user_connections" in row for row in users) and bool(users)
    limit = _global(settings, "max_user_connections")
    notes = []
    if not listed:
        notes.append("the console does not tell a max_user_connections of [users]")
    return Configured(
        aliases,
        None,
        _users_of(users, limit),
        User(None, None, None, limit, is_shared=listed),
        _seconds(settings.get("reserve_pool_timeout")),
        _is_set(settings.get("so_reuseport")),
        "the console",
        tuple(notes),
        asker,
    )


def from_ini(parsed: Ini) -> Configured:
    """What a configuration file says. Raises MalformedError for what PgBouncer would refuse."""
    settings: dict[str, str | None] = {**DEFAULTS, **parsed.settings}
    source = clean(parsed.path)
    for name in NUMBERS:
        if _whole(settings[name]) is None:
            raise MalformedError(f"{source}: {name} is no number: '{clean(settings[name] or '')}'")
    entries = {
        name: parse_connection_string(text, f"{source}: {clean(name)} in [databases]")
        for name, text in parsed.databases.items()
    }
    askers: dict[str, list[str]] = {}
    for name, entry in entries.items():
        user = entry.get("auth_user") or settings.get("auth_user")
        if user:
            where = entry.get("auth_dbname") or settings.get("auth_dbname") or name
            askers.setdefault(where, []).append(user)
    read = {
        name: _alias_in(name, entry, settings, askers.get(name, []), source)
        for name, entry in entries.items()
    }
    wildcard = read.pop("*", None)
    limit = _global(settings, "max_user_connections")
    users = {}
    for name, text in parsed.users.items():
        where = f"{clean(name)} in [users]"
        user_settings = parse_connection_string(text, f"{source}: {where}")
        own = _whole(user_settings.get("max_user_connections"))
        users[name] = User(
            _own(user_settings, "pool_size", where),
            _own(user_settings, "reserve_pool_size", where),
            user_settings.get("pool_mode"),
            Setting(own, f"max_user_connections of {where}") if own and own > 0 else limit,
        )
    forced = [one.forced for one in read.values() if one.forced]
    capped = [users[one].limit if one in users else limit for one in forced]
    notes = []
    if any(one is not None and one.value > 0 for one in capped):
        notes.append(
            "a PgBouncer before 1.23 takes max_user_connections of [pgbouncer] alone for forced "
            "users, and counts for each alias apart"
        )
    return Configured(
        tuple(read.values()),
        wildcard,
        users,
        User(None, None, None, limit),
        _seconds(settings.get("reserve_pool_timeout")),
        _is_set(settings.get("so_reuseport")),
        source,
        tuple(notes),
    )


def _use_of(row: Row) -> Use:
    """What a row of SHOW POOLS tells of the use of a pool; what is not told may be in use."""
    counts = [_whole(value) for name, value in row.items() if name.startswith(("cl_", "sv_"))]
    active, waiting, served = (_whole(row.get(n)) for n in ("cl_active", "cl_waiting", "sv_active"))
    return Use(
        not counts or any(one != 0 for one in counts),
        None if active is None or waiting is None else active + waiting,
        None if served is None or waiting is None else served + waiting,
    )


def _alias_of(row: Row, settings: Mapping[str, str | None], uses: Mapping[str, Use]) -> Alias:
    """The alias of a row of SHOW DATABASES."""
    name = str(row.get("name"))
    forced = _text(row.get("force_user"))
    where = f"{clean(name)} or * in [databases]"
    size, limit = _whole(row.get("pool_size")), _whole(row.get("max_connections"))
    column = RESERVE[0] if RESERVE[0] in row else RESERVE[1]
    reserve = _whole(row.get(column))
    return Alias(
        name,
        _text(row.get("database")) or name,
        _split_hosts(_text(row.get("host"))),
        _whole(row.get("port")),
        forced,
        () if forced else tuple(uses),
        tuple(one for one in uses if one != forced) if forced else (),
        _named(size, settings, "default_pool_size", f"pool_size of {where}"),
        _named(reserve, settings, "reserve_pool_size", f"{column} of {where}"),
        _text(row.get("pool_mode")) or settings.get("pool_mode"),
        _named(limit, settings, "max_db_connections", f"max_db_connections of {where}"),
        uses,
    )


def _alias_in(
    name: str,
    entry: Mapping[str, str],
    settings: Mapping[str, str | None],
    askers: list[str],
    source: str,
) -> Alias:
    """The alias of an entry of [databases]; of `*` without dbname the database is empty."""
    where = f"{clean(name)} in [databases]"
    port = _whole(entry.get("port", "5432"))
    if not port:
        raise MalformedError(f"{source}: {where} has no port '{clean(entry['port'])}'")
    forced = entry.get("user")
    limit = _own(entry, "max_db_connections", where)
    return Alias(
        name,
        entry.get("dbname") or ("" if name == "*" else name),
        _split_hosts(entry.get("host")),
        port,
        forced,
        (),
        tuple(one for one in dict.fromkeys(askers) if one != forced),
        _own(entry, "pool_size", where) or _global(settings, "default_pool_size"),
        _own(entry, RESERVE[0], where)
        or _own(entry, RESERVE[1], where)
        or _global(settings, "reserve_pool_size"),
        entry.get("pool_mode") or settings["pool_mode"],
        limit if limit is not None and limit.value > 0 else _global(settings, "max_db_connections"),
    )


def _users_of(rows: Sequence[Row], limit: Setting | None) -> dict[str, User]:
    """What the rows of SHOW USERS say; `limit` holds for all where they do not say it.

    1.23 to 1.25 show a user without a pool_size that of the user above, if that has one: no user
    below the first that has one is without, then.
    """
    columns = [[_whole(row.get(name)) for row in rows] for name in ("pool_size", RESERVE[0])]
    users = {}
    for index, row in enumerate(rows):
        name = str(row.get("name"))
        where = f"{clean(name)} in [users]"
        size, reserve = (column[index] for column in columns)
        own = _whole(row.get("max_user_connections"))
        users[name] = User(
            None if size is None else Setting(size, f"pool_size of {where}"),
            None if reserve is None else Setting(reserve, f"reserve_pool_size of {where}"),
            _text(row.get("pool_mode")),
            limit
            if own is None or (limit and own == limit.value)
            else Setting(own, f"max_user_connections of {where}"),
            is_doubtful=any(_is_repeated(column, index) for column in columns),
        )
    return users


def _is_repeated(column: Sequence[int | None], index: int) -> bool:
    """Whether a value may be no more than the one above it, shown again."""
    if index == 0 or column[index] is None or column[index] != column[index - 1]:
        return False
    first = next(at for at, value in enumerate(column) if value is not None)
    return None not in column[first:]


def _named(
    value: int | None, settings: Mapping[str, str | None], name: str, where: str
) -> Setting | None:
    """A value in effect, with the global setting of this name if that has it, too."""
    if value is None:
        return None
    inherited = _global(settings, name)
    if inherited is None:
        return Setting(value, f"{name}, or {where}")
    return inherited if inherited.value == value else Setting(value, where)


def _own(entry: Mapping[str, str], name: str, where: str) -> Setting | None:
    """A number that an entry sets itself; PgBouncer takes a negative one for none."""
    value = _whole(entry.get(name))
    return None if value is None or value < 0 else Setting(value, f"{name} of {where}")


def _global(settings: Mapping[str, str | None], name: str) -> Setting | None:
    value = _whole(settings.get(name))
    return None if value is None else Setting(value, name)


def _whole(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _seconds(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _is_set(value: str | None) -> bool | None:
    return None if value is None else value != "0"


def _text(value: object) -> str | None:
    """The value of a column; None where it is NULL, empty or missing."""
    return None if value is None or value == "" else str(value)


def _split_hosts(text: str | None) -> tuple[str, ...]:
    return tuple(one.strip() for one in (text or "").split(",") if one.strip())
