"""What check_pgsock_leak refuses to judge: where its verdict depends on what is not known."""

from check_pgsock.errors import SourceError
from check_pgsock.sessions.states import IDLE_IN_TRANSACTION
from check_pgsock.text import plural, write_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.contract import Run
    from check_pgsock.leak_state import Past
    from check_pgsock.sessions.leaks import Leaks

UNTITLED = (
    "their titles do not tell it (they may be cut, which root and the server's user can see, or "
    "update_process_title is off)"
)


def count_beyond(silent: int, keep: "Optional[int]", surplus: "Optional[int]") -> int:
    """How many of the silent connections leaked: those beyond `keep`, and no more than the pool
    has grown by.
    """
    beyond = max(silent - (keep or 0), 0)
    return beyond if surplus is None else min(beyond, surplus)


def refuse_blind(
    run: "Run",
    leaks: "Leaks",
    surplus: "Optional[int]",
    limit: "Optional[int]",
    past: "Past",
    of: str,
) -> None:
    """Raise SourceError where no connection can be judged, or the verdict depends on those that
    cannot be.
    """
    hidden = leaks.hidden
    if not hidden:
        return
    others = sum(one["activity"] == IDLE_IN_TRANSACTION for one in hidden)
    silent, keep = len(leaks.silent), run.options.keep
    leaked = count_beyond(silent, keep, surplus) + leaks.others
    most = count_beyond(silent + len(hidden) - others, keep, surplus) + leaks.others + others
    if leaks.told and (
        run.exceeds("leaked", leaked, limit) or not run.exceeds("leaked", most, limit)
    ):
        return
    why = "over TCP that takes netlink; over a Unix socket, to see whose backends they are"
    if leaks.untimed:
        lack = past.refusal or "the kernel tells no processor time of theirs"
        why = f"Unix sockets and procfs have no clocks, and earlier runs cannot tell: {lack}"
    raise SourceError(
        f"for how long {plural(len(hidden), 'connection')} {of} had nothing to do is not known, "
        f"and there may be a leak among them ({why})"
    )


def refuse_untitled(
    run: "Run", leaks: "Leaks", possible: "tuple[int, int]", surplus: "Optional[int]",
    limit: "Optional[int]", of: str, why: str,
) -> None:  # fmt: skip
    """Raise SourceError where the verdict depends on whether connections are idle in transaction
    that no title tells it of: `possible` is what leaks.count_possible() says.
    """
    may_be, silent = possible
    keep = run.options.keep
    leaked = count_beyond(len(leaks.silent), keep, surplus) + leaks.others
    most = count_beyond(len(leaks.silent) - silent, keep, surplus) + leaks.others + may_be
    if run.exceeds("leaked", leaked, limit) or not run.exceeds("leaked", most, limit):
        return
    bound = write_seconds(run.options.idle_in_transaction_for)
    raise SourceError(
        f"whether {plural(may_be, 'connection')} {of}, idle for more than {bound}, are idle in "
        f"transaction is not known: {why}; a longer --idle-in-transaction-for judges them as idle"
    )
