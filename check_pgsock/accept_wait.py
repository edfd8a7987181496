"""For how long connections have waited to be accepted.

Of TCP the kernel tells. Of a Unix socket it tells only who waits, by the inodes of the clients'
ends: the same client in a later look has waited since the first that saw it, so that what is known
is a lower bound: the time between the two looks of a run, and that since an earlier run saw it in
both of its own.
"""

from check_pgsock.accept_queue import oldest
from check_pgsock.socket_state import NO_DIRECTORY, open_store, service_key
from check_pgsock.text import write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from check_pgsock.accept_queue import Look, Queue
    from check_pgsock.contract import Run
    from check_pgsock.legs import Leg
    from check_pgsock.view import View


class Waits:
    """For how long those of a look have waited. `notes` say what is not known; `commit` keeps for
    later runs who waits on Unix sockets, None where there is nobody, or no place to keep it.
    """

    __slots__ = ("_ages", "_look", "commit", "notes")

    def __init__(self, look: "Look") -> None:
        self._look = look
        self._ages: dict[str, float] = {}  # of clients of Unix sockets
        self.notes: list[str] = []
        self.commit: Optional[Callable[[], None]] = None

    def watch(self, run: "Run", view: "View", leg: "Leg") -> None:
        """Find out since when those of Unix sockets wait, who were there --settle seconds ago, too.

        Raises StateError.
        """
        queues = self._look.unix
        names = {_name(one, client) for one in queues for client in one.clients}
        if any(one.length and not one.clients for one in queues):
            self.notes.append("for how long connections wait on a Unix socket is not told here")
        if not names:
            return
        settle = run.options.settle
        self._ages = dict.fromkeys(names, settle)
        store = open_store(run, view)
        if store is None:
            self.notes.append(
                f"connections to a Unix socket may have waited for longer than {settle:g} s: that "
                f"takes what earlier runs saw, and there is {NO_DIRECTORY}"
            )
            return
        from check_pgsock.first_seen import FirstSeen  # few runs have anybody who waits

        seen = FirstSeen(store, service_key(run, view, leg, "waiting"))
        before = seen.see(names, view.files.since_boot() - settle)
        self._ages = {name: age + settle for name, age in before.items()}
        self.commit = lambda: seen.commit(run.now)

    @property
    def longest(self) -> "Optional[float]":
        """Seconds that some connection has waited, none is known to have waited longer; 0 where
        nobody waits, None where that, or for how long, is not told.
        """
        known = [*self._of_unix(*self._look.unix), *self._of_tcp()]
        if known:
            return max(known)
        told = all(one.backlog is not None for one in self._look.queues)
        return 0.0 if told and not self._look.length else None

    def describe(self, *queues: "Queue") -> str:
        """`, oldest 12 s`, of Unix sockets `, oldest at least 12 s`: in these queues, or in all;
        empty where nothing is known.
        """
        if queues:
            tcp = [oldest(one.waiting) for one in queues if one.waiting and self._tells_tcp()]
        else:
            tcp = self._of_tcp()
        unix = self._of_unix(*(queues or self._look.unix))
        if not tcp and not unix:
            return ""
        longest = max(*tcp, *unix, 0.0)
        at_least = "" if longest in tcp else "at least "
        return f", oldest {at_least}{write_seconds(longest)}"

    def _of_unix(self, *queues: "Queue") -> "list[float]":
        named = (_name(one, client) for one in queues for client in one.clients)
        return [self._ages[name] for name in named if name in self._ages]

    def _of_tcp(self) -> "list[float]":
        waiting = self._look.waiting
        return [oldest(waiting)] if waiting and self._tells_tcp() else []

    def _tells_tcp(self) -> bool:
        """Whether the source tells it of TCP: procfs does not."""
        return all(one.info is not None for one in self._look.waiting) and all(
            one.backlog is not None for one in self._look.tcp
        )


def _name(queue: "Queue", client: int) -> str:
    """What is one connection for as long as it waits: no other has its client's end, and inodes of
    sockets come again after 4 thousand million (get_next_ino() in fs/inode.c).
    """
    return f"{queue.listener.inode} {queue.listener.cookie} {client}"
