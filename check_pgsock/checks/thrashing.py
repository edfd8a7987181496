"""Thrashing: connections of a leg closed per second, where a pool should keep them open.

The kernel's socket-destroy events are counted for --window seconds, unprivileged: each connection
whose socket the kernel frees is one, however it ended (a clean close, TLS, a reset, a killed
client). No close is: a listener that closes, or a connect that failed (failed_connect_rate, on
the client leg; a blocking connect that fails leaves no trace of its port). What this end aborts
counts on the server leg; on the client leg it counts if the connection was seen before. Refused
sessions ("too many clients", a wrong password) and cancel requests are connections too.

closed_rate is judged, or with --judge cycles the smaller of closed and opened, cycle_rate: a pool
that merely restarts closes or opens its connections, it does not cycle them. probe_rate tells the
connections whose client sent no data, as health checks of load balancers do; with --ignore-probes
closed_rate, opened_rate and cycle_rate are without them. time_wait counts sockets in TIME_WAIT;
on the client leg those of the fullest destination (local address, remote address and port), whose
ephemeral ports they use up until connect fails with EADDRNOTAVAIL.

Where events are refused, and with --source procfs, snapshots every 0.2 s are compared: a lower
bound, without probe_rate and failed_connect_rate. So are the sessions over Unix sockets (--socket),
whose end no event tells; they have no time_wait.
"""

from check_pgsock import options as opts
from check_pgsock.command_line import Parser, argument
from check_pgsock.contract import WHO_LINES, CheckSpec, Judged, Metric, Report, Run
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.legs import Leg, top_peers
from check_pgsock.option_values import parse_seconds
from check_pgsock.plugin import run as run_check
from check_pgsock.socket_check import (
    count,
    listener_floor,
    open_view,
    refuse_forwarded,
    session_notes,
)
from check_pgsock.sockets.destroy_filter import MOST_PORTS
from check_pgsock.sockets.model import ESTABLISHED, LISTEN, TIME_WAIT
from check_pgsock.text import plural
from check_pgsock.time_wait import read_time_wait
from check_pgsock.unix.leg import Sessions, read_sessions
from check_pgsock.watch import Watched, watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn, Optional

    from check_pgsock.churn import Churn
    from check_pgsock.view import View

DEFAULT_WINDOW = 3.0
SHORTEST_WINDOW = 0.1


def add_options(parser: Parser) -> None:
    """The options of this check alone."""
    parser.add_argument(
        "--window", metavar="SECONDS", type=argument(parse_seconds),
        default=DEFAULT_WINDOW,
        help=f"how long connections are watched (default: {DEFAULT_WINDOW:g})",
    )  # fmt: skip
    parser.add_argument(
        "--judge", choices=("closed", "cycles"), default="closed",
        help="what -w and -c judge: closed_rate, or cycle_rate, the smaller of closed and opened "
        "(default: closed)",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-probes", action="store_true",
        help="leave connections whose client sent no data out of closed_rate, opened_rate and "
        "cycle_rate",
    )  # fmt: skip


def validate(options: "Namespace") -> None:
    """The window must fit into the deadline, and a percentage needs something it is of."""
    if options.window < SHORTEST_WINDOW:
        raise UsageError(f"--window {options.window:g} is too short; at least {SHORTEST_WINDOW:g}")
    opts.require_below_timeout(options, "window")
    if len(set(options.port)) > MOST_PORTS:
        raise UsageError(f"more than {MOST_PORTS} ports cannot be watched; drop some --port")
    if options.ignore_probes and (options.source == "procfs" or options.proc_root is not None):
        raise UsageError(
            "--ignore-probes needs netlink, procfs does not tell which connections had no data; "
            "drop it, or --source procfs and --proc-root"
        )
    if options.socket:
        _validate_sockets(options)
    if _has_percent(options):
        if options.leg == "server":
            raise UsageError(
                "time_wait is judged in % on the client leg alone: the server leg uses up no "
                "ephemeral ports; give --time-wait-warning and --time-wait-critical without %"
            )
        if options.proc_root is not None:
            raise UsageError(
                "time_wait in % is of ip_local_port_range, which --proc-root cannot tell of "
                "another namespace; give absolute bounds"
            )
        if len(set(options.netns)) > 1:
            raise UsageError(
                "time_wait in % is of ip_local_port_range, which each --netns has its own of; give "
                "absolute bounds"
            )


def _validate_sockets(options: "Namespace") -> None:
    if options.ignore_probes:
        raise UsageError(
            "--ignore-probes does not go with --socket: which sessions over a Unix socket had no "
            "data cannot be told; drop one"
        )
    both = (options.time_wait_warning, options.time_wait_critical)
    if not options.port and any(one is not None for one in both):
        raise UsageError(
            "Unix sockets have no TIME_WAIT; drop --time-wait-warning and --time-wait-critical"
        )


def _has_percent(options: "Namespace") -> bool:
    both = (options.time_wait_warning, options.time_wait_critical)
    return any(one is not None and one.has_percent for one in both)


def probe(run: Run) -> Report:
    """Watch the leg for the window, then count its TIME_WAIT sockets."""
    leg = opts.chosen_leg(run.options)
    view = open_view(run)
    reader = view.reader
    if reader.saved:
        option = "--proc-root" if view.recorded is None else "--source FILE"
        raise PgsockError(
            f"a saved moment ({option}) cannot tell a rate; watch a live system, or judge the "
            "moment by check_pgsock_saturation or check_pgsock_close_wait"
        )
    sessions = read_sessions(reader, leg.paths)
    listeners = count(reader, leg, LISTEN).listeners
    floor = listener_floor(run, leg, listeners, sessions.missing)
    doubts = refuse_forwarded(view, leg, listeners)
    ports: Optional[int] = None
    if _has_percent(run.options):
        from check_pgsock.sockets.port_range import read_port_count

        ports = read_port_count(reader.each[0].namespace)
    seen = watch(
        leg, reader, run.options.source, run.options.window, run.deadline,
        only_with_data=run.options.ignore_probes,
        unix_reader=open_view(run).reader if leg.ports and leg.paths else reader,
    )  # fmt: skip
    return report(run, leg, view, seen, sessions, ports, floor, doubts)


def report(
    run: Run,
    leg: Leg,
    view: "View",
    seen: Watched,
    sessions: Sessions,
    ports: "Optional[int]",
    floor: "Optional[tuple[str, str]]",
    doubts: "list[str]",
) -> Report:
    """Put the measured values into words."""
    reader = view.reader
    waiting, in_time_wait = read_time_wait(leg, reader)
    churn = seen.churn.without_probes() if run.options.ignore_probes else seen.churn
    established = sum(one.state == ESTABLISHED for one in seen.live) + seen.sessions
    metrics = [*measure(churn), Metric("established", established)]
    if waiting is not None:
        metrics.append(Metric("time_wait", waiting, maximum=ports, base=ports))
    qualified, told = session_notes(view, leg, sessions)
    return Report(
        headline(run.options, churn, leg, seen.refusal is not None),
        metrics,
        notes=[*doubts, *notes(leg, seen), *qualified],
        who=lambda: who(run, leg, view, seen, churn, waiting, ports),
        told=[counts(seen.churn), *in_time_wait, *told],
        details=[
            *reader.describe(), *seen.details, *unexplained(seen.churn), *sessions.describe(),
        ],
        floor=floor,
        judged="cycle_rate" if run.options.judge == "cycles" else None,
    )  # fmt: skip


def measure(churn: "Churn") -> "list[Metric]":
    """The rates; what snapshots cannot tell is left out."""
    metrics = [
        Metric("closed_rate", churn.rate(churn.closed)),
        Metric("opened_rate", churn.rate(churn.opened)),
        Metric("cycle_rate", churn.rate(churn.cycles)),
    ]
    if churn.probes is not None:
        metrics.append(Metric("probe_rate", churn.rate(churn.probes)))
    if churn.failed_connects is not None:
        metrics.append(Metric("failed_connect_rate", churn.rate(churn.failed_connects)))
    return metrics


def headline(options: "Namespace", churn: "Churn", leg: Leg, is_bound: bool) -> str:
    """`0.3 connections closed per second (0.3 opened) on port 5432`"""
    # A lower bound is rounded down, or it would be none.
    spoken = _round_down if is_bound else round
    closed = spoken(churn.rate(churn.closed), 1)
    opened = spoken(churn.rate(churn.opened), 1)
    if options.judge == "cycles":
        text = f"{spoken(churn.rate(churn.cycles), 1):.1f} connections cycled per second"
        aside = f"{closed:.1f} closed, {opened:.1f} opened"
    else:
        text, aside = f"{closed:.1f} connections closed per second", f"{opened:.1f} opened"
    if options.ignore_probes:
        rate = "" if churn.probes is None else f"{churn.rate(churn.probes):.1f} "
        aside += f", {rate}probes not counted"
    return f"{'at least ' if is_bound else ''}{text} ({aside}) {leg.describe()}"


def _round_down(number: float, digits: int) -> float:
    scale = 10.0**digits
    return int(number * scale) / scale


def notes(leg: Leg, seen: Watched) -> "list[str]":
    """What qualifies the numbers."""
    lines = []
    if seen.refusal is not None:
        lines.append(
            "a lower bound, from snapshots: connections opened and closed between two of them are "
            f"not seen ({seen.refusal})"
        )
    if seen.churn.lost:
        more = "" if leg.server else ", though some may be failed connects or aborts of others"
        lines.append(
            f"{plural(seen.churn.lost, 'event')} did not fit into the receive buffer: counted as "
            f"closed{more}; net.core.rmem_max or CAP_NET_ADMIN allows a larger one"
        )
    return lines


def unexplained(churn: "Churn") -> "list[str]":
    """What could not be attributed, on the client leg."""
    if not churn.unexplained:
        return []
    return [
        f"{plural(churn.unexplained, 'socket')} of this host reset or failed to connect, and the "
        "kernel no longer tells to where: not counted"
    ]


def counts(churn: "Churn") -> str:
    """The counts behind the rates."""
    text = f"counted in {churn.elapsed:.3f} s: {churn.closed} closed, {churn.opened} opened"
    if churn.probes is not None:
        text += f"; of the closed {plural(churn.probes, 'probe')}, {churn.lost} lost"
    if churn.failed_connects is not None:
        text += f"; {churn.failed_connects} failed connects"
    return text


def who(
    run: Run,
    leg: Leg,
    view: "View",
    seen: Watched,
    churn: "Churn",
    waiting: "Optional[int]",
    ports: "Optional[int]",
) -> "list[str]":
    """The peers of the closed connections, and of TIME_WAIT where that is too much."""
    too_many = waiting is not None and run.exceeds("time_wait", waiting, ports)
    shares = bool(leg.ports) + bool(leg.paths) + too_many
    lines = top_peers(churn.closes, "closed", WHO_LINES // shares)
    if seen.users:
        from check_pgsock.unix.who import user_lines

        lines += user_lines(view, seen.users, "closed", WHO_LINES // shares)
    if too_many:
        sockets = view.reader.sockets(leg.query(TIME_WAIT))
        lines += top_peers(sockets, "in TIME_WAIT", WHO_LINES // shares)
    return lines


SPEC = CheckSpec(
    name="thrashing",
    description=__doc__,
    judged=(
        Judged("closed_rate", "connections closed per second", "10", "50"),
        Judged("time_wait", "sockets in TIME_WAIT", percent_of="ip_local_port_range (client leg)"),
    ),
    probe=probe,
    add_options=add_options,
    validate=validate,
)


def main() -> "NoReturn":
    """Entry point of check_pgsock_thrashing."""
    run_check(SPEC)
