"""What the tests of faults share."""

from __future__ import annotations

import contextlib
import threading
import time

from check_pgsock.pgsock.lab.faults.fault import Fault, Stopped
from check_pgsock.pgsock.lab.lab import Lab
from tests.support import tcp_states, wait_until


def end_while_it_starts(fault: Fault, delay: float) -> None:
    """End a fault `delay` seconds after its start began in another thread; it takes below 3 s."""

    def enter() -> None:
        with contextlib.suppress(Stopped):
            fault.__enter__()

    thread = threading.Thread(target=enter)
    thread.start()
    time.sleep(delay)
    begun = time.monotonic()
    fault.end()
    assert time.monotonic() - begun < 3
    thread.join()


def connections(lab: Lab, via: str) -> int:
    """The established connections on the port of that endpoint."""
    return tcp_states(lab.server(via).port)["ESTABLISHED"]


def wait_for_connections(lab: Lab, via: str, count: int) -> None:
    """Wait until there are so many; those that end, and all when others' come and go, are read
    more than once or not at all.
    """
    wait_until(lambda: connections(lab, via) == count, f"{count} connections on {via}")
