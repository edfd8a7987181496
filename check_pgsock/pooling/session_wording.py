"""What is said of sessions that ended, and what qualifies it; pure."""

from check_pgsock.pooling.mode import describe_usage, find_usage
from check_pgsock.pooling.origins import NO_DIRECTORY, NO_STATE, WORDS
from check_pgsock.pooling.session_ends import Ends
from check_pgsock.text import clean, name_some, plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from check_pgsock.postgres.statistics import Statistics

_MOST_DESCRIBED = 20  # databases


def describe(total: Ends, names: "list[str]") -> str:
    """`6 abandoned, 0 fatal and 1 killed of 40 ended sessions on database app over 5 min`"""
    where = f"on {plural(len(names), 'database')}"
    if len(names) == 1:
        where = f"on database {clean(names[0])}"
    if not total.is_counted:
        return f"ends of sessions {where} are judged from the next run on: {WORDS[total.origin]}"
    return f"{_tell(total)} {where} {_span(total)}"


def _tell(ends: Ends) -> str:
    text = f"{ends.abandoned} abandoned, {ends.fatal} fatal and {ends.killed} killed"
    return f"{text} of {plural(ends.ended, 'ended session')}"


def _span(ends: Ends) -> str:
    if ends.origin == NO_STATE:
        return "in all that the statistics hold"
    return f"over {write_seconds(ends.seconds)}"


def qualify(
    total: Ends, each: "Mapping[str, Ends]", over: float, least: int, hidden: bool
) -> "list[str]":
    """What qualifies the numbers, counted over `over` seconds and judged from `least` ended
    sessions on; `hidden`: whether other roles hide which of their sessions are none.
    """
    if not total.is_counted:
        return []
    lines = []
    if total.origin == NO_STATE:
        lines.append(f"rates are not known, and shares are of all time: {NO_DIRECTORY}")
    elif total.seconds < over:
        bound = "" if total.began_anew else ": rates are a lower bound"
        reach = write_seconds(total.seconds)
        lines.append(f"earlier runs reach back {reach} of the {over:g} s of --over{bound}")
    if total.began_anew:
        lines.append(
            "the statistics were reset, or lost in a crash, after an earlier run: what came "
            "between is missing, so that counts and rates are lower bounds"
        )
    if total.ended < least:
        lines.append(
            f"shares are not judged: {plural(total.ended, 'ended session')}, fewer than "
            f"{least} (--min-sessions)"
        )
    elif hidden:
        lines.append(
            "the number of ended sessions may be off by some parallel workers, which other roles "
            "hide; grant pg_read_all_stats to the role of the check"
        )
    if total.false_starts:
        lines.append(
            f"{total.false_starts} of the fatal ones failed while they started: see to CONNECT "
            "rights, connection limits and settings of the databases, roles and clients"
        )
    return lines + _tell_uncounted(each)


def _tell_uncounted(each: "Mapping[str, Ends]") -> "list[str]":
    names: dict[str, list[str]] = {}
    for name, one in each.items():
        if not one.is_counted:
            names.setdefault(WORDS[one.origin], []).append(clean(name))
    return [
        f"{'databases' if len(some) > 1 else 'database'} {name_some(some)} "
        f"{'are' if len(some) > 1 else 'is'} counted from the next run on: {why}"
        for why, some in names.items()
    ]


def describe_each(
    each: "Mapping[str, Ends]", databases: "Iterable[Statistics]", least: int
) -> "list[str]":
    """The databases in a sentence each, those first where most sessions ended badly; of one alone
    the rest of the output says it.
    """
    if len(each) == 1:
        return []
    counted = [one for one in databases if each[one.name].is_counted]
    counted.sort(key=lambda one: (-each[one.name].ended_badly, one.name))
    lines = []
    for one in counted[:_MOST_DESCRIBED]:
        ends = each[one.name]
        usage = describe_usage(find_usage([one], ends, least), least)
        lines.append(f"database {clean(one.name)}: {_tell(ends)} {_span(ends)}; {usage}")
    if len(counted) > _MOST_DESCRIBED:
        further = plural(len(counted) - _MOST_DESCRIBED, "further database")
        lines.append(f"{further}, where no more sessions ended badly than in any of these")
    return lines
