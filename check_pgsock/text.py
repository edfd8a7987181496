"""Making text from outside (process titles, role names, server messages) fit to print.

Nagios cuts at the first `|`, Icinga 2 at a newline; a terminal obeys escape sequences.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Callable, TypeVar

    _T = TypeVar("_T", bound=Any)


def clean(text: str, limit: int = 80) -> str:
    """Return `text` on one line, printable, without `|`, at most `limit` characters.

    What cannot be printed becomes `?`; what is cut ends in `...`.
    """
    # \udc80 and the like are undecodable bytes (surrogateescape): not printable either.
    safe = "".join(
        c if c.isprintable() and c != "|" else " " if c in "\t\n\r" else "?" for c in text
    )
    return safe if len(safe) <= limit else safe[: max(limit - 3, 0)] + "..."


def clip_bytes(text: str, limit: int) -> str:
    """Cut `text` so that it takes at most `limit` bytes of UTF-8, marking the cut with `...`."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode("utf-8")
    return raw[: max(limit - 3, 0)].decode("utf-8", "ignore") + "..."


def plural(count: int, noun: str) -> str:
    """`1 connection`, `2 connections`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def name_some(names: "Sequence[str]", most: int = 5) -> str:
    """`a, b, c`; of more than `most` the first of them, `and 3 further`."""
    further = f" and {len(names) - most} further" if len(names) > most else ""
    return ", ".join(names[:most]) + further


def write_seconds(seconds: float) -> str:
    """A time as people say it: 0.3 s, 42 s, 5 min, 2 h 05 min, 3 d 04 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)  # or 299.8 s, a run's distance from the next, would be 4 min
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes // 60 % 24:02} h"


def say_top(
    counts: "Mapping[_T, int]", say: "Callable[[_T], str]", others: str, noun: str, most: int
) -> "list[str]":
    """At most `most` lines: how many of `noun` each has, the most first, as `say` calls it; what
    does not fit is added up as so many more `others`.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked if len(ranked) <= most else ranked[: most - 1]
    lines = [f"{say(one)}: {count} {noun}" for one, count in shown]
    if len(ranked) > len(shown):
        rest = sum(count for _, count in ranked[len(shown) :])
        lines.append(f"{len(ranked) - len(shown)} more {others}: {rest} {noun}")
    return lines
