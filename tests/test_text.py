"""Text from outside, fit to print."""

from __future__ import annotations

import pytest

from check_pgsock import text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("app", "app"),
        ("a|b\nc\td", "a?b c d"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("caf\u00e9", "caf\u00e9"),
        ("\u202egpj", "?gpj"),  # right-to-left override
        ("\udcff", "?"),  # an undecodable byte
        ("x" * 100, "x" * 77 + "..."),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert text.clean(raw) == expected


def test_clip_bytes_cuts_between_characters() -> None:
    assert text.clip_bytes("caf\u00e9", 5) == "caf\u00e9"
    assert text.clip_bytes("\u00e9\u00e9\u00e9\u00e9", 7) == "\u00e9\u00e9..."
    assert text.clip_bytes("\u00e9\u00e9\u00e9\u00e9", 6) == "\u00e9..."


def test_plural() -> None:
    assert [text.plural(count, "peer") for count in (0, 1, 2)] == ["0 peers", "1 peer", "2 peers"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.26, "0.3 s"),
        (42.4, "42 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (299.4, "4 min"),
        (299.6, "5 min"),
        (7199, "1 h 59 min"),
        (86400, "24 h 00 min"),
        (1036800, "12 d 00 h"),
    ],
)
def test_write_seconds(seconds: float, words: str) -> None:
    assert text.write_seconds(seconds) == words


def test_say_top() -> None:
    counts = {"b": 2, "a": 2, "c": 5, "d": 1}
    lines = ["peer c: 5 open", "peer a: 2 open", "peer b: 2 open", "peer d: 1 open"]

    def say(name: str) -> str:
        return f"peer {name}"

    assert text.say_top(counts, say, "peers", "open", 4) == lines
    assert text.say_top(counts, say, "peers", "open", 3) == [*lines[:2], "2 more peers: 3 open"]
    assert text.say_top(counts, say, "peers", "open", 1) == ["4 more peers: 10 open"]
    assert text.say_top({}, say, "peers", "open", 3) == []


def test_name_some() -> None:
    assert text.name_some(["a"]) == "a"
    assert text.name_some(list("abcde")) == "a, b, c, d, e"
    assert text.name_some(list("abcdefg")) == "a, b, c, d, e and 2 further"
