"""The drill's table for a terminal, its values for machines, and its verdict."""

from __future__ import annotations

from collections.abc import Container, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from check_pgsock.pgsock.lab.drill import Cell
from check_pgsock.text import plural

_COLOURS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "red", "UNKNOWN": "magenta"}
_COLUMNS = (
    ("check", 20), ("expected", 8), ("before", 8), ("during", 8), ("after", 8), ("socket", 7),
    ("polling", 12), ("", 5),
)  # fmt: skip


def print_cells(console: Console, cells: Sequence[Cell], longest: int, with_header: bool) -> None:
    """Print one fault's rows. The table is printed a fault at a time: `longest` is the width of the
    longest fault's name.
    """
    table = Table(box=None, show_header=with_header, pad_edge=False, collapse_padding=True)
    for title, width in (("fault", longest), *_COLUMNS):
        table.add_column(title, width=width, no_wrap=True, overflow="ellipsis")
    for number, cell in enumerate(cells):
        table.add_row(
            "" if number else cell.fault,
            cell.service,
            _state(cell.expected),
            _state(cell.before),
            _state(cell.during),
            _state(cell.after),
            _seconds(cell.seconds),
            _polling(cell),
            Text("" if cell.as_expected else "WRONG", style="bold red"),
            style="dim" if number and cell.as_expected and cell.expected == "OK" else "",
        )
    console.print(table)


def values(cell: Cell) -> dict[str, object]:
    """The cell as JSON has it: durations in seconds, null where there is none."""
    found = cell._asdict()
    for name in ("seconds", "polling_seconds"):
        value = found.pop(name)
        key = "detection_seconds" if name == "seconds" else "polling_detection_seconds"
        found[key] = None if value is None else round(value, 3)
    found["polling"] = cell.polling or None
    found["as_expected"] = cell.as_expected
    return found


def verdict(
    cells: Sequence[Cell], named: Sequence[str], left_out: Container[str], seconds: float
) -> tuple[int, str]:
    """A drill's exit code and summary: 0 where all cells are as expected, there are any, and no
    fault that was `named` was left out; else 1. It took so many `seconds`.
    """
    wrong = [cell for cell in cells if not cell.as_expected]
    missing = [label for label in named if label in left_out]
    seen = f"{len(cells) - len(wrong)} of {plural(len(cells), 'row')} as expected"
    if not cells:
        seen = "nothing was compared"
    elif missing:
        seen += f", but {', '.join(missing)} left out"
    lines = [f"{cell.fault}, {cell.service}: {cell.line}" for cell in wrong]
    lines.append(f"{seen}; everything is stopped and removed; took {seconds:.0f} s")
    return (1 if wrong or missing or not cells else 0), "\n".join(lines)


def _state(state: str) -> Text:
    return Text(state or "not seen", style=_COLOURS.get(state, "bold red"))


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _polling(cell: Cell) -> str:
    """When polling pg_stat_activity told, or why it did not where the check did."""
    if cell.polling_seconds is not None:
        told = _seconds(cell.polling_seconds)
        return told if cell.expected != "OK" else f"false {told}"
    if cell.polling == "UNKNOWN":
        return "no answer"
    if cell.seconds is None:
        return ""
    return "missed" if cell.polling else "blind"
