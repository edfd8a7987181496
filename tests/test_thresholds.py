"""Threshold ranges: what is a range, and where a percentage falls."""

from __future__ import annotations

import pytest

from check_pgsock.thresholds import Threshold


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("10", None, "10"),
        ("0", None, "0"),
        ("0.5", None, "0.5"),
        ("10:", None, "10:"),
        ("~:5", None, "~:5"),
        ("~:", None, "~:"),
        ("-5:5", None, "-5:5"),
        ("@1:9", None, "@1:9"),
        ("@9", None, "@9"),
        ("80%", 97, "77"),  # 77.6 rounds down: 78 of 97 is above 80 %
        ("90%", 97, "87"),
        ("100%", 97, "97"),
        ("70%", 10, "7"),
        ("33.3%", 1000, "333"),
        ("20%:", 97, "20:"),  # 19.4 rounds up: 19 of 97 is below 20 %
        ("~:80%", 97, "~:77"),
        ("@10%:20%", 97, "@10:19"),
        ("5:80%", 97, "5:77"),
        ("-10%:", 97, "-9:"),
    ],
)
def test_absolute(text: str, base: int | None, expected: str) -> None:
    assert Threshold(text).absolute(base) == expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("10:", 9, True),
        ("10:", 10, False),
        ("10", 11, False),
        ("10%:80%", 9, True),
        ("10%:80%", 81, False),
        ("~:5", -1, False),
        ("@10:20", 9, False),
    ],
)
def test_values_below_the_start(text: str, value: int, expected: bool) -> None:
    assert Threshold(text).is_above(value, 97) is expected


@pytest.mark.parametrize(
    "text",
    ["", "@", ":", "abc", "10:5", "80%:70%", "1e3", "inf", "nan", "1k", "5.", "--5", "1:2:3", " 5",
     "80 %", "%", "~", "5:~", "٣"],
)  # fmt: skip
def test_no_range(text: str) -> None:
    with pytest.raises(ValueError):
        Threshold(text)


def test_a_percentage_needs_something_it_is_of() -> None:
    with pytest.raises(ValueError, match="nothing it is of"):
        Threshold("80%").absolute(None)


def test_bounds_that_cross_once_they_are_absolute() -> None:
    with pytest.raises(ValueError, match="starts above its end"):
        Threshold("50:10%").absolute(97)
