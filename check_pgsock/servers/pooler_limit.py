"""`--limit auto` of a PgBouncer: the max_client_conn of the processes that are proven to listen."""

from check_pgsock.errors import SourceError
from check_pgsock.servers import limits
from check_pgsock.servers.limits import Limit
from check_pgsock.servers.programs import PGBOUNCER, pooler_of
from check_pgsock.sessions.holders import find_holders
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.processes import ProcessTable
    from check_pgsock.servers.leg_owner import Target
    from check_pgsock.view import View


class PoolerLimit(Limit):
    """The client connections that all processes of an endpoint can hold; none is reserved.

    `by_process` is how many of them each process can, by process id.
    """

    __slots__ = ("by_process",)
    setting = "max_client_conn"

    def __init__(self, by_process: "dict[int, int]", source: str) -> None:
        super().__init__(sum(by_process.values()), 0, source, False)
        self.by_process = by_process


def read_pooler_limit(
    view: "View", target: "Target"
) -> "Optional[tuple[PoolerLimit, str, Optional[str]]]":
    """(limit, proof of whose endpoint it is, pending change of it); None where it is not proven,
    by descriptors, that all its listeners are PgBouncer's. Raises LimitUnknown where they are, and
    the configuration cannot be read.
    """
    table = view.processes()
    inodes = {one.inode for one in target.all}
    users = {one.uid for one in target.all if one.uid is not None}
    holders = find_holders(table, inodes, users)
    if holders.keys() != inodes:
        return None
    if any(pooler_of(one.command) != PGBOUNCER for one in holders.values()):
        return None
    from check_pgsock.pgbouncer.process import read_process_ini  # few endpoints get here

    pids = sorted({one.pid for one in holders.values()})
    by_process, sources, pending = {}, [], None
    for pid in pids:
        process = table.process(pid, PGBOUNCER, 0)
        if process is None:
            raise _unknown(target, pid, "it has ended")
        try:
            ini = read_process_ini(table, process)
        except OSError as error:
            raise _unknown(target, pid, f"{error.filename}: {error.strerror}") from None
        except SourceError as error:
            raise _unknown(target, pid, str(error)) from None
        value = limits.parse_whole(ini.settings["max_client_conn"])
        if not value:
            raise _unknown(target, pid, f"max_client_conn in {ini.path} is no number above 0")
        by_process[pid] = value
        sources.append(f"{value} in {clean(ini.path)}")
        if _has_changed(table, pid, ini.changed):
            pending = (
                f"{clean(ini.path)} has changed since PgBouncer started: SHOW CONFIG tells what is "
                "in effect"
            )
    limit = PoolerLimit(by_process, ", ".join(sources))
    ids = ", ".join(map(str, pids))
    if len(pids) == 1:
        return limit, f"it holds the listener (process {ids})", pending
    return limit, f"they hold the listeners (processes {ids})", pending


def explain_unread(view: "View", target: "Target") -> "Optional[limits.LimitUnknown]":
    """The error where the owner of `target` is known to be a pooler, or probably is one, and its
    limit is not read; None where that is not known. Raises SourceError.
    """
    from check_pgsock.servers.listener_owners import describe_owner, find_owners
    from check_pgsock.servers.programs import POOLER

    owners = find_owners(view, () if target.port is None else (target.port,), target.unix)
    mine = [owners.get(one.inode) for one in target.all]
    poolers = [one for one in mine if one is not None and one.kind == POOLER]
    if not poolers or len(poolers) < len(mine):
        return None
    owner = poolers[0]
    whose = f"its owner is {describe_owner(view, owner)}"
    if pooler_of(owner.command) != PGBOUNCER:
        return limits.unknown(target.name, f"{whose}, a pooler whose limit is not known here")
    return limits.unknown(
        target.name,
        f"{whose}, whose max_client_conn root and its own user alone may read (run the check as "
        "one of them)",
    )


def _has_changed(table: "ProcessTable", pid: int, changed: float) -> bool:
    started = table.started(pid)
    return started is None or changed > started[1] + 1


def _unknown(target: "Target", pid: int, why: str) -> limits.LimitUnknown:
    return limits.unknown(target.name, f"max_client_conn of PgBouncer (process {pid}): {why}")
