"""Who is at the ends of sessions over Unix sockets: users, and processes where they may be seen."""

import threading
from collections import Counter

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError
from check_pgsock.processes import ProcessTable
from check_pgsock.text import clean, say_top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.sessions.holders import Holder
    from check_pgsock.sockets.unix_sockets import UnixSocket
    from check_pgsock.view import View

_SHARE = 3  # at most this part of the time left goes into looking for names and for processes


def client_lines(
    view: "View", sessions: "list[UnixSocket]", noun: str, most: int = 10
) -> "list[str]":
    """Lines on the clients of `sessions`, called `noun`: by user, which procfs does not tell, and
    by process where descriptors may be read. Raises SourceError.
    """
    peers = view.reader.unix_peers(sessions)
    ends = [peers.get(one.peer_inode or 0) for one in sessions]
    lines = user_lines(view, [None if one is None else one.uid for one in ends], noun, most // 2)
    clients = [one for one in ends if one is not None]
    holders = _find_holders(view, clients)

    def say(pid: int) -> str:
        return f"process {pid} ({clean(commands[pid])})"

    commands = {one.pid: one.command for one in holders.values()}
    counts = Counter(one.pid for one in holders.values())
    return lines + say_top(counts, say, "processes", noun, most - len(lines))


def server_lines(
    view: "View", sessions: "list[UnixSocket]", noun: str, most: int = 10
) -> "list[str]":
    """Lines on the processes that hold the server's end of `sessions`, by their titles, or where
    descriptors may not be read on their user.
    """
    holders = _find_holders(view, sessions)
    if not holders:
        return user_lines(view, [one.uid for one in sessions], noun, most, "server's uid")
    table = view.processes()

    def say(pid: int) -> str:
        process = table.process(pid, commands[pid], 0)
        return f"process {pid} ({clean(commands[pid] if process is None else process.title)})"

    commands = {one.pid: one.command for one in holders.values()}
    return say_top(Counter(one.pid for one in holders.values()), say, "processes", noun, most)


def user_lines(
    view: "View", uids: "list[Optional[int]]", noun: str, most: int, word: str = "uid"
) -> "list[str]":
    """Lines on users, such as `uid 33 (www-data): 12 established`."""
    counts = Counter(uid for uid in uids if uid is not None)
    names = _read_names(counts, view.deadline) if view.reader.of_this_host else {}

    def say(uid: int) -> str:
        return f"{word} {uid} ({clean(names[uid])})" if uid in names else f"{word} {uid}"

    unknown = len(uids) - sum(counts.values())
    rest = [f"users not known: {unknown} {noun}"] if unknown else []
    return say_top(counts, say, "users", noun, most - len(rest)) + rest


def _read_names(uids: "Iterable[int]", deadline: Deadline) -> "dict[int, str]":
    """The names of users, those that are found in time: the name service may ask a network."""
    import pwd

    found: dict[int, str] = {}

    def look_up() -> None:
        for uid in sorted(uids):
            try:
                found[uid] = pwd.getpwuid(uid).pw_name
            except KeyError:
                continue

    # Nothing can interrupt it but the end of the process.
    thread = threading.Thread(target=look_up, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # what Python makes of EAGAIN
        return found
    thread.join(deadline.remaining() / _SHARE)
    return dict(found)


def _find_holders(view: "View", ends: "list[UnixSocket]") -> "dict[int, Holder]":
    """The processes that hold these sockets, by inode: those that can be found in time."""
    from check_pgsock.sessions.holders import find_holders

    table = ProcessTable(Deadline(view.deadline.remaining() / _SHARE), view.files)
    uids = {one.uid for one in ends if one.uid is not None}
    try:
        return find_holders(table, {one.inode for one in ends}, uids)
    except DeadlineError:
        return {}
