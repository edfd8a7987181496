"""The glue, by running executables: usage errors, deadline, signals, streams, first line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import support
from tests.moment import MOMENT

SAVED = ("--proc-root", str(MOMENT))
EXECUTABLES = ("saturation", "close_wait", "thrashing", "pool_size")


@pytest.mark.parametrize("check", EXECUTABLES)
def test_version_and_help_exit_3(check: str) -> None:
    for option in ("-V", "--version"):
        assert support.run(check, option) == (3, f"check_pgsock_{check} 0.1.0\n", "")
    done = support.run(check, "-h")
    assert (done.code, done.err) == (3, "")
    assert done.out == support.run(check, "--help").out
    assert done.out.startswith(f"usage: check_pgsock_{check} ")
    for option in ("--warning", "--critical", "--timeout", "--state-dir", "--verbose"):
        assert option in done.out


USAGE = [
    (["--wanring=5"], "unknown option --wanring=5"),
    (["--warn", "5"], "unknown option --warn 5"),
    (["5"], "unknown option 5"),
    (["-w"], "argument -w/--warning: expected one argument"),
    (["-w", "abc"], "argument -w/--warning: 'abc' is no threshold range: [@][start:][end], such "
     "as 80, 10:, ~:5 or @1:9"),
    (["-w", ""], "argument -w/--warning: '' is no threshold range: [@][start:][end], such as 80, "
     "10:, ~:5 or @1:9"),
    (["-c", "10:5"], "argument -c/--critical: '10:5' starts above its end"),
    (["-t", "-5"], "argument -t/--timeout: '-5' is no time in seconds, above 0, at most 3600"),
    (["-t", "0"], "argument -t/--timeout: '0' is no time in seconds, above 0, at most 3600"),
    (["-t", "nan"], "argument -t/--timeout: 'nan' is no number"),
    (["-t", "soon"], "argument -t/--timeout: 'soon' is no number"),
    (["--state-dir", ""], "argument --state-dir: '' is no directory"),
]  # fmt: skip
SOCKET_USAGE = [
    (["-p", ""], "argument -p/--port: '' is no port, 1 to 65535"),
    (["-p", "0"], "argument -p/--port: '0' is no port, 1 to 65535"),
    (["-p", "65536"], "argument -p/--port: '65536' is no port, 1 to 65535"),
    (["-p", "postgresql"], "argument -p/--port: 'postgresql' is no port, 1 to 65535"),
    (["--peer", "10.0.0.1/8"], "argument --peer: '10.0.0.1/8' has host bits set; did you mean "
     "10.0.0.0/8?"),
    (["--exclude-peer", "db:example"], "argument --exclude-peer: 'db:example' is no network such "
     "as 10.0.0.0/8 or 2001:db8::/32"),
    (["--address", "10.0.0"], "argument --address: '10.0.0' is no IPv4 or IPv6 address"),
    (["--leg", "left"], "argument --leg: invalid choice: 'left' (choose from "),
    (["--source", "netlink", *SAVED], "--proc-root is read by procfs and --source names netlink; "
     "drop one"),
    (["--proc-root", ""], "argument --proc-root: '' is no directory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), USAGE)
@pytest.mark.parametrize("check", EXECUTABLES)
def test_usage_errors_exit_3(check: str, arguments: list[str], sentence: str) -> None:
    _assert_usage(check, arguments, sentence)


@pytest.mark.parametrize(("arguments", "sentence"), SOCKET_USAGE)
@pytest.mark.parametrize("check", ["saturation", "close_wait", "thrashing"])
def test_usage_errors_of_socket_checks_exit_3(
    check: str, arguments: list[str], sentence: str
) -> None:
    _assert_usage(check, arguments, sentence)


def test_percent_where_there_is_nothing_it_is_of() -> None:
    done = support.run("close_wait", "-w", "5%")
    assert done == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - '5%': close_wait is judged in absolute numbers, without %; "
        "see check_pgsock_close_wait --help\n",
        "",
    )


def _assert_usage(check: str, arguments: list[str], sentence: str) -> None:
    done = support.run(check, *arguments)
    start = f"PGSOCK_{check.upper()} UNKNOWN - {sentence}"
    assert (done.code, done.err) == (3, "")
    assert done.out.count("\n") == 1
    assert done.out.startswith(start)
    assert done.out in (f"{start}\n", f"{start}; see check_pgsock_{check} --help\n") or (
        "choose from" in sentence
    )


@pytest.mark.parametrize("arguments", [["-w", "-5:9"], ["--warning", "-5:9"], ["--warning=-5:9"],
                                       ["-w-5:9"]])  # fmt: skip
def test_a_range_may_begin_with_a_minus(arguments: list[str]) -> None:
    done = support.run("close_wait", *SAVED, *arguments)
    assert done.code == 0
    assert "close_wait=1;-5:9;20;0 " in done.out


def test_first_line_and_perfdata_stay_below_1000_bytes() -> None:
    ports = [item for port in range(20001, 20301) for item in ("-p", str(port))]
    done = support.run(
        "saturation", *SAVED, *ports, "--limit", "9", "--no-listener", "critical", "-vv"
    )
    first = done.out.splitlines()[0]
    assert done.code == 2
    assert len(first.encode()) < 1000
    assert first.count("|") == 1
    assert "... | established=0;7;8;0;9 limit=9;;;0 " in first


def test_perfdata_is_on_the_first_line_at_every_verbosity() -> None:
    lines = {
        support.run("saturation", *SAVED, "--limit", "9", *verbose).out.splitlines()[0]
        for verbose in ((), ("-v",), ("-vv",), ("-vvv",))
    }
    assert len(lines) == 1


def test_sigterm_ends_a_waiting_check_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        listener.accept()[0].close()
        arguments = ("-p", str(port), "--leg", "client", "-w", "0", "--settle", "7")
        process = subprocess.Popen(
            support.command("close_wait", *arguments),
            env=support.environment(support.ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        time.sleep(1)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=5)
        client.close()
    assert time.monotonic() - started < 1
    sentence = b"PGSOCK_CLOSE_WAIT UNKNOWN - ended by SIGTERM while waiting for the second look\n"
    assert (process.returncode, out, err) == (3, sentence, b"")


def test_the_watchdog_ends_what_no_signal_could() -> None:
    """The main thread hangs in a system call that knows no deadline."""
    code = (
        "import sys; sys.argv[:] = ['check_pgsock_close_wait', '-t', '1', '--settle', '0.5']\n"
        "import os\n"
        "from check_pgsock import plugin\n"
        "from check_pgsock.checks.close_wait import SPEC\n"
        "def probe(run):\n"
        "    run.deadline.doing = 'waiting for a pipe'\n"
        "    os.read(os.pipe()[0], 1)\n"
        "SPEC.probe = probe\n"
        "plugin.run(SPEC)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "PGSOCK_CLOSE_WAIT UNKNOWN - no verdict within 1 s, the time ran out while waiting for a "
        "pipe; see what hangs there, or raise --timeout\n",
        "",
    )
    assert time.monotonic() - started < 3


def test_an_unforeseen_error_is_one_sentence_and_a_traceback_only_at_vv() -> None:
    code = (
        "import sys; sys.argv[:] = ['check_pgsock_close_wait', *sys.argv[1:]]\n"
        "from check_pgsock import plugin\n"
        "from check_pgsock.checks.close_wait import SPEC\n"
        "def probe(run):\n"
        "    print('to stderr', file=sys.stderr)\n"
        "    raise KeyError('a|b')\n"
        "SPEC.probe = probe\n"
        "plugin.run(SPEC)\n"
    )
    for verbose in ("-v", "-vv"):
        done = subprocess.run(
            [sys.executable, "-c", code, verbose],
            env=support.environment(support.ROOT),
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
        first, *rest = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (3, "")
        assert first == (
            "PGSOCK_CLOSE_WAIT UNKNOWN - internal error, KeyError: 'a?b'; please report it with "
            "the output of -vv"
        )
        assert ("Traceback (most recent call last):" in rest) == (verbose == "-vv")
        assert "|" not in done.stdout


def test_nobody_reads_the_verdict() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        support.command("close_wait", *SAVED),
        env=support.environment(support.ROOT),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (3, b"")


def test_closed_standard_output_is_no_verdict() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *support.command("close_wait", *SAVED)],
        env=support.environment(support.ROOT),
        stderr=subprocess.PIPE,
        check=False,
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (3, b"")


def test_too_few_descriptors_are_one_sentence() -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 5; exec "$@"', "sh", *support.command("close_wait", "-p", "9")],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert re.fullmatch(r"PGSOCK_CLOSE_WAIT UNKNOWN - [^|]*Too many open files.*\n", done.stdout)


def test_closed_streams_change_nothing() -> None:
    command = support.command("close_wait", *SAVED)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", *command],
        env=support.environment(support.ROOT),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=10,
    )
    assert (done.returncode, done.stdout) == (
        0, support.run("close_wait", *SAVED).out,
    )  # fmt: skip


def test_state_and_sentence_are_kept_whatever_the_perfdata_takes() -> None:
    code = (
        "import sys; sys.argv[:] = ['check_pgsock_close_wait', *sys.argv[1:]]\n"
        "from check_pgsock import plugin\n"
        "from check_pgsock.contract import Metric, Report\n"
        "from check_pgsock.checks.close_wait import SPEC\n"
        "def probe(run):\n"
        "    metrics = [Metric(f'label_{one}', one) for one in range(200)]\n"
        "    return Report('what is to be said', metrics, floor=('critical', 'too much'))\n"
        "SPEC.probe = probe\n"
        "plugin.run(SPEC)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    start = "PGSOCK_CLOSE_WAIT CRITICAL - what is to be said (too much)"
    head, _, perfdata = done.stdout.rstrip("\n").partition(" | ")
    items = perfdata.split(" ")
    assert (done.returncode, head, done.stderr) == (2, start, "")
    assert items == [f"label_{one}={one};;;0" for one in range(len(items))]
    assert 970 < len(done.stdout.encode()) <= 991
