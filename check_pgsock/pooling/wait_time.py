"""How many clients of a PgBouncer waited on average, from its counters; pure.

SHOW STATS adds a client's wait to total_wait_time when that ends (activate_client, src/objects.c):
while nobody gets a server connection it stands still. So what those that wait now have waited so
far belongs to it, less what those of the last run had: they are added whole when their turn comes.
Who gives up (query_wait_timeout, a client that leaves) is never added: of those only what is seen
of them while they wait counts. It is a lower bound then.

A sample of a run, as it is stored: by alias its counters, the seconds that clients have waited so
far who still do, and `waited`, microseconds of waiting since the first sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from check_pgsock.history import Reading, find_growth

_SECOND = 10**6  # microseconds
_COUNTERS, _PENDING, _WAITED = 0, 1, 2  # what a sample has of each alias
Sample = Mapping[str, Sequence[Any]]


class Waited(NamedTuple):
    """Clients that waited, on average over `seconds`, by alias."""

    seconds: float
    means: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Of all aliases together."""
        return sum(self.means.values())


def take_sample(
    before: Sample | None,
    passed: float,
    counters: Mapping[str, Sequence[int]],
    waits: Mapping[str, Sequence[float]],
) -> Sample:
    """The sample of a run, `passed` seconds after that of the run `before`, if there was one.

    `counters` are those of SHOW STATS, `waits` the seconds that each client has waited, by alias.
    """
    sample = {}
    for name, now in counters.items():
        own = waits.get(name, ())
        known = () if before is None else before.get(name, ())
        waited = 0
        if known:
            waited = known[_WAITED]
        if before is not None:
            begun, pending = (known[_COUNTERS], known[_PENDING]) if known else ([0] * len(now), 0)
            if any(new < old for new, old in zip(now, begun)):  # another process, or pool
                begun, pending = [0] * len(now), 0
            gained = (now[0] - begun[0]) / _SECOND + sum(own) - pending
            least = sum(min(one, passed) for one in own)
            waited += round(max(gained, least) * _SECOND)
        sample[name] = [list(now), sum(own), waited]
    return sample


def average(
    earlier: Sequence[tuple[float, Sample]], at: float, now: Sample, over: float
) -> Waited | None:
    """Who waited since the newest of the `earlier` samples that is `over` seconds old, or else
    since the oldest; None where there is none. Times are seconds since 1970.
    """
    means, seconds = {}, None
    for name in now:
        readings = [Reading(then, None, _waited(sample, name)) for then, sample in earlier]
        growth = find_growth(readings, Reading(at, None, _waited(now, name)), over)
        if growth is None:
            return None
        means[name], seconds = growth.amount / _SECOND / growth.seconds, growth.seconds
    if seconds is None:  # nobody has ever connected
        past = find_growth([Reading(then, None, 0) for then, _ in earlier], Reading(at, 0, 0), over)
        return None if past is None else Waited(past.seconds, {})
    return Waited(seconds, means)


def parse_sample(data: object) -> Sample | None:
    """A stored sample; None for what take_sample() did not make."""
    if not isinstance(data, dict):
        return None
    for one in data.values():
        if not isinstance(one, list) or [type(each) for each in one[1:]] not in _KINDS:
            return None
        if not isinstance(one[_COUNTERS], list) or not one[_COUNTERS]:
            return None
    return data


_KINDS = ([float, int], [int, int])


def _waited(sample: Sample, name: str) -> int:
    return int(sample[name][_WAITED]) if name in sample else 0
