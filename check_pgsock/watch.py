"""Watching a leg for a while: by destroy events, or where these are refused by snapshots."""

import time

from check_pgsock.churn import LIVE, EventLedger, SnapshotLedger, cookies, has_data, sum_churns
from check_pgsock.errors import SourceError
from check_pgsock.legs import Leg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.churn import Churn
    from check_pgsock.deadline import Deadline
    from check_pgsock.sockets.events import DestroyEvents
    from check_pgsock.sockets.model import Socket
    from check_pgsock.sockets.reader import Reader, SocketReader

PAUSE = 0.2  # seconds between two snapshots


class Watched:
    """The churn of a window, the live sockets at its end, and how that was found out."""

    __slots__ = ("churn", "details", "live", "refusal")

    def __init__(
        self,
        churn: "Churn",
        live: "list[Socket]",
        details: "list[str]",
        refusal: "Optional[str]" = None,
    ) -> None:
        self.churn = churn
        self.live = live
        self.details = details
        self.refusal = refusal  # why there are no events: the churn is a lower bound


def watch(
    leg: Leg, reader: "Reader", source: str, window: float, deadline: "Deadline",
    only_with_data: bool = False,
) -> Watched:  # fmt: skip
    """Watch the leg for `window` seconds; `source` is what the command line chooses.

    With `only_with_data` snapshots leave out connections whose client has sent nothing yet.
    Raises SourceError where neither events nor snapshots can be had, or where events are
    refused and netlink was chosen by name.
    """

    def watch_one(one: "SocketReader") -> Watched:
        return _watch_one(leg, one, source, window, deadline, only_with_data)

    if len(reader.each) == 1:
        return watch_one(reader.each[0])
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, and rarely needed

    with ThreadPoolExecutor(len(reader.each)) as pool:
        parts = list(pool.map(watch_one, reader.each))
    return Watched(
        sum_churns([one.churn for one in parts]),
        [socket for one in parts for socket in one.live],
        [line for one in parts for line in one.details],
        next((one.refusal for one in parts if one.refusal is not None), None),
    )


def _watch_one(
    leg: Leg, reader: "SocketReader", source: str, window: float, deadline: "Deadline",
    only_with_data: bool,
) -> Watched:  # fmt: skip
    if reader.used == "procfs":
        return _by_snapshots(leg, reader, window, deadline, only_with_data, "procfs has no events")
    from check_pgsock.sockets.events import DestroyEvents

    try:
        events = DestroyEvents(leg.ports, leg.server, deadline, namespace=reader.namespace)
    except SourceError as error:
        if source == "netlink":
            raise SourceError(
                f"{error}; use --source auto for snapshots, which give a lower bound"
            ) from error
        refusal = str(error)
    else:
        with events:
            return _by_events(leg, reader, window, deadline, events)
    return _by_snapshots(leg, reader, window, deadline, only_with_data, refusal)


def _by_events(
    leg: Leg,
    reader: "SocketReader",
    window: float,
    deadline: "Deadline",
    events: "DestroyEvents",
) -> Watched:
    query = leg.query(*LIVE)
    start = cookies(reader.sockets(query))
    # What has ended up to here was before the window.
    began = time.monotonic()
    start.difference_update(one.cookie for one in events.receive(began) if one.cookie is not None)
    lost_before = events.lost()
    began = time.monotonic()
    ledger = EventLedger(leg, start)
    deadline.doing = "watching connections"
    next_look = began
    for one in events.receive(began + window):
        now = time.monotonic()
        ledger.add(one, 1000 * (now - began))
        if ledger.unexplained and now >= next_look:
            # Connections that this end opens and aborts are known by having been seen.
            ledger.see(cookies(reader.sockets(query)))
            took = time.monotonic() - now
            next_look = now + max(PAUSE, 5 * took)
    live = reader.sockets(query)
    ended = time.monotonic()
    for one in events.receive(ended):
        ledger.add(one, 1000 * (ended - began))
    if reader.used != "netlink":
        raise SourceError(f"netlink ceased to answer within the window: {reader.refusal}")
    lost = events.lost() - lost_before
    churn = ledger.finish(cookies(live), lost, ended - began)
    return Watched(churn, live, [events.describe()])


def _by_snapshots(
    leg: Leg,
    reader: "SocketReader",
    window: float,
    deadline: "Deadline",
    only_with_data: bool,
    refusal: str,
) -> Watched:
    query = leg.query(*LIVE, info=only_with_data)
    ledger = SnapshotLedger()
    source = reader.used
    if only_with_data and source == "procfs":
        raise SourceError(
            "--ignore-probes needs netlink: procfs does not tell which connections had no data; "
            "drop the option to count them too"
        )
    live: list[Socket] = []
    began = ended = 0.0
    looks = 0
    while not looks or ended - began < window:
        if looks:
            deadline.doing = "watching connections"
            deadline.sleep(max(min(PAUSE, began + window - time.monotonic()), 0))
        live = reader.sockets(query)
        ended = time.monotonic()
        if not looks:
            began = ended
        if reader.used != source:
            raise SourceError(f"netlink ceased to answer within the window: {reader.refusal}")
        ledger.add(one for one in live if not only_with_data or has_data(one, leg.server))
        looks += 1
    details = [f"no destroy events: {refusal}", f"snapshots: {looks}, {PAUSE:g} s apart"]
    return Watched(ledger.finish(ended - began), live, details, refusal)
