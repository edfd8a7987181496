"""Proofs: kept by the state of the tree, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import proving
from tests.proving import FAILED, PASSED, SKIPPED, Line, Result, Row

DRILL = Result(
    "tests/test_drill.py::test_drill[pg14]",
    PASSED,
    61.25,
    (Row("drill on PostgreSQL 14", "102 of 102 rows"), Row("detection", "0.8 s", "<= 1 s")),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("check_pgsock", "tests", "tests/data", "bench", "icinga", "nrpe"):
        (tmp_path / name).mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "tests/data/one", "tests/test_a.py"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_state_of_a_tree_is_its_sources(tree: Path) -> None:
    state = proving.tree_state(tree)
    assert state == proving.tree_state(tree)
    assert state != proving.tree_state(tree, "3.11")
    assert proving.tree_state(tree, "a", "b") != proving.tree_state(tree, "ab")
    (tree / "README.md").write_text("new")
    (tree / "tests" / "test_a.pyc").write_text("compiled")
    assert proving.tree_state(tree) == state


@pytest.mark.parametrize("change", ["content", "name", "new", "moved text", "gone"])
def test_any_change_of_a_source_is_another_state(tree: Path, change: str) -> None:
    state = proving.tree_state(tree)
    path = tree / "tests" / "data" / "one"
    if change == "content":
        path.write_text("two")
    elif change == "name":
        path.rename(path.with_name("two"))
    elif change == "new":
        path.with_name("two").touch()
    elif change == "moved text":
        path.write_text("")
        (tree / "tests" / "test_a.py").write_text("tests/data/onetests/test_a.py")
    else:
        path.unlink()
    assert proving.tree_state(tree) != state


def test_results_are_kept_by_the_state_of_the_tree() -> None:
    failed = Result("tests/test_a.py::test_a", FAILED, 1.0)
    text = proving.format_result("new", DRILL) + proving.format_result("new", failed)
    text += proving.format_result("old", failed._replace(test="tests/test_a.py::test_b"))
    assert proving.parse_results(text, "new") == {DRILL.test: DRILL, failed.test: failed}
    text += proving.format_result("new", failed._replace(outcome=PASSED))
    assert proving.parse_results(text, "new")[failed.test].outcome == PASSED
    assert proving.parse_results("", "new") == {}


def test_a_line_that_was_cut_off_is_no_result() -> None:
    text = proving.format_result("new", DRILL)
    assert proving.parse_results(text[:-9], "new") == {}
    assert proving.parse_results(f"{text[:-9]}\n{text}", "new") == {DRILL.test: DRILL}


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        (["passed", "passed", "passed"], PASSED),
        (["passed", "passed", "failed"], FAILED),
        (["passed", "skipped", "failed"], FAILED),
        (["skipped", "passed"], SKIPPED),
    ],
)
def test_outcome(phases: list[str], outcome: str) -> None:
    assert proving.outcome_of(phases) == outcome


def test_a_test_that_says_what_it_proved_has_a_line_for_each() -> None:
    missed = DRILL._replace(
        test="tests/test_drill.py::test_drill[pg15]",
        outcome=FAILED,
        rows=(DRILL.rows[0], Row("detection", "1.8 s", "<= 1 s", met=False)),
    )
    assert proving.lines_of([DRILL, missed], earlier={DRILL.test}) == [
        Line("drill on PostgreSQL 14", "102 of 102 rows", "", "passed (kept)", 61.25),
        Line("detection", "0.8 s", "<= 1 s", "passed (kept)", None),
        Line("drill on PostgreSQL 14", "102 of 102 rows", "", "passed", 61.25),
        Line("detection", "1.8 s", "<= 1 s", "FAILED", None),
    ]


def test_a_failure_beside_goals_that_are_met_has_a_line_of_its_own() -> None:
    assert proving.lines_of([DRILL._replace(outcome=FAILED)])[2:] == [
        Line("test_drill.py::test_drill", "1 FAILED", "", "FAILED", 61.25)
    ]


def test_tests_that_say_nothing_have_a_line_by_function() -> None:
    results = [
        Result(f"tests/test_a.py::test_a[{n}]", outcome, 1.0)
        for n, outcome in enumerate([PASSED, PASSED, SKIPPED, FAILED])
    ]
    lone = Result("tests/test_a.py::test_b", SKIPPED, 0.25)
    assert proving.lines_of([*results, lone]) == [
        Line("test_a.py::test_a", "2 passed, 1 skipped, 1 FAILED", "", "FAILED", 4.0),
        Line("test_a.py::test_b", "1 skipped", "", "skipped", 0.25),
    ]
    two = {results[0].test, results[1].test}
    assert proving.lines_of(results[:2], earlier=two)[0].outcome == "passed (kept)"
    assert proving.lines_of(results[:3], earlier=two)[0].outcome == "skipped"


def test_summary() -> None:
    failed = DRILL._replace(outcome=FAILED)
    assert proving.summarize([DRILL, failed, failed], earlier=["one"]) == (
        "3 proofs: 1 passed, 2 FAILED (1 kept from earlier runs on this tree)"
    )
    assert proving.summarize([DRILL]) == "1 proof: 1 passed"
    assert proving.summarize([]) == "0 proofs"


def test_the_table_is_text_and_nothing_of_it_is_lost() -> None:
    lines = [
        Line("test_a.py::test_a", "[red]5 passed", "", "passed", 12.34),
        Line("word " * 30, "x" * 90, "<= 1 s", "FAILED (kept)", None),
    ]
    text = proving.render(lines, 100, color=False)
    assert max(map(len, text.splitlines())) <= 100
    assert (text.count("word"), text.count("x")) == (30, 90)
    assert text.split()[:8] == [
        "What", "is", "proven", "proof", "measured", "goal", "outcome", "seconds",
    ]  # fmt: skip
    for word in ("test_a.py::test_a", "[red]5 passed", "12.3", "<= 1 s", "FAILED"):
        assert word in text
    assert "\x1b" in proving.render(lines, 100, color=True)
