"""Connections whose peer has closed and that this side has not: which they are, for how long, what
ends them and whose program is at fault; in sentences, pure.
"""

from collections import Counter

from check_pgsock.processes import POSTGRES_COMMANDS
from check_pgsock.servers.programs import POOLER, kind_of
from check_pgsock.sessions.activity import NOT_ACCEPTED
from check_pgsock.sessions.connections import CLIENT, OVER_UNIX, who_lines
from check_pgsock.sessions.states import ACTIVE, FASTPATH, parse_state
from check_pgsock.text import clean, plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sessions.connections import Connection

    # A connection, and for how many seconds its peer has been gone at the least; None: not known.
    Orphan = tuple[Connection, Optional[float]]

# Lines on connections that are no backend's, beside those on backends.
_COUNTS = 4
_NAMED = 3  # of several programs or hosts in one sentence


def orphan_lines(orphans: "list[Orphan]", noun: str, most: int) -> "list[str]":
    """At most `most` lines on who holds `orphans`, called `noun`: one for each backend, the longest
    first, and one for all that there is no line for; of others, counts by peer and process.
    """
    backends = sorted(
        (one for one in orphans if one[0]["backend_pid"] is not None),
        key=lambda one: (-(one[1] or 0), one[0]["backend_pid"]),
    )
    others = [one for one in orphans if one[0]["backend_pid"] is None]
    counts = _count_lines(others, noun, min(_COUNTS, most) if backends else most)
    room = most - len(counts)
    shown = backends if len(backends) <= room else backends[: max(room - 1, 0)]
    lines = [say_backend(*one) for one in shown]
    if len(lines) < len(backends) and room:
        lines.append(_say_more([row for row, _ in backends[len(shown) :]]))
    return lines + counts


def _count_lines(orphans: "list[Orphan]", noun: str, most: int) -> "list[str]":
    ages = [seconds for _, seconds in orphans if seconds is not None]
    told = [f"the longest for at least {write_seconds(max(ages))}"] if ages and most > 1 else []
    return who_lines([row for row, _ in orphans], noun, most - len(told)) + told


def _say_more(rows: "list[Connection]") -> str:
    """`22 more backends: users app (15), report (7); database shop; peer 10.0.0.5`"""
    sections = []
    for word, key in (("user", "user"), ("database", "database"), ("peer", "peer_address")):
        counts = Counter(clean(one[key], 40) for one in rows if one[key] is not None)
        names = [name for name, _ in counts.most_common()]
        if len(names) == 1:
            sections.append(f"{word} {names[0]}")
        elif names:
            shares = [f"{name} ({counts[name]})" for name in names]
            sections.append(f"{word}s {_enumerate(shares)}")
    return f"{len(rows)} more {'backend' if len(rows) == 1 else 'backends'}: {'; '.join(sections)}"


def say_backend(row: "Connection", seconds: "Optional[float]") -> str:
    """`process 4711: user app on shop from 10.0.0.5 runs SELECT, its client gone for at least 12
    min`, as far as it is known.
    """
    words = [f"process {row['backend_pid']}:"]
    if row["user"] is not None:
        words.append(f"user {clean(row['user'], 63)}")
    if row["database"] is not None:
        words.append(f"on {clean(row['database'], 63)}")
    peer = row["peer_address"]
    words.append("over a Unix socket" if peer == OVER_UNIX else f"from {peer}")
    state = row["session_state"]
    if state is not None:
        runs = (parse_state(state) or (None, None))[0] in (ACTIVE, FASTPATH)
        words.append(f"{'runs' if runs else 'is'} {clean(state)}")
    gone = "" if seconds is None else f" for at least {write_seconds(seconds)}"
    return f"{' '.join(words)}, its client gone{gone}"


def advice_lines(rows: "list[Connection]") -> "list[str]":
    """What ends such connections, and whose program is at fault: a line for each kind that there
    is, four at the most.
    """
    kinds: dict[str, list[Connection]] = {}
    for one in rows:
        kinds.setdefault(_kind(one), []).append(one)
    return [say(kinds[kind]) for kind, say in _ADVICE.items() if kind in kinds]


def _kind(row: "Connection") -> str:
    if row["leg"] == CLIENT:
        return "client"
    if row["activity"] == NOT_ACCEPTED:
        return "not accepted"
    if row["backend_pid"] is not None or row["process"] in POSTGRES_COMMANDS:
        return "backend"
    return "unknown" if row["process"] is None else "program"


def _advise_backends(rows: "list[Connection]") -> str:
    peers = Counter(one["peer_address"] for one in rows)
    at = ["this host" if peer == OVER_UNIX else peer for peer, _ in peers.most_common()]
    word = "the client" if len(rows) == 1 else "the clients"
    return (
        f"{'it holds its' if len(rows) == 1 else 'each holds a'} slot until its statement ends: "
        "pg_terminate_backend(PID) ends it, client_connection_check_interval lets the server "
        f"notice by itself; at fault: {word} on {_enumerate(at)}, gone under a statement"
    )


def _advise_not_accepted(rows: "list[Connection]") -> str:
    return (
        f"{plural(len(rows), 'connection')} not accepted: the server is stopped or starved, and "
        "its clients have given up"
    )


def _advise_program(rows: "list[Connection]") -> str:
    names = sorted({clean(one["process"]) for one in rows})
    word = "the pooler" if all(kind_of(name) == POOLER for name in names) else "the program"
    return (
        f"at fault: {word} on this host ({_enumerate(names)}), which has not closed what its "
        "clients closed: stopped, starved or stuck"
    )


def _advise_unknown(rows: "list[Connection]") -> str:
    return (
        "at fault is the program that accepted them (which one is not seen from here), unless it "
        "is a PostgreSQL server: its backends work on until their statements end, "
        "client_connection_check_interval lets them notice"
    )


def _advise_client(rows: "list[Connection]") -> str:
    names = sorted({clean(one["process"]) for one in rows if one["process"] is not None})
    who = f" ({_enumerate(names)})" if names else ""
    # The FIN counts as one byte, until the program has read it.
    queues = [one["receive_queue_bytes"] for one in rows]
    parts = [
        f"{count} {words}"
        for count, words in (
            (sum(size > 1 for size in queues), "with unread bytes"),
            (sum(size == 1 for size in queues), "not looked at since"),
            (sum(size == 0 for size in queues), "read to the end, and leaked"),
        )
        if count
    ]
    return (
        f"at fault: the program on this host{who}, which has not closed what the server closed "
        f"({', '.join(parts)}): let its pool validate connections, or limit their idle time"
    )


_ADVICE = {
    "backend": _advise_backends,
    "not accepted": _advise_not_accepted,
    "program": _advise_program,
    "unknown": _advise_unknown,
    "client": _advise_client,
}


def _enumerate(names: "list[str]") -> str:
    """`a, b, c and 4 more`"""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
