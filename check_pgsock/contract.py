"""The contract of a check: what it says of itself, what it is handed, and what it returns.

A check module describes itself in a `CheckSpec`; its `probe` is handed a `Run`, acquires and
measures, and returns a `Report`. What follows (thresholds, the verdict, the exit) is plugin.py's.
"""

import time

from check_pgsock.judging import alerts
from check_pgsock.options import chosen_thresholds
from check_pgsock.thresholds import Threshold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Callable, Optional, Union

    from check_pgsock.command_line import Parser
    from check_pgsock.deadline import Deadline

    Number = Union[int, float]

WHO_LINES = 10
NOT_JUDGED = "-"  # as `Report.judged`: no label is this, so -w and -c judge nothing


class Judged:
    """A label that thresholds apply to. The first of a check takes -w and -c, each further one
    `--<label>-warning` and `--<label>-critical`. `baseless` are its default ranges, warning and
    critical, where nothing is known that their `%` would be of.
    """

    __slots__ = ("baseless", "critical", "label", "meaning", "percent_of", "warning")

    def __init__(
        self,
        label: str,
        meaning: str,
        warning: "Optional[str]" = None,
        critical: "Optional[str]" = None,
        percent_of: "Optional[str]" = None,  # what `%` in a bound is of; None: a usage error
        baseless: "Optional[tuple[str, str]]" = None,
    ) -> None:
        self.label = label
        self.meaning = meaning
        self.warning = warning
        self.critical = critical
        self.percent_of = percent_of
        self.baseless = baseless

    def without_base(self, threshold: Threshold, word: str) -> Threshold:
        """What is judged in the place of `threshold` where nothing is known that `%` is of."""
        critical = word == "critical"
        if self.baseless is None or str(threshold) != (self.critical if critical else self.warning):
            return threshold
        return Threshold(self.baseless[critical])


class CheckSpec:
    """What a check module says of itself."""

    __slots__ = ("add_options", "description", "judged", "name", "probe", "sockets", "validate")

    def __init__(
        self,
        name: str,
        description: str,
        judged: "tuple[Judged, ...]",
        probe: "Callable[[Run], Report]",
        add_options: "Callable[[Parser], None]",
        validate: "Optional[Callable[[Namespace], None]]" = None,
        sockets: bool = True,  # whether the options of the socket checks apply
    ) -> None:
        self.name = name
        self.description = description
        self.judged = judged
        self.probe = probe
        self.add_options = add_options
        self.validate = validate
        self.sockets = sockets

    @property
    def executable(self) -> str:
        """check_pgsock_<name>"""
        return f"check_pgsock_{self.name}"


class Metric:
    """One value of the perfdata. `base` is what a percentage in its bounds is of. One that is not
    `judged` has no thresholds this time.
    """

    __slots__ = ("base", "judged", "label", "maximum", "minimum", "uom", "value")

    def __init__(
        self,
        label: str,
        value: "Number",
        uom: str = "",
        minimum: "Optional[Number]" = 0,
        maximum: "Optional[Number]" = None,
        base: "Optional[int]" = None,
        judged: bool = True,
    ) -> None:
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{label} is {value}")
        self.label = label
        self.value = round(value, 3) if isinstance(value, float) else value
        self.uom = uom
        self.minimum = minimum
        self.maximum = maximum
        self.base = base
        self.judged = judged


class Report:
    """What a check measured, before any verdict.

    `notes` qualify the numbers (a bound, an assumption) and are always shown; `who` says who holds
    the connections, is asked for only when shown, and may raise; `details` tell how (-v: `told`,
    -vv: `details`). `floor` is a service state that holds whatever the metrics say, with its
    reason. `judged` is the label that -w and -c judge where it is not the first of the table, or
    NOT_JUDGED. `unknown` are labels that would be judged and could not be measured this time, each
    with the reason: whoever names their thresholds relies on them, and nothing is OK without.
    `commit` writes the state that the next run starts from: called once, after the evaluation.
    """

    __slots__ = (
        "commit", "details", "floor", "headline", "judged", "metrics", "notes", "told", "unknown",
        "who",
    )  # fmt: skip

    def __init__(
        self,
        headline: str,
        metrics: "list[Metric]",
        notes: "Optional[list[str]]" = None,
        who: "Optional[Callable[[], list[str]]]" = None,
        told: "Optional[list[str]]" = None,
        details: "Optional[list[str]]" = None,
        floor: "Optional[tuple[str, str]]" = None,
        judged: "Optional[str]" = None,
        commit: "Optional[Callable[[], None]]" = None,
        unknown: "Optional[dict[str, str]]" = None,
    ) -> None:
        self.headline = headline
        self.metrics = metrics
        self.notes = notes or []
        self.who = who
        self.told = told or []
        self.details = details or []
        self.floor = floor
        self.judged = judged
        self.commit = commit
        self.unknown = unknown or {}


class Run:
    """What a check is handed: its options, the deadline, the wall-clock time (for what is stored
    for later runs), and how to ask about a threshold.
    """

    __slots__ = ("deadline", "now", "options", "spec")

    def __init__(self, spec: CheckSpec, options: "Namespace", deadline: "Deadline") -> None:
        self.spec = spec
        self.options = options
        self.deadline = deadline
        self.now = time.time()

    def needs_base(self, label: str) -> bool:
        """Whether a range of `label` cannot be judged unless it is known what `%` is of."""
        return any(
            one.label == label and one.without_base(threshold, word).has_percent
            for one, word, threshold in chosen_thresholds(self.options, self.spec.judged)
        )

    def exceeds(self, label: str, value: "Number", base: "Optional[int]" = None) -> bool:
        """Whether `value` would raise WARNING or CRITICAL as `label`."""
        return alerts(self, Metric(label, value, base=base))
