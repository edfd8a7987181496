"""What becomes of a forwarder that may hold a listener, where nobody can see whether it does."""

from check_pgsock.legs import Leg
from check_pgsock.servers.evidence import BY_EXCLUSION, BY_USUAL_PORT
from check_pgsock.servers.listeners import Endpoint
from check_pgsock.servers.owners import Owners
from check_pgsock.servers.programs import FORWARDER, only_forwards
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.servers.forwarders import Forwarder
    from check_pgsock.view import View


def is_idle(view: "View", leg: Leg, port: int) -> bool:
    """Whether a leg has no connection at all on one of its ports; raises SourceError."""
    tally = view.reader.count(leg.query(ESTABLISHED, CLOSE_WAIT)._replace(ports=(port,)))
    return not tally.count(ESTABLISHED) + tally.count(CLOSE_WAIT)


def is_refuted(view: "View", found: "Forwarder") -> bool:
    """Whether the listener is proven, or clearly named, to be another program's: one of the usual
    port outweighs a program that forwards among other things, but none that does nothing else and
    runs as the very user of the listener. Raises SourceError.
    """
    listener = found.listener
    endpoints = [
        Endpoint(reader, one)
        for reader in view.reader.each
        for one in reader.listeners(listener.port)
    ]
    Owners(view, endpoints).find({listener.port})
    owner = next((one.owner for one in endpoints if one.listener.inode == listener.inode), None)
    if owner is None or owner.kind == FORWARDER:
        return False
    if owner.proof == BY_USUAL_PORT and only_forwards(found.process.command):
        return found.process.uid != listener.uid
    return owner.proof != BY_EXCLUSION
