"""Connections: all that is known of each, and who holds them; pure.

survey.py gathers what goes in here; checks say who with it, `pgsock connections` shows all.
"""

from check_pgsock.legs import format_address
from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.sessions.activity import (
    ACTIVITIES,
    BY_SOCKET,
    BY_TITLE,
    CLOSED_BY_SERVER,
    ORPHANED,
    UNKNOWN,
    judge_activity,
    judge_title,
)
from check_pgsock.sessions.ages import BY_BACKEND_START, Age, judge_age
from check_pgsock.sessions.holders import Holder
from check_pgsock.sessions.titles import LOCAL
from check_pgsock.sessions.titles import UNKNOWN as TITLE_UNKNOWN
from check_pgsock.sockets.model import STATE_NAMES, Socket
from check_pgsock.text import clean, say_top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Optional

    from check_pgsock.sessions.backends import Backend
    from check_pgsock.sessions.titles import Title
    from check_pgsock.sockets.unix_sockets import UnixSocket

SERVER, CLIENT, UNIX = "server", "client", "unix"  # legs; `unix` is the server's end, too
OVER_UNIX = LOCAL  # the peer of a session over a Unix socket, as process titles have it

# What is known of a connection, in the order of the JSON; times in seconds, sizes in bytes.
KEYS = (
    "leg", "namespace", "state", "local_address", "local_port", "peer_address", "peer_port",
    "user", "database", "session_state", "activity", "activity_known_by", "idle_seconds",
    "age_seconds", "age_known_by", "age_is_lower_bound", "backend_pid", "backend_type",
    "backend_cpu_seconds", "parallel_workers", "uid", "pid", "process", "peer_uid", "peer_pid",
    "peer_process", "received_bytes", "sent_bytes", "receive_queue_bytes", "send_queue_bytes",
    "retransmits", "total_retransmits", "cgroup", "inode",
)  # fmt: skip

if TYPE_CHECKING:
    # What KEYS name; absent is None, never 0. Addresses and states are as people write them,
    # names as they are: not fit to print before text.clean().
    Connection = dict[str, Any]

else:
    Connection = dict


def of_socket(
    one: Socket,
    leg: str,
    backend: "Optional[Backend]" = None,
    holder: "Optional[Holder]" = None,
    period: "Optional[float]" = None,
    at_most: "Optional[float]" = None,
    other: "Optional[Socket]" = None,
) -> Connection:
    """What is known of the connection that a TCP socket is an end of.

    `backend` is its backend, `holder` the process that holds this end; `period` its proven
    keepalive period, `at_most` an age that it cannot have passed: see ages.judge_age; `other` its
    other end, where that is on this host.
    """
    title = None if backend is None else backend.title
    found = judge_activity(one, leg == SERVER, title, other)
    age = judge_age(one, None if backend is None else backend.age, period, at_most)
    info = one.info
    sent = None if info is None else info.bytes_acked
    if sent is not None and leg == CLIENT:
        sent = max(sent - 1, 0)  # the SYN of the end that connects counts as a byte
    return _connection(
        leg=leg,
        state=STATE_NAMES[one.state],
        local_address=format_address(one.local_address),
        local_port=one.local_port,
        peer_address=format_address(one.remote_address),
        peer_port=one.remote_port,
        activity=found.activity,
        activity_known_by=found.known_by,
        idle_seconds=found.idle_seconds,
        uid=one.uid if one.inode else None,
        received_bytes=None if info is None else info.bytes_received,
        sent_bytes=sent,
        receive_queue_bytes=one.receive_queue,
        send_queue_bytes=one.send_queue,
        retransmits=one.retransmits if info is None else info.retransmits,
        total_retransmits=None if info is None else info.total_retransmits,
        cgroup=one.cgroup,
        inode=one.inode or None,
        **_session(backend),
        **_age(age),
        **_process("", _holder(backend) if leg == SERVER and backend is not None else holder),
    )


def of_unix_socket(
    one: "Optional[UnixSocket]",
    backend: "Optional[Backend]" = None,
    peer: "Optional[UnixSocket]" = None,
    holder: "Optional[Holder]" = None,
    peer_holder: "Optional[Holder]" = None,
) -> Connection:
    """What is known of a session over a Unix socket: from its accepted end, from its `backend`, or
    both; `peer` is the client's end, the holders are their processes.
    """
    activity, known_by = UNKNOWN, BY_SOCKET
    if one is not None and one.peer_inode == 0:
        activity = ORPHANED
    elif backend is not None:
        activity, known_by = judge_title(backend.title) or UNKNOWN, BY_TITLE
    age = None
    if backend is not None and backend.age is not None:
        age = Age(backend.age, BY_BACKEND_START, False)
    return _connection(
        leg=UNIX,
        state=None if one is None else STATE_NAMES[one.state],
        peer_address=OVER_UNIX,
        activity=activity,
        activity_known_by=known_by,
        uid=None if one is None else one.uid,
        peer_uid=None if peer is None else peer.uid,
        receive_queue_bytes=None if one is None else one.receive_queue,
        inode=None if one is None else one.inode,
        **_session(backend),
        **_age(age),
        **_process("", holder if backend is None else _holder(backend)),
        **_process("peer_", peer_holder),
    )


def _connection(**values: "Any") -> Connection:
    return {key: values.get(key) for key in KEYS}


def _session(backend: "Optional[Backend]") -> "dict[str, Any]":
    if backend is None:
        return {}
    title = backend.title
    return {
        "user": title.user,
        "database": title.database,
        # The command tag of an active one; one that may be cut says only what is certain.
        "session_state": (title.text if _tells_state(title) else title.state) or None,
        "backend_pid": backend.pid,
        # An idle walsender's title may be that of a user called walsender.
        "backend_type": None if title.kind == TITLE_UNKNOWN else title.kind,
        "backend_cpu_seconds": backend.cpu_seconds,
        "parallel_workers": backend.workers,
    }


def _tells_state(title: "Title") -> bool:
    """Whether the text of a title is what follows its client, and for certain."""
    return bool(title.whole and title.host and not (title.text or "").startswith(TITLE_PREFIX))


def _age(age: "Optional[Age]") -> "dict[str, Any]":
    if age is None:
        return {}
    return {
        "age_seconds": round(age.seconds, 3),
        "age_known_by": age.known_by,
        "age_is_lower_bound": age.bound,
    }


def _holder(backend: "Backend") -> Holder:
    return Holder(backend.pid, "postgres", backend.age)


def _process(prefix: str, holder: "Optional[Holder]") -> "dict[str, Any]":
    if holder is None:
        return {}
    return {f"{prefix}pid": holder.pid, f"{prefix}process": holder.command}


def count_by(
    connections: "Iterable[Connection]", *keys: str
) -> "list[tuple[tuple[Any, ...], list[Connection]]]":
    """The connections grouped by their values of `keys`: the largest group first, then by value;
    what is not known makes a group of its own.
    """
    groups: dict[tuple[Any, ...], list[Connection]] = {}
    for one in connections:
        groups.setdefault(tuple(one[key] for key in keys), []).append(one)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), str(item[0])))


def activity_counts(connections: "Iterable[Connection]") -> "dict[str, int]":
    """How many connections there are of each activity that any has, in the order of ACTIVITIES."""
    counts: dict[str, int] = {}
    for one in connections:
        counts[one["activity"]] = counts.get(one["activity"], 0) + 1
    return {name: counts[name] for name in ACTIVITIES if name in counts}


def say_counts(counts: "Mapping[str, int]") -> str:
    """`52 idle, 8 active`"""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def who_lines(connections: "list[Connection]", noun: str, most: int = 10) -> "list[str]":
    """Lines that say who holds `connections`: the top peers, users, databases and processes, as
    far as they are known, and what the connections do; at most `most` lines.
    """
    is_client = any(one["leg"] == CLIENT for one in connections)
    # On a server leg the clients' processes, where they are on this host.
    process = "process" if is_client else "peer_process"
    sections = []
    for word, words, key in (
        ("peer", "peers", "peer_address"),
        ("user", "users", "user"),
        ("database", "databases", "database"),
        ("process", "processes", process),
    ):
        counts: dict[str, int] = {}
        for one in connections:
            if one[key] is not None:
                name = f"{word} {one[key]}"
                counts[name] = counts.get(name, 0) + 1
        sections.append((words, counts))
    told = []
    activities = activity_counts(connections)
    if activities.keys() - {UNKNOWN, ORPHANED, CLOSED_BY_SERVER}:
        told.append(f"activity: {say_counts(activities)}")
    shares = _share_out(most - len(told), [len(counts) for _, counts in sections])
    lines = []
    for (words, counts), share in zip(sections, shares):
        lines += say_top(counts, clean, words, noun, share)
    return lines + told


def _share_out(lines: int, wanted: "list[int]") -> "list[int]":
    """How many of so many lines each section gets that wants some: one after the other, one each,
    the first of them as long as there are any.
    """
    shares = [0] * len(wanted)
    while lines and shares != wanted:
        for place, most in enumerate(wanted):
            if lines and shares[place] < most:
                shares[place] += 1
                lines -= 1
    return shares
