"""What the titles of a postmaster's children say: pure, nothing opened.

A title is the NUL-terminated text that a child writes over its arguments and environment, read
from /proc/PID/cmdline. Authority: save_ps_display_args, init_ps_display and set_ps_display in
src/backend/utils/misc/ps_status.c; BackendInitialize in src/backend/postmaster/postmaster.c (14 to
16) and src/backend/tcop/backend_startup.c (17 and 18), which compose

    postgres: [CLUSTER_NAME: ][walsender ]USER [DATABASE ]HOST(PORT) ACTIVITY
    postgres: [CLUSTER_NAME: ][walsender ]USER [DATABASE ][local] ACTIVITY

A client backend always has a DATABASE; a walsender has one from 16 on, where it is connected to
one. Everybody who can reach the port chooses USER and DATABASE, spaces and parentheses included,
before any authentication. So a title is read in every way in which it can have come about, and a
field is told only where all of them agree. Whether a process may be believed at all (a child of
the postmaster that owns the listener, with its uid) is for the caller to prove.
"""

import re
import socket
from collections import namedtuple

from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.sockets.model import fold_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from typing import NamedTuple, Optional

    Peer = tuple[bytes, int]
    Names = tuple[str, Optional[str]]
    State = tuple[Optional[str], Optional[bool]]

# Kinds, in pg_stat_activity's words where it has some (backend_type).
CLIENT_BACKEND = "client backend"
WALSENDER = "walsender"
PARALLEL_WORKER = "parallel worker"
AUTOVACUUM_WORKER = "autovacuum worker"
AUXILIARY = "auxiliary"  # checkpointer, background worker and the like: no client
UNTITLED = "untitled"  # just forked, or for a connection whose startup packet is not complete
UNKNOWN = "unknown"

# Session states in pg_stat_activity's words; the last three are the title's own.
ACTIVE = "active"
FASTPATH = "fastpath function call"
IDLE = "idle"
IDLE_IN_TRANSACTION = "idle in transaction"
ABORTED = "idle in transaction (aborted)"
AUTHENTICATION = "authentication"
STARTUP = "startup"
INITIALIZING = "initializing"

LOCAL = "[local]"

if TYPE_CHECKING:

    class Title(NamedTuple):
        """What one title says for certain; absent is None: not said, or not for certain."""

        kind: str
        user: "Optional[str]" = None
        database: "Optional[str]" = None
        host: "Optional[str]" = None  # an address, a name (log_hostname = on), or LOCAL
        address: "Optional[bytes]" = None  # packed and folded, where the host is an address
        port: "Optional[int]" = None
        state: "Optional[str]" = None
        waiting: "Optional[bool]" = None  # for a lock, or for a synchronous standby
        text: "Optional[str]" = None  # verbatim: what follows the client, or all where it has none
        leader: "Optional[int]" = None  # process id of a parallel worker's leader
        whole: bool = True  # False: it may have been cut at the end of its area

else:
    Title = namedtuple(
        "Title",
        "kind user database host address port state waiting text leader whole",
        defaults=(None, None, None, None, None, None, None, None, None, True),
    )

# NAMEDATALEN - 1: the longest name of a user, a database or a cluster, in bytes.
_NAME_BYTES = 63
# Of a title that is longer than its arguments the kernel shows one page (get_mm_proctitle in
# fs/proc/base.c).
_PAGE = 4096

# HOST(PORT) as pg_getnameinfo_all writes it (src/common/ip.c): no space in it, ??? for a failure.
_TOKEN = re.compile(r" (?:\[local\]|([^ ()]+)\(([0-9]{1,5}|\?\?\?)\))(?= |\Z)")
# Nearly every session's title: two words, an address, and nothing to mistake for another.
_PLAIN = re.compile(
    r"([^ ]+) ([^ ]+) (?:\[local\]|([0-9A-Fa-f:.]+)\(([0-9]{1,5})\)) "
    r"([^()\[]*|idle in transaction \(aborted\))"
)
_PARALLEL = re.compile(r"parallel worker for PID ([0-9]{1,10}) ")
# First words of titles that are not, or not only, a client backend's.
_SPECIAL_WORDS = ("walsender", "autovacuum")
_WALSENDER = "walsender "
_AUTOVACUUM = "autovacuum worker "  # and its database (src/backend/postmaster/autovacuum.c)
# Processes that every server has, with nothing in their titles that a client may choose.
_LANDMARKS = ("checkpointer ", "background writer ")

_STATES: "dict[str, State]" = {
    "": (None, None),  # update_process_title is off
    IDLE: (IDLE, False),
    IDLE_IN_TRANSACTION: (IDLE_IN_TRANSACTION, False),
    ABORTED: (ABORTED, False),
    AUTHENTICATION: (AUTHENTICATION, False),
    STARTUP: (STARTUP, False),
    INITIALIZING: (INITIALIZING, False),
    "<FASTPATH>": (FASTPATH, False),
    "notify interrupt": (None, False),  # pg_stat_activity goes on to show the state before it
}
# A command tag (src/include/tcop/cmdtaglist.h; ??? is CMDTAG_UNKNOWN), PARSE or BIND.
_TAG = re.compile(r"[A-Z][A-Z ]*|\?\?\?")
# For a lock (lock.c, from 16 on proc.c), for a synchronous standby (syncrep.c).
_WAITING = re.compile(r"(.+) waiting(?: for [0-9A-F]+/[0-9A-F]+)?", re.DOTALL)
# A command or its work (walsender.c), BASE_BACKUP with the client's label (basebackup.c).
_REPLICATION = re.compile(
    r'[A-Z]+(?:_[A-Z]+)+|streaming [0-9A-F]+/[0-9A-F]+|sending backup ".*', re.DOTALL
)


def parse_state(text: str) -> "Optional[State]":
    """State, and whether it waits, from what follows the client in a session's title.

    None for what PostgreSQL does not write there; an empty text has no state: (None, None).
    """
    state = _parse_at_work(text)
    if state is None:
        waits = _WAITING.fullmatch(text)
        state = None if waits is None else _parse_at_work(waits[1])
        if state is not None:
            return state[0], True
    return state


def _parse_at_work(text: str) -> "Optional[State]":
    """As parse_state, of what does not wait."""
    return (ACTIVE, False) if _TAG.fullmatch(text) else _STATES.get(text)


def _parse_replication(text: str) -> "Optional[State]":
    """As parse_state, of a walsender: it has the states of a session, and its own."""
    return (ACTIVE, False) if _REPLICATION.fullmatch(text) else parse_state(text)


def _parse_cut(text: str) -> "Optional[State]":
    """As _parse_replication, from the beginning of such a text: what all that begin so share."""
    if text and _TAG.fullmatch(text.rstrip("_")):
        return ACTIVE, None
    if _REPLICATION.match(text) or _WAITING.match(text):
        return _parse_replication(text) or (None, None)
    tag, separator, rest = text.partition(" w")
    if separator and _TAG.fullmatch(tag):
        return (ACTIVE, None) if "waiting for ".startswith(f"w{rest}") else None
    words = (*_STATES, "streaming ", 'sending backup "')
    found = {_STATES.get(word, (ACTIVE, False))[0] for word in words if word.startswith(text)}
    if not found:
        return (ACTIVE, False) if text.startswith("streaming ") else None
    return (found.pop() if len(found) == 1 else None), None


def text_of(raw: bytes) -> str:
    """The title in /proc/PID/cmdline: up to its first NUL, since it may be changing right now.

    Names are in their databases' encodings: what is not UTF-8 is kept as surrogateescape does.
    """
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def title_room(raws: "Iterable[bytes]", area: "Optional[int]" = None) -> int:
    """How many bytes the titles of one postmaster's children have room for, at the least.

    A title that is shorter is whole. `raws` are /proc/PID/cmdline of the children and of the
    postmaster; `area` is arg_start to env_end (fields 48 and 51 of its /proc/PID/stat, 0 to
    strangers), which holds two NULs more than a title. With C libraries other than glibc it may
    be too long: leave it out where the environment has an LD_LIBRARY_PATH.

    The kernel prints either the whole argument area (while its last byte is NUL), or a title that
    runs over it with one NUL: both show a lower bound.
    """
    if area:
        return area - 2
    return max((max(len(raw) - 2, len(raw.partition(b"\0")[0])) for raw in raws), default=0)


def find_cluster_name(texts: "Iterable[str]") -> "Optional[str]":
    """The cluster_name that the titles of one postmaster's children (whole ones) begin with: ""
    is none, None is unknown.
    """
    found = set()
    for text in texts:
        if text.startswith(TITLE_PREFIX):
            for landmark in _LANDMARKS:
                if text.endswith(landmark):
                    name = text[len(TITLE_PREFIX) : -len(landmark)]
                    if not name or (name.endswith(": ") and len(name) - 2 <= _NAME_BYTES):
                        found.add(name[:-2])
    return found.pop() if len(found) == 1 else None


def parse_title(
    text: str,
    whole: bool = True,
    cluster_name: "Optional[str]" = None,
    users: "Optional[Collection[str]]" = None,
    peers: "Collection[Peer]" = (),
) -> Title:
    """What one title says.

    `cluster_name` is "" where there is none, None where it is not known; `users` are all roles
    that can log in, where these are known; `peers` the clients of the postmaster's connections.
    A title that is not `whole` tells something only where it names one of these: see
    parse_children, which knows more.
    """
    if not text.startswith(TITLE_PREFIX):
        return Title(UNKNOWN, text=text, whole=whole)
    bodies = _bodies(text[len(TITLE_PREFIX) :], cluster_name)
    if whole and len(bodies) == 1:
        title = _parse_plain(bodies[0])
        if title is not None:
            return title
    most = 2 if users is None else _NAME_BYTES * 2
    if whole:
        readings = [reading for body in bodies for reading in _read_whole(body, most)]
        best = min((reading.rank for reading in readings), default=0)
        readings = [reading for reading in readings if reading.rank == best]
    else:
        readings = [reading for body in bodies for reading in _read_cut(body, peers, most)]
        if len({(reading.address, reading.port) for reading in readings}) > 1:
            readings = []
    if not readings:
        return Title(UNKNOWN, text=text, whole=whole)
    return _merge(readings, text, whole, users)


def parse_children(
    raws: "Mapping[int, bytes]",
    postmaster: bytes = b"",
    area: "Optional[int]" = None,
    cluster_name: "Optional[str]" = None,
    users: "Optional[Collection[str]]" = None,
    peers: "Collection[Peer]" = (),
) -> "dict[int, Title]":
    """What the titles of all children of one postmaster say, by process id.

    `raws` and `postmaster` are their and its /proc/PID/cmdline; `area`, `cluster_name`, `users`
    as title_room and parse_title take them; `peers` are the remote ends of the postmaster's
    accepted connections that have sent something.

    Together they tell more than each alone: how long a title can be, the cluster_name, and
    whether states are kept up to date. A title that may have been cut counts as that of a peer
    that no other child names; not where a title is cut before it names any, since that child's
    peer may be the one. States and texts are None throughout where a session's title has none:
    update_process_title is off, and older sessions stand still at what they said last.
    """
    texts = {pid: text_of(raw) for pid, raw in raws.items()}
    room = min(title_room([postmaster, *raws.values()], area), _PAGE - 1)
    whole = {pid for pid, raw in raws.items() if len(raw.partition(b"\0")[0]) < room}
    if cluster_name is None:
        cluster_name = find_cluster_name(texts[pid] for pid in whole)
    command_line, peers = postmaster.rstrip(b"\0"), set(peers)
    titles: dict[int, Title] = {}
    for pid, text in texts.items():
        if command_line and raws[pid].rstrip(b"\0") == command_line:
            titles[pid] = Title(UNTITLED, text=text)
        elif pid in whole:
            titles[pid] = parse_title(text, True, cluster_name, users)
    cut = {
        pid: parse_title(text, False, cluster_name, users, peers)
        for pid, text in texts.items()
        if pid not in titles
    }
    _confirm(cut, titles, texts)
    if any(one.text == "" and one.whole and one.host is not None for one in titles.values()):
        for pid, title in titles.items():
            if title.host is not None:
                titles[pid] = title._replace(state=None, waiting=None, text=None)
    return {pid: titles[pid] for pid in raws}


def match_peers(
    titles: "Mapping[int, Title]", peers: "Collection[Peer]"
) -> "dict[Peer, Optional[int]]":
    """The process of each of `peers`, the remote ends of one postmaster's connections, that a
    title names; None where several titles claim it.

    A title with a host name (log_hostname = on) is matched by its port, where only one peer has
    that.
    """
    found: dict[Peer, Optional[int]] = {}
    named: dict[int, Optional[int]] = {}
    wanted = set(peers)
    for pid, title in titles.items():
        if title.address is None:
            if title.port is not None:
                named[title.port] = None if title.port in named else pid
            continue
        peer = (title.address, title.port or 0)
        if peer in wanted:
            found[peer] = None if peer in found else pid
    if named:
        by_port: dict[int, list[Peer]] = {}
        for peer in wanted:
            by_port.setdefault(peer[1], []).append(peer)
        for port, owner in named.items():
            candidates = by_port.get(port, [])
            if len(candidates) == 1 and candidates[0] not in found:
                found[candidates[0]] = owner
    return found


def _confirm(
    cut: "dict[int, Title]", titles: "dict[int, Title]", texts: "Mapping[int, str]"
) -> None:
    """Add the titles `cut` to `titles`, without their content where it is not certain."""
    claims: dict[tuple[Optional[bytes], Optional[int]], int] = {}
    for title in (*titles.values(), *cut.values()):
        claim = (title.address, title.port)
        claims[claim] = claims.get(claim, 0) + 1
    hidden = any(title.port is None for title in cut.values())
    for pid, title in cut.items():
        claim = (title.address, title.port)
        if hidden or claims[claim] > 1 or (None, title.port) in claims:
            title = Title(UNKNOWN, text=texts[pid], whole=False)
        titles[pid] = title


class _Reading:
    """One way in which a title can have come about.

    `rank`: 0 is a form that PostgreSQL writes, 1 one that an extension may, 2 what is left.
    """

    __slots__ = ("address", "host", "kind", "leader", "names", "port", "rank", "state", "text")

    def __init__(
        self, kind: str, names: "Iterable[Names]", text: "Optional[str]", rank: int = 0
    ) -> None:
        self.kind = kind
        self.names = set(names)
        self.text = text
        self.rank = rank
        self.host: Optional[str] = None
        self.address: Optional[bytes] = None
        self.port: Optional[int] = None
        self.state: State = (None, None)
        self.leader: Optional[int] = None

    def set_client(self, token: "re.Match[str]", state: "Optional[State]") -> "_Reading":
        self.host = token[1] or LOCAL
        self.address = None if token[1] is None else _pack(token[1])
        self.port = int(token[2]) if token[2] and token[2].isdigit() else None
        self.state = state or (None, None)
        return self


def _bodies(rest: str, cluster_name: "Optional[str]") -> "list[str]":
    """What may follow the cluster_name; nothing where another name stands there."""
    if cluster_name is None:
        ends = [at.end() for at in re.finditer(": ", rest[: _NAME_BYTES + 2])]
        return [rest, *(rest[end:] for end in ends if end > 2)]
    if not cluster_name:
        return [rest]
    prefix = f"{cluster_name}: "
    return [rest[len(prefix) :]] if rest.startswith(prefix) else []


def _parse_plain(body: str) -> "Optional[Title]":
    """The title of a session that has but one reading, and a plain one."""
    match = _PLAIN.fullmatch(body)
    if match is None:
        return None
    user, database, host, port, text = match.groups()
    state = parse_state(text)
    if state is None or user in _SPECIAL_WORDS:
        return None
    if host is None:
        return Title(CLIENT_BACKEND, user, database, LOCAL, None, None, *state, text)
    address = _pack(host)
    if address is None:
        return None
    return Title(CLIENT_BACKEND, user, database, host, address, int(port), *state, text)


def _read_whole(body: str, most: int) -> "Iterator[_Reading]":
    tokens = [token for token in _TOKEN.finditer(body) if token.end() < len(body)]
    for token in tokens:
        names, text = body[: token.start()], body[token.end() + 1 :]
        splits = _splits(names, most)
        state = parse_state(text)
        reading = _Reading(CLIENT_BACKEND, splits, text).set_client(token, state)
        is_address = reading.address is not None or token[1] is None
        # A background worker may be called so, where no state follows.
        may_be_other = not is_address and not text
        if splits and state is not None and not may_be_other:
            yield reading
        elif splits and len(tokens) == 1:
            reading.rank = 1
            yield reading
            if not is_address:
                yield _Reading(AUXILIARY, (), body, 1)
        if names.startswith(_WALSENDER):
            user = names[len(_WALSENDER) :]
            state = _parse_replication(text)
            rank = 0 if state is not None else 1
            if user and (state is not None or len(tokens) == 1):
                options: list[Names] = [(user, None), *_splits(user, most)]
                yield _Reading(WALSENDER, options, text, rank).set_client(token, state)
    if body.startswith(_AUTOVACUUM) and _size(body) <= len(_AUTOVACUUM) + _NAME_BYTES:
        yield _Reading(AUTOVACUUM_WORKER, [("", body[len(_AUTOVACUUM) :] or None)], body)
    parallel = _PARALLEL.fullmatch(body)
    if parallel is not None:
        reading = _Reading(PARALLEL_WORKER, (), body)
        reading.leader = int(parallel[1])
        yield reading
    if any(" " in body[1 : token.start() - 1] for token in tokens):
        yield _Reading(UNKNOWN, (), None, 2)
    else:
        yield _Reading(AUXILIARY, (), body, 2)


def _read_cut(body: str, peers: "Collection[Peer]", most: int) -> "Iterator[_Reading]":
    for token in _TOKEN.finditer(body):
        names, text = body[: token.start()], body[token.end() + 1 :]
        state = _parse_cut(text)
        reading = _Reading(CLIENT_BACKEND, _splits(names, most), text).set_client(token, state)
        peer = (reading.address, reading.port)
        if state is None or peer not in peers:
            continue
        if names.startswith(_WALSENDER):
            reading.kind, reading.names = UNKNOWN, set()
        yield reading


def _merge(
    readings: "list[_Reading]", text: str, whole: bool, users: "Optional[Collection[str]]"
) -> Title:
    """What all readings agree on."""
    one = readings[0]
    if len(readings) > 1:
        for field in _Reading.__slots__:
            if field != "names" and any(
                getattr(one, field) != getattr(other, field) for other in readings
            ):
                setattr(one, field, _DISAGREEMENT.get(field))
    names: set[Names] = set()
    if all(reading.names for reading in readings):
        names = {pair for reading in readings for pair in reading.names}
    # Before it is authenticated a session may give any name.
    if users is not None and one.state[0] not in (None, AUTHENTICATION, INITIALIZING):
        names = {pair for pair in names if pair[0] in users} or names
    found_users = {pair[0] for pair in names}
    found_databases = {pair[1] for pair in names}
    return Title(
        one.kind,
        (found_users.pop() or None) if len(found_users) == 1 else None,
        found_databases.pop() if len(found_databases) == 1 else None,
        one.host,
        one.address,
        one.port,
        *one.state,
        text if one.text is None else one.text,
        one.leader,
        whole,
    )


_DISAGREEMENT: "Mapping[str, object]" = {"kind": UNKNOWN, "state": (None, None)}


def _splits(names: str, most: int) -> "list[Names]":
    """The ways to take `names` as USER and DATABASE; no more than `most` of them."""
    found: list[Names] = []
    if _size(names) > 2 * _NAME_BYTES + 1:
        return found
    at = names.find(" ", 1)
    while at >= 0 and len(found) < most:
        if names[at + 1 :]:
            found.append((names[:at], names[at + 1 :]))
        at = names.find(" ", at + 1)
    return found


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _pack(host: str) -> "Optional[bytes]":
    """The packed and folded address, without its scope, or None for a host name."""
    try:
        if ":" in host:
            return fold_address(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        return socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return None
