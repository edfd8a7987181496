"""Who holds the connection slots of a server, or the connections of a group: lines of words."""

from check_pgsock.legs import Leg
from check_pgsock.option_values import parse_address
from check_pgsock.sessions.backends import Backend
from check_pgsock.sessions.connections import of_unix_socket, who_lines
from check_pgsock.sessions.groups import PEER
from check_pgsock.sessions.survey import survey
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, state_mask
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from check_pgsock.servers.leg_owner import Target
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.sessions.groups import Group, GroupLimits
    from check_pgsock.sessions.slots import Slots
    from check_pgsock.view import View

_GROUPS = 4  # lines that name groups; the others say who belongs to the fullest


def slot_lines(view: "View", target: "Target", slots: "Slots") -> "list[str]":
    """Lines on who holds the slots of the server that has `target`. Raises SourceError."""
    return who_lines(_read_holders(view, target, slots), "of the slots")


def group_lines(
    view: "View", leg: Leg, target: "Target | None", slots: "Slots | None",
    limits: "GroupLimits", full: "list[Group]",
) -> "list[str]":  # fmt: skip
    """Lines on groups that are too `full`, the fullest first, and on who belongs to that one: by
    peer of `leg`, else of the slots. Raises SourceError.
    """
    lines = [f"{limits.by} {clean(one.name)}: {one.count} of {one.limit}" for one in full[:_GROUPS]]
    if len(full) > _GROUPS:
        lines.append(f"{len(full) - _GROUPS} more {limits.by}s")
    noun = f"of {limits.by} {clean(full[0].name)}"
    own = f"{limits.by} {clean(full[0].name)}: "
    held = _hold(view, leg, target, slots, limits, full[0].name, noun)
    return lines + [one for one in held if not one.startswith(own)]


def _hold(
    view: "View", leg: Leg, target: "Target | None", slots: "Slots | None",
    limits: "GroupLimits", name: str, noun: str,
) -> "list[str]":  # fmt: skip
    if limits.by == PEER:
        found = survey(view, leg, state_mask(ESTABLISHED)).connections
        peers = {one["peer_address"] for one in found}
        mine = {one for one in peers if limits.name_of(parse_address(one)) == name}
        return who_lines([one for one in found if one["peer_address"] in mine], noun)
    if target is None or slots is None:
        return []
    holders = _read_holders(view, target, slots)
    return who_lines([one for one in holders if one[limits.by] == name], noun)


def _read_holders(view: "View", target: "Target", slots: "Slots") -> "list[Connection]":
    """What is known of the sessions that hold a slot: of their connections, else by their titles
    alone.
    """
    found: dict[int, Connection] = {}
    if target.port is not None:
        states = state_mask(ESTABLISHED, CLOSE_WAIT)
        for one in survey(view, Leg((target.port,)), states, unix=True).connections:
            if one["backend_pid"] in slots.holders:
                found[one["backend_pid"]] = one
    for pid, title in slots.holders.items():
        if pid not in found:
            row = of_unix_socket(None, Backend(pid, title, None, None, 0))
            row["peer_address"] = title.host
            found[pid] = row
    return list(found.values())
