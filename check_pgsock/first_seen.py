"""When sockets were first seen in a state that they do not come back from, by the runs of one
service: for how long they have been in it, at the least.

Times are seconds since the machine's boot (CLOCK_BOOTTIME), which no setting of the clock moves;
the boot is part of the service's key. Each run keeps all that it sees, and takes the earliest
time that any sample has: of two runs at once neither loses what the other one saw.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from check_pgsock.store import Store

# Samples hold all that is known, each: those of runs at the same time are kept, older ones not.
_KEPT = 60.0


def recall(samples: "Iterable[object]") -> "dict[str, float]":
    """The earliest time that `samples`, as follow() makes them, have of each name.

    What has another form was written by another version, and tells nothing.
    """
    found: dict[str, float] = {}
    for one in samples:
        if isinstance(one, dict):
            for name, at in one.items():
                if isinstance(at, (int, float)):
                    found[name] = min(at, found.get(name, at))
    return found


def follow(
    earlier: "Mapping[str, float]", names: "Iterable[str]", now: float
) -> "dict[str, float]":
    """When each of `names`, those seen now, was first seen: now, if never before."""
    return {name: min(earlier.get(name, now), now) for name in names}


class FirstSeen:
    """The names that the runs of a service see, kept in `store` under `key`.

    All methods raise StateError.
    """

    __slots__ = ("_earlier", "_key", "_seen", "_store")

    def __init__(self, store: "Store", key: str) -> None:
        self._store = store
        self._key = key
        self._earlier = recall(one.data for one in store.samples(key))
        self._seen: dict[str, float] = {}

    def see(self, names: "Iterable[str]", now: float) -> "dict[str, float]":
        """For how many seconds each of these has been seen, 0 for the first time; all that this
        run sees, `now` since the machine's boot.
        """
        self._seen = follow(self._earlier, names, now)
        return {name: now - at for name, at in self._seen.items()}

    def commit(self, at: float) -> None:
        """Keep what was seen, `at` seconds since 1970, for the next run."""
        if self._seen or self._earlier:
            self._store.commit({self._key: self._seen}, at, _KEPT)
