"""Signals that ask for the end, noted so that what is started and what is removed stay in step."""

from __future__ import annotations

import contextlib
import os
import signal


class Interrupted(Exception):
    """A signal asked for the end."""


class Signals:
    """A context manager that takes note of the signals that ask for the end.

    Its handler raises nothing: check() does, where it can be. `wakeup` is a descriptor that
    becomes readable with the first signal, for whoever waits.
    """

    def __init__(self) -> None:
        self.received = 0
        self.wakeup = -1
        self._write = -1
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        self.wakeup, self._write = os.pipe()
        for descriptor in (self.wakeup, self._write):
            self._stack.callback(os.close, descriptor)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._stack.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.received:
            raise Interrupted

    def _note(self, number: int, _: object) -> None:
        if not self.received:
            os.write(self._write, b"!")
        self.received = number
