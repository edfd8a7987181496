"""`--limit auto` of a PgBouncer: the max_client_conn of the processes that are proven to listen."""

from check_pgsock.errors import SourceError
from check_pgsock.servers import limits
from check_pgsock.servers.limits import Limit
from check_pgsock.sessions.survey import find_holders
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.processes import ProcessTable
    from check_pgsock.servers.leg_owner import Target
    from check_pgsock.view import View


class PoolerLimit(Limit):
    """The client connections that all processes of an endpoint can hold; none is reserved."""

    __slots__ = ()
    setting = "max_client_conn"


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
    if holders.keys() != inodes or any(one.command != "pgbouncer" for one in holders.values()):
        return None
    from check_pgsock.pgbouncer.process import read_process_ini  # few endpoints get here

    pids = sorted({one.pid for one in holders.values()})
    total, sources, pending = 0, [], None
    for pid in pids:
        process = table.process(pid, "pgbouncer", 0)
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
        total += value
        sources.append(f"{value} in {clean(ini.path)}")
        if _has_changed(table, pid, ini.changed):
            pending = (
                f"{clean(ini.path)} has changed since PgBouncer started: SHOW CONFIG tells what is "
                "in effect"
            )
    limit = PoolerLimit(total, 0, ", ".join(sources), False)
    ids = ", ".join(map(str, pids))
    if len(pids) == 1:
        return limit, f"it holds the listener (process {ids})", pending
    return limit, f"they hold the listeners (processes {ids})", pending


def _has_changed(table: "ProcessTable", pid: int, changed: float) -> bool:
    started = table.started(pid)
    return started is None or changed > started[1] + 1


def _unknown(target: "Target", pid: int, why: str) -> limits.LimitUnknown:
    return limits.unknown(target.name, f"max_client_conn of PgBouncer (process {pid}): {why}")
