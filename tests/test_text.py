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
