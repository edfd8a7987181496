"""What samples of earlier runs tell; pure. Times are seconds since 1970, the caller's.

Rates are judged over a span of several samples, not since the last one: a retry after 30 s, or a
run by hand, would else turn an alert into OK before it is a hard state.
"""

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NamedTuple, Optional

    class Reading(NamedTuple):
        """A counter that only grows while `identity` is the same."""

        at: float
        identity: object
        value: int

    class Growth(NamedTuple):
        """By how much a counter has grown in so many seconds."""

        amount: int
        seconds: float

        def rate(self, least: float) -> float:
            """Per second, over `least` seconds at least: what a short span holds says little."""
            ...

else:
    Reading = namedtuple("Reading", "at identity value")

    class Growth(namedtuple("Growth", "amount seconds")):
        __slots__ = ()

        def rate(self, least):
            return self.amount / max(self.seconds, least)


def find_growth(earlier: "Iterable[Reading]", now: "Reading", over: float) -> "Optional[Growth]":
    """How a counter has grown since the newest of the `earlier` readings that is `over` seconds
    old, or else since the oldest; None where there is none.

    A counter that is lower, or of another identity, has begun anew: all that it holds came since.
    """
    past = sorted((one for one in earlier if one.at < now.at), key=lambda one: one.at)
    if not past:
        return None
    old = [place for place, one in enumerate(past) if one.at <= now.at - over]
    chain = [*past[old[-1] if old else 0 :], now]
    amount = 0
    for before, after in zip(chain, chain[1:]):
        restarted = after.identity != before.identity or after.value < before.value
        amount += after.value if restarted else after.value - before.value
    return Growth(amount, now.at - chain[0].at)


def quantile(values: "Sequence[float]", share: float) -> float:
    """The value that `share` of `values` (one at least) lie at or below: the nearest rank."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]
