"""What a session does, by what follows the client in its title: pure.

Authority: what PostgreSQL gives to set_ps_display; the comments name its files.
"""

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    State = tuple[Optional[str], Optional[bool]]  # what it does, and whether it waits

# Session states in pg_stat_activity's words; the last three are the title's own.
ACTIVE = "active"
FASTPATH = "fastpath function call"
IDLE = "idle"
IDLE_IN_TRANSACTION = "idle in transaction"
ABORTED = "idle in transaction (aborted)"
AUTHENTICATION = "authentication"
STARTUP = "startup"
INITIALIZING = "initializing"

_STATES: "dict[str, State]" = {
    "": (None, None),  # update_process_title is off
    IDLE: (IDLE, False),
    IDLE_IN_TRANSACTION: (IDLE_IN_TRANSACTION, False),
    ABORTED: (ABORTED, False),
    AUTHENTICATION: (AUTHENTICATION, False),
    STARTUP: (STARTUP, False),
    INITIALIZING: (INITIALIZING, False),
    "<FASTPATH>": (FASTPATH, False),
    "notify interrupt": (None, False),  # pg_stat_activity goes on to show the state before it
}
# A command tag (src/include/tcop/cmdtaglist.h; ??? is CMDTAG_UNKNOWN), PARSE or BIND.
_TAG = re.compile(r"[A-Z][A-Z ]*|\?\?\?")
# For a lock (lock.c, from 16 on proc.c), for a synchronous standby (syncrep.c).
_WAITING = re.compile(r"(.+) waiting(?: for [0-9A-F]+/[0-9A-F]+)?", re.DOTALL)
# A command or its work (walsender.c), BASE_BACKUP with the client's label (basebackup.c).
_REPLICATION = re.compile(
    r'[A-Z]+(?:_[A-Z]+)+|streaming [0-9A-F]+/[0-9A-F]+|sending backup ".*', re.DOTALL
)


def parse_state(text: str) -> "Optional[State]":
    """State, and whether it waits, from what follows the client in a session's title.

    None for what PostgreSQL does not write there; an empty text has no state: (None, None).
    """
    state = _parse_at_work(text)
    if state is None:
        waits = _WAITING.fullmatch(text)
        state = None if waits is None else _parse_at_work(waits[1])
        if state is not None:
            return state[0], True
    return state


def _parse_at_work(text: str) -> "Optional[State]":
    """As parse_state, of what does not wait."""
    return (ACTIVE, False) if _TAG.fullmatch(text) else _STATES.get(text)


def parse_walsender_state(text: str) -> "Optional[State]":
    """As parse_state, of a walsender: it has the states of a session, and its own."""
    return (ACTIVE, False) if _REPLICATION.fullmatch(text) else parse_state(text)


def parse_cut_state(text: str) -> "Optional[State]":
    """As parse_walsender_state, from the beginning of such a text: what all that begin so share."""
    if text and _TAG.fullmatch(text.rstrip("_")):
        return ACTIVE, None
    if _REPLICATION.match(text) or _WAITING.match(text):
        return parse_walsender_state(text) or (None, None)
    tag, separator, rest = text.partition(" w")
    if separator and _TAG.fullmatch(tag):
        return (ACTIVE, None) if "waiting for ".startswith(f"w{rest}") else None
    words = (*_STATES, "streaming ", 'sending backup "')
    found = {_STATES.get(word, (ACTIVE, False))[0] for word in words if word.startswith(text)}
    if not found:
        return (ACTIVE, False) if text.startswith("streaming ") else None
    return (found.pop() if len(found) == 1 else None), None
