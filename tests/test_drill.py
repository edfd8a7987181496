"""The drill: its matrix and how it tells states, and the drill itself on real servers."""

from __future__ import annotations

import configparser
import io
import json
import re
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from check_pgsock.pgsock.lab.command import SHORT
from check_pgsock.pgsock.lab.drill import Cell, first_telling, said_by_polling, worst
from check_pgsock.pgsock.lab.drill_table import print_cells, verdict
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.matrix import matrix, parse
from check_pgsock.pgsock.lab.polling import VISIBLE
from check_pgsock.pgsock.lab.services import SERVICES, Run
from tests import support
from tests.proving import Proof

CELL = Cell(
    "stall:patient", "saturation", "saturation", "CRITICAL", "OK", "CRITICAL", "OK", 1.0, "", None,
    "PGSOCK_SATURATION CRITICAL - more",
)  # fmt: skip


def runs(*states: str) -> list[Run]:
    return [Run(float(n), n + 0.5, state, state) for n, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), "OK"),
        (("CRITICAL",), "OK"),
        (("OK", "CRITICAL", "OK", "UNKNOWN"), "OK"),
        (("OK", "WARNING", "CRITICAL", "WARNING"), "CRITICAL"),
        (("UNKNOWN", "UNKNOWN"), "UNKNOWN"),
        (("UNKNOWN", "WARNING", "OK"), "WARNING"),
        (("CRITICAL", "CRITICAL", "OK", "UNKNOWN", "UNKNOWN"), "CRITICAL"),
    ],
)
def test_a_state_counts_when_a_second_run_confirms_it(
    states: tuple[str, ...], expected: str
) -> None:
    assert worst(runs(*states)) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), None),
        (("OK", "CRITICAL", "OK", "WARNING"), None),
        (("UNKNOWN", "UNKNOWN", "CRITICAL"), None),
        (("OK", "WARNING", "CRITICAL"), 1),
    ],
)
def test_the_first_of_two_telling_runs_is_the_detection(
    states: tuple[str, ...], expected: int | None
) -> None:
    all_runs = runs(*states)
    assert first_telling(all_runs) == (None if expected is None else all_runs[expected])


@pytest.mark.parametrize(
    ("states", "begun", "expected"),
    [
        ((), 0, "UNKNOWN"),
        (("UNKNOWN",), 0, "UNKNOWN"),
        (("OK", "UNKNOWN"), 0, "OK"),
        (("OK", "UNKNOWN"), 0.5, "UNKNOWN"),  # the answer is to what was asked before
        (("UNKNOWN", "CRITICAL", "CRITICAL"), 0, "CRITICAL"),
    ],
)
def test_polling_that_got_no_answer_missed_nothing(
    states: tuple[str, ...], begun: float, expected: str
) -> None:
    assert said_by_polling(runs(*states), begun) == expected


def test_the_matrix_is_read_by_line() -> None:
    text = "# why\n\nfault a b\none none CRITICAL\n  # more\ntwo UNKNOWN none\n"
    assert parse(text) == {
        "one": {"a": "OK", "b": "CRITICAL"},
        "two": {"a": "UNKNOWN", "b": "OK"},
    }


@pytest.mark.parametrize("row", ["one none", "one none none none", "one none FINE", "two none OK"])
def test_a_row_that_is_none_is_named(row: str) -> None:
    with pytest.raises(LabError, match=f"^matrix line 3: '{row}' is no row of states$"):
        parse(f"fault a b\ntwo none none\n{row}\n")


def offered() -> set[str]:
    """What `pgsock lab faults` offers: `name:{kind,kind}[@endpoint]`, what it is, and its size."""
    done = support.run("pgsock", "lab", "faults")
    assert (done.code, done.err) == (0, "")
    found: set[str] = set()
    for line in done.out.splitlines():
        if not line.startswith(" "):
            match = re.fullmatch(r"([a-z-]+)(?::\{([a-z,-]+)\})?(?:\[(@[a-z]+)\])?", line)
            assert match is not None
            name, kinds, via = match.groups()
            for kind in kinds.split(",") if kinds else [""]:
                label = f"{name}:{kind}" if kind else name
                found.update((label, f"{label}{via or ''}"))
    return found


def test_the_matrix_names_every_fault_and_every_check() -> None:
    assert set(matrix()) == offered()
    names = [service.name for service in SERVICES]
    assert all(list(row) == names for row in matrix().values())
    setup = configparser.ConfigParser()
    setup.read(support.ROOT / "setup.cfg", encoding="utf-8")
    scripts = setup["options.entry_points"]["console_scripts"]
    checks = re.findall(r"^check_pgsock_(\w+) *=", scripts, re.MULTILINE)
    assert {service.check for service in SERVICES} == set(checks)


def test_a_fault_that_was_named_and_left_out_is_a_failure() -> None:
    support.require("system-python")
    done = support.run("pgsock", "lab", "drill", "vanish", user="nobody")
    assert done == (
        1,
        "left out: vanish: only root can make a second host\n"
        "nothing was compared; everything is stopped and removed; took 0 s\n",
        "",
    )


@pytest.mark.parametrize(
    ("faults", "code", "seen"),
    [
        ([], 0, "1 of 1 row as expected"),
        (["stall:patient", "vanish"], 1, "1 of 1 row as expected, but vanish left out"),
    ],
)
def test_what_is_left_out_of_a_drill_is_summed_up(faults: list[str], code: int, seen: str) -> None:
    told = verdict([CELL], faults, {"vanish": "why"}, 2.0)
    assert told == (code, f"{seen}; everything is stopped and removed; took 2 s")


def test_the_table_cuts_nothing() -> None:
    longest = max(matrix(), key=len)
    cell = CELL._replace(
        fault=longest, service=max((s.name for s in SERVICES), key=len), seconds=12.34,
        polling="CRITICAL", polling_seconds=12.34,
    )  # fmt: skip
    output = io.StringIO()
    console = Console(file=output, width=120)
    print_cells(console, [cell, cell._replace(expected="OK")], len(longest), with_header=True)
    header, first, second = output.getvalue().splitlines()
    assert header.split() == [
        "fault", "check", "expected", "before", "during", "after", "socket", "polling",
    ]  # fmt: skip
    words = [cell.service, "CRITICAL", "OK", "CRITICAL", "OK", "12.3", "s", "12.3", "s"]
    assert first.split() == [longest, *words]
    words[1:2], words[7:7] = ["OK"], ["false"]
    assert second.split() == [*words, "WRONG"]


def test_every_check_tells_of_a_fault_in_the_short_drill() -> None:
    told = {
        service.check
        for service in SERVICES
        for label in SHORT
        if matrix()[label][service.name] != "OK"
    }
    assert told == {service.check for service in SERVICES}


class Drill(NamedTuple):
    """A drill that ended: its rows, and the faults left out with the reason."""

    rows: list[dict[str, Any]]
    left_out: dict[str, str]


def drill(*arguments: str, major: int) -> Drill:
    """The JSON of a drill, whose exit code fits it."""
    support.require(f"postgresql-{major}")
    directory = support.postgres_directories().get(major)
    where = [] if directory is None else ["--pg-bin", str(directory)]
    command = [sys.executable, "-m", "check_pgsock.pgsock.main", "lab", "drill", "--json"]
    done = subprocess.run(
        [*command, *where, *arguments], capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.stderr == ""
    found = Drill(**json.loads(done.stdout))
    is_right = all(row["as_expected"] for row in found.rows)
    assert done.returncode == (0 if is_right and not set(arguments) & set(found.left_out) else 1)
    return found


@pytest.mark.parametrize(
    ("major", "labels"),
    [(18, ("undersize", "churn:reset")), (15, ("stall:patient", "failover"))],
    ids=["pg18", "pg15"],
)
def test_a_drill_equals_the_matrix(major: int, labels: tuple[str, ...]) -> None:
    support.require("pgbouncer")
    found = drill(*labels, major=major)
    assert found.left_out == {}
    seen: dict[str, dict[str, object]] = {}
    for row in found.rows:
        assert (row["before"], row["after"]) == ("OK", "OK")
        seen.setdefault(str(row["fault"]), {})[str(row["service"])] = row["during"]
    assert seen == {label: matrix()[label] for label in labels}
    polled = {row["service"] for row in found.rows if row["polling"] is not None}
    assert polled == set(VISIBLE)


@pytest.mark.prove
@pytest.mark.parametrize("major", support.ALL_MAJORS)
def test_the_whole_drill_equals_the_matrix(major: int, proof: Proof) -> None:
    support.require("root")
    support.require("pgbouncer")
    found = drill(major=major)
    right = [row for row in found.rows if row["as_expected"]]
    proof(
        f"drill on PostgreSQL {major} with PgBouncer",
        f"{len(right)} of {len(found.rows)} rows as in the matrix, all OK after",
        goal=f"{len(matrix()) * len(SERVICES)}",
        met=len(right) == len(matrix()) * len(SERVICES),
    )
    told = [row for row in found.rows if row["detection_seconds"] is not None]
    polled = [row for row in told if row["polling_detection_seconds"] is not None]
    seconds = statistics.median(row["detection_seconds"] for row in told)
    in_both = statistics.median(row["detection_seconds"] for row in polled)
    polling = statistics.median(row["polling_detection_seconds"] for row in polled)
    proof(
        f"faults told on PostgreSQL {major}",
        f"{len(told)} by sockets, median {seconds:.1f} s; {len(polled)} of them by polling too: "
        f"median {polling:.1f} s, there {in_both:.1f} s by sockets",
    )
    wrong = [(row["fault"], row["service"], row["line"]) for row in found.rows if row not in right]
    assert (wrong, found.left_out) == ([], {})
