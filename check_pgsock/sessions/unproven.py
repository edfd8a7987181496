"""Legs of which it cannot be proven from here that they are PostgreSQL's, though they may be."""

from check_pgsock.servers.uncounted import may_be_postgresql
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.unix_sockets import UnixListener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.legs import Leg
    from check_pgsock.sessions.surveyed import Survey
    from check_pgsock.view import View


def may_be_unproven(view: "View", leg: "Leg", found: "Survey") -> bool:
    """Whether PostgreSQL may own one of the listeners whose owner is not proven: the processes are
    read only if there are any. Raises SourceError.
    """
    over_tcp = [one for one in found.unproven if isinstance(one, Listener)]
    unix = [one for one in found.unproven if isinstance(one, UnixListener)]
    return bool(found.unproven) and may_be_postgresql(view, leg, over_tcp, unix)


def say_unix_unseen(view: "View", leg: "Leg") -> "list[str]":
    """What is not seen of such a leg, if that is part of it."""
    if not leg.server or leg.paths or leg.filter is not None:
        return []
    return [f"sessions over Unix sockets are not seen: {say_why(view)}"]


def say_why(view: "View") -> str:
    """Why nothing more is known of such a leg, and who knows."""
    remedy = "root and its user can"
    if view.reader.saved:
        remedy = "pgsock record, as root or as its user, saves what is needed"
    return f"whose server it is cannot be proven from here ({remedy})"
