"""The drill: its matrix and how it tells states, and the drill itself on real servers."""

from __future__ import annotations

import configparser
import json
import re
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from check_pgsock.pgsock.lab.command import SHORT
from check_pgsock.pgsock.lab.drill import first_telling, worst
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.faults import FAULTS
from check_pgsock.pgsock.lab.matrix import matrix, parse
from check_pgsock.pgsock.lab.services import SERVICES, Run
from tests import support
from tests.proving import Proof

# Faults whose kinds may be missing here: none. On an endpoint other than their first one those
# that the checks see there have a row.
ELSEWHERE = {"saturate@pgbouncer", "churn:plain@pgbouncer", "churn:tls@pgbouncer"}


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


def test_the_matrix_names_every_fault_and_every_check() -> None:
    rows = set(matrix())
    own = {
        f"{fault.name}:{kind}" if kind else fault.name
        for fault in FAULTS.values()
        for kind in fault.kinds
    }
    assert rows == own | ELSEWHERE
    names = [service.name for service in SERVICES]
    assert all(list(row) == names for row in matrix().values())
    setup = configparser.ConfigParser()
    setup.read(support.ROOT / "setup.cfg", encoding="utf-8")
    scripts = setup["options.entry_points"]["console_scripts"]
    checks = re.findall(r"^check_pgsock_(\w+) *=", scripts, re.MULTILINE)
    assert {service.check for service in SERVICES} == set(checks)


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
    assert done.returncode == (0 if all(row["as_expected"] for row in found.rows) else 1)
    return found


@pytest.mark.parametrize(
    ("major", "labels"),
    [(18, ("saturate", "churn:tls@pgbouncer")), (15, ("stall:patient", "failover"))],
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
