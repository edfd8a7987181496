"""What is said of pools: the sentence that a DBA needs, and what qualifies it; pure."""

from check_pgsock.pooling import assessment, origins, pools, sizing, windows
from check_pgsock.postgres import statistics
from check_pgsock.text import clean, name_some, plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

    from check_pgsock.pooling.pools import Pool, Terms
    from check_pgsock.pooling.samples import Backends
    from check_pgsock.pooling.windows import Window
    from check_pgsock.postgres.parallelism import Launched

# The share of what the server can run that is much work, seen from an average.
_MUCH = 0.7


def describe(pool: "Pool", terms: "Terms", may_grow: bool = True) -> str:
    """One pool in a sentence, without what is said of its window's origin. Where all pools together
    are too large it is not to grow.
    """
    window = pool.window
    if pool.outcome == pools.JUDGED:
        whole = " of whole sessions" if pool.is_session else ""
        return (
            f"{_what(pool)} {_bounds(pool)}, it is {pool.size}{_advice(pool, terms, may_grow)}; "
            f"busy ratio{whole} {pool.ratio:.3f} over {_span(window)}{_doubt(pool)}"
        )
    what = f"{_what(pool)} of {plural(pool.size, 'connection')}"
    if pool.outcome == pools.TOO_EARLY:
        return f"too early to judge the {what}: {_why_early(window, terms)}"
    if pool.outcome == pools.UNRELIABLE and pool.ratio is None:
        return f"{what} cannot be judged: the statistics have nothing of {_span(window)}"
    if pool.outcome == pools.UNRELIABLE:
        return (
            f"{what} cannot be judged: busy ratio {pool.ratio:.3f} over {_span(window)}, unreliable"
        )
    if pool.outcome == pools.NO_STATEMENTS:
        return (
            f"{what}: {window.spent:.3f} s idle in transactions and no statement's time over "
            f"{_span(window)}, which sets no limit"
        )
    if pool.outcome == pools.UNDATED:
        return f"{what} cannot be judged by whole sessions: since when they count is not known"
    tail, least = "", ""
    if window.unseen:
        tail = f"; what {plural(window.unseen, 'session')} may be in cannot be seen"
        least = "at least "
    little = f"too little activity to judge the {what}"
    if window.active + window.idle == 0:
        return f"{little}: no statement's or transaction's time over {_span(window)}{tail}"
    if window.seconds is not None and window.seconds < terms.shortest:
        below = f"below {terms.shortest:g} s"
        return f"too short a time to judge the {what}: {_span(window)}, {below}{tail}"
    if window.seconds is None or window.seconds < assessment.SHORTEST_AVERAGED:
        return (
            f"{little}: {least}{window.spent:.3f} s busy or in transaction over {_span(window)}, "
            f"below {assessment.least_spent(window, terms.least_busy):g} s{tail}"
        )
    return (
        f"{little}: {least}{window.busy_sessions:.3f} sessions busy and "
        f"{window.in_transaction_sessions:.3f} idle in transaction over {_span(window)}, together "
        f"below {terms.least_busy:g}{tail}"
    )


def _doubt(pool: "Pool") -> str:
    """What the limit is made of where the ratio is not reliable."""
    return "" if pool.is_reliable else f", unreliable: at least {pool.window.lowest:.3f}"


def _what(pool: "Pool") -> str:
    name = pool.configured.name if pool.configured else ""
    return f"pool {clean(name)}" if name else f"pool of database {clean(pool.name)}"


def _bounds(pool: "Pool") -> str:
    """`may be 12 to 26`"""
    if pool.needed is None or pool.needed == pool.allowed:
        return f"may be up to {pool.allowed}"
    if pool.allowed is not None and pool.needed > pool.allowed:
        return f"may be up to {pool.allowed}, of {pool.needed} that its load asks for"
    return f"may be {pool.needed} to {pool.allowed}"


def _advice(pool: "Pool", terms: "Terms", may_grow: bool) -> str:
    """What to do about a size outside its bounds."""
    if pool.allowed is None:
        return ""
    tail = ""
    if pool.size > pool.allowed:
        if (pool.needed or 0) > pool.allowed:
            if pool.is_locked:
                return ": its statements wait for locks"
            if pool.used >= _MUCH * terms.capacity:
                return ": the server is too small for the work, or statements take too long"
            tail = ", and clients wait briefly at times"
        verb = "lower"
    elif may_grow and pool.configured and pool.size < min(pool.needed or 0, pool.allowed):
        verb = "raise"
    else:
        return ""
    setting = pool.configured.setting if pool.configured and not pool.is_observed else ""
    return f": {verb} {clean(setting) if setting else 'it'}{tail}"


def _span(window: "Window") -> str:
    seconds = window.seconds
    return "all that the statistics hold" if seconds is None else write_seconds(seconds)


def _why_early(window: "Window", terms: "Terms") -> str:
    recent = f"no run on its statistics is {terms.shortest:g} s ago"
    why = origins.WORDS.get(window.origin)
    return f"{why}, and {recent}" if why else recent


def describe_origin(window: "Window", terms: "Terms") -> "Optional[str]":
    """What is to be said of a window that does not simply begin with an earlier run."""
    if window.origin == origins.EARLIER_RUN or window.is_early:
        return None
    if window.origin == windows.OLDEST_RUN:
        asked = write_seconds(terms.since or 0.0)
        return (
            f"no run on these statistics is {asked} ago (--since): judged over the {_span(window)} "
            "since the first one"
        )
    why = {
        **origins.WORDS,
        windows.ASKED: "since reset, as asked for",
        windows.RECENT_RUNS: f"no run on these statistics is {terms.shortest:g} s ago",
    }[window.origin]
    if window.seconds is None:
        return f"{why}: judged over {_span(window)}, whose beginning is not known"
    if window.origin == statistics.RESET:
        return f"{why}: judged over the {_span(window)} since then"
    return f"{why}: judged over the {_span(window)} since the statistics were reset"


def qualify(pool: "Pool", terms: "Terms") -> "list[str]":
    """What qualifies the numbers of a pool."""
    notes = [
        describe_origin(pool.window, terms),
        *describe_size(pool, terms),
        describe_load(pool),
        describe_locks(pool),
        describe_quality(pool),
        describe_unseen(pool),
    ]
    return [one for one in notes if one is not None]


def describe_load(pool: "Pool") -> "Optional[str]":
    """When the load was that asks for more than the pool has or may have; None where that was in
    the window.
    """
    needed, ago = pool.needed or 0, pool.load_ago
    if ago <= (pool.window.seconds or 0.0):
        return None
    if pool.allowed is None or needed <= min(pool.size, pool.allowed):
        return None
    return f"the load that asks for {plural(needed, 'connection')} was {write_seconds(ago)} ago"


def describe_locks(pool: "Pool") -> "Optional[str]":
    """That it is locks what statements wait for; None where it is not."""
    if not pool.is_locked:
        return None
    wait = "waits for a lock" if pool.waiting == 1 else "wait for locks"
    return (
        f"{pool.waiting} of {plural(pool.active, 'active session')} {wait}: that is what to mend "
        "first"
    )


def describe_quality(pool: "Pool") -> "Optional[str]":
    """Why the busy ratio may be another one; None where it can be relied on."""
    window = pool.window
    if pool.is_reliable or (pool.ratio is None and pool.outcome != pools.UNRELIABLE):
        return None
    if window.is_late:
        return (
            "the busy ratio is unreliable: the statistics do not have what the sessions did in the "
            "window, but more or less; statements that touch no table come late"
        )
    old = "transactions are in progress whose time before their present statement is not known"
    if window.seconds is not None and window.oldest > window.seconds:
        old = f"a transaction is {write_seconds(window.oldest)} old, older than the window"
    return (
        f"the busy ratio is unreliable, between {window.lowest:.3f} and {window.highest:.3f}: {old}"
    )


def describe_unseen(pool: "Pool") -> "Optional[str]":
    """What the role of the check may not see; None where that is nothing."""
    if not pool.window.unseen:
        return None
    return (
        f"what is done in {plural(pool.window.unseen, 'session')} of other roles cannot be seen: "
        "statements and transactions there count when they end, and parallel workers as "
        "connections; grant pg_read_all_stats to the role of the check"
    )


def describe_size(pool: "Pool", terms: "Terms") -> "list[str]":
    """Where the judged size is from, where that is not simply what was named, and what qualifies
    it.
    """
    within = "an hour" if pool.configured is None else "ten minutes"
    seen = f"{plural(pool.seen, 'client backend')} at most seen within {within}"
    if pool.configured is None:
        return [
            f"the pool's size is {seen}; --pool-size, --console or --ini names the configured one"
        ]
    each, notes = pool.configured.connections, pool.configured.notes
    said = f"{plural(each, 'connection')} by {clean(pool.configured.source)}"
    if terms.poolers > 1:
        said += f", times {terms.poolers} poolers"
    if pool.size > each * terms.poolers:
        return [
            f"the pool's size is {seen}, more than {said}; see to --poolers, and to who else "
            "connects",
            *notes,
        ]
    return [*([f"the pool's size is {said}"] if terms.poolers > 1 else []), *notes]


def describe_parallelism(pool: "Pool") -> str:
    """Where the parallelism is from."""
    how = {
        pools.GIVEN: "as given",
        pools.MEASURED: "as seen on the database",
        pools.ASSUMED: "assumed: too few statements were seen",
    }[pool.parallelism_is]
    return f"parallelism {pool.parallelism:g} {how}"


def describe_workers(pool: "Pool", launched: "Optional[Launched]") -> "list[str]":
    """Parallel workers that statements got, or did not get, by the server's counters."""
    if launched is None or not launched.wanted:
        return []
    got = f"{launched.launched} of the {launched.wanted}"
    tail = ": see max_parallel_workers"
    if launched.launched >= launched.wanted:
        got, tail = f"the {launched.wanted}", ""
    return [
        f"statements on database {clean(pool.name)} got {got} parallel workers that they wanted "
        f"since the statistics were reset{tail}"
    ]


def describe_together(working: "list[Pool]", terms: "Terms") -> str:
    """What all pools of the server come to, the largest part first."""
    parts = sorted(
        ((one.work or 0.0, one) for one in working), key=lambda part: (-part[0], part[1].name)
    )
    named = name_some([f"{clean(one.name)} {work:.1f}" for work, one in parts])
    share = pools.full_load(working, terms.capacity) or 0.0
    return (
        f"all pools in full use come to {sum(work for work, _ in parts):.1f} processes at work, "
        f"{share:.0f} % of the {terms.capacity:g} that the server can run: {named}"
    )


def describe_formula(pool: "Pool", terms: "Terms") -> str:
    """How the largest allowed pool came about."""
    io_limit = "no I/O limit" if terms.io_limit is None else f"I/O limit {terms.io_limit}"
    counted = sizing.busy_ratio(*pool.window.counted)
    alone = "none" if counted is None else f"{counted:.3f}"
    return (
        f"formula: min({terms.cores:g} cores, {io_limit}) / (busy ratio * parallelism); "
        f"{describe_parallelism(pool)}; busy ratio of the counters alone, without what is in "
        f"progress: {alone}"
    )


def top_backends(pool: "Pool", backends: "Iterable[Backends]") -> "list[str]":
    """Who holds the client backends of a database, which `backends` are, the largest number
    first.
    """
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for one in backends:
        states = groups.setdefault((one.role, one.application), {})
        state = one.state or "in a hidden state"
        states[state] = states.get(state, 0) + one.count
    lines = []
    for (role, application), states in sorted(
        groups.items(), key=lambda item: (-sum(item[1].values()), item[0])
    ):
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        name = f" application {clean(application)}" if application else ""
        who = f"role {clean(role)}{name}" if role else f"an unknown role{name}"
        lines.append(f"{plural(sum(states.values()), 'session')} of {who}: {parts}")
    return lines or [f"no other session is on database {clean(pool.name)} now"]
