"""What check_pgsock_leak keeps from run to run: sizes of its pool, and sessions without a clock."""

from check_pgsock.first_seen import FirstSeen
from check_pgsock.sessions.leaks import without_clock
from check_pgsock.sessions.pool_history import KEPT, is_due, pack_pool, parse_pool
from check_pgsock.socket_state import NO_DIRECTORY, open_store, service_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.contract import Run
    from check_pgsock.legs import Leg
    from check_pgsock.sessions.connections import Connection
    from check_pgsock.sessions.pool_history import PoolSample
    from check_pgsock.store import Store
    from check_pgsock.view import View


class Past:
    """What earlier runs of a service know: nothing where a `refusal` says why, nor where nothing
    is asked of them: with --keep, and where all sessions have clocks.

    `pools` are samples of its pool in the order of time, `watched` for how many seconds each
    backend of a session without a clock is known to be idle, by process id. All methods raise
    StateError.
    """

    __slots__ = ("_key", "_seen", "_store", "pools", "refusal", "watched")

    def __init__(
        self,
        run: "Run",
        view: "View",
        leg: "Leg",
        connections: "list[Connection]",
        *filters: object,
    ) -> None:
        self._store: Optional[Store] = None
        self._seen: Optional[FirstSeen] = None
        self.pools: list[PoolSample] = []
        self.watched: dict[int, float] = {}
        self.refusal: Optional[str] = None
        timeless = without_clock(connections)
        if run.options.keep is not None and not timeless:
            return
        self._store = open_store(run, view)
        if self._store is None:
            self.refusal = "a saved moment has none" if view.reader.saved else NO_DIRECTORY
            return
        self._key = service_key(run, view, leg, *filters)
        parsed = [parse_pool(one.at, one.data) for one in self._store.samples(self._key)]
        self.pools = [one for one in parsed if one is not None and one.at <= run.now]
        self._seen = FirstSeen(self._store, service_key(run, view, leg, *filters, "sessions"))
        self._watch(view, timeless)

    def _watch(self, view: "View", timeless: "list[Connection]") -> None:
        """Find out for how long sessions have been idle: since a run saw them in this state first,
        if their backends have had no processor since.
        """
        assert self._seen is not None
        table, names = view.processes(), {}
        for one in timeless:
            pid = one["backend_pid"]
            # Nanoseconds on a processor: Documentation/scheduler/sched-stats.rst of the kernel.
            numbers = (table.read(pid, "schedstat") or b"0").split()
            if int(numbers[0]):
                names[pid] = f"{pid} {int(numbers[0])} {one['activity']}"
        ages = self._seen.see(names.values(), view.files.since_boot())
        self.watched = {pid: ages[name] for pid, name in names.items()}

    def commit(self, now: "PoolSample") -> None:
        """Keep what the next run needs."""
        if self._store is None or self._seen is None:
            return
        if is_due(self.pools, now.at):
            self._store.commit({self._key: pack_pool(now)}, now.at, KEPT)
        self._seen.commit(now.at)
