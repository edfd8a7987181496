"""The only glue to nagiosplugin: metrics and threshold ranges to one service state.

nagiosplugin is imported when there is something to judge: --help and usage errors do without.
plugin.py hands over what a check has measured; below it checks ask by Run.exceeds(), and nothing
else knows of nagiosplugin.
"""

from check_pgsock.errors import UsageError
from check_pgsock.options import chosen_thresholds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from check_pgsock.contract import Metric, Report, Run


def alerts(run: "Run", metric: "Metric") -> bool:
    """Whether `metric` is outside of one of its ranges."""
    context = _context(run, metric)
    return not (context.warning.match(metric.value) and context.critical.match(metric.value))


def judge(run: "Run", report: "Report") -> "tuple[str, list[str], list[str]]":
    """(service state, why it is not OK, perfdata items in the order of the metrics)."""
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
    perfdata.sort(key=_order(report))
    return state, sorted(reasons), perfdata


def _context(run: "Run", metric: "Metric", first: "Optional[str]" = None) -> "Any":
    """The nagiosplugin context of a metric: its thresholds with absolute bounds.

    -w and -c apply to the label `first`, or else to the first of the table.
    """
    from nagiosplugin import ScalarContext

    judged = run.spec.judged
    ranges = {"warning": "", "critical": ""}
    for one, word, threshold in chosen_thresholds(run.options, judged):
        label = first if first and one is judged[0] else one.label
        if metric.judged and metric.label == label:
            if metric.base is None:
                threshold = one.without_base(threshold, word)
            try:
                ranges[word] = threshold.absolute(metric.base)
            except ValueError as error:
                raise UsageError(f"{one.label}: {error}") from None
    return ScalarContext(metric.label, ranges["warning"], ranges["critical"])


def _order(report: "Report") -> "Callable[[str], int]":
    places = {one.label: place for place, one in enumerate(report.metrics)}
    return lambda item: places[item.partition("=")[0]]
