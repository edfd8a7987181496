"""How large a pool usually is, by what earlier runs saw of it; pure. Times are seconds since 1970.

A pool that is silent is no leak yet: by night all of it is, and one that takes the connection used
last leaves the others silent all day. What tells a leak is growth without return: connections that
come on top of the pool's usual size, and stay, though nobody uses them. Usual is the greater of

- the most connections that were in use together for a while (in all samples of two idle times): an
  elastic pool has that size by day, and a fixed one when it is silent at night. "For a while" since
  what leaks at once counts as in use until it has been silent for one idle time.
- the size that the pool had or exceeded in nine tenths of the time: it does not grow by itself, so
  what is always there belongs to it. A sample of an empty pool does not count: its application was
  not running, and comes back.

What has stayed for nine tenths of the time kept is usual, too: history tells growth alone. Nor does
it tell why a pool grew: one that was enlarged on purpose, and whose connections are hardly used, is
larger than usual until it has been so for nine tenths of a week. No rule on the connections' ages
would be sound: an application that leaks is restarted, too, and leaks on.
"""

from collections import namedtuple

from check_pgsock.history import quantile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NamedTuple, Optional

KEPT = 7 * 86400.0  # seconds that samples are kept: a week has all of an application's habits
_SPACING = 240.0  # seconds between samples that are kept: with runs a minute or five apart
_LEAST_SPAN = 3600.0
_LEAST_SAMPLES = 4
_RARE = 0.1  # the share of the time in which a pool may be smaller than usual

if TYPE_CHECKING:

    class PoolSample(NamedTuple):
        """How many connections there were, and how many of them were in use."""

        at: float
        total: int
        in_use: int

else:
    PoolSample = namedtuple("PoolSample", "at total in_use")


def parse_pool(at: float, data: object) -> "Optional[PoolSample]":
    """The sample of this time from what pack_pool() made; None for what is none."""
    if isinstance(data, list) and len(data) == 2 and all(isinstance(one, int) for one in data):
        return PoolSample(at, *data)
    return None


def pack_pool(sample: PoolSample) -> "list[int]":
    """What is stored of a sample, besides its time."""
    return [sample.total, sample.in_use]


def is_due(earlier: "Sequence[PoolSample]", now: float) -> bool:
    """Whether the last of the samples kept is old enough for another."""
    return not earlier or abs(now - earlier[-1].at) >= _SPACING


def span_needed(idle_for: float) -> float:
    """For how many seconds a pool must have been watched for its usual size to be known."""
    return min(max(_LEAST_SPAN, 4 * idle_for), KEPT / 2)


def span_of(earlier: "Iterable[PoolSample]", now: PoolSample) -> float:
    """For how many seconds the pool has been watched up to `now`."""
    return now.at - min((one.at for one in earlier), default=now.at)


def find_usual_size(
    earlier: "Iterable[PoolSample]", now: PoolSample, idle_for: float
) -> "Optional[int]":
    """The pool's usual size; None where it has not been watched for long enough.

    `idle_for` is the time in seconds after which a connection that nobody uses is silent.
    """
    samples = sorted([*(one for one in earlier if one.at < now.at), now])
    if len(samples) < _LEAST_SAMPLES or span_of(samples, now) < span_needed(idle_for):
        return None
    sizes = [one.total for one in samples if one.total]
    always = int(quantile(sizes, _RARE)) if sizes else 0
    return max(always, _most_in_use(samples, 2 * idle_for))


def _most_in_use(samples: "Sequence[PoolSample]", seconds: float) -> int:
    """The most that were in use in all samples of so many seconds, of two samples at the least."""
    most, first = 0, 0
    for last in range(1, len(samples)):
        while first + 1 < last and samples[first + 1].at <= samples[last].at - seconds:
            first += 1
        if samples[first].at <= samples[last].at - seconds:
            most = max(most, min(one.in_use for one in samples[first : last + 1]))
    return most
