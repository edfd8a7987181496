"""Titles of one postmaster's children with other names and addresses in them; pure.

A title is taken apart by titles.py and put together again. Where its client is certain and its
names are not, for the spaces in them, they stay so. What names no client for certain, and what does
not read the same afterwards, keeps its prefix and its length, and says nothing. Whether a title is
whole is told by how long the others are: where stand-ins are longer than what they stand for, all
have room for so many bytes more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from check_pgsock.legs import format_address
from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.recording.anonymize.stand_ins import StandIns
from check_pgsock.sessions import titles
from check_pgsock.sessions.children import find_cluster_name, parse_children
from check_pgsock.sessions.states import parse_state
from check_pgsock.sessions.titles import Title

# Background processes of PostgreSQL's own, with what they say they do: files of WAL, positions.
_OWN_PROCESS = re.compile(
    r"(?:archiver|autovacuum launcher|background writer|checkpointer|io worker|logger|"
    r"logical replication|slotsync worker|startup|stats collector|walreceiver|walsummarizer|"
    r"walwriter)(?: (?:[a-z]+|[0-9]+|[0-9A-F]+(?:/[0-9A-F]+)?))* ?"
)
# Whole: two readings that contradict each other. Cut: nothing that could be a state.
_UNREADABLE = "- - [local] - [local] -"
_WALSENDER = "walsender"  # the first word of its titles
_QUOTED = re.compile(r'".*', re.DOTALL)


class Titles(NamedTuple):
    """/proc/PID/cmdline of the children, and of the postmaster; `longer` is by how many bytes
    more the area is that the children write their titles to.
    """

    children: dict[int, bytes]
    postmaster: bytes
    longer: int


def anonymize_titles(
    children: Mapping[int, bytes], before: bytes, postmaster: bytes, area: int | None,
    stand_ins: StandIns,
) -> Titles:  # fmt: skip
    """`before` is the postmaster's command line as it was, and `postmaster` as it is to be; `area`
    is what parse_children() takes.
    """
    told = parse_children(children, before, area)
    texts = {pid: titles.text_of(raw) for pid, raw in children.items()}
    cluster = find_cluster_name(texts[pid] for pid, one in told.items() if one.whole)
    writer = _Writer(cluster, stand_ins)
    new = {
        pid: writer.write(texts[pid]) if one.whole else _fill("", titles.UNKNOWN)
        for pid, one in told.items()
        if texts[pid].startswith(TITLE_PREFIX) and one.kind != titles.UNTITLED
    }
    longer = max(
        (len(_encode(text)) - len(_encode(texts[pid])) for pid, text in new.items()), default=0
    )
    longer = max(longer, len(postmaster) - len(before) if before else 0, 0)
    found = {}
    for pid, raw in children.items():
        size = len(_encode(texts[pid])) + longer
        text = _encode(new[pid]) if pid in new else postmaster
        if pid in new and not told[pid].whole:
            text = _encode(_fill(" " * size, titles.UNKNOWN))
        found[pid] = text.ljust(len(raw) + longer, b"\0")
    return Titles(found, postmaster.ljust(len(before) + longer, b"\0"), longer)


class _Writer:
    """Writes the titles of children that share a cluster_name ("" is none, None is unknown)."""

    def __init__(self, cluster: str | None, stand_ins: StandIns) -> None:
        self._stand_ins = stand_ins
        self._cluster = cluster
        self._new_cluster = stand_ins.name("cluster", cluster) if cluster else cluster

    def write(self, text: str) -> str:
        """A whole title with stand-ins."""
        # Alone: what all together do not say any more must be left for them not to say.
        one = titles.parse_title(text, True, self._cluster)
        if one.host is not None and one.text == text:
            # It can be read in several ways, with the same client.
            one = one._replace(state=None, waiting=None, text=None)
        body = self._body(text, one)
        if body is None:
            return _fill(text, one.kind)
        prefix = f"{TITLE_PREFIX}{self._new_cluster}: " if self._cluster else TITLE_PREFIX
        new = prefix + body
        if _sense(titles.parse_title(new, True, self._new_cluster)) != _sense(one):
            return _fill(text, one.kind)
        return new

    def _body(self, text: str, one: Title) -> str | None:
        """What follows the cluster_name; None where nothing of it is known for certain."""
        said = one.text or ""
        if one.host is not None:
            # What may be a walsender or a user of that name stays so.
            lead = "" if one.kind == titles.CLIENT_BACKEND else f"{_WALSENDER} "
            return f"{lead}{self._names(text, one)} {self._client(one)} {self._doing(text, one)}"
        if one.kind == titles.AUXILIARY:
            return said if _OWN_PROCESS.fullmatch(said) else None
        if one.kind == titles.PARALLEL_WORKER:
            return said
        if one.kind == titles.AUTOVACUUM_WORKER:
            database = self._name("database", one.database)
            return f"autovacuum worker {database}" if one.database else said
        return None

    def _names(self, text: str, one: Title) -> str:
        """The user and, but for most walsenders, the database; or words that can be both."""
        if one.user and one.database:
            return f"{self._name('user', one.user)} {self._name('database', one.database)}"
        if one.user and one.kind == titles.WALSENDER:
            return self._name("user", one.user)
        if one.user == _WALSENDER:
            return one.user  # of that name, walsender or not
        before = text if one.text is None else text[: -len(one.text) - 1].rpartition(" ")[0]
        return f"{self._name('names', before)} with spaces"

    def _doing(self, text: str, one: Title) -> str:
        """What the session does; what only an extension writes may be anything."""
        if one.text is None:
            return self._name("text", text)
        if one.state is None and parse_state(one.text) is None:
            return self._name("text", one.text)
        return _QUOTED.sub('"label"', one.text)

    def _client(self, one: Title) -> str:
        if one.host == titles.LOCAL:
            return titles.LOCAL
        port = "???" if one.port is None else one.port
        if one.address is None:
            return f"{self._name('host', one.host)}({port})"
        return f"{format_address(self._stand_ins.address(one.address))}({port})"

    def _name(self, kind: str, name: str | None) -> str:
        return self._stand_ins.name(kind, name) if name else ""


def _sense(one: Title) -> tuple[object, ...]:
    """What a title says but for names."""
    named = tuple(bool(each) for each in (one.user, one.database, one.host, one.address))
    return one.kind, *named, one.host == titles.LOCAL, one.port, one.state, one.waiting, one.leader


def _fill(text: str, kind: str) -> str:
    """A title that says no more than that it is one, as long as `text` is, in bytes, or longer."""
    filling = "" if kind == titles.AUXILIARY else _UNREADABLE
    return (TITLE_PREFIX + filling).ljust(max(len(_encode(text)), len(TITLE_PREFIX) + 1), "-")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
