"""Where a socket check keeps what its next run needs, and under which key."""

import os

from check_pgsock.contract import Run
from check_pgsock.errors import StateError
from check_pgsock.legs import Leg, format_address
from check_pgsock.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.command_line import Parser
    from check_pgsock.store import Store

NO_DIRECTORY = (
    "no directory to keep it in: make /var/lib/check_pgsock, owned by the user that runs the "
    "check, or name one with --state-dir"
)


def add_state_key(parser: "Parser") -> None:
    """The option `state_key` of a check that keeps something."""
    parser.add_argument(
        "--state-key", metavar="TEXT", default="",
        help="keep what later runs need apart from that of services with the same endpoint, leg "
        "and filters",
    )  # fmt: skip


def open_store(run: Run, view: View) -> "Optional[Store]":
    """The store of this run; None where there is no directory for one, and for a saved moment,
    which has no earlier run. Raises StateError.
    """
    from check_pgsock.store import Store  # many runs keep nothing, but know the option

    return None if view.reader.saved else Store.open(run.options.state_dir, run.deadline)


def service_key(run: Run, view: View, leg: Leg, *more: object) -> str:
    """What tells this service's samples from those of another: the check, the machine's boot,
    network namespaces, endpoint, leg, filters (`more` besides), --state-key. Raises StateError.
    """
    from check_pgsock.store import make_key

    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        own = os.readlink("/proc/self/ns/net")
    except OSError as error:
        raise StateError(f"{error.filename} cannot be read: {error.strerror}") from None
    options = run.options
    places = sorted(
        own if one.namespace is None else str(one.namespace.identity or one.namespace.name)
        for one in view.reader.each
    )
    return make_key(
        run.spec.name,
        options.state_key,
        boot,
        places,
        options.proc_root,
        sorted(leg.ports),
        sorted(leg.paths),
        leg.server,
        None if leg.address is None else format_address(leg.address),
        sorted(one.text for one in leg.peers),
        sorted(one.text for one in leg.excluded_peers),
        *more,
    )
