"""What the titles of one postmaster's children say together: pure.

All of them tell how much room each has, which cluster_name they begin with and whether states are
kept up to date; and that a connection is one child's, since no other claims it.
"""

from check_pgsock.processes import TITLE_PREFIX
from check_pgsock.sessions.title_names import NAME_BYTES
from check_pgsock.sessions.titles import UNKNOWN, UNTITLED, Title, parse_title, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import Optional

    from check_pgsock.sessions.titles import Peer

# Of a title that is longer than its arguments the kernel shows one page (get_mm_proctitle in
# fs/proc/base.c).
_PAGE = 4096
# Processes that every server has, with nothing in their titles that a client may choose.
_LANDMARKS = ("checkpointer ", "background writer ")


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
                    if not name or (name.endswith(": ") and len(name) - 2 <= NAME_BYTES):
                        found.add(name[:-2])
    return found.pop() if len(found) == 1 else None


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
