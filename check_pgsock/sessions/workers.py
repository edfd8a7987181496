"""Workers: how those who hold a pool's connections share them, and how busy its sessions are; pure.

Who hoards holds far more than its siblings. So workers are compared within their kind alone: the
processes of one program, each of which could do another's work. A kind with one worker has nobody
to be compared with.
"""

import re
from collections import namedtuple

from check_pgsock.sessions.activity import WAITING
from check_pgsock.sessions.states import ACTIVE, IDLE, IDLE_IN_TRANSACTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence
    from typing import NamedTuple, Optional

# What a session is counted as; any other activity says nothing on how busy it is.
STATES = (ACTIVE, WAITING, IDLE, IDLE_IN_TRANSACTION)
# What workers are: the first item of their kind.
PROCESSES, CGROUPS, PEERS = "processes", "cgroups", "peers"
_CPU_BOUND = 0.5  # more than this part of a window was spent on a processor
_DIGITS = re.compile(r"\d+")

if TYPE_CHECKING:

    class Worker(NamedTuple):
        """One holder of connections; `kind` is the same of those that are alike: PROCESSES,
        CGROUPS or PEERS, and what else makes them so.
        """

        kind: tuple[Hashable, ...]
        name: str  # fit to print
        connections: int

    class Look(NamedTuple):
        """The sessions at one moment, in seconds since the machine's boot: by process id what each
        is doing (see activity.py), and the processor time of its backend in seconds.
        """

        at: float
        sessions: Mapping[int, tuple[str, Optional[float]]]

else:
    Worker = namedtuple("Worker", "kind name connections")
    Look = namedtuple("Look", "at sessions")


class Kind:
    """The workers of one kind, the busiest first."""

    __slots__ = ("workers",)

    def __init__(self, workers: "Iterable[Worker]") -> None:
        self.workers = sorted(workers, key=lambda one: (-one.connections, one.name))

    @property
    def busiest(self) -> Worker:
        """The worker with most connections."""
        return self.workers[0]

    @property
    def is_of_peers(self) -> bool:
        """Whether the workers are known by their addresses alone."""
        return self.busiest.kind[0] == PEERS

    @property
    def connections(self) -> int:
        """Those of all its workers."""
        return sum(one.connections for one in self.workers)

    @property
    def share(self) -> float:
        """The busiest worker's part of the connections, in %; 0 where there are none."""
        return 100 * self.busiest.connections / max(self.connections, 1)

    @property
    def spread(self) -> float:
        """How many times as many connections as its siblings have on average, but at least one
        each, the busiest worker has; 1 where it has no siblings.
        """
        siblings = self.workers[1:]
        if not siblings:
            return 1.0
        mean = (self.connections - self.busiest.connections) / len(siblings)
        return self.busiest.connections / max(mean, 1)

    def can_be_judged(self, least: int) -> bool:
        """Whether there are siblings, and the busiest has `least` connections or more."""
        return len(self.workers) > 1 and self.busiest.connections >= least


def group(workers: "Iterable[Worker]") -> "list[Kind]":
    """The workers by kind; the kind with the busiest worker comes first."""
    kinds: dict[tuple[Hashable, ...], list[Worker]] = {}
    for one in workers:
        kinds.setdefault(one.kind, []).append(one)
    found = [Kind(members) for members in kinds.values()]
    return sorted(found, key=lambda kind: (-kind.busiest.connections, kind.busiest.name))


def find_most_uneven(kinds: "Iterable[Kind]", least: int) -> "Optional[Kind]":
    """The kind with the highest spread of those that can be judged; None where none can."""
    chosen = [one for one in kinds if one.can_be_judged(least)]
    return max(chosen, key=lambda one: one.spread, default=None)


def remove_numbers(text: str) -> str:
    """`text` with `#` for each number: what command lines and cgroups of like workers have in
    common (`puma: cluster worker 2: 4711 [shop]`, `/system.slice/pgbouncer@1.service`).
    """
    return _DIGITS.sub("#", text)


class Utilization:
    """How busy the sessions of a server are, from looks at them, one at least.

    `sessions` is the number of those whose state is known, `unknown` that of the others. `counts`
    are the sessions in each of STATES, where one counts in parts: for each state that of the looks
    at it; None where no state is known though there are sessions. `cpu_bound` is None where there
    is one look only.
    """

    __slots__ = ("counts", "cpu_bound", "sessions", "unknown")

    def __init__(self, looks: "Sequence[Look]") -> None:
        seen: dict[int, list[str]] = {}
        for look in looks:
            for pid, (activity, _) in look.sessions.items():
                seen.setdefault(pid, []).append(activity)
        counts = dict.fromkeys(STATES, 0.0)
        self.sessions = 0
        for activities in seen.values():
            known = [one for one in activities if one in counts]
            self.sessions += bool(known)
            for one in known:
                counts[one] += 1 / len(known)
        self.unknown = len(seen) - self.sessions
        self.counts: Optional[dict[str, float]] = counts if self.sessions or not seen else None
        self.cpu_bound = _count_cpu_bound(looks[0], looks[-1]) if len(looks) > 1 else None

    @property
    def percent(self) -> "Optional[float]":
        """The part of the sessions that is active or waiting, in %; None without sessions."""
        if self.counts is None or not self.sessions:
            return None
        return 100 * (self.counts[ACTIVE] + self.counts[WAITING]) / self.sessions


def _count_cpu_bound(first: Look, last: Look) -> int:
    most = _CPU_BOUND * (last.at - first.at)
    number = 0
    for pid, (_, spent) in last.sessions.items():
        _, before = first.sessions.get(pid, (None, None))
        number += spent is not None and before is not None and spent - before > most
    return number
