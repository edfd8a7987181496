"""Titles of one postmaster's children with other names and addresses in them; pure.

A title is taken apart by titles.py and put together again. What cannot be read for certain, and
what does not read the same afterwards, keeps its prefix and its length, and says nothing. Whether
a title is whole is told by how long the others are: where stand-ins are longer than what they
stand for, all have room for so many bytes more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from check_pgsock.legs import format_address
from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.recording.anonymize.stand_ins import StandIns
from check_pgsock.sessions import titles
from check_pgsock.sessions.titles import Title

# Background processes of PostgreSQL's own, with what they say they do: files of WAL, positions.
_OWN_PROCESS = re.compile(
    r"(?:archiver|autovacuum launcher|background writer|checkpointer|io worker|logger|"
    r"logical replication|slotsync worker|startup|stats collector|walreceiver|walsummarizer|"
    r"walwriter)(?: (?:[a-z]+|[0-9]+|[0-9A-F]+(?:/[0-9A-F]+)?))* ?"
)
# Whole: two readings that contradict each other. Cut: nothing that could be a state.
_UNREADABLE = "- - [local] - [local] -"
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
    told = titles.parse_children(children, before, area)
    texts = {pid: titles.text_of(raw) for pid, raw in children.items()}
    cluster = titles.find_cluster_name(texts[pid] for pid, one in told.items() if one.whole)
    writer = _Writer(cluster, stand_ins)
    new = {
        pid: writer.write(texts[pid], one) if one.whole else _fill("", titles.UNKNOWN)
        for pid, one in told.items()
        if texts[pid].startswith(TITLE_PREFIX)
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

    def write(self, text: str, one: Title) -> str:
        """A whole title, of which all together say `one`, with stand-ins."""
        body = self._body(one)
        if body is None:
            return _fill(text, one.kind)
        prefix = f"{TITLE_PREFIX}{self._new_cluster}: " if self._cluster else TITLE_PREFIX
        new = prefix + body
        if _sense(titles.parse_title(new, True, self._new_cluster)) != _sense(one):
            return _fill(text, one.kind)
        return new

    def _body(self, one: Title) -> str | None:
        """What follows the cluster_name; None where it is not known for certain."""
        text = one.text or ""  # None, if no session says what it does
        if one.kind == titles.AUXILIARY:
            return text if _OWN_PROCESS.fullmatch(text) else None
        if one.kind == titles.PARALLEL_WORKER:
            return text
        if one.kind == titles.AUTOVACUUM_WORKER:
            database = self._name("database", one.database)
            return f"autovacuum worker {database}" if one.database else text
        is_client = one.kind == titles.CLIENT_BACKEND and one.database
        if one.host is None or one.user is None or not (is_client or one.kind == titles.WALSENDER):
            return None
        if one.state is None and titles.parse_state(text) is None:
            return None
        words = ["walsender"] if one.kind == titles.WALSENDER else []
        words.append(self._name("user", one.user))
        if one.database:
            words.append(self._name("database", one.database))
        words += [self._client(one), _QUOTED.sub('"label"', text)]
        return " ".join(words)

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
