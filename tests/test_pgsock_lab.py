"""`pgsock lab` as its users run it: endpoints, faults from another terminal, and its end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.home import Home, homes
from check_pgsock.pgsock.lab.wire import Session, WireError
from tests import support
from tests.support import Completed

COMMAND = [sys.executable, "-m", "check_pgsock.pgsock.main"]


def pgsock(*arguments: str, user: str | None = None) -> Completed:
    """Run pgsock to its end."""
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return Completed(done.returncode, done.stdout, done.stderr)


class Lab(NamedTuple):
    """A running lab and what it printed."""

    process: subprocess.Popen[str]
    about: dict[str, Any]

    def ask(self, *arguments: str) -> Completed:
        """Run one of its commands."""
        return pgsock("lab", *arguments, "--lab", self.about["name"])

    def endpoint(self, kind: str) -> dict[str, Any]:
        """The endpoint of this kind."""
        found: dict[str, Any] = next(e for e in self.about["endpoints"] if e["kind"] == kind)
        return found

    def established(self, kind: str) -> int:
        """Connections on the port of this kind."""
        return support.tcp_states(self.endpoint(kind)["port"])["ESTABLISHED"]

    def is_gone(self) -> bool:
        """Whether nothing of it is left."""
        directory = Path(self.about["directory"])
        return not directory.exists() and not janitor.working_below(directory)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Lab]:
    """A lab that runs until the end."""
    command = [*COMMAND, "lab", "--json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Lab(process, json.loads(line))
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab that the tests of its commands share."""
    support.require("embedded-wheel")
    with running() as found:
        yield found


def test_it_prints_endpoints_that_answer(lab: Lab) -> None:
    for endpoint in lab.about["endpoints"]:
        socket.create_connection((endpoint["address"], endpoint["port"]), 5).close()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(endpoint["socket"])
    assert lab.endpoint("postgresql")["limit"] == 47
    assert lab.about["pid"] == lab.process.pid


def test_monitoring_reads_the_poolers_console_and_no_more(lab: Lab) -> None:
    support.require("pgbouncer")
    where = lab.endpoint("pgbouncer")
    with Session.connect(where["address"], where["port"], "monitor", "pgbouncer") as session:
        assert session.query("SHOW LISTS") != []
        with pytest.raises(WireError, match="admin access needed"):
            session.query("RELOAD")


def test_a_fault_starts_and_stops_from_another_process(lab: Lab) -> None:
    done = lab.ask("start", "saturate", "--size", "50%")
    assert done == (0, "saturate: 23 sessions\n", "")
    assert lab.established("postgresql") == 23
    port = str(lab.endpoint("postgresql")["port"])
    verdict = support.run("saturation", "-p", port, user="nobody")
    assert verdict.out.startswith("PGSOCK_SATURATION OK - 23 of 47 connections")
    assert lab.ask("start", "saturate") == (
        3, "", "pgsock: saturate is running already: stop it first\n",
    )  # fmt: skip
    status = json.loads(lab.ask("status", "--json").out)
    (fault,) = status["faults"]
    assert (fault["fault"], fault["description"], fault["state"], fault["duration_seconds"]) == (
        "saturate", "saturate: 23 sessions", "running", None,
    )  # fmt: skip
    assert 0 <= fault["since_seconds"] < 60
    assert lab.ask("stop", "saturate") == (0, "saturate stopped\n", "")
    support.wait_until(lambda: lab.established("postgresql") == 0, "the sessions are closed")
    assert lab.ask("stop", "saturate") == (
        3, "", "pgsock: saturate is not running (running: none)\n",
    )  # fmt: skip


def test_a_fault_ends_after_its_duration(lab: Lab) -> None:
    assert lab.ask("start", "leak:idle", "--size", "3", "--duration", "1").code == 0
    assert lab.established("postgresql") == 3
    support.wait_until(lambda: lab.established("postgresql") == 0, "the leak has ended", 5)
    assert json.loads(lab.ask("status", "--json").out)["faults"] == []


def test_kinds_and_endpoints_run_beside_each_other(lab: Lab) -> None:
    support.require("pgbouncer")
    for label in ("leak", "leak:idle-in-transaction", "saturate@pgbouncer"):
        assert lab.ask("start", label, "--size", "4").code == 0
    assert lab.established("pgbouncer") == 4
    assert lab.ask("stop", "leak").err.startswith(
        "pgsock: leak is several faults: name one (running: "
    )
    for label in ("leak:idle", "leak", "saturate"):
        assert lab.ask("stop", label).code == 0
    status = lab.ask("status").out
    assert status.endswith("  no fault is running\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("start", "nothing"), "there is no fault 'nothing' (of: healthy, saturate, ramp, "),
        (("start", "a|b\x1b[2J"), "there is no fault 'a?b?[2J' (of: "),
        (("start", "leak", "--size", "0"), "'0' is no size: a count, or a percentage of the limit"),
        (("start", "leak:all"), "leak knows no kind 'all' (of: idle, idle-in-transaction)"),
        (("start", "leak", "--size", "48"), "leak:idle cannot be made: 53300 "),
        (("start", "leak", "--speed", "2"), "leak has no speed"),
        (("start", "vanish"), "vanish needs a lab on two hosts (--two-hosts, as root)"),
        (("start", "crash", "--duration", "5"), "crash is over at once: it has no duration"),
        (
            ("start", "leak:idle-in-transaction@pgbouncer", "--size", "5"),
            "leak:idle-in-transaction@pgbouncer holds a server connection for each session, and "
            "the pool has 4, not 5: name a smaller size",
        ),
    ],
)
def test_what_cannot_be_made_is_one_sentence(
    lab: Lab, arguments: tuple[str, ...], sentence: str
) -> None:
    if arguments[1].endswith("@pgbouncer"):
        support.require("pgbouncer")
    done = lab.ask(*arguments)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"pgsock: {sentence}")
    assert done.err.count("\n") == 1
    assert json.loads(lab.ask("status", "--json").out)["faults"] == []
    support.wait_until(lambda: lab.established("postgresql") == 0, "nothing is left of it")


def test_usage_errors_are_one_sentence() -> None:
    for arguments in (("lab", "begin"), ("lab", "start"), (), ("lab", "--size", "3")):
        done = pgsock(*arguments)
        assert (done.code, done.out) == (3, "")
        assert done.err.count("\n") == 1
        assert done.err.startswith("pgsock")
    done = pgsock("lab", "--pg-bin", "/nowhere")
    assert done == (
        3, "", "pgsock: /nowhere holds no PostgreSQL: there is no executable initdb in it\n",
    )  # fmt: skip
    done = pgsock("lab", "--max-connections", "abc")
    assert done == (
        3, "", "pgsock lab: argument --max-connections: 'abc' is no number of connections, 10 to "
        "10000; see pgsock lab --help\n",
    )  # fmt: skip
    done = pgsock("lab", "status", "--lab", "none")
    assert done.code == 3
    assert done.err.startswith("pgsock: no lab 'none' is running (running: ")


def test_files_that_cannot_be_written_are_one_sentence() -> None:
    support.require("embedded-wheel")
    # Blocks of 512 bytes: as on a full disk no larger file can be written, hundreds of them.
    command = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *COMMAND, "lab"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(
        r"pgsock: /\S+/bin cannot be copied: \d+ files not, the first: .*File too large.*\n",
        done.stderr,
    )


def test_what_was_started_unseen_is_told(lab: Lab) -> None:
    command = [*COMMAND, "lab", "start", "leak", "--size", "2", "--lab", lab.about["name"]]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert (done.returncode, done.stderr) == (
        3, "pgsock: [Errno 28] No space left on device; but leak was started\n"
    )  # fmt: skip
    assert lab.ask("stop", "leak").code == 0


def test_several_labs_keep_apart(lab: Lab) -> None:
    with running("--max-connections", "12", "--no-pgbouncer") as second:
        assert [each["kind"] for each in second.about["endpoints"]] == ["postgresql"]
        assert second.ask("start", "saturate").out == "saturate: 8 sessions\n"
        assert lab.established("postgresql") == 0
        done = pgsock("lab", "status")
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("pgsock: several labs are running: name one with --lab (of: ")
    assert second.is_gone()
    assert lab.ask("status").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_of_an_ended_lab(number: signal.Signals) -> None:
    support.require("embedded-wheel")
    with running() as lab:
        assert lab.ask("start", "hoard").code == 0
        assert lab.ask("start", "leak").code == 0
        lab.process.send_signal(number)
        out, err = lab.process.communicate(timeout=30)
        assert (out, err) == ("", "")
        assert lab.process.returncode == (-number if number == signal.SIGKILL else 0)
        support.wait_until(lab.is_gone, "nothing of the lab is left", 10)


def test_another_user_may_not_start_faults(lab: Lab) -> None:
    support.require("root")
    control = Path(lab.about["directory"]) / "control"
    assert control.stat().st_mode & 0o777 == 0o600
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(control)!r})"
    done = subprocess.run(
        [support.SYSTEM_PYTHON, "-c", code],
        capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[],
    )  # fmt: skip
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b'{"do": "start"}\n', b'{"do": "end"}\n', b"x"])
def test_a_request_that_is_none_is_answered_and_nothing_else_happens(lab: Lab, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(lab.about["directory"], "control"))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4096)
    assert answer == b"" if line == b"x" else list(json.loads(answer)) == ["error"]
    assert lab.ask("status").code == 0


def test_the_faults_are_listed() -> None:
    done = pgsock("lab", "faults")
    assert (done.code, done.err) == (0, "")
    assert "\nchurn:{plain,tls,reset,failed-login,slow-closer,probe}[@pgbouncer]\n" in done.out


def test_a_fault_that_is_lost_says_so(lab: Lab) -> None:
    held = ("leak", "hoard", "orphan", "slow-reader", "long-transactions")
    for label in held:
        assert lab.ask("start", label, "--size", "3").code == 0
    assert lab.ask("start", "churn").code == 0
    assert set(troubles(lab).values()) == {None}
    assert lab.ask("start", "restart") == (0, "restart: done\n", "")
    after = troubles(lab)
    churn = after.pop("churn:plain")
    assert after == {
        "leak:idle": "3 of 3 sessions lost",
        "hoard": "9 of 9 sessions lost",
        "orphan": "3 of 3 backends gone",
        "slow-reader": "3 of 3 backends gone",
        "long-transactions": "3 of 3 sessions lost",
    }
    # Its clients come again, as an application's do.
    assert churn is None or churn.startswith("its connections are refused: ")
    port = str(lab.endpoint("postgresql")["port"])

    def is_churning() -> bool:
        arguments = ("-p", port, "--window", "1", "-w", "10", "-c", "1000")
        return support.run("thrashing", *arguments).code == 1

    support.wait_until(is_churning, "it churns again", 15)
    for label in (*held, "churn"):
        assert lab.ask("stop", label).code == 0


def troubles(lab: Lab) -> dict[str, str | None]:
    """What the running faults are not any more."""
    faults = json.loads(lab.ask("status", "--json").out)["faults"]
    return {fault["fault"]: fault["trouble"] for fault in faults}


def test_a_load_that_lost_clients_says_so(lab: Lab) -> None:
    support.require("pgbouncer")
    assert lab.ask("start", "oversize", "--size", "3").code == 0
    assert troubles(lab) == {"oversize": None}
    assert lab.ask("start", "crash").code == 0
    # PgBouncer ends those whose statement ran; who waited goes on.
    told = re.compile(r"    but [1-4] of 4 clients lost\n")
    support.wait_until(lambda: bool(told.search(lab.ask("status").out)), "its clients are lost")
    done = lab.ask("stop", "oversize")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("pgsock: pgbench lost clients; its log ends: ")
    assert troubles(lab) == {}


def test_a_dead_server_is_told_and_comes_back(lab: Lab) -> None:
    faults = {"postgresql": "leak"}
    if support.has("pgbouncer"):
        faults["pgbouncer"] = "hoard@pgbouncer"
    assert lab.ask("start", "parallel", "--size", "1").code == 0
    for kind, fault in faults.items():
        title = {"postgresql": "PostgreSQL", "pgbouncer": "PgBouncer"}[kind]
        os.kill(server(lab, kind)["pid"], signal.SIGKILL)
        wait_for_death = functools.partial(lambda kind: not server(lab, kind)["running"], kind)
        support.wait_until(wait_for_death, "it is dead")
        assert server(lab, kind)["pid"] is None
        status = lab.ask("status").out
        assert status.count("not running") == 1
        assert f"{server(lab, kind)['dsn']}  not running\n" in status
        sentence = f"{title} is not running: start the fault 'restart'"
        assert lab.ask("start", fault).err.endswith(f" cannot be made: {sentence}\n")
        if kind == "postgresql":
            assert lab.ask("stop", "parallel") == (3, "", f"pgsock: {sentence}\n")
        assert lab.ask("start", "restart") == (0, "restart: done\n", "")
        assert server(lab, kind)["running"]
        assert lab.ask("start", fault, "--size", "2").code == 0
        assert lab.established(kind) == (8 if fault.startswith("hoard") else 2)
        assert lab.ask("stop", fault).code == 0
    # What could not be put back is in nobody's way.
    assert lab.ask("start", "parallel", "--size", "1").code == 0
    assert lab.ask("stop", "parallel").code == 0


def server(lab: Lab, kind: str) -> dict[str, Any]:
    """What a lab's status says of the endpoint of this kind."""
    endpoints = json.loads(lab.ask("status", "--json").out)["endpoints"]
    found: dict[str, Any] = next(each for each in endpoints if each["kind"] == kind)
    return found


def test_what_is_over_at_once_can_be_repeated(lab: Lab) -> None:
    for _ in range(2):
        assert lab.ask("start", "reset-statistics") == (0, "reset-statistics: done\n", "")
    assert json.loads(lab.ask("status", "--json").out)["faults"] == []


def test_nobody_else_is_its_superuser(lab: Lab) -> None:
    endpoint = lab.endpoint("postgresql")
    with pytest.raises(WireError, match=r"pg_hba\.conf rejects connection"):
        Session.connect(endpoint["address"], endpoint["port"], "postgres")
    if support.has("pgbouncer"):
        pooler = lab.endpoint("pgbouncer")
        with pytest.raises(WireError, match=r"pg_hba\.conf rejects connection"):
            Session.connect(pooler["address"], pooler["port"], "postgres", timeout=5)
    if os.geteuid() == 0:
        code = (
            "import os; os.setgid(33); os.setuid(33)\n"
            "from check_pgsock.pgsock.lab.wire import Session\n"
            f"Session.connect({os.path.dirname(endpoint['socket'])!r}, {endpoint['port']})"
        )
        done = subprocess.run(
            [support.SYSTEM_PYTHON, "-c", code],
            capture_output=True, text=True, check=False,
            env=support.environment(support.readable_tree()), cwd="/",
        )  # fmt: skip
        assert 'Peer authentication failed for user "postgres"' in done.stderr


def test_a_strict_umask_is_no_hindrance() -> None:
    support.require("embedded-wheel")
    old = os.umask(0o077)
    try:
        with running() as lab:
            assert lab.ask("start", "saturate", "--size", "3").code == 0
    finally:
        os.umask(old)
    assert lab.is_gone()


def test_a_directory_that_is_only_called_like_a_lab_is_none() -> None:
    with Home("pgsock-lab-") as home:
        for name in ("0123abcd", "notes"):
            path = home.path.with_name(f"pgsock-lab-{name}")
            path.mkdir()
            try:
                assert path not in homes("pgsock-lab-")
            finally:
                path.rmdir()
        assert home.path in homes("pgsock-lab-")
