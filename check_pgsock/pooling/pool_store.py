"""What check_pgsock_pool_size keeps: the samples of an hour, and one of each quarter for a day."""

from check_pgsock.pooling.samples import LONGEST, Sample, parse_sample
from check_pgsock.sql_check import service_key
from check_pgsock.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.contract import Run

_EVERY, _QUARTERS = "every", "quarters"
_HOUR = 3600.0  # seconds that every run's sample is kept
_QUARTER = 900.0


class PoolStore:
    """The samples of one service, by database name. Every method raises StateError."""

    def __init__(self, run: "Run", store: Store) -> None:
        self._run = run
        self._store = store
        self._quarters: dict[str, float] = {}  # when the newest one of a quarter was kept
        self.path = store.path

    @classmethod
    def open(cls, run: "Run") -> "Optional[PoolStore]":
        """None where there is no directory to keep them in."""
        store = Store.open(run.options.state_dir, run.deadline)
        return None if store is None else cls(run, store)

    def read(self, name: str) -> "list[Sample]":
        """The samples of a database in the order of their commits."""
        every = self._parsed(name, _EVERY)
        quarters = self._parsed(name, _QUARTERS)
        if quarters:
            self._quarters[name] = quarters[-1].taken
        if every:
            quarters = [one for one in quarters if one.taken < every[0].taken]
        return [*quarters, *every]

    def commit(self, samples: "Iterable[Sample]", now: float) -> None:
        """Keep the samples of this run."""
        new = {one.statistics.name: one for one in samples}
        every = {self._key(name, _EVERY): one.as_json() for name, one in new.items()}
        self._store.commit(every, now, _HOUR)
        due = {
            self._key(name, _QUARTERS): one.as_json()
            for name, one in new.items()
            if not 0 <= one.taken - self._quarters.get(name, 0.0) < _QUARTER
        }
        if due:
            self._store.commit(due, now, LONGEST + _QUARTER)

    def _parsed(self, name: str, which: str) -> "list[Sample]":
        parsed = (parse_sample(one.data) for one in self._store.samples(self._key(name, which)))
        return [one for one in parsed if one is not None]

    def _key(self, name: str, which: str) -> str:
        return service_key(self._run, sorted(self._run.options.database), which, name)
