"""The server connections that a PgBouncer may open to a database: pools, reserve and caps; pure.

As launch_new_connection (src/objects.c) decides: a pool is an alias (an entry of [databases]) and
a user; it opens up to its pool_size, and up to its reserve_pool_size more while a client has waited
for reserve_pool_timeout, unless max_db_connections of the alias or max_user_connections of the
user is reached. min_pool_size opens none beyond pool_size. What cancel requests open for a moment,
and replication, is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from check_pgsock.pgbouncer.flow import SINK, SOURCE, Edge, Node, largest_flow
from check_pgsock.pgbouncer.pool_choice import Use, choose_server, is_in_use, keep_used
from check_pgsock.text import clean, name_some

SESSION = "session"  # of pool_mode
UNLIMITED = 0  # of caps, and since 1.24 of pool_size: before, such a pool opens one connection


class Setting(NamedTuple):
    """A number, and what a DBA has to change to change it: `pool_size of shop in [databases]`."""

    value: int
    name: str


class Alias(NamedTuple):
    """An entry of [databases], with what it inherits; None: not known, unless said otherwise."""

    name: str
    database: str  # on the server
    hosts: tuple[str, ...]  # none: the default Unix socket
    port: int | None
    forced: str | None  # the user of all its connections; None: the client's own
    users: tuple[str, ...]  # the client's own, as far as they are known to have pools
    askers: tuple[str, ...]  # that have a pool besides: auth_user, which looks up passwords
    pool_size: Setting | None
    reserve: Setting | None
    pool_mode: str | None
    limit: Setting | None  # max_db_connections
    uses: Mapping[str, Use] | None = None  # of its pools by user, of those that were ever used


class User(NamedTuple):
    """What is said of a user; None: nothing, but for `limit`: not known."""

    pool_size: Setting | None
    reserve: Setting | None
    pool_mode: str | None
    limit: Setting | None  # max_user_connections, with what it inherits
    is_shared: bool = True  # whether its limit is one for all aliases
    is_doubtful: bool = False  # whether its sizes may be those of somebody else


class Pool(NamedTuple):
    """A pool: what it may open by itself, the caps left aside."""

    name: str  # alias/user, the alias alone where the user is not known; fit to print
    alias: str
    user: str | None
    size: int | None  # UNLIMITED is 0, None: not known
    reserve: int  # may be opened besides
    setting: str  # what sets the size; empty: not known
    pool_mode: str | None  # None: not known

    @property
    def is_session(self) -> bool:
        """Whether a client keeps its server connection until it leaves."""
        return self.pool_mode == SESSION


class ConfiguredPools(NamedTuple):
    """The pools that lead to a database, and the server connections they may open together."""

    size: int | None  # with the reserve, after the caps; None: unlimited or not known, see `why`
    reserve: int  # what of it is the reserve
    why: str  # why there is no size, else empty
    pools: tuple[Pool, ...]
    capped_by: tuple[str, ...]  # settings that keep the pools from being as large as they say
    notes: tuple[str, ...]  # what is assumed, not known, or opened at times only
    left_out: tuple[str, ...] = ()  # pools that are not in use, or the check's own
    in_use: bool = True  # whether any is, but the check's own; true where that is not told
    held: int | None = None  # clients that hold a server connection or wait for one, if told

    @property
    def settings(self) -> tuple[str, ...]:
        """What a DBA has to lower: the caps that hold, else the settings of the largest pools."""
        largest = sorted(self.pools, key=lambda one: -(one.size or math.inf))
        return self.capped_by or tuple(dict.fromkeys(one.setting for one in largest if one.setting))


class Configured(NamedTuple):
    """What the configuration of one PgBouncer process says of its pools."""

    aliases: tuple[Alias, ...]
    wildcard: Alias | None  # the entry `*`; its database is empty where it takes the alias's name
    users: Mapping[str, User]
    other: User  # any that is not in `users`; where its limit is not shared, also forced users
    reserve_timeout: float | None  # seconds; 0: the reserve is never opened
    so_reuseport: bool | None  # further processes on its port have pools of their own
    source: str  # as sentences name it: `the console`, a file
    notes: tuple[str, ...] = ()
    asker: str = ""  # the user of the console that asked

    def pools_of(
        self,
        database: str,
        *,
        hosts: Collection[str] = (),
        port: int | None = None,
        users: Collection[str] = (),
        own: Collection[str] = (),
    ) -> ConfiguredPools:
        """The pools that lead to the database of this name on the server.

        `hosts` and `port` (as entries may spell them: addresses, names, socket directories) choose
        among entries of this name that lead to several servers. `users` are those known to have
        connections on the server, for aliases of which the configuration does not say who
        connects; those that an alias forces are explained by it. `own` are the check's own users.
        """
        notes: list[str] = []
        leading = choose_server(list(self._leading_to(database)), hosts, port, notes)
        if not leading:
            why = f"no entry in {self.source} leads to database {clean(database)}"
            return ConfiguredPools(None, 0, why, (), (), ())
        aliases = [keep_used(one, own) for one in leading]
        used = [one for one in aliases if is_in_use(one, own)]
        aliases = used or aliases
        known = sorted(set(users) - {one.forced for one in aliases})
        owned = [each for one in aliases for each in self._pools(one, known)]
        if not (used or known):  # nobody's at the moment, and so the size of any of them at most
            owned = [max(owned, key=lambda each: each[0].size or math.inf)]
        pools = tuple(pool for pool, _ in owned)
        found = ConfiguredPools(
            size=None,
            reserve=0,
            why="",
            pools=pools,
            capped_by=(),
            notes=(),
            left_out=tuple(
                clean(one.name if user is None else f"{one.name}/{user}")
                for one in leading
                for user in ((*one.users, *one.askers) or (None,))
                if not any(pool.alias == one.name and user in (None, pool.user) for pool in pools)
            ),
            in_use=bool(used),
            held=_count_held(aliases, pools),
        )
        names = _list(one.alias for one in pools if one.user is None)
        if names:
            notes.append(f"who connects to {names} is not in {self.source}: one user is assumed")
        several = _list(one.name for one in aliases if len(one.hosts) > 1)
        if several:
            notes.append(f"{several}: several hosts, and all connections may go to one of them")
        notes += self._unknown(aliases, owned)
        unsized = _list(one.name for one in pools if one.size is None)
        if unsized:
            why = f"pool_size of {unsized} is not in {self.source}"
            return found._replace(why=why, notes=tuple(notes))
        size, capped_by = _add_up(aliases, owned)
        if size is None:
            settings = _list(one.setting for one in pools if not one.size)
            why = (
                f"{settings} is 0, and nothing else limits it: any number of connections (before "
                "PgBouncer 1.24: one)"
            )
            return found._replace(why=why, capped_by=capped_by, notes=tuple(notes))
        without, _ = _add_up(aliases, [(pool._replace(reserve=0), user) for pool, user in owned])
        reserve = size - (size if without is None else without)
        if reserve:
            after = "" if self.reserve_timeout is None else f" of {self.reserve_timeout:g} s"
            notes.append(
                f"{reserve} of the {size} are the reserve, opened only while a client has waited "
                f"for reserve_pool_timeout{after}"
            )
        return found._replace(size=size, reserve=reserve, capped_by=capped_by, notes=tuple(notes))

    def _leading_to(self, database: str) -> Iterator[Alias]:
        for one in self.aliases:
            if one.database == database:
                yield one
        if self.wildcard is not None:
            if self.wildcard.database == database:
                yield self.wildcard
            elif not self.wildcard.database and all(one.name != database for one in self.aliases):
                yield self.wildcard._replace(name=database, database=database)

    def _pools(self, alias: Alias, known: Sequence[str]) -> Iterator[tuple[Pool, User]]:
        """The pools of an alias: of its forced user, of those seen or `known`, or of one user."""
        names: Iterable[str | None] = (alias.forced,)
        if alias.forced is None:
            names = alias.users or known or (None,)
        for name in (*names, *alias.askers):
            user = self.other
            if name is not None and (name != alias.forced or self.other.is_shared):
                user = self.users.get(name, self.other)
            size = _effective(user.pool_size, alias.pool_size, user.is_doubtful)
            reserve = _effective(user.reserve, alias.reserve, user.is_doubtful)
            pool = Pool(
                clean(alias.name if name is None else f"{alias.name}/{name}"),
                alias.name,
                name,
                None if size is None else max(size.value, UNLIMITED),
                0 if reserve is None or self.reserve_timeout == 0 else max(reserve.value, 0),
                "" if size is None else size.name,
                user.pool_mode or alias.pool_mode,
            )
            yield pool, user

    def _unknown(self, aliases: list[Alias], owned: list[tuple[Pool, User]]) -> Iterator[str]:
        """What the size would depend on, and is not known."""
        yield from self.notes
        for setting, names in (
            ("reserve_pool_size", _list(one.name for one in aliases if one.reserve is None)),
            ("max_db_connections", _list(one.name for one in aliases if one.limit is None)),
            ("max_user_connections", _list(pool.name for pool, one in owned if one.limit is None)),
        ):
            if names:
                yield f"{setting} of {names} is not in {self.source}, and not taken into account"
        names = _list(pool.user or "" for pool, one in owned if one.is_doubtful)
        if names:
            yield (
                f"pool sizes of {names} in [users] may be those of another user, whose PgBouncer "
                "1.23 to 1.25 shows again: the larger of them and the alias's is taken"
            )


def _count_held(aliases: list[Alias], pools: Iterable[Pool]) -> int | None:
    """The clients of the pools that hold a server connection or wait for one; None: not told."""
    if any(one.uses is None for one in aliases):
        return None
    uses = {(one.name, user): use for one in aliases for user, use in (one.uses or {}).items()}
    counts = [
        uses[key].held for key in ((one.alias, one.user or "") for one in pools) if key in uses
    ]
    return None if None in counts else sum(one or 0 for one in counts)


def _effective(own: Setting | None, inherited: Setting | None, doubtful: bool) -> Setting | None:
    if own is None or inherited is None or not doubtful:
        return inherited if own is None else own
    if UNLIMITED in (own.value, inherited.value):
        return min(own, inherited)
    return max(own, inherited)


def _add_up(
    aliases: list[Alias], owned: list[tuple[Pool, User]]
) -> tuple[int | None, tuple[str, ...]]:
    """(what the pools may open together, the caps that bind); None: without limit.

    A flow from aliases to users, since caps of both hold at once: the smaller of both sums may be
    more than can be opened.
    """
    room: dict[Edge, float] = {}
    caps: dict[Node, Setting] = {}
    through: dict[Node, float] = {}
    limits = {one.name: one.limit for one in aliases}
    for pool, user in owned:
        alone = "" if user.is_shared and pool.user is not None else pool.alias
        ends = ("alias", pool.alias), ("user", pool.user or "", alone)
        most = pool.size + pool.reserve if pool.size else math.inf
        room[ends] = most
        for node, limit in zip(ends, (limits[pool.alias], user.limit)):
            through[node] = through.get(node, 0) + most
            if limit is not None and limit.value > UNLIMITED:
                caps[node] = limit
    binding = {node: cap for node, cap in caps.items() if cap.value < through[node]}
    for node in through:
        edge = (SOURCE, node) if node[0] == "alias" else (node, SINK)
        room[edge] = binding[node].value if node in binding else math.inf
    most, reached = largest_flow(room)
    if most == math.inf:
        return None, ()
    held = [cap.name for node, cap in binding.items() if (node[0] == "alias") != (node in reached)]
    return int(most), tuple(dict.fromkeys(held))


def _list(names: Iterable[str]) -> str:
    return name_some([clean(one) for one in dict.fromkeys(names)])
