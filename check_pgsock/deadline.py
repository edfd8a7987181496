"""One deadline for a whole run, handed to every call that may wait."""

import time

from check_pgsock.errors import DeadlineError


class Deadline:
    """A point in monotonic time that no I/O of a run may wait beyond.

    `doing` names the present step, so that whoever reports the deadline can say what hung.
    """

    __slots__ = ("_end", "doing", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.doing = "starting"
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, always positive; raises DeadlineError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(self.sentence())
        return left

    def sentence(self) -> str:
        """The sentence that reports this deadline as passed."""
        return (
            f"no verdict within {self.seconds:g} s, the time ran out while {self.doing}; "
            "see what hangs there, or raise --timeout"
        )

    def sleep(self, seconds: float) -> None:
        """Sleep, but never beyond the deadline (then raises DeadlineError)."""
        left = self.remaining()
        time.sleep(min(seconds, left))
        if seconds >= left:
            self.remaining()
