"""What the socket checks do alike: open what they look at, say what a missing listener means."""

from check_pgsock import view
from check_pgsock.errors import PgsockError
from check_pgsock.legs import Leg, format_address
from check_pgsock.plugin import Run
from check_pgsock.sockets.model import Listener
from check_pgsock.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def open_view(run: Run) -> View:
    """The sockets and processes that the options choose."""
    return view.open_view(run.options, run.deadline)


def listener_floor(run: Run, leg: Leg, listeners: "list[Listener]") -> "Optional[tuple[str, str]]":
    """The service state that --no-listener gives a server leg whose endpoint is not there, with
    its reason; None where all listeners are there, or on a client leg, whose listener is
    elsewhere. Raises PgsockError for `unknown`.
    """
    if not leg.server:
        return None
    missing = leg.missing_ports(listeners)
    if not missing:
        return None
    at = f" at {format_address(leg.address)}" if leg.address is not None else ""
    reason = f"nothing listens on port {', '.join(map(str, missing))}{at}"
    if run.options.no_listener == "unknown":
        raise PgsockError(
            f"{reason}; is the server down or the port another (--port)? "
            "--no-listener decides what this means"
        )
    return run.options.no_listener, reason
