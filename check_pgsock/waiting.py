"""Calls that nothing can interrupt, such as name resolution, waited for within a deadline."""

import threading

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError
from check_pgsock.verdict import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, TypeVar

    T = TypeVar("T")


def call_within(deadline: Deadline, call: "Callable[[], T]") -> "T":
    """What `call` returns or raises; it works in a thread, and is left there when the time is over.

    Raises DeadlineError then, and OSError where there is no thread to be had.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again, where it is waited for)
            errors.append(error)
        ended.set()

    left = deadline.remaining()
    start_thread(work)
    ended.wait(left)
    if errors:
        raise errors[0]
    if not results:
        raise DeadlineError(deadline.sentence())
    return results[0]
