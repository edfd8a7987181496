"""A check's process: from the command line to one verdict and one exit code.

By phase: `run` parses the command line, starts the watchdog, and hands a `Run` to the check's
`probe`, which returns a `Report` (contract.py); judging.py, the only glue to nagiosplugin, judges
it; `verdict.Output` prints it, perfdata always on the first line (nagiosplugin prints it last at
-v, where NRPE cuts it off).

Exit codes 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Nothing is ever written to stderr.
"""

import sys

from check_pgsock import options as opts
from check_pgsock.command_line import Parser, Shown
from check_pgsock.contract import WHO_LINES, CheckSpec, Report, Run
from check_pgsock.deadline import Deadline
from check_pgsock.errors import PgsockError
from check_pgsock.judging import judge
from check_pgsock.verdict import Output, catch_sigterm, silence, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn


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
        if opts.names_host(options):
            from check_pgsock.host_names import resolve_peers

            resolve_peers(options, deadline)
        context = Run(spec, options, deadline)
        report = spec.probe(context)
        verdict = _render(context, report)
        if report.commit is not None:
            report.commit()
        output.end(*verdict)
    except Shown as shown:
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
    parser = Parser(spec.executable, spec.description)
    opts.add_threshold_options(parser, spec.judged)
    if spec.sockets:
        opts.add_socket_options(parser)
    spec.add_options(parser)
    opts.add_common(parser)
    options = parser.parse(arguments)
    opts.validate_thresholds(options, parser, spec.judged)
    if spec.sockets:
        opts.validate_view_options(options)
        opts.validate_socket_options(options)
    if spec.validate is not None:
        spec.validate(options)
    return options


def _render(run: Run, report: Report) -> "tuple[str, str, list[str], list[str]]":
    """Judge `report`; return service state, sentence, perfdata items and long output."""
    state, reasons, perfdata = judge(run, report)
    unjudged = _say_unjudged(run, report)
    long = _long(run, report, state)
    if unjudged and state == "OK":
        return "UNKNOWN", unjudged[0], [], [*unjudged[1:], report.headline, *long]
    sentence = report.headline
    if reasons:
        sentence += f" ({'; '.join(reasons)})"
    return state, sentence, perfdata if state != "UNKNOWN" else [], [*unjudged, *long]


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
        if opts.names_host(run.options):
            from check_pgsock.host_names import describe_peers

            lines += describe_peers(run.options)
        lines += report.details
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
