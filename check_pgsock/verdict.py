"""How a check's process ends: one verdict, printed once, whichever thread comes first.

Nothing is ever written to stderr: Icinga 2 puts it before the status line.
"""

import os
import select
import signal
import sys
import threading

from check_pgsock.deadline import Deadline
from check_pgsock.errors import PgsockError
from check_pgsock.text import clean, clip_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

FIRST_LINE_LIMIT = 990  # bytes; NRPE's old protocol cuts everything at 1,024
LEAST_HEAD = 240  # bytes of the first line that perfdata never takes: state and sentence
LONG_OUTPUT_LIMIT = 60  # lines
_EXIT = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def silence() -> None:
    """Let nothing reach stderr; end the process where standard output is closed."""
    if sys.stdout is None:
        os._exit(3)  # closed: nobody would read the verdict
    # libpq warns on stderr, and Icinga 2 puts stderr before the status line.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_thread(target: "Callable[..., None]", *arguments: object) -> None:
    """Start a thread that ends with the process; raises OSError where there is none to be had."""
    try:
        threading.Thread(target=target, args=arguments, daemon=True).start()
    except RuntimeError as error:  # what Python makes of EAGAIN
        raise OSError(str(error)) from error


def catch_sigterm() -> int:
    """Return a descriptor that becomes readable with SIGTERM, whatever the main thread is in.

    The handler of Python itself runs only between two steps of the main thread; the byte in the
    pipe is written by the one of C.
    """
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _join(perfdata: "list[str]", most: int) -> str:
    """The perfdata as it follows the sentence, at most so many bytes: what comes last and does not
    fit is left out whole, since half a number is a wrong one.
    """
    tail = ""
    for one in perfdata:
        longer = f"{tail} {one}" if tail else f" | {one}"
        if len(longer.encode()) > most:
            break
        tail = longer
    return tail


class Output:
    """Prints the one verdict of the process, from whichever thread comes first."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()

    def watch(self, deadline: Deadline, ended: int) -> None:
        """Wait for the deadline or for SIGTERM, then end the process as UNKNOWN.

        A thread, since no signal handler of Python runs while the main thread is inside a system
        call or name resolution.
        """
        while True:
            try:
                if select.select([ended], [], [], deadline.remaining())[0]:
                    self.end("UNKNOWN", f"ended by SIGTERM while {deadline.doing}", [], [])
            except PgsockError as error:
                self.end("UNKNOWN", str(error), [], [])

    def end(
        self, state: str, sentence: str, perfdata: "list[str]", lines: "list[str]"
    ) -> "NoReturn":
        """Print the verdict and end the process with its exit code."""
        head = clean(f"{self._prefix} {state} - {sentence}", 4000)
        most = FIRST_LINE_LIMIT - min(len(head.encode("utf-8", "replace")), LEAST_HEAD)
        tail = _join(perfdata, most)
        first = clip_bytes(head, FIRST_LINE_LIMIT - len(tail.encode())) + tail
        long = [clean(line, 500) for line in lines[:LONG_OUTPUT_LIMIT]]
        self.raw("\n".join([first, *long]) + "\n", _EXIT[state])

    def raw(self, text: str, code: int) -> "NoReturn":
        """Print `text` and end the process, without waiting for anything else in it."""
        if not self._lock.acquire(timeout=1):
            os._exit(3)
        data = text.encode("utf-8", "replace")
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            code = 3  # nobody reads the verdict
        os._exit(code)
