"""CLOSE_WAIT excess: connections whose peer is gone and that stay unclosed on this side.

A socket is in CLOSE_WAIT from the peer's close until our program closes its own end: normally
less than a millisecond. One that stays is a program that does not notice: on the server leg a
backend whose client went away under a running statement (it works on for nobody and holds its
slot), on the client leg an application that never closes what the server ended.

Counted are the sockets in CLOSE_WAIT in two looks, --settle apart; the second look is taken only
when the first exceeds a threshold. A saved moment (--proc-root) is judged as it is.
"""

from check_pgsock import options as opts
from check_pgsock.legs import Leg, top_peers
from check_pgsock.plugin import CheckSpec, Judged, Metric, Report, Run
from check_pgsock.plugin import run as run_check
from check_pgsock.socket_check import listener_floor, open_view
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, LISTEN, Socket, Tally
from check_pgsock.text import plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn

    from check_pgsock.sockets.reader import Reader

DEFAULT_SETTLE = 1.0


def add_options(parser: opts.Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--settle", metavar="SECONDS", type=opts.argument(opts.parse_seconds),
        default=DEFAULT_SETTLE,
        help=f"time between the two looks (default: {DEFAULT_SETTLE:g})",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """The second look must fit into the deadline."""
    opts.require_below_timeout(options, "settle")


def identity(one: Socket) -> tuple[object, ...]:
    """What makes a socket the same in two looks: its cookie; under procfs, which knows none, its
    inode and addresses.
    """
    if one.cookie is not None:
        return (one.cookie,)
    return (
        one.inode,
        one.local_address,
        one.local_port,
        one.remote_address,
        one.remote_port,
    )


def staying(first: "list[Socket]", second: "list[Socket]") -> "list[Socket]":
    """The sockets of the second look that were in the first one too."""
    seen = {identity(one) for one in first}
    return [one for one in second if identity(one) in seen]


def probe(run: Run) -> Report:
    """Count once; look twice at the sockets only when the count exceeds a threshold."""
    leg = opts.chosen_leg(run.options)
    reader = open_view(run).reader
    tally = reader.count(leg.query(CLOSE_WAIT, ESTABLISHED, LISTEN))
    count = tally.count(CLOSE_WAIT)
    sockets: list[Socket] = []
    notes: list[str] = []
    looks = 1
    if run.exceeds("close_wait", count):
        sockets = reader.sockets(leg.query(CLOSE_WAIT))
        if reader.saved:
            notes.append("a saved moment, judged as it is: which of them stay cannot be told")
        else:
            first, looks = sockets, 2
            run.deadline.doing = "waiting for the second look"
            run.deadline.sleep(run.options.settle)
            sockets = staying(first, reader.sockets(leg.query(CLOSE_WAIT)))
        count = len(sockets)
    elif reader.saved:
        notes.append("a saved moment, judged as it is")
    return report(run, leg, reader, tally, count, sockets, notes, looks)


def report(
    run: Run,
    leg: Leg,
    reader: "Reader",
    tally: Tally,
    count: int,
    sockets: "list[Socket]",
    notes: "list[str]",
    looks: int,
) -> Report:
    """Put the measured values into words."""
    stay = f", unchanged for {run.options.settle:g} s" if looks == 2 and count else ""
    return Report(
        f"{plural(count, 'connection')} in CLOSE_WAIT{stay} {leg.describe()}",
        [Metric("close_wait", count), Metric("established", tally.count(ESTABLISHED))],
        notes=[*reader.notes(), *notes],
        who=lambda: top_peers(sockets or reader.sockets(leg.query(CLOSE_WAIT)), "in CLOSE_WAIT"),
        told=[f"looked {'twice' if looks == 2 else 'once'}"],
        details=reader.describe(),
        floor=listener_floor(run, leg, tally.listeners),
    )


SPEC = CheckSpec(
    name="close_wait",
    description=__doc__,
    judged=(Judged("close_wait", "connections that stay in CLOSE_WAIT", "5", "20"),),
    probe=probe,
    add_options=add_options,
    validate=validate,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_close_wait."""
    run_check(SPEC)
