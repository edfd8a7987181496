"""What a server leg does not count where the connection slots in use are not known, in words."""

from check_pgsock.errors import SourceError
from check_pgsock.processes import POSTGRES_COMMANDS
from check_pgsock.servers.clusters import Census
from check_pgsock.servers.programs import POSTGRESQL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.legs import Leg
    from check_pgsock.sockets.model import Listener
    from check_pgsock.sockets.unix_sockets import UnixListener
    from check_pgsock.view import View


def may_be_postgresql(
    view: "View", leg: "Leg", listeners: "list[Listener]", unix: "list[UnixListener]"
) -> bool:
    """Whether PostgreSQL may own one of these listeners of a server leg: it is not proven to be
    another program's, nor probably is; also where neither can be read.
    """
    if view.reader.saved and view.recorded is None:
        return True  # it holds no processes
    # Not for a saved moment, which looks for no owners.
    from check_pgsock.servers.listener_owners import find_owners
    from check_pgsock.sessions.holders import find_holders

    mine: list[Listener | UnixListener] = [*leg.listeners(listeners), *unix]
    try:
        owners = find_owners(view, leg.ports, unix)
    except SourceError:
        return True  # what was counted counts all the same
    if any(owners[one.inode].kind == POSTGRESQL for one in mine if one.inode in owners):
        return True
    left = [one for one in mine if one.inode not in owners]
    if not left:
        return False
    table = view.processes()
    users = {one.uid for one in left if one.uid is not None}
    holders = find_holders(table, {one.inode for one in left}, users)
    if any(one.command in POSTGRES_COMMANDS for one in holders.values()):
        return True  # one that has no children yet
    left = [one for one in left if one.inode not in holders]
    if not left:
        return False
    if len(users) < len({one.uid for one in left}) or not table.sees_all():
        return True
    return bool(Census(table, {one.uid for one in left if one.uid is not None}).clusters)


def say_uncounted(view: "View", leg: "Leg", why: str) -> str:
    """The note on what is not in the numbers of a server leg, and what to do about it."""
    others = "over Unix sockets"
    if leg.paths:
        others = "over other Unix sockets" if leg.ports else "over TCP and other Unix sockets"
    if len(leg.ports) > 1:
        remedy = "give each port a service of its own"
    elif len(view.reader.each) > 1:
        remedy = "give each network namespace a service of its own"
    elif view.reader.saved:
        remedy = "pgsock record, as root or as the server's user, saves what is needed"
    else:
        remedy = "run the check as root or as the server's user"
        if not leg.paths:
            remedy += ", or add the server's Unix sockets with --socket to count at least these"
    return (
        f"not counted: sessions {others}, and those whose client is gone, which hold connection "
        f"slots as well ({why}); {remedy}"
    )
