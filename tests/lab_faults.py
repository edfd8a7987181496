"""What the tests of faults share."""

from __future__ import annotations

import contextlib
import threading
import time

from check_pgsock.pgsock.lab.faults.fault import Fault, Stopped


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
