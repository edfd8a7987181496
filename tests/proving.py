"""Proofs: what `make prove` measured, kept by the state of the tree, and shown as a table.

A test takes the fixture `proof` and says what it proved in one row or several:

    @pytest.mark.prove
    def test_the_drill(proof: Proof, lab: Lab) -> None:
        ...
        proof(f"drill on PostgreSQL {lab.binaries.major}", f"{equal} of {rows} rows as expected")
        proof("detection by the socket check", f"{median:.2f} s", goal="<= 1 s", met=median <= 1)

A goal that is not met fails the test, after its other rows. Tests that say nothing get a row by
their name, all cases of a function together.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Collection, Generator, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from check_pgsock.text import plural

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"

# Columns of the table, where the terminal has no more.
_WIDTH = 120
# What the outcome of a test may depend on.
_SOURCES = ("bench", "check_pgsock", "icinga", "nrpe", "tests", "pyproject.toml", "setup.cfg")


class Row(NamedTuple):
    """One thing proven: what, the numbers measured, and the goal ("" without one)."""

    what: str
    measured: str
    goal: str = ""
    met: bool = True


class Proof(Protocol):
    """How the fixture `proof` is called."""

    def __call__(self, what: str, measured: str, *, goal: str = "", met: bool = True) -> None: ...


class Result(NamedTuple):
    """How a test ended, and the rows that it gave."""

    test: str
    outcome: str
    seconds: float
    rows: tuple[Row, ...] = ()


class Line(NamedTuple):
    """A line of the table."""

    what: str
    measured: str
    goal: str
    outcome: str
    seconds: float | None


def tree_state(root: Path, *circumstances: str) -> str:
    """What stands for the sources below `root` as they are, and for `circumstances`."""
    whole = hashlib.sha256(json.dumps(circumstances).encode())
    for name in _SOURCES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix != ".pyc":
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                whole.update(f"{path.relative_to(root)}\0{content}\0".encode())
    return whole.hexdigest()[:16]


def format_result(tree: str, result: Result) -> str:
    """The line of a file that keeps `result` for this state of the tree."""
    return json.dumps({"tree": tree, **result._asdict(), "rows": [*map(list, result.rows)]}) + "\n"


def parse_results(text: str, tree: str) -> dict[str, Result]:
    """The latest result of each test on this state of the tree, out of what a file keeps.

    A line that was not written to its end, in a run that was killed, is no result.
    """
    found: dict[str, Result] = {}
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            kept = json.loads(line)
            if kept.pop("tree") == tree:
                rows = tuple(Row(*row) for row in kept.pop("rows"))
                found[kept["test"]] = Result(**kept, rows=rows)
    return found


def outcome_of(phases: Iterable[str]) -> str:
    """The outcome of a test from those of its setup, call and teardown."""
    found = set(phases)
    if "failed" in found:
        return FAILED
    return SKIPPED if "skipped" in found else PASSED


def lines_of(results: Iterable[Result], earlier: Collection[str] = ()) -> list[Line]:
    """The table of `results`; those whose test is in `earlier` are of an earlier run.

    A row each for what was said to be proven; a line for each function whose tests said nothing,
    or failed nevertheless.
    """
    lines: list[Line] = []
    silent: dict[str, list[Result]] = {}
    for result in results:
        seconds: float | None = result.seconds
        for row in result.rows:
            outcome = _say(PASSED if row.met else FAILED, result.test in earlier)
            lines.append(Line(row.what, row.measured, row.goal, outcome, seconds))
            seconds = None  # the test's time is said once
        if not result.rows or (result.outcome != PASSED and all(row.met for row in result.rows)):
            function = result.test.partition("[")[0].removeprefix("tests/")
            silent.setdefault(function, []).append(result)
    for function, group in silent.items():
        counts = {o: sum(r.outcome == o for r in group) for o in (FAILED, SKIPPED, PASSED)}
        outcome = next(o for o, count in counts.items() if count)
        measured = ", ".join(f"{count} {o}" for o, count in reversed(counts.items()) if count)
        of_earlier = all(r.test in earlier for r in group)
        seconds = sum(r.seconds for r in group)
        lines.append(Line(function, measured, "", _say(outcome, of_earlier), seconds))
    return lines


def summarize(results: Collection[Result], earlier: Collection[str] = ()) -> str:
    """The sentence below the table: how many tests proved something, or did not."""
    counts = [(sum(r.outcome == o for r in results), o) for o in (PASSED, FAILED, SKIPPED)]
    said = ", ".join(f"{count} {o}" for count, o in counts if count)
    kept = f" ({len(earlier)} kept from earlier runs on this tree)" if earlier else ""
    return f"{plural(len(results), 'proof')}{': ' if said else ''}{said}{kept}"


def render(lines: Iterable[Line], width: int, color: bool) -> str:
    """The table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, title="What is proven", title_justify="left", expand=True)
    table.add_column("proof", overflow="fold", ratio=5)
    table.add_column("measured", overflow="fold", ratio=4)
    table.add_column("goal", overflow="fold", max_width=20)
    table.add_column("outcome", no_wrap=True)
    table.add_column("seconds", no_wrap=True, justify="right")
    for line in lines:
        style = "red" if FAILED in line.outcome else "yellow" if SKIPPED in line.outcome else ""
        words = (line.what, line.measured, line.goal, line.outcome)
        seconds = "" if line.seconds is None else f"{line.seconds:.1f}"
        table.add_row(*(Text(word, style=style) for word in words), Text(seconds))
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=color, highlight=False).print(table)
    return stream.getvalue()


class Plugin:
    """The prove tier of one pytest run: results go to the file `path`, what passed on this state
    of the tree (and in these circumstances) is not run again, and the table ends the run.
    """

    def __init__(self, path: Path, root: Path, *circumstances: str) -> None:
        self._path = path
        self._root = root
        self._circumstances = circumstances
        self._tree = tree_state(root, *circumstances)
        self._tree_changed = False
        self._earlier: dict[str, Result] = {}
        self._new: dict[str, Result] = {}
        self._phases: dict[str, list[pytest.TestReport]] = {}
        self._left_out = 0

    @pytest.hookimpl(trylast=True)  # after what -m and -k select
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what passed earlier."""
        if self._path.exists():
            self._earlier = parse_results(self._path.read_text(encoding="utf-8"), self._tree)
        passed = {test for test, result in self._earlier.items() if result.outcome == PASSED}
        left_out = [item for item in items if item.nodeid in passed]
        items[:] = [item for item in items if item.nodeid not in passed]
        self._left_out = len(left_out)
        config.hook.pytest_deselected(items=left_out)

    def pytest_report_collectionfinish(self) -> str:
        """Say how much is left out."""
        if not self._left_out:
            return f"proofs are kept in {self._path.name}"
        tests = plural(self._left_out, "test")
        return f"{tests} passed earlier on this tree: remove {self._path.name} to run all again"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the result of a test when it has ended."""
        phases = self._phases.setdefault(report.nodeid, [])
        phases.append(report)
        if report.when == "teardown":
            outcome = outcome_of(phase.outcome for phase in phases)
            seconds = sum(phase.duration for phase in phases)
            proofs = (value for name, value in report.user_properties if name == "proof")
            rows = tuple(Row._make(value) for value in proofs)  # type: ignore[arg-type]
            self._keep(Result(report.nodeid, outcome, seconds, rows))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Nothing left to run is no failure."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._left_out:
            session.exitstatus = pytest.ExitCode.OK

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, None, None]:
        """Show the table below all that pytest has to say."""
        yield
        earlier = {test: r for test, r in self._earlier.items() if test not in self._new}
        results = sorted([*earlier.values(), *self._new.values()])
        width = max(shutil.get_terminal_size().columns, _WIDTH)
        lines = lines_of(results, earlier)
        terminalreporter.write(render(lines, width, terminalreporter.hasmarkup))
        terminalreporter.write_line(summarize(results, earlier))
        if self._tree_changed:
            terminalreporter.write_line("the tree changed meanwhile: later results are not kept")

    def _keep(self, result: Result) -> None:
        self._new[result.test] = result
        if self._tree_changed or tree_state(self._root, *self._circumstances) != self._tree:
            self._tree_changed = True
            return
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(format_result(self._tree, result))


def _say(outcome: str, of_earlier: bool) -> str:
    return f"{outcome} (kept)" if of_earlier else outcome
