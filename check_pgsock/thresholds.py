"""Threshold ranges `[@][start:][end]` whose bounds may be percentages; pure.

Authority: Monitoring Plugins Development Guidelines, "Threshold and Ranges". nagiosplugin judges;
here a range is only validated and its percentages turned into absolute bounds.
"""

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_BOUND = r"-?(?:\d+(?:\.\d+)?|\.\d+)%?"
_RANGE = re.compile(rf"(?P<invert>@)?(?:(?P<start>~|{_BOUND})?:)?(?P<end>{_BOUND})?", re.ASCII)
CHARACTERS = frozenset("@~:.%-0123456789")  # that a range consists of


class Threshold:
    """A validated range; `str()` gives it as it was written."""

    __slots__ = ("_end", "_invert", "_start", "text")

    def __init__(self, text: str) -> None:
        match = _RANGE.fullmatch(text)
        if match is None or not (match["end"] or match["start"]):
            raise ValueError(
                f"'{text}' is no threshold range: [@][start:][end], such as 80, 10:, ~:5 or @1:9"
            )
        self.text = text
        self._invert = bool(match["invert"])
        self._start, self._end = match["start"] or "0", match["end"] or ""
        comparable = self._start.endswith("%") == self._end.endswith("%")
        if comparable and _reversed(self._start, self._end):
            raise ValueError(f"'{text}' starts above its end")

    def __str__(self) -> str:
        return self.text

    @property
    def has_percent(self) -> bool:
        """Whether a bound is a percentage."""
        return "%" in self.text

    def is_above(self, value: float, base: "Optional[int]") -> bool:
        """Whether a value alerts for being below the start of the range."""
        start = _of(self._start, base, up=True) if base is not None else self._start
        return not self._invert and start != "~" and value < _number(start)

    def absolute(self, base: "Optional[int]") -> str:
        """The range with percentages of `base` replaced by whole numbers, as nagiosplugin reads it.

        The upper bound rounds down and the lower one up: neither moves the point of alert for a
        whole number. Raises ValueError if the bounds then stand the wrong way around.
        """
        start, end = self._start, self._end
        if self.has_percent:
            if base is None:
                raise ValueError(f"'{self.text}' has a percentage, and there is nothing it is of")
            start, end = _of(start, base, up=True), _of(end, base, up=False)
        if _reversed(start, end):
            raise ValueError(f"'{self.text}' starts above its end (of {base})")
        prefix = "@" if self._invert else ""
        return f"{prefix}{end}" if start == "0" and end else f"{prefix}{start}:{end}"


def _reversed(start: str, end: str) -> bool:
    return start != "~" and end != "" and _number(start) > _number(end)


def _number(bound: str) -> float:
    return float(bound.rstrip("%"))


def _of(bound: str, base: int, up: bool) -> str:
    if not bound.endswith("%"):
        return bound
    whole, _, fraction = bound[:-1].partition(".")
    # In whole numbers: 70 % of 10 is 7, not 7.000000000000001.
    numerator = int((whole if whole not in ("", "-") else whole + "0") + fraction) * base
    denominator = 100 * 10 ** len(fraction)
    return str(-(-numerator // denominator) if up else numerator // denominator)
