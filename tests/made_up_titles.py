"""Titles as a server's children have them, and what they say."""

from __future__ import annotations

from check_pgsock.sessions.titles import Title
from tests.moment import LOCAL4

# The postmaster's own /proc/PID/cmdline, as recorded of PostgreSQL 14, 15, 16 and 18.
POSTMASTER = b"/usr/lib/postgresql/15/bin/postgres\0-D\0/var/lib/postgresql/15/main\0"
ROOM = len(POSTMASTER)
# The clients of its connections.
PEERS = {(LOCAL4, port) for port in (40001, 40002, 40003)}


def padded(text: str) -> bytes:
    """A title as the kernel shows it: over an argument area of this size, or beyond it."""
    raw = text.encode("utf-8", "surrogateescape")
    return raw.ljust(ROOM, b"\0") if len(raw) < ROOM else raw + b"\0"


def client(
    user: str | None,
    database: str | None,
    state: str | None = "idle",
    *,
    kind: str = "client backend",
    host: str | None = "127.0.0.1",
    address: bytes | None = LOCAL4,
    port: int | None = 4711,
    waiting: bool | None = False,
    text: str | None = None,
) -> Title:
    """A title with a client; `text` is the state, if it is not given."""
    return Title(
        kind, user, database, host, address, port, state, waiting, state if text is None else text
    )


def cut(
    text: str,
    user: str | None = "app",
    port: int = 40002,
    *,
    state: str | None = None,
    waiting: bool | None = None,
    kind: str = "client backend",
) -> Title:
    """What is told of a title that may have been cut, of a user and a database of one name."""
    title = client(user, user, state, port=port, waiting=waiting, kind=kind, text=text)
    return title._replace(whole=False)
