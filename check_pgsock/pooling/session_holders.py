"""Whose sessions ended badly, and who has sessions open now; pure.

PostgreSQL keeps no name of a session that has ended: its database is all that the counters tell,
and log_disconnections the rest. Who has sessions open there now is the nearest to it.
"""

from check_pgsock.pooling.session_ends import KINDS, Ends
from check_pgsock.text import clean, say_top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional


class Holder:
    """Sessions of one database, role, application and client address. `hidden` says that the role
    of the check may not see the address, nor whether they are sessions; else one that is None is a
    Unix socket.
    """

    __slots__ = ("address", "application", "count", "hidden", "oid", "role")

    def __init__(
        self, *, oid: int, role: str, application: str, address: "Optional[str]", hidden: bool,
        count: int,
    ) -> None:  # fmt: skip
        self.oid = oid
        self.role = role
        self.application = application
        self.address = address
        self.hidden = hidden
        self.count = count

    def describe(self) -> str:
        """`role app, application web, from 192.0.2.7`"""
        application = f", application {clean(self.application)}" if self.application else ""
        where = "over a Unix socket" if self.address is None else f"from {self.address}"
        if self.hidden:
            where = "from a hidden address"
        return f"role {clean(self.role)}{application}, {where}"


def kind_lines(each: "Mapping[str, Ends]", most: int) -> "list[str]":
    """At most `most` lines: the databases where most sessions ended badly, and how."""
    bad = {name: ends.ended_badly for name, ends in each.items() if ends.ended_badly}

    def say(name: str) -> str:
        ends = each[name]
        kinds = ", ".join(f"{getattr(ends, kind)} {kind}" for kind in KINDS if getattr(ends, kind))
        return f"database {clean(name)}, {kinds}"

    return say_top(bad, say, "databases", "ended badly", most)


def holder_lines(holders: "list[Holder]", most: int) -> "list[str]":
    """At most `most` lines: who has how many sessions open now."""
    counts: dict[str, int] = {}
    for one in holders:
        counts[one.describe()] = counts.get(one.describe(), 0) + one.count
    return say_top(counts, str, "groups", "open now", most)
