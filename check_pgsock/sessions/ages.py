"""How old a connection is, and how that is known: pure.

No socket tells when it was made. A backend's process does, to 10 ms. Else there is the keepalive
timer: it starts when keepalive is switched on, for PostgreSQL, PgBouncer and libpq when the
connection is made, runs for a period T, and traffic does not restart it. So age = T - expires:
but only until it first fires, and only where T is known; neither can be seen in the socket. When
it has fired (tcp_keepalive_timer in net/ipv4/tcp_timer.c) it is set to T after the last segment
received, or, if that is longer ago than T, a probe is sent and it is set to the probe interval:
T - expires is then between 0 and T, and the true age anything above. So a period must be proven
(prove_period, confirm_setting), and an age read from it is a lower bound where nothing else says
that the connection is younger than T.

All times are in seconds, but those that a socket holds (milliseconds).
"""

from collections import namedtuple

from check_pgsock.sockets.model import SYN_RECV, SYN_SENT, Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple, Optional

BY_BACKEND_START = "backend start"
BY_KEEPALIVE = "keepalive timer"
BY_LAST_DATA = "last data"
BY_FIRST_SEEN = "first seen"

_KEEPALIVE = 2  # idiag_timer
# Measured: 0.05 s between a backend's start and its socket's timer; more on a busy machine.
_TOLERANCE = 0.2
# What a login takes at the most for confirm_setting: from then on a connection is silent.
_LOGIN = 0.5
# net.ipv4.tcp_keepalive_intvl, the time between probes, where nobody sets another.
DEFAULT_INTERVAL = 75

if TYPE_CHECKING:

    class Age(NamedTuple):
        """An age in seconds, how it is known, and whether it is a lower bound only."""

        seconds: float
        known_by: str
        bound: bool

else:
    Age = namedtuple("Age", "seconds known_by bound")


def judge_age(
    one: Socket,
    backend: "Optional[float]" = None,
    period: "Optional[float]" = None,
    at_most: "Optional[float]" = None,
    first_seen: "Optional[float]" = None,
) -> "Optional[Age]":
    """The age of a connection, from the best that is known of it; None where nothing is.

    `backend` is the age of its backend's process; `period` its proven keepalive period; `at_most`
    an age that it cannot have passed, such as that of the process that listens for it or holds
    it, or the time since a snapshot that it was not in; `first_seen` the time since it was seen
    first.
    """
    if backend is not None:
        return Age(backend, BY_BACKEND_START, False)
    if one.state in (SYN_SENT, SYN_RECV):
        return None  # not made yet: its clocks do not run
    if one.info is not None and one.info.bytes_received == 0:
        # The clock of what was received last began with the connection (tcp_finish_connect,
        # tcp_create_openreq_child), and nothing has set it since.
        return Age(one.info.last_data_received_ms / 1000, BY_LAST_DATA, False)
    known = []
    if first_seen is not None:
        known.append(Age(first_seen, BY_FIRST_SEEN, True))
    silence = _silence(one)
    if silence is not None:
        known.append(Age(silence, BY_LAST_DATA, True))
    timed = None if period is None else time_elapsed(one, period)
    least = max((age.seconds for age in known), default=0.0)
    if timed is not None and period is not None:
        if at_most is not None and timed > at_most + _TOLERANCE:
            pass  # it has another period
        elif at_most is not None and at_most < period and timed >= least - _TOLERANCE:
            return Age(timed, BY_KEEPALIVE, False)
        else:
            known.append(Age(timed, BY_KEEPALIVE, True))
    return max(known, key=lambda age: age.seconds, default=None)


def time_elapsed(one: Socket, period: float) -> "Optional[float]":
    """How much of its keepalive period has passed; None where another timer runs, where it is
    due, where a probe is unanswered, or where it has more left than the period is long.
    """
    if not _is_timed(one) or one.expires_ms > (period + _TOLERANCE) * 1000:
        return None
    return max(period - one.expires_ms / 1000, 0.0)


def prove_period(
    pairs: "Iterable[tuple[Socket, float]]", interval: int = DEFAULT_INTERVAL
) -> "Optional[int]":
    """The keepalive period of sockets with backends of known ages, all of one listener; None
    where it is not proven.

    Age and time left must add up to one number of whole seconds (TCP_KEEPIDLE has no finer ones)
    for every socket that is younger than it: a session with a period of its own disproves all.
    But they add up so, too, when a shorter period has passed in silence, and the timer runs to
    the next probe, or the one after. So the youngest must be younger than 1 s, which is the
    shortest period; or younger than a tenth of the sum, where no shorter period fits with probes
    every `interval` seconds.
    """
    timed = sorted((age, age + one.expires_ms / 1000) for one, age in pairs if _is_timed(one))
    if not timed:
        return None
    period = round(timed[0][1])
    ages = []
    for age, total in timed:
        if age < period - _TOLERANCE:
            if abs(total - period) > _TOLERANCE:
                return None
            ages.append(age)
    if not ages or ages[0] < 1:
        return period if ages else None
    if ages[0] > period / 10:
        return None
    for shorter in range(1, int(ages[0]) + 1):
        if all(_fires_next(shorter, interval, age) == period for age in ages):
            return None
    return period


def _fires_next(period: int, interval: int, age: float) -> int:
    """When, after `age`, the timer of a connection that has been silent all the time fires.

    An answered probe counts as a sign of life: with a period that is longer than the interval
    every second time the timer fires is too soon for another.
    """
    if age < period:
        return period
    if period <= interval:
        return period + interval * (int((age - period) // interval) + 1)
    passed = int(age // period) * period
    return passed + (interval if age < passed + interval else period)


def confirm_setting(setting: int, sockets: "Iterable[Socket]") -> bool:
    """Whether sockets that share one keepalive period bear out that it is `setting` (the
    namespace's net.ipv4.tcp_keepalive_time, or what a configuration says).

    None may have more left than the setting allows, counting the time that it has been silent;
    and one, in the first half of its period, must have been silent since its login: then both
    add up to the setting. Which sockets share a period is for the caller to know: those that one
    server accepted do; on the client leg those of one program.
    """
    found = False
    for one in sockets:
        silence = _silence(one)
        if silence is None or not _is_timed(one):
            continue
        left = one.expires_ms / 1000
        if left + silence > setting + _TOLERANCE:
            return False
        if left > setting / 2 and left + silence >= setting - _LOGIN:
            found = True
    return found


def _is_timed(one: Socket) -> bool:
    """Whether the keepalive timer runs, and no probe is out."""
    return one.timer == _KEEPALIVE and not one.retransmits and one.expires_ms > 0


def _silence(one: Socket) -> "Optional[float]":
    """How long ago something was last exchanged in the direction that has been silent longer:
    both clocks began with the connection.
    """
    if one.info is None:
        return None
    return max(one.info.last_data_sent_ms, one.info.last_data_received_ms) / 1000
