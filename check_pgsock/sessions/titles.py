"""What the title of a postmaster's child says: pure, nothing opened.

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
from check_pgsock.sessions.states import (
    AUTHENTICATION,
    INITIALIZING,
    parse_cut_state,
    parse_state,
    parse_walsender_state,
)
from check_pgsock.sessions.title_names import (
    NAME_BYTES,
    byte_size,
    split_names,
    strip_cluster_name,
)
from check_pgsock.sockets.model import fold_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from typing import NamedTuple, Optional

    from check_pgsock.sessions.states import State
    from check_pgsock.sessions.title_names import Names

    Peer = tuple[bytes, int]  # address, packed and folded, and port

# Kinds, in pg_stat_activity's words where it has some (backend_type).
CLIENT_BACKEND = "client backend"
WALSENDER = "walsender"
PARALLEL_WORKER = "parallel worker"
AUTOVACUUM_WORKER = "autovacuum worker"
AUXILIARY = "auxiliary"  # checkpointer, background worker and the like: no client
UNTITLED = "untitled"  # just forked, or for a connection whose startup packet is not complete
UNKNOWN = "unknown"

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


def text_of(raw: bytes) -> str:
    """The title in /proc/PID/cmdline: up to its first NUL, since it may be changing right now.

    Names are in their databases' encodings: what is not UTF-8 is kept as surrogateescape does.
    """
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


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
    children.parse_children, which knows more.
    """
    if not text.startswith(TITLE_PREFIX):
        return Title(UNKNOWN, text=text, whole=whole)
    bodies = strip_cluster_name(text[len(TITLE_PREFIX) :], cluster_name)
    if whole and len(bodies) == 1:
        title = _parse_plain(bodies[0])
        if title is not None:
            return title
    most = 2 if users is None else NAME_BYTES * 2
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
        splits = split_names(names, most)
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
            state = parse_walsender_state(text)
            rank = 0 if state is not None else 1
            if user and (state is not None or len(tokens) == 1):
                options: list[Names] = [(user, None), *split_names(user, most)]
                yield _Reading(WALSENDER, options, text, rank).set_client(token, state)
    if body.startswith(_AUTOVACUUM) and byte_size(body) <= len(_AUTOVACUUM) + NAME_BYTES:
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
        state = parse_cut_state(text)
        reading = _Reading(CLIENT_BACKEND, split_names(names, most), text).set_client(token, state)
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


def _pack(host: str) -> "Optional[bytes]":
    """The packed and folded address, without its scope, or None for a host name."""
    try:
        if ":" in host:
            return fold_address(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        return socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return None
