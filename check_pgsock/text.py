"""Making text from outside (process titles, role names, server messages) fit to print.

Nagios cuts at the first `|`, Icinga 2 at a newline; a terminal obeys escape sequences.
"""


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
