"""Watching a leg for a while: by destroy events, or where these are refused by snapshots."""

import time
from functools import partial

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
    """The churn of a window, what lives at its end, and how that was found out."""

    __slots__ = ("churn", "details", "live", "refusal", "sessions", "users")

    def __init__(
        self,
        churn: "Churn",
        live: "list[Socket]",
        details: "list[str]",
        refusal: "Optional[str]" = None,
        sessions: int = 0,
        users: "Optional[list[Optional[int]]]" = None,
    ) -> None:
        self.churn = churn
        self.live = live
        self.details = details
        self.refusal = refusal  # why there are no events: the churn is a lower bound
        self.sessions = sessions  # over Unix sockets, with their client
        self.users = users or []  # the client's uid of each such session that was closed


def watch(
    leg: Leg, reader: "Reader", source: str, window: float, deadline: "Deadline",
    only_with_data: bool = False, unix_reader: "Optional[Reader]" = None,
) -> Watched:  # fmt: skip
    """Watch the leg for `window` seconds; `source` is what the command line chooses.

    With `only_with_data` snapshots leave out connections whose client has sent nothing yet. Its
    Unix sockets are watched at the same time, with `unix_reader`: another than `reader`. Raises
    SourceError where neither events nor snapshots can be had, or where events are refused and
    netlink was chosen by name.
    """
    tasks = [
        partial(_watch_one, leg, one, source, window, deadline, only_with_data)
        for one in reader.each
        if leg.ports
    ]
    if leg.paths and unix_reader is not None:
        from check_pgsock.unix.watch import watch_sessions

        tasks.append(partial(watch_sessions, leg.paths, unix_reader, window, deadline))
    if len(tasks) == 1:
        return tasks[0]()
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, and rarely needed

    with ThreadPoolExecutor(len(tasks)) as pool:
        parts = [one.result() for one in [pool.submit(task) for task in tasks]]
    return Watched(
        sum_churns([one.churn for one in parts]),
        [socket for one in parts for socket in one.live],
        [line for one in parts for line in one.details],
        next((one.refusal for one in parts if one.refusal is not None), None),
        sum(one.sessions for one in parts),
        [uid for one in parts for uid in one.users],
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
        ledger.add(one for one in live if not only_with_data or has_data(one, leg.server))
        looks += 1
    details = [f"no destroy events: {refusal}", f"snapshots: {looks}, {PAUSE:g} s apart"]
    return Watched(ledger.finish(ended - began), live, details, refusal)
