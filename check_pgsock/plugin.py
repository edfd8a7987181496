"""The only glue to nagiosplugin: from a check's specification to one verdict and one exit code.

By phase: a check module describes itself in a `CheckSpec`; `run` parses the command line, starts
the watchdog, hands a `Run` to the check's `probe`, which acquires and measures and returns a
`Report`; nagiosplugin's contexts and ranges judge it; `verdict.Output` prints it, perfdata always
on the first line (nagiosplugin prints it last at -v, where NRPE cuts it off).

Exit codes 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Nothing is ever written to stderr.
"""

import sys
import time

from check_pgsock import options as opts
from check_pgsock.deadline import Deadline
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.host_names import describe_peers, resolve_peers
from check_pgsock.thresholds import Threshold
from check_pgsock.verdict import Output, catch_sigterm, silence, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, Callable, NoReturn, Optional, Union

    Number = Union[int, float]

WHO_LINES = 10
NOT_JUDGED = "-"  # as `Report.judged`: no label is this, so -w and -c judge nothing
_NO_ALERT = "~:"  # the range that nothing is outside of


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
        add_options: "Callable[[opts.Parser], None]",
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
    with the reason: see _say_unjudged.
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

    def __init__(self, spec: CheckSpec, options: "Namespace", deadline: Deadline) -> None:
        self.spec = spec
        self.options = options
        self.deadline = deadline
        self.now = time.time()

    def needs_base(self, label: str) -> bool:
        """Whether a range of `label` cannot be judged unless it is known what `%` is of."""
        return any(
            threshold is not None and one.without_base(threshold, word).has_percent
            for number, one in enumerate(self.spec.judged)
            for word in ("warning", "critical")
            for threshold in [_threshold(self.options, one.label, number, word)]
            if one.label == label
        )

    def exceeds(self, label: str, value: "Number", base: "Optional[int]" = None) -> bool:
        """Whether `value` would raise WARNING or CRITICAL as `label`."""
        context = _context(self, Metric(label, value, base=base))
        return not (context.warning.match(value) and context.critical.match(value))


def add_threshold_options(parser: opts.Parser, judged: "tuple[Judged, ...]") -> None:
    """Add -w/-c for the first judged label, long options for each further one."""
    group = parser.add_argument_group("thresholds")
    for number, one in enumerate(judged):
        of = f"; % is of {one.percent_of}" if one.percent_of else ""
        for word in ("warning", "critical"):
            names = (f"-{word[0]}", f"--{word}") if number == 0 else (_option(one.label, word),)
            default = one.warning if word == "warning" else one.critical
            meaning = f"{word} range of {one.label}, {one.meaning}{of}"
            if one.baseless:
                alone = one.baseless[word == "critical"]
                meaning += f"; where that is not known, the default is {alone}"
            parser.add_range(group, *names, default=default, help=meaning)


def run(spec: CheckSpec) -> "NoReturn":
    """Run the check that `spec` describes and end the process."""
    silence()
    verbose = 0
    output = Output(f"PGSOCK_{spec.name.upper()}")
    try:
        options = _parse(spec, sys.argv[1:])
        verbose = options.verbose
        deadline = Deadline(options.timeout)
        ended = catch_sigterm()
        start_thread(output.watch, deadline, ended)
        resolve_peers(options, deadline)
        context = Run(spec, options, deadline)
        report = spec.probe(context)
        verdict = _judge(context, report)
        if report.commit is not None:
            report.commit()
        output.end(*verdict)
    except opts.Shown as shown:
        output.raw(str(shown), 3)
    except PgsockError as error:
        output.end("UNKNOWN", str(error), [], _traceback(verbose, 3))
    except (OSError, MemoryError) as error:
        # Whatever may fail by itself is a PgsockError: this is the machine's refusal.
        sentence = f"this machine refused what the check needs, {_describe(error)}; see ulimit -a"
        output.end("UNKNOWN", sentence, [], _traceback(verbose, 2))
    except Exception as error:  # noqa: BLE001 (the one entry point)
        sentence = (
            f"internal error, {type(error).__name__}: {error}; please report it with the "
            "output of -vv"
        )
        output.end("UNKNOWN", sentence, [], _traceback(verbose, 2))


def _parse(spec: CheckSpec, arguments: "list[str]") -> "Namespace":
    parser = opts.Parser(spec.executable, spec.description)
    add_threshold_options(parser, spec.judged)
    if spec.sockets:
        opts.add_socket_options(parser)
    spec.add_options(parser)
    opts.add_common(parser)
    options = parser.parse(arguments)
    options.given_thresholds = {}  # options by label, of the thresholds on the command line
    for number, one in enumerate(spec.judged):
        for word in ("warning", "critical"):
            threshold = _threshold(options, one.label, number, word)
            if threshold is not None and threshold.has_percent and one.percent_of is None:
                raise UsageError(
                    f"'{threshold}': {one.label} is judged in absolute numbers, without %; "
                    f"see {spec.executable} --help"
                )
            # One that was given is another object than the default, though it may say the same.
            is_given = threshold is not parser.get_default(_name(one.label, number, word))
            if is_given and str(threshold) != _NO_ALERT:
                given = f"--{word}" if number == 0 else _option(one.label, word)
                options.given_thresholds.setdefault(one.label, []).append(given)
    if spec.sockets:
        opts.validate_view_options(options)
        opts.validate_socket_options(options)
    if spec.validate is not None:
        spec.validate(options)
    return options


def _threshold(options: "Namespace", label: str, number: int, word: str) -> "Optional[Threshold]":
    threshold: Optional[Threshold] = getattr(options, _name(label, number, word))
    return threshold


def _name(label: str, number: int, word: str) -> str:
    return word if number == 0 else f"{label}_{word}"


def _option(label: str, word: str) -> str:
    return f"--{label.replace('_', '-')}-{word}"


def _context(run: Run, metric: Metric, first: "Optional[str]" = None) -> "Any":
    """The nagiosplugin context of a metric: its thresholds with absolute bounds.

    -w and -c apply to the label `first`, or else to the first of the table.
    """
    from nagiosplugin import ScalarContext

    ranges = ["", ""]
    for number, one in enumerate(run.spec.judged):
        label = first if first and number == 0 else one.label
        if metric.judged and metric.label == label:
            for at, word in enumerate(("warning", "critical")):
                threshold = _threshold(run.options, one.label, number, word)
                if threshold is not None:
                    if metric.base is None:
                        threshold = one.without_base(threshold, word)
                    try:
                        ranges[at] = threshold.absolute(metric.base)
                    except ValueError as error:
                        raise UsageError(f"{one.label}: {error}") from None
    return ScalarContext(metric.label, *ranges)


def _judge(run: Run, report: Report) -> "tuple[str, str, list[str], list[str]]":
    """Judge `report`; return service state, sentence, perfdata items and long output."""
    import nagiosplugin

    class Measured(nagiosplugin.Resource):  # type: ignore[misc]
        def probe(self) -> "list[nagiosplugin.Metric]":
            metrics = [
                nagiosplugin.Metric(one.label, one.value, one.uom, one.minimum, one.maximum)
                for one in report.metrics
            ]
            if report.floor is not None:
                metrics.append(nagiosplugin.Metric("floor", report.floor[0]))
            return metrics

    class Floor(nagiosplugin.Context):  # type: ignore[misc]
        def evaluate(self, metric: "Any", resource: object) -> "Any":
            states = {
                "ok": nagiosplugin.Ok,
                "warning": nagiosplugin.Warn,
                "critical": nagiosplugin.Critical,
                "unknown": nagiosplugin.Unknown,
            }
            return self.result_cls(states[metric.value], report.floor and report.floor[1], metric)

    contexts = [_context(run, one, report.judged) for one in report.metrics]
    check = nagiosplugin.Check(Measured(), Floor("floor"), *contexts)
    check()
    state = str(check.state).upper()
    reasons, perfdata = [], []
    for result in check.results:
        item = result.metric.performance()
        if item is not None:
            perfdata.append(str(item))
        if int(result.state) and result.hint:
            hint = result.hint.replace("outside range @", "inside range ")
            named = f"{result.metric.name} {hint}" if item is not None else hint
            reasons.append(named)
    unjudged = _say_unjudged(run, report)
    if unjudged and state == "OK":
        lines = [*unjudged[1:], report.headline, *_long(run, report, state)]
        return "UNKNOWN", unjudged[0], [], lines
    sentence = report.headline
    if reasons:
        sentence += f" ({'; '.join(sorted(reasons))})"
    perfdata.sort(key=_order(report))
    long = [*unjudged, *_long(run, report, state)]
    return state, sentence, perfdata if state != "UNKNOWN" else [], long


def _say_unjudged(run: Run, report: Report) -> "list[str]":
    """A sentence for each label whose thresholds are on the command line and that could not be
    measured: whoever names them relies on them, so that nothing is OK without. What the default
    thresholds are of may be missing, which the check's notes say.
    """
    given = run.options.given_thresholds
    return [
        f"{label} cannot be judged: {why}; without {' and '.join(given[label])} the rest is judged"
        for label, why in report.unknown.items()
        if label in given
    ]


def _order(report: Report) -> "Callable[[str], int]":
    places = {one.label: place for place, one in enumerate(report.metrics)}
    return lambda item: places[item.partition("=")[0]]


def _long(run: Run, report: Report, state: str) -> "list[str]":
    lines = list(report.notes)
    verbose = run.options.verbose
    if report.who is not None and (state != "OK" or verbose):
        try:
            lines += report.who()[:WHO_LINES]
        except PgsockError as error:
            lines.append(f"who holds the connections could not be read: {error}")
    if verbose:
        lines += report.told
    if verbose > 1:
        lines += [*describe_peers(run.options), *report.details]
        spent = run.deadline.seconds - run.deadline.remaining()
        lines.append(f"took {spent:.3f} s of {run.deadline.seconds:g} s")
    return lines


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _traceback(verbose: int, least: int) -> "list[str]":
    if verbose < least:
        return []
    import traceback

    return traceback.format_exc().splitlines()
