"""How many clients of a PgBouncer waited on average, from its counters; pure.

SHOW STATS adds a client's wait to total_wait_time when that ends (activate_client, src/objects.c):
while nobody gets a server connection it stands still. So what those that wait now have waited so
far belongs to it, less what those of the last run had: they are added whole when their turn comes.
Who gives up (query_wait_timeout, a client that leaves) is never added: of those only what is seen
of them while they wait counts. It is a lower bound then.

The counters of a process that has ended are never subtracted from those of the next one, and what
they had come to by the last run stays: what came between that and the end is missing, a lower bound
as well. SHOW STATS counts the console's own queries, too, and each run asks some: where they have
not grown since the last run it is another process that answers.

PgBouncer counts a request before it looks for a server connection, and the bytes that came when it
has one to pass them on to (handle_client_work(), src/client.c). Where none is open and the last
login has failed it disconnects the client in between (check_fast_fail(), src/objects.c): that is
all that its console tells of clients that it refuses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from check_pgsock.history import Reading, find_growth

_SECOND = 10**6  # microseconds
_COUNTERS, _WAITED = 0, 2  # places of what a sample has of each alias
_REQUESTS, _RECEIVED = 2, 3  # places of console.parse_counters()
_PAUSED = -1  # what a sample has for the bytes of a paused alias: its clients wait, and give up
_RECENT = 60.0  # seconds


class Sample(NamedTuple):
    """What a run saw. By alias: its counters, the seconds that clients have waited so far who still
    do, and microseconds of waiting since the first sample.
    """

    asked: int  # queries that the console has answered
    lost: int  # how often counters began anew, since the first sample
    aliases: Mapping[str, Sequence[Any]]


class Waited(NamedTuple):
    """Clients that waited, on average over `seconds`, by alias; `is_bound`: counters began anew
    within that time, so that it is a lower bound.
    """

    seconds: float
    means: Mapping[str, float]
    is_bound: bool

    @property
    def mean(self) -> float:
        """Of all aliases together."""
        return sum(self.means.values())


class Unserved(NamedTuple):
    """Requests of an alias in so many seconds, of which none was passed on to a server;
    `is_recent`: some of them since the last run, or a minute ago at most.
    """

    requests: int
    seconds: float
    is_recent: bool = True


def take_sample(
    before: Sample | None,
    passed: float,
    asked: int,
    counters: Mapping[str, Sequence[int]],
    waits: Mapping[str, Sequence[float]],
    paused: Collection[str] = (),
) -> Sample:
    """The sample of a run, `passed` seconds after that of the run `before`, if there was one.

    `asked` and `counters` are those of SHOW STATS, `waits` the seconds that each client has waited,
    by alias; `paused` are the aliases that are.
    """
    known = {} if before is None else before.aliases
    restarted = before is not None and asked <= before.asked
    lost = restarted
    aliases = {}
    for name, now in counters.items():
        own = waits.get(name, ())
        begun, pending, waited = known.get(name, ([0] * len(now), 0, 0))
        fell = any(new < old for new, old in zip(now, begun))
        lost |= fell
        if restarted or fell:
            begun, pending = [0] * len(now), 0
        if before is not None:
            gained = (now[0] - begun[0]) / _SECOND + sum(own) - pending
            least = sum(min(one, passed) for one in own)
            waited += round(max(gained, least) * _SECOND)
        kept = list(now)
        if name in paused and len(kept) > _RECEIVED:
            kept[_RECEIVED] = _PAUSED
        aliases[name] = [kept, sum(own), waited]
    return Sample(asked, (0 if before is None else before.lost) + lost, aliases)


def average(
    earlier: Sequence[tuple[float, Sample]], at: float, now: Sample, over: float
) -> Waited | None:
    """Who waited since the newest of the `earlier` samples that is `over` seconds old, or else
    since the oldest; None where there is none. Times are seconds since 1970.

    Where runs are missing, so that it is more than twice as old, a younger one of half of `over` at
    least is taken if more waited since that: the mean of a long time hides what is now. Else the
    old one stays: a retry takes nothing from what the run before has seen.
    """
    ages = [at - then for then, _ in earlier if then < at]
    spans = [over]
    if min((one for one in ages if one >= over), default=0.0) > 2 * over:
        spans += sorted(one for one in ages if over / 2 <= one < over)[-1:]
    found = [_average(earlier, at, now, span) for span in spans]
    return max((one for one in found if one is not None), key=lambda one: one.mean, default=None)


def _average(
    earlier: Sequence[tuple[float, Sample]], at: float, now: Sample, over: float
) -> Waited | None:
    """Who waited since the newest sample that is so old, or else since the oldest."""
    lost = find_growth(
        [Reading(then, None, sample.lost) for then, sample in earlier],
        Reading(at, None, now.lost),
        over,
    )
    if lost is None:
        return None
    means = {}
    # An alias that is gone, as all are after a restart, has waited no less for it.
    for name in sorted({name for _, sample in (*earlier, (at, now)) for name in sample.aliases}):
        readings = [Reading(then, None, _waited(sample, name)) for then, sample in earlier]
        growth = find_growth(readings, Reading(at, None, _waited(now, name)), over)
        if growth is not None and (growth.amount or name in now.aliases):
            means[name] = growth.amount / _SECOND / growth.seconds
    return Waited(lost.seconds, means, bool(lost.amount))


def find_unserved(
    earlier: Sequence[tuple[float, Sample]], at: float, now: Sample, over: float
) -> dict[str, Unserved]:
    """By alias, the requests since the oldest of the `earlier` samples of the last `over` seconds
    (or else the last) after which none was passed on; those of clients that still wait are among
    them. So a retry keeps what the run before has seen, until one is passed on.
    """
    found = {}
    for name, (counters, *_) in now.aliases.items():
        requests, received = counters[_REQUESTS:][:2]
        since, before, is_recent = at, requests, False
        for then, sample in reversed(earlier):
            began = sample.aliases[name][_COUNTERS] if name in sample.aliases else ()
            if len(began) != len(counters) or began[_RECEIVED] != received:
                break  # one was passed on, or it was paused
            if began[_REQUESTS] > before or (at - then > over and since < at):
                break
            since, before = then, began[_REQUESTS]
            if at - since <= _RECENT or sample is earlier[-1][1]:
                is_recent = before < requests
        if before < requests:
            found[name] = Unserved(requests - before, at - since, is_recent)
    return found


def parse_sample(data: object) -> Sample | None:
    """A stored sample; None for what take_sample() did not make."""
    if not isinstance(data, list) or [type(one) for one in data] != [int, int, dict]:
        return None
    for one in data[2].values():
        if not isinstance(one, list) or [type(each) for each in one[1:]] not in _KINDS:
            return None
        if not isinstance(one[_COUNTERS], list) or not one[_COUNTERS]:
            return None
    return Sample(*data)


_KINDS = ([float, int], [int, int])


def _waited(sample: Sample, name: str) -> int:
    return int(sample.aliases[name][_WAITED]) if name in sample.aliases else 0
