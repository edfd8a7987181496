"""The subcommand `pgsock lab`: a throw-away PostgreSQL with PgBouncer, and faults on demand."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

from check_pgsock.command_line import argument
from check_pgsock.errors import UsageError
from check_pgsock.option_values import parse_number
from check_pgsock.pgsock.lab import control, drill, drill_table, pgbouncer
from check_pgsock.pgsock.lab.faults import FAULTS
from check_pgsock.pgsock.lab.home import sweep
from check_pgsock.pgsock.lab.lab import PREFIX, Lab
from check_pgsock.pgsock.lab.signals import Interrupted, Signals

if TYPE_CHECKING:
    Parsers = argparse._SubParsersAction[Any]

# What shows each check going to its worst state and back.
SHORT = ("saturate", "hoard", "orphan", "stall:patient", "churn:reset", "oversize", "undersize")

_EPILOG = """\
Without a further command a lab starts in the foreground, prints its endpoints and runs until
Ctrl-C or SIGTERM; then, and also when it is killed, all of it is removed. Faults are named
fault:kind@endpoint; `pgsock lab faults` lists them.
"""


def add_parser(parsers: Parsers) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser("lab", help=__doc__.partition(": ")[2], description=_EPILOG)
    parser.set_defaults(run=_run_lab)
    _add_server_options(parser, None)
    parser.add_argument(
        "--max-connections",
        type=argument(_connections),
        default=50,
        metavar="N",
        help="of PostgreSQL, three of them reserved (default: 50)",
    )
    parser.add_argument(
        "--two-hosts",
        action="store_true",
        help="servers and clients in network namespaces of their own (root)",
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    faults = commands.add_parser("faults", help="list the faults")
    faults.set_defaults(run=_list_faults)
    start = commands.add_parser("start", help="start a fault on a running lab")
    start.set_defaults(run=_start)
    start.add_argument("fault", help="fault:kind@endpoint")
    start.add_argument(
        "--size", default="", metavar="N|N%", help="a count, or a percentage of the limit"
    )
    start.add_argument("--speed", type=argument(parse_number), metavar="N", help="per second")
    start.add_argument(
        "--duration",
        type=argument(_seconds),
        metavar="SECONDS",
        help="stop by itself (default: never)",
    )
    stop = commands.add_parser("stop", help="stop a fault")
    stop.set_defaults(run=_stop)
    stop.add_argument("fault", help="fault:kind@endpoint")
    status = commands.add_parser("status", help="show a running lab and its faults")
    status.set_defaults(run=_show_status)
    for each in (start, stop, status):
        each.add_argument("--lab", metavar="NAME", help="where several labs run")
        _add_json(each, argparse.SUPPRESS)

    run = commands.add_parser(
        "drill",
        help="run faults beside every check, and compare with what is expected",
        description="Run faults on a lab of its own beside every check and a poll of "
        "pg_stat_activity, once a second each. Exit code 1 where a state is not the expected one, "
        "or a fault that is named here cannot be made.",
    )
    run.set_defaults(run=_drill)
    run.add_argument(
        "faults", nargs="*", metavar="FAULT", help="fault:kind@endpoint (default: all)"
    )
    run.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    _add_server_options(run, argparse.SUPPRESS)


def _add_server_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--pg-bin",
        metavar="DIR",
        default=default,
        help="PostgreSQL's bin directory (default: that of the extra 'lab')",
    )
    parser.add_argument(
        "--no-pgbouncer",
        action="store_true",
        default=default or False,
        help="without PgBouncer, even where it is installed",
    )
    _add_json(parser, default or False)


def _add_json(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--json", action="store_true", default=default, help="for machines")


def _connections(text: str) -> int:
    if not text.isdecimal() or not 10 <= int(text) <= 10_000:
        raise ValueError(f"'{text}' is no number of connections, 10 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    seconds = parse_number(text)
    if not 0 < seconds < 1e7:
        raise ValueError(f"'{text}' is no duration in seconds")
    return seconds


def _run_lab(options: argparse.Namespace) -> int:
    is_up = False
    with Signals() as signals:
        try:
            sweep(PREFIX)
            lab = Lab(
                pg_bin=options.pg_bin,
                max_connections=options.max_connections,
                with_pgbouncer=False if options.no_pgbouncer else None,
                on_two_hosts=options.two_hosts,
            )
            with lab, control.Controller(lab) as controller:
                signals.check()
                _print_lab(lab, options.json)
                is_up = True
                control.serve(lab, controller, signals)
        except Interrupted:
            if not options.json:
                print("the lab is ended and removed", flush=True)
        # A signal is how a lab ends, once it is there.
        return 0 if is_up else 128 + signals.received


def _print_lab(lab: Lab, as_json: bool) -> None:
    found = control.describe(lab)
    if as_json:
        print(json.dumps(found), flush=True)
        return
    version = lab.binaries.major
    print(f"lab {lab.name}: PostgreSQL {version} in {lab.home.path}, process {os.getpid()}")
    for each in found["endpoints"]:
        print(f"  {each['kind']:<10}  limit {each['limit']:<4}  {each['dsn']}")
        print(f"  {'':<10}  socket {each['socket']}")
    enter = " ".join(lab.server_host.command([]))
    port = lab.postgres.port
    print(f"try:  {enter}{' ' * bool(enter)}check_pgsock_saturation -p {port}")
    print(f"      pgsock lab start saturate --size 85% --lab {lab.name}")
    print(f"      pgsock lab stop saturate --lab {lab.name}")
    print("Ctrl-C ends the lab and removes it", flush=True)


def _list_faults(options: argparse.Namespace) -> int:
    for fault in FAULTS.values():
        takes = [f"size {fault.size} ({fault.size_unit})"] if fault.size else []
        takes += [f"speed {fault.speed:g} ({fault.speed_unit})"] if fault.speed else []
        takes += ["needs PgBouncer"] if fault.needs_pgbouncer else []
        takes += ["needs two hosts"] if fault.needs_two_hosts else []
        takes += ["over at once"] if fault.is_instant else []
        takes += [fault.note] if fault.note else []
        kinds = f":{{{','.join(fault.kinds)}}}" if fault.kinds != ("",) else ""
        via = f"[@{fault.vias[1]}]" if len(fault.vias) > 1 else ""
        print(f"{fault.name}{kinds}{via}")
        print(f"    {(fault.__doc__ or '').partition(chr(10))[0]}")
        if takes:
            print(f"    {'; '.join(takes)}")
    return 0


def _start(options: argparse.Namespace) -> int:
    request = {"do": "start", "fault": options.fault, "size": options.size}
    request |= {"speed": options.speed, "duration": options.duration}
    result = control.ask(options.lab, request)
    try:
        return _print_result(result, options.json)
    except OSError as error:
        # The request was granted all the same.
        raise OSError(error.errno, f"{error.strerror}; but {options.fault} was started") from None


def _stop(options: argparse.Namespace) -> int:
    request = {"do": "stop", "fault": options.fault}
    return _print_result(control.ask(options.lab, request), options.json)


def _show_status(options: argparse.Namespace) -> int:
    status = control.ask(options.lab, {"do": "status"})
    if options.json:
        return _print_result(status, True)
    print(f"lab {status['name']}, process {status['pid']}, in {status['directory']}")
    for each in status["endpoints"]:
        dead = "" if each["running"] else "  not running"
        print(f"  {each['kind']:<10}  limit {each['limit']:<4}  {each['dsn']}{dead}")
    for each in status["faults"]:
        left = each["duration_seconds"]
        until = "" if left is None else f" of {left:g} s"
        print(f"  {each['state']} since {each['since_seconds']:g} s{until}: {each['description']}")
        if each["trouble"]:
            print(f"    but {each['trouble']}")
    if not status["faults"]:
        print("  no fault is running")
    return 0


def _print_result(result: Any, as_json: bool) -> int:
    print(json.dumps(result) if as_json else result, flush=True)
    return 0


def _drill(options: argparse.Namespace) -> int:
    if options.short and options.faults:
        raise UsageError("--short names the faults: name none beside it")
    pooled = not options.no_pgbouncer and os.access(pgbouncer.EXECUTABLE, os.X_OK)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    begun = time.monotonic()
    cells: list[drill.Cell] = []
    with Signals() as signals:
        try:
            sweep(PREFIX)
            labels = SHORT if options.short else options.faults
            whole = drill.Drill(labels, options.pg_bin, pooled, signals.check)
            longest = max(map(len, whole.labels))
            for found in whole.run():
                if not options.json:
                    drill_table.print_cells(console, found, longest, with_header=not cells)
                cells += found
        except Interrupted:
            print("interrupted; the lab is ended and removed", file=sys.stderr)
            return 128 + signals.received
    code, summary = drill_table.verdict(
        cells, options.faults, whole.left_out, time.monotonic() - begun
    )
    if options.json:
        rows = [drill_table.values(cell) for cell in cells]
        print(json.dumps({"rows": rows, "left_out": whole.left_out}, indent=1))
    else:
        for label, why in whole.left_out.items():
            print(f"left out: {label}: {why}")
        print(summary)
    return code
