"""The parser of every executable: what argparse gets wrong for a plugin.

argparse exits 2 on a usage error, which a monitoring system reads as CRITICAL, and takes a range
that begins with `-` for an option. Here every usage error is a UsageError: one sentence, exit 3.
"""

import argparse

from check_pgsock import __version__
from check_pgsock.errors import UsageError
from check_pgsock.thresholds import CHARACTERS, Threshold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable, NoReturn, Optional


class Shown(Exception):
    """Help or version was asked for: the text to print, instead of a check."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that neither prints nor exits, and knows options that take ranges."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._range_options: set[str] = set()

    def add_range(
        self,
        group: "argparse._ArgumentGroup",
        *names: str,
        default: "Optional[str]",
        help: str,
    ) -> None:
        """Add an option whose value is a threshold range to `group`."""
        self._range_options.update(names)
        group.add_argument(
            *names,
            metavar="RANGE",
            type=argument(Threshold),
            default=None if default is None else Threshold(default),
            help=f"{help} (default: {default or 'none'})".replace("%", "%%"),
        )

    def parse(self, arguments: "Sequence[str]") -> argparse.Namespace:
        """Parse; raises UsageError, or Shown for --help and --version."""
        joined: list[str] = []
        pending: Optional[str] = None
        for one in arguments:
            if pending is not None and one[:1] == "-" and CHARACTERS.issuperset(one):
                joined[-1] = f"{pending}={one}" if pending.startswith("--") else pending + one
                pending = None
                continue
            joined.append(one)
            pending = one if one in self._range_options else None
        options, rest = self.parse_known_args(joined)
        if rest:
            self.error(f"unknown option {' '.join(rest)}")
        return options

    def error(self, message: str) -> "NoReturn":
        """Raise what argparse would print."""
        raise UsageError(f"{message}; see {self.prog} --help")


class Show(argparse.Action):
    """The action of --help and --version: raises Shown."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: "Optional[str]" = None,
    ) -> None:
        if self.dest == "help":
            raise Shown(parser.format_help())
        raise Shown(f"{parser.prog} {__version__}\n")


class argument:
    """Wrap a parser of one value so that its ValueError becomes argparse's error sentence."""

    def __init__(self, parse: "Callable[[str], object]") -> None:
        self._parse = parse

    def __call__(self, text: str) -> object:
        try:
            return self._parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
