"""The subcommand `pgsock record`: raw moments in one file, to be replayed with --source FILE.

JSON: `file`, `bytes` (of the file), `anonymized`, `ended_by` (null, or why a series has fewer
moments than asked for), and `moments`, a list of objects with `taken` (seconds since 1970),
`seconds` (that it took), `processes` (a count), `namespaces` (objects with `name`, `tcp_sockets`,
`unix_sockets`) and `limits` (objects with `endpoint`, `usable`, `unknown`: the usable slots, or why
they are not known).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from check_pgsock import options as opts
from check_pgsock.command_line import argument
from check_pgsock.deadline import Deadline
from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.option_values import names_recording, parse_seconds
from check_pgsock.pgsock.output import add_view_options, open_tool_view, print_json
from check_pgsock.recording.anonymize import Anonymizer
from check_pgsock.recording.archive import Archive, Writer
from check_pgsock.recording.capture import Captured, capture, describe_machine, load
from check_pgsock.recording.manifest import Header, Moment
from check_pgsock.recording.replay import unseen
from check_pgsock.servers import limits
from check_pgsock.text import clean, plural

if TYPE_CHECKING:
    Parsers = argparse._SubParsersAction[Any]

DEFAULT_INTERVAL = 1.0
_ROUNDING = 1e-9  # 0.3 is three times 0.1, though not for a float
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_EPILOG = """\
  pgsock record incident.zip
  pgsock record incident.zip --for 60 --interval 5
  check_pgsock_saturation -p 5432 -w 70% --source incident.zip
  pgsock record to-send.zip --source incident.zip --anonymize

A recording shows who connects to what, user names and addresses among it: it is readable by its
owner alone. Ctrl-C ends a series and keeps its moments.
"""


class _Ended(Exception):
    """A signal asked for the end."""


def add_parser(parsers: Parsers) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "record",
        help="what the kernel says now, raw, in a file that checks and tools replay",
        description="Write all sockets, titles and settings of this moment, or of several, into "
        "one file, which every check and tool replays with --source FILE.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("file", metavar="FILE", help="the file to write, a zip")
    parser.add_argument(
        "--for", metavar="SECONDS", dest="duration", type=argument(parse_seconds),
        help="several moments, the last one so long after the first (default: one moment)",
    )  # fmt: skip
    parser.add_argument(
        "--interval", metavar="SECONDS", type=argument(parse_seconds),
        help=f"with --for: the time between two moments (default: {DEFAULT_INTERVAL:g})",
    )  # fmt: skip
    parser.add_argument(
        "--anonymize", action="store_true",
        help="stand-ins for names and addresses, the same one for the same throughout the file",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    add_view_options(parser)


def _run(options: argparse.Namespace) -> int:
    _validate(options)
    header, moments = _open(options)
    anonymizer = Anonymizer(header) if options.anonymize else None
    if anonymizer is not None:
        header = header._replace(anonymized=True)
    with _handled_signals():
        try:
            with Writer(options.file, header, options.force) as writer:
                ended_by = _fill(writer, moments, anonymizer)
                size = writer.commit()
        except _Ended as ended:
            print("pgsock: interrupted, nothing is recorded", file=sys.stderr)
            return 128 + int(ended.args[0])
        _report(options, header, writer.moments, size, ended_by)
    if isinstance(ended_by, PgsockError):
        print(f"pgsock: {ended_by}", file=sys.stderr)
        return 3
    return 0


def _validate(options: argparse.Namespace) -> None:
    """Raise UsageError for what names no file, and combinations that contradict each other."""
    if options.file in ("", "-"):
        raise UsageError(
            f"'{options.file}' is no file; a recording is written to a file alone, not to standard "
            "output"
        )
    if options.interval is not None and options.duration is None:
        raise UsageError("--interval is the time between several moments: name --for, too")
    if names_recording(options.source) and (options.duration is not None or options.netns):
        raise UsageError(
            "--source FILE is copied as it was recorded; drop --for, --interval and --netns"
        )


def _open(options: argparse.Namespace) -> tuple[Header, Iterator[Captured]]:
    """What holds for all moments, and these; a recording's where --source names one."""
    if not names_recording(options.source):
        return describe_machine(), _capture_series(options)
    opts.validate_view_options(options)
    archive = Archive(options.source, Deadline(options.timeout))
    chosen = None if options.moment is None else archive.choose(options.moment)
    return archive.manifest.header, load(archive, chosen)


def _capture_series(options: argparse.Namespace) -> Iterator[Captured]:
    """Capture a moment at each of the times that are so many intervals after the first.

    One that takes longer skips what it has missed; the last is late rather than left out.
    """
    interval = options.interval or DEFAULT_INTERVAL
    view = open_tool_view(options)
    if view.reader.saved:
        raise UsageError(f"{options.proc_root} is a saved moment already; name a live --proc-root")
    one = capture(view)
    start, number = one.about.since_boot, 0
    last = math.floor((options.duration or 0) / interval + _ROUNDING)
    yield one
    while number < last:
        number = next_number(number, (_since_boot() - start) / interval, last)
        _sleep(max(start + number * interval - _since_boot(), 0))
        one = capture(open_tool_view(options), one.about.findings)
        yield one


def next_number(number: int, passed: float, last: int) -> int:
    """Which moment follows the one of this number (from 0), `passed` intervals after the first."""
    return min(max(number + 1, math.ceil(passed)), last)


def _sleep(seconds: float) -> None:
    """Sleep, and let signals through, as nowhere else: a capture is soon over, and whole."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        time.sleep(seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _fill(
    writer: Writer, moments: Iterator[Captured], anonymizer: Anonymizer | None
) -> PgsockError | str | None:
    """Write the moments; what ended them before their time, if there is at least one."""
    try:
        for one in moments:
            kept = one if anonymizer is None else anonymizer.apply(one)
            writer.add(kept.about, kept.members(len(writer.moments) + 1))
            _sleep(0)
    except _Ended as ended:
        if not writer.moments:
            raise
        return signal.Signals(ended.args[0]).name
    except PgsockError as error:
        if not writer.moments:
            raise
        return error
    return None


@contextlib.contextmanager
def _handled_signals() -> Iterator[None]:
    """Within it, a signal that asks for the end raises _Ended with its number, but only where it
    is let through: what is begun to be written, or removed, is ended.
    """

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass  # too late: all is done
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _report(
    options: argparse.Namespace, header: Header, moments: list[Moment], size: int,
    ended_by: PgsockError | str | None,
) -> None:  # fmt: skip
    last = moments[-1]
    unknown = [str(limits.unknown(one.endpoint, one.why)) for one in last.findings if one.why]
    notes = [*unseen(header, last), *(clean(one, 500) for one in dict.fromkeys(unknown))]
    if options.json:
        values = {
            "file": clean(options.file, 4096),
            "bytes": size,
            "anonymized": header.anonymized,
            "ended_by": None if ended_by is None else clean(str(ended_by), 500),
            "moments": [_values(one) for one in moments],
        }
        print_json("record", values, notes)
        return
    spaces = [clean(one.name) for one in last.places if one.asked]
    where = f" of network namespaces {', '.join(spaces)}" if spaces else ""
    tcp = sum(one.tcp_sockets for one in last.places)
    unix = sum(one.unix_sockets or 0 for one in last.places)
    which = "" if len(moments) == 1 else " in the last"
    seconds = last.since_boot + last.seconds - moments[0].since_boot
    changed = ", anonymized" if header.anonymized else ""
    print(
        f"{clean(options.file, 200)}: {plural(len(moments), 'moment')} in {seconds:.1f} s{where}, "
        f"{plural(tcp, 'TCP socket')}, {plural(unix, 'Unix socket')}, "
        f"{last.processes} processes{which}; {size / 1000:.1f} kB{changed}"
    )
    for note in notes:
        print(note)


def _values(one: Moment) -> dict[str, Any]:
    return {
        "taken": one.taken,
        "seconds": one.seconds,
        "processes": one.processes,
        "namespaces": [
            {
                "name": clean(place.name),
                "tcp_sockets": place.tcp_sockets,
                "unix_sockets": place.unix_sockets,
            }
            for place in one.places
        ],
        "limits": [
            {
                "endpoint": clean(finding.endpoint, 200),
                "usable": None if finding.limit is None else finding.limit.usable,
                "unknown": clean(finding.why, 500) or None,
            }
            for finding in one.findings
        ],
    }
