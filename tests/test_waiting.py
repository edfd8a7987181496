"""Calls that nothing interrupts: what they return and raise, and that they are left behind."""

from __future__ import annotations

import threading
import time

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import DeadlineError
from check_pgsock.waiting import call_within


def test_what_a_call_returns_and_raises() -> None:
    deadline = Deadline(5)
    assert call_within(deadline, lambda: 7) == 7
    assert call_within(deadline, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        call_within(deadline, lambda: 1 // 0)


def test_a_call_that_does_not_end() -> None:
    ending = threading.Event()
    deadline = Deadline(0.2)
    deadline.doing = "waiting for what does not come"
    began = time.monotonic()
    try:
        with pytest.raises(DeadlineError, match="ran out while waiting for what does not come"):
            call_within(deadline, ending.wait)
        assert 0.2 <= time.monotonic() - began < 2
    finally:
        ending.set()
