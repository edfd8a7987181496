"""A steady pace: turns of a schedule, not pauses between turns, so that no delay adds up."""

from __future__ import annotations

import threading
import time

from check_pgsock.pgsock.lab.errors import LabError


class Pace:
    """Turns at `rate` per second from now on, shared by any number of threads.

    Late turns follow at once, until they are `tolerance` seconds late.
    """

    def __init__(self, rate: float, tolerance: float = 3.0) -> None:
        self._rate = rate
        self._tolerance = tolerance
        self._due = time.monotonic()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Let the turns that are late be lost: nobody could have taken them."""
        with self._lock:
            self._due = max(self._due, time.monotonic())

    def take_turn(self) -> float:
        """Seconds until the next turn, which is the caller's; 0 where it is late.

        Raises LabError when turns are so late that the rate is not held.
        """
        with self._lock:
            self._due += 1 / self._rate
            wait = self._due - time.monotonic()
        if wait < -self._tolerance:
            raise LabError(f"{self._rate:g} per second are more than can be made: ask for fewer")
        return max(wait, 0)
