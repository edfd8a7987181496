"""Options of several executables, from a command line to what was chosen; pure."""

from __future__ import annotations

from argparse import Namespace

import pytest

from check_pgsock import options as opts
from check_pgsock.command_line import Parser
from check_pgsock.contract import Judged
from check_pgsock.errors import UsageError

JUDGED = (
    Judged("slots", "slots in use", "80%", "90%", percent_of="the limit"),
    Judged("wait_ratio", "part of the time", warning="5"),
)


def parse(*arguments: str) -> Namespace:
    """The options of a check that judges JUDGED, validated."""
    parser = Parser("check_pgsock_test", "")
    opts.add_threshold_options(parser, JUDGED)
    opts.add_leg_options(parser.add_argument_group("sockets"), "server", "client")
    options = parser.parse(arguments)
    opts.validate_thresholds(options, parser, JUDGED)
    return options


def chosen(options: Namespace) -> list[tuple[str, str, str]]:
    """The thresholds: label, word, range."""
    found = opts.chosen_thresholds(options, JUDGED)
    return [(one.label, word, str(threshold)) for one, word, threshold in found]


def test_thresholds_are_those_by_default() -> None:
    options = parse()
    assert chosen(options) == [
        ("slots", "warning", "80%"),
        ("slots", "critical", "90%"),
        ("wait_ratio", "warning", "5"),
    ]
    assert options.given_thresholds == {}


def test_thresholds_that_are_given_are_noted() -> None:
    options = parse("-w", "80%", "--wait-ratio-critical", "-5:9", "--wait-ratio-warning=7")
    assert chosen(options) == [
        ("slots", "warning", "80%"),
        ("slots", "critical", "90%"),
        ("wait_ratio", "warning", "7"),
        ("wait_ratio", "critical", "-5:9"),
    ]
    assert options.given_thresholds == {
        "slots": ["--warning"],  # also where it says what the default does
        "wait_ratio": ["--wait-ratio-warning", "--wait-ratio-critical"],
    }


def test_to_switch_a_threshold_off_is_not_to_rely_on_it() -> None:
    options = parse("-c", "~:", "--wait-ratio-warning", "~:")
    assert options.given_thresholds == {}


def test_a_percentage_of_nothing() -> None:
    with pytest.raises(UsageError) as caught:
        parse("--wait-ratio-critical", "5%")
    assert str(caught.value) == (
        "'5%': wait_ratio is judged in absolute numbers, without %; see check_pgsock_test --help"
    )


@pytest.mark.parametrize("option", ["--peer", "--exclude-peer"])
def test_a_host_is_told_from_a_network(option: str) -> None:
    assert not opts.names_host(parse())
    assert not opts.names_host(parse(option, "10.0.0.0/8"))
    assert opts.names_host(parse(option, "10.0.0.0/8", option, "db.example"))
    assert not opts.names_host(Namespace())  # of a check without peers
