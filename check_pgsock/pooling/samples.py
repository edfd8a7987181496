"""What check_pgsock_pool_size sees of a database at a run, and at earlier ones; pure."""

from check_pgsock.postgres import parallelism, statistics
from check_pgsock.postgres.parallelism import Looks
from check_pgsock.postgres.statistics import Statistics, parse_statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

LONGEST = 86400.0  # seconds that samples are of use


class Progress:
    """What a database's sessions have spent, in seconds of all added, that is in no counter yet.

    `unsplit` was spent in transactions, executing or idle; `oldest` is the age of the oldest
    transaction. Of `unseen` sessions nothing of it is known.
    """

    __slots__ = ("active", "idle", "oldest", "unseen", "unsplit")

    def __init__(
        self, active: float = 0.0, idle: float = 0.0, unsplit: float = 0.0, oldest: float = 0.0,
        unseen: int = 0,
    ) -> None:  # fmt: skip
        self.active = active
        self.idle = idle
        self.unsplit = unsplit
        self.oldest = oldest
        self.unseen = unseen


class Backends:
    """Client backends of one database and role that have a state in common.

    `hidden` says that the role of the check may not see their kind and state; `active`, `idle`,
    `unsplit` and `oldest` are what they add to a Progress. So many are `waiting` for a lock.
    """

    __slots__ = (
        "active", "application", "count", "hidden", "idle", "oid", "oldest", "role", "state",
        "unsplit", "waiting",
    )  # fmt: skip

    def __init__(
        self, *, oid: int, role: str, application: str, state: "Optional[str]", hidden: bool,
        active: float, idle: float, unsplit: float, oldest: "Optional[float]", count: int,
        waiting: int,
    ) -> None:  # fmt: skip
        self.oid = oid
        self.role = role
        self.application = application
        self.state = state
        self.hidden = hidden
        self.active = active
        self.idle = idle
        self.unsplit = unsplit
        self.oldest = oldest
        self.count = count
        self.waiting = waiting

    @property
    def executing(self) -> int:
        """How many of them execute a statement."""
        return self.count if self.state in ("active", "fastpath function call") else 0


def sum_progress(backends: "Iterable[Backends]") -> Progress:
    """What the backends have spent that is in no counter yet."""
    progress = Progress()
    for one in backends:
        if one.state in (None, "disabled"):
            progress.unseen += one.count
            continue
        progress.active += one.active
        progress.idle += one.idle
        progress.unsplit += one.unsplit
        progress.oldest = max(progress.oldest, one.oldest or 0.0)
    return progress


class Sample:
    """One database at one moment: its counters, what is in none yet, its client backends, and the
    looks at its statements (None: none were taken).
    """

    __slots__ = ("backends", "looks", "progress", "statistics")

    def __init__(
        self, statistics: Statistics, progress: Progress, backends: int,
        looks: "Optional[Looks]" = None,
    ) -> None:  # fmt: skip
        self.statistics = statistics
        self.progress = progress
        self.backends = backends
        self.looks = looks

    @property
    def taken(self) -> float:
        """When, by the server's clock."""
        return self.statistics.taken

    def as_json(self) -> "dict[str, object]":
        """What the store keeps."""
        return {
            "statistics": self.statistics.as_json(),
            "progress": [getattr(self.progress, name) for name in Progress.__slots__],
            "backends": self.backends,
            "looks": None if self.looks is None else list(self.looks),
        }


def parse_sample(data: object) -> "Optional[Sample]":
    """A sample of the store; None for one that another version wrote."""
    if not isinstance(data, dict) or set(data) != set(Sample.__slots__):
        return None
    counters = parse_statistics(data["statistics"])
    progress, looks = data["progress"], data["looks"]
    if (
        counters is None
        or not _are_numbers(progress, len(Progress.__slots__))
        or not _are_numbers([data["backends"]], 1)
        or not (looks is None or _are_numbers(looks, len(Looks._fields)))
    ):
        return None
    return Sample(
        counters,
        Progress(**dict(zip(Progress.__slots__, progress))),
        data["backends"],
        None if looks is None else Looks(*looks),
    )


def _are_numbers(data: object, count: int) -> bool:
    return (
        isinstance(data, list)
        and len(data) == count
        and all(isinstance(one, (int, float)) for one in data)
    )


class History:
    """One database's sample of `now` and those of earlier runs.

    `earlier` are stored samples in the order of their commits; None: there is no store. `same` are
    those that the counters of `now` went on from, the newest first; `looks` is the sum of a day's.
    """

    __slots__ = ("earlier", "looks", "now", "same")

    def __init__(self, now: Sample, earlier: "Optional[list[Sample]]") -> None:
        self.now = now
        self.earlier = earlier
        self.same = _find_same(now, earlier or [])
        self.looks = parallelism.add(
            one.looks for one in self.within(LONGEST) if one.looks is not None
        )

    def within(self, seconds: float) -> "list[Sample]":
        """The sample of now, and the same ones of at most so many seconds ago."""
        return [one for one in (self.now, *self.same) if self.now.taken - one.taken <= seconds]


def _find_same(current: Sample, earlier: "Iterable[Sample]") -> "list[Sample]":
    """The samples that the counters of `current` went on from, the newest first."""
    found: list[Sample] = []
    later = current.statistics
    for one in reversed(list(earlier)):
        before = one.statistics
        if not statistics.is_same_server(before, later) or before.oid != later.oid:
            continue  # an address that leads to several servers in turn
        if before.taken >= later.taken or not statistics.continues(before, later):
            break
        found.append(one)
        later = before
    return found
