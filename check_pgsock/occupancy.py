"""What an endpoint holds of what it can: connections, slots, groups, the processes of its port."""

from check_pgsock.legs import Leg
from check_pgsock.limit_option import describe_limit, limit_notes
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, SYN_RECV, Tally
from check_pgsock.unix.leg import Sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.servers.leg_owner import Owned
    from check_pgsock.servers.shared_port import Worker
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.sessions.groups import GroupLimits, Groups
    from check_pgsock.sessions.selection import Selection
    from check_pgsock.sessions.slots import Slots
    from check_pgsock.view import View


class Occupancy:
    """What was counted of a leg, and what is to be said of it, always (`notes`) or at -v (`told`).

    None is what does not apply, or is not known. `owned` is whose the endpoint is, where that was
    looked for; `workers` are the processes that share its port, the fullest first; `by_process` is
    what each of these can hold, by process id, as far as that was read with the limit; `selected`
    are the connections established, where some are selected by user or database. `unknown` are
    labels that could not be measured, with the reason.
    """

    __slots__ = (
        "by_process", "close_wait", "established", "groups", "leg", "limit", "listeners",
        "not_accepted", "notes", "owned", "selected", "sessions", "slots", "syn_recv", "told",
        "unknown", "workers",
    )  # fmt: skip

    def __init__(self, leg: Leg, tally: Tally, sessions: Sessions) -> None:
        self.leg = leg
        self.listeners = tally.listeners
        self.sessions = sessions
        self.established = tally.count(ESTABLISHED) + sessions.established
        self.close_wait: Optional[int] = None
        if sessions.tells_gone:
            self.close_wait = tally.count(CLOSE_WAIT) + len(sessions.gone)
        self.syn_recv = tally.count(SYN_RECV) if leg.ports else None
        self.not_accepted: Optional[int] = tally.not_accepted + sessions.not_accepted
        self.limit: Optional[int] = None
        self.owned: Optional[Owned] = None
        self.slots: Optional[Slots] = None
        self.groups: Optional[Groups] = None
        self.workers: list[Worker] = []
        self.by_process: Optional[dict[int, int]] = None
        self.selected: Optional[list[Connection]] = None
        self.notes: list[str] = []
        self.told: list[str] = []
        self.unknown: dict[str, str] = {}

    @property
    def taken(self) -> int:
        """What is taken of the limit: connections or slots, whichever are more."""
        return max(self.established, 0 if self.slots is None else self.slots.used)


def occupy(
    found: Occupancy, view: "View", selection: "Selection", groups: "Optional[GroupLimits]"
) -> None:
    """Find the limit where it is not given, and what else there is to be counted.

    Raises LimitUnknown and other PgsockErrors.
    """
    leg = found.leg
    selects = bool(leg.peers or leg.excluded_peers or selection)
    by_slot = groups is not None and groups.is_by_slot
    if found.limit is None or by_slot or (leg.server and not selects):
        from check_pgsock.servers.leg_owner import look_for_owner

        found.owned = look_for_owner(view, leg, found.listeners, found.sessions)
    is_read = found.limit is None
    if is_read and found.owned is not None:
        _read_limit(found, found.owned, view)
    slots = _read_slots(found, view) if by_slot or (leg.server and not selects) else None
    if slots is not None and not selects:
        _use(found, slots)
    elif is_read and (selects or leg.address is not None or leg.paths):
        found.notes.append(
            "only the connections selected are counted, against all slots of the server: others "
            "take slots, too"
        )
    if leg.server and slots is None:
        if not selects:
            _say_uncounted(found, view)
        _find_workers(found, view)
    if groups is not None:
        _count_groups(found, view, groups, slots)
    if selection:
        _select(found, view, selection)


def _read_limit(found: Occupancy, owned: "Owned", view: "View") -> None:
    from check_pgsock.servers.leg_owner import read_limit

    limit, proof, pending = read_limit(view, owned)
    found.limit = limit.usable
    found.notes += limit_notes(limit, pending)
    found.told.append(describe_limit(limit, proof))
    found.by_process = getattr(limit, "by_process", None)  # a pooler's


def _read_slots(found: Occupancy, view: "View") -> "Optional[Slots]":
    owned = found.owned
    if owned is None or owned.cluster is None or owned.target is None:
        return None
    from check_pgsock.sessions.slots import read_slots

    return read_slots(view, owned.cluster, owned.target)


def _say_uncounted(found: Occupancy, view: "View") -> None:
    """Say why the slots in use are not known: always where the server may be one that has some."""
    from check_pgsock.servers.uncounted import may_be_postgresql, say_uncounted

    error = None if found.owned is None else found.owned.error
    why = "" if error is None else error.why or str(error)
    if may_be_postgresql(view, found.leg, found.listeners, found.sessions.listeners):
        found.notes.append(say_uncounted(view, found.leg, why))
    else:
        why = "the owner of the listener is no PostgreSQL server, as far as can be seen"
        found.told.append(f"connection slots in use are not known: {why}")
    found.unknown["slots_used"] = why


def _use(found: Occupancy, slots: "Slots") -> None:
    """Take the slots in use over; walsenders are no connections that slots are held by."""
    found.slots = slots
    note = slots.note()
    if note is not None:
        found.notes.append(note)
    target = None if found.owned is None else found.owned.target
    if slots.senders and target is not None:
        accepts = found.leg.filter
        senders = sum(
            one.state == ESTABLISHED
            and (one.remote_address, one.remote_port) in slots.senders
            and (accepts is None or accepts(one.local_address, one.remote_address))
            for one in target.accepted
        )
        found.established = max(found.established - senders, 0)
        why = "which hold no connection slot"
        if slots.resting:
            why = "by their titles; those at rest may be sessions of a user of that name"
        found.told.append(f"not counted as established: {senders} of walsenders, {why}")


def _find_workers(found: Occupancy, view: "View") -> None:
    """Count by process where several share the port."""
    from check_pgsock.servers import shared_port  # a count of a few listeners

    sharers = shared_port.count_sharers(found.leg.listeners(found.listeners))
    if sharers < 2 or found.limit is None:
        return
    if found.owned is None:
        from check_pgsock.servers.leg_owner import look_for_owner

        found.owned = look_for_owner(view, found.leg, found.listeners, found.sessions)
    target = found.owned.target
    if target is None or target.port is None:
        found.unknown["fullest_process"] = "processes are counted of one port in one place alone"
        return
    workers = shared_port.read_workers(view, target, found.limit, found.by_process)
    if workers is None:
        why = "which of them holds how many connections is seen by root and their own user alone"
        found.unknown["fullest_process"] = why
        found.notes.append(
            f"port {target.port} has {sharers} listeners at one address, of as many processes or "
            f"fewer: {why}, and their sum is judged"
        )
    elif len(workers) > 1:
        found.workers = workers


def _count_groups(
    found: Occupancy, view: "View", groups: "GroupLimits", slots: "Optional[Slots]"
) -> None:
    from check_pgsock.sessions.groups import group_peers, group_slots

    if not groups.is_by_slot:
        query = found.leg.query(ESTABLISHED)
        found.groups = group_peers(groups, view.reader.sockets(query))
        return
    if slots is None:
        why = found.owned.error.why if found.owned is not None and found.owned.error else ""
        raise groups.unknown(why)
    found.groups = group_slots(groups, slots)
    note = found.groups.note()
    if note is not None:
        found.notes.append(note)


def _select(found: Occupancy, view: "View", selection: "Selection") -> None:
    """Count the connections of some users or databases alone."""
    from check_pgsock.sessions.activity import ORPHANED
    from check_pgsock.sessions.survey import survey
    from check_pgsock.sockets.model import STATE_NAMES, state_mask
    from check_pgsock.unix.survey import add_unix_socket

    surveyed = survey(view, found.leg, state_mask(ESTABLISHED, CLOSE_WAIT))
    for path in found.leg.paths:
        add_unix_socket(view, path, surveyed)
    chosen, notes = selection.choose(surveyed.connections)
    gone = [one for one in chosen if one["activity"] == ORPHANED]
    is_open = STATE_NAMES[ESTABLISHED]
    found.selected = [one for one in chosen if one["state"] == is_open and one not in gone]
    found.established = len(found.selected)
    if found.close_wait is not None:
        found.close_wait = len(gone)
    # Who is connecting is not known yet.
    found.syn_recv = found.not_accepted = None
    found.notes += notes
