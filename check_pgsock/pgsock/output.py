"""What the tools have in common: where they look, and how they print what they found.

A tool makes rows of plain values, with the keys of its JSON; a table shows some of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from check_pgsock import options as opts
from check_pgsock.command_line import argument
from check_pgsock.deadline import Deadline
from check_pgsock.host_names import resolve_peers
from check_pgsock.option_values import parse_seconds
from check_pgsock.text import clean
from check_pgsock.view import View, open_view

DEFAULT_TIMEOUT = 30.0

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table: the key of its values, its heading, and how a value is written."""

    key: str
    heading: str
    write: Callable[[Any], str] | None = None
    right: bool = False


def with_json(epilog: str, doc: str | None) -> str:
    """What --help ends with: the examples, and the part on JSON of the module's docstring."""
    text = doc or ""
    return f"{epilog.rstrip()}\n\n{text[text.index('JSON:') :].rstrip()}\n"


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """The options of every tool that reads sockets: where, for how long at most, and for whom."""
    group = parser.add_argument_group("where to look")
    opts.add_view_options(group)
    parser.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=argument(parse_seconds),
        default=DEFAULT_TIMEOUT, help=f"give up after this time (default: {DEFAULT_TIMEOUT:g})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for machines")


def open_tool_view(options: argparse.Namespace) -> View:
    """What the options of add_view_options() choose; peers that are host names are resolved."""
    opts.validate_view_options(options)
    deadline = Deadline(options.timeout)
    resolve_peers(options, deadline)
    return open_view(options, deadline)


def print_json(command: str, values: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Print one JSON object: `command`, `version` of this format, the `values`, and `notes`."""
    whole = {"command": command, "version": 1, **values, "notes": list(notes)}
    # What a name from outside holds beyond UTF-8 stays escaped: the output is ASCII.
    print(json.dumps(whole, indent=1), flush=True)


def print_table(columns: Sequence[Column], rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print a table, and the notes below it. Nothing in it can act on the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000, highlight=False)  # whoever reads it cuts it
    table = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for column in columns:
        table.add_column(
            column.heading, justify="right" if column.right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_write(column, row.get(column.key))) for column in columns))
    with console.capture() as captured:
        console.print(table)
        for note in notes:
            console.print(Text(clean(note, 500)), style="dim", soft_wrap=True)
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    print(text, end="", flush=True)


def _write(column: Column, value: Any) -> str:
    if value is None:
        return "-"
    return clean(str(value) if column.write is None else column.write(value), 200)
