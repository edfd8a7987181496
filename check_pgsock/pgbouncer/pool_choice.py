"""Which entries of [databases] lead to a server, and which of their pools are in use; pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from check_pgsock.option_values import parse_address
from check_pgsock.text import clean, name_some

if TYPE_CHECKING:
    from check_pgsock.pgbouncer.pool_limits import Alias

# Clients of the check's own role that are its runs, and those of the checks beside it; with more it
# is somebody else's role, too.
_OWN_CLIENTS = 2


class Use(NamedTuple):
    """What the console tells of a pool now; None: not told."""

    is_used: bool  # whether it has a connection, of a client or to the server
    clients: int | None
    held: int | None  # clients that hold a server connection or wait for one


def keep_used(alias: Alias, own: Collection[str]) -> Alias:
    """The alias with those of its pools alone that are in use, not counting those of the check's
    `own` roles: PgBouncer keeps a pool for whoever connected once. Where none is, all others are
    kept.
    """
    others = [one for one in alias.users if not _is_own(alias, one, own)] or list(alias.users)
    used = [one for one in others if _is_used(alias, one)]
    return alias._replace(
        users=tuple(used or others),
        askers=tuple(one for one in alias.askers if _is_used(alias, one)),
    )


def is_in_use(alias: Alias, own: Collection[str]) -> bool:
    """Whether any of its pools is, but the check's own; true where that is not told."""
    return alias.uses is None or any(
        use.is_used and not _is_own(alias, user, own) for user, use in alias.uses.items()
    )


def _is_used(alias: Alias, user: str) -> bool:
    use = None if alias.uses is None else alias.uses.get(user)
    return use is None or use.is_used


def _is_own(alias: Alias, user: str, own: Collection[str]) -> bool:
    use = None if alias.uses is None else alias.uses.get(user)
    return user in own and use is not None and (use.clients or 0) <= _OWN_CLIENTS


def choose_server(
    aliases: list[Alias], hosts: Collection[str], port: int | None, notes: list[str]
) -> list[Alias]:
    """Those of the aliases that lead, or may lead, to the server of these hosts, its address and
    the name that it is asked by, and this port.

    The port decides before the address. None is left out unless another leads there as it is spelt:
    a server has many addresses, and what listens between (a proxy, a tunnel) has its own. What is
    not certain goes to `notes`.
    """
    at_port = [one for one in aliases if port is None or one.port in (port, None)]
    if aliases and not at_port:
        ports = name_some([str(one) for one in sorted({one.port or 0 for one in aliases})])
        notes.append(
            f"{_names(aliases)}: port {ports}, and this server's is {port}: another server, unless "
            "a proxy or a tunnel is between"
        )
    left = at_port or aliases
    servers = {(one.hosts, one.port) for one in left}
    if len(servers) < 2:
        return left
    wanted = set(hosts)
    certain = [one for one in left if wanted.intersection(one.hosts)] if at_port else []
    if not certain:
        notes.append(
            f"{_names(left)} lead to {len(servers)} servers, and which of them is this one is not "
            "known: all are counted"
        )
        return left
    # A name besides what we know it by is more likely another's than one more of its own.
    named = [
        one
        for one in left
        if one not in certain and any(not _is_literal(host) for host in one.hosts)
    ]
    if named:
        notes.append(f"{_names(named)}: taken for another server, by the name of its host")
    return certain


def _names(aliases: list[Alias]) -> str:
    return name_some([clean(one.name) for one in aliases])


def _is_literal(host: str) -> bool:
    """Whether it is an address, or the directory of a Unix socket."""
    try:
        parse_address(host)
    except ValueError:
        return host.startswith(("/", "@"))
    return True
