"""The operator's tool: `pgsock COMMAND`."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from typing import NoReturn

from check_pgsock import __version__
from check_pgsock.errors import PgsockError
from check_pgsock.pgsock import connections, listeners, record, states
from check_pgsock.pgsock.lab import command as lab

_ERROR = 3


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one sentence and the exit code of every error."""

    def error(self, message: str) -> NoReturn:
        self.exit(_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def main() -> int:
    """Entry point of `pgsock`; exit code 3 with one sentence on stderr for errors."""
    parser = _Parser(prog="pgsock", description="What the kernel knows of PostgreSQL connections.")
    parser.add_argument("-V", "--version", action="version", version=f"pgsock {__version__}")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    connections.add_parser(parsers)
    lab.add_parser(parsers)
    listeners.add_parser(parsers)
    record.add_parser(parsers)
    states.add_parser(parsers)
    if sys.stdout is None:
        return _ERROR  # closed: nobody would read an answer
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not fit the terminal
    options = parser.parse_args()
    try:
        return int(options.run(options))
    except PgsockError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        # What could not be written is not to be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE  # `| head` has seen enough
        print(f"{parser.prog}: {error}", file=sys.stderr)
    return _ERROR


if __name__ == "__main__":
    sys.exit(main())
