"""Processes of a recording: what is kept of them, and that they stand in for a /proc."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import MalformedError
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import ProcessTable
from check_pgsock.recording.processes import (
    Recorded,
    pack_processes,
    parse_processes,
    read_processes,
    remove_secrets,
)
from check_pgsock.recording.recorded_proc import RecordedProc
from tests import support
from tests.recordings import LISTENER, PROCESSES, captured, process, replay, write


def table(processes: dict[int, Recorded]) -> ProcessTable:
    """The processes of a recording, read at 5000 s since boot."""
    files = RecordedProc("one.zip", 100, 5000.0, 1.7e9, lambda: processes)
    return ProcessTable(Deadline(5), files)


def test_there_and_back() -> None:
    odd = process("a) b\\\n(", 1)
    odd.files["cmdline"] = b"caf\xe9\0\0\x01\0"
    odd = odd._replace(links={"cwd": "/srv/\udce9"}, sockets={})
    everything = {**PROCESSES, 4194304: odd}
    raw = pack_processes(everything)
    assert raw.isascii()
    assert parse_processes(raw) == everything


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "it is no object"),
        (b'{"x": {}}', "a process id that is none"),
        (b'{"1": 3}', "a process is no object"),
        (b'{"1": {}}', "the files of a process are not str by name"),
        (b'{"1": {"files": {"stat": 1}}}', "the files of a process are not str by name"),
        (b'{"1": {"files": {}, "links": {"cwd": 1}}}',
         "the links of a process are not str by name"),
        (b'{"1": {"files": {}, "links": {}, "sockets": {"3": "4"}}}',
         "the sockets of a process are not int by name"),
        (b'{"1": {"files": {}, "links": {}, "network": true}}',
         "the network of a process is no number"),
        (b'{"1": {"files": {"stat": ""}, "links": {}}}',
         "a process has not the files that it should have"),
        (b'{"1": {"files": {"stat": "", "status": "", "mem": ""}, "links": {}}}',
         "a process has not the files that it should have"),
        (b'{"1": {"files": {"stat": "", "status": ""}, "links": {}}}', "subsection not found"),
        (b'{"1": {"files": {"stat": "1 (a", "status": ""}, "links": {}}}', "subsection not found"),
        (b'{"1": {"files": {"stat": "1 (a) S", "status": ""}, "links": {}}}',
         "list index out of range"),
        (b'{"1": {"files": {"stat": "\\ud800", "status": ""}, "links": {}}}',
         "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(raw: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_processes(raw)
    assert str(caught.value) == f"processes.json: {sentence}"


def test_it_stands_in_for_proc() -> None:
    found = table(PROCESSES)
    assert found.commands() == {
        1: ("systemd", 0), 10: ("postgres", 1), 11: ("postgres", 10),
    }  # fmt: skip
    postmaster = found.process(10, "postgres", 1)
    assert postmaster is not None
    assert (postmaster.uid, postmaster.arguments) == (26, ["/usr/bin/postgres", "-D", "/srv/data"])
    foreign = found.process(1, "systemd", 0)
    assert foreign is not None
    assert (foreign.uid, foreign.title) == (26, "")
    assert found.process(12, "gone", 1) is None
    assert found.socket_inodes(10) == {LISTENER}
    assert found.socket_inodes(1) is None
    assert found.group(10) == 26
    assert found.age(10) == pytest.approx(5000 - 12.34)
    assert found.read(10, "comm") == b"postgres\n"
    assert not found.sees_all()
    assert not found.shares_namespaces(10)


@pytest.mark.parametrize(
    ("method", "parts", "number"),
    [
        ("read", ("12", "stat"), errno.ENOENT),
        ("read", ("10", "environ"), errno.ENOENT),
        ("read", ("self", "stat"), errno.ENOENT),
        ("read", ("sys", "net", "core", "somaxconn"), errno.ENOENT),
        ("names", ("10", "task"), errno.ENOENT),
        ("names", ("1", "fd"), errno.EACCES),
        ("link", ("10", "cwd"), errno.ENOENT),
        ("link", ("10", "fd", "9"), errno.ENOENT),
        ("link", ("1", "fd", "3"), errno.EACCES),
    ],
)
def test_what_is_not_in_it_is_an_error_of_the_file_system(
    method: str, parts: tuple[str, ...], number: int
) -> None:
    files = table(PROCESSES).files
    with pytest.raises(OSError) as caught:
        getattr(files, method)(*parts)
    assert caught.value.errno == number


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    broken = process("postgres", 1)
    broken.files.pop("status")
    path = write(tmp_path / "one.zip", captured(processes={1: broken}))
    with pytest.raises(MalformedError) as caught:
        replay(path).processes().commands()
    assert str(caught.value) == (
        f"{path}, processes.json: a process has not the files that it should have"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("docker-proxy\0-host-port\x005432\0", "docker-proxy\0-host-port\x005432\0"),
        ("kubectl\0--token=abc\0port-forward\0", "kubectl\0--token=\0port-forward\0"),
        ("kubectl\0--token\0abc\0port-forward\0", "kubectl\0--token\0\0port-forward\0"),
        ("kubectl\0--password\0--v=2\0", "kubectl\0--password\0--v=2\0"),
        ("socat\0PROXY:h:d:1,proxyauth=u:p,x=1\0", "socat\0PROXY:h:d:1,proxyauth=\0"),
        ("cloud-sql-proxy\0--json-credentials\0{}\0", "cloud-sql-proxy\0--json-credentials\0\0"),
        ("socat\0TCP-L:1\0TCP:auth-db:5432\0", "socat\0TCP-L:1\0TCP:auth-db:5432\0"),
        ("ssh\0-L5432:db:5432\0author@host\0", "ssh\0-L5432:db:5432\0author@host\0"),
        ("stunnel\0/etc/stunnel/passwords.conf\0", "stunnel\0/etc/stunnel/passwords.conf\0"),
    ],
)  # fmt: skip
def test_secrets_are_removed(given: str, kept: str) -> None:
    assert remove_secrets(given.encode()) == kept.encode()


def test_processes_of_this_machine() -> None:
    """Of ours everything may be read, but there is no reason to keep its command line."""
    secret = "s3cr3t"
    with subprocess.Popen(
        [sys.executable, "-c", "input()", f"--password={secret}"],
        stdin=subprocess.PIPE,
        env={"PGPASSWORD": secret},
    ) as child:
        found = read_processes(LiveProc(), Deadline(30))
        assert child.stdin is not None
        child.stdin.close()
    live = ProcessTable(Deadline(5))
    assert found[os.getpid()].command == support.own_command()
    assert found[child.pid].parent == os.getpid()
    assert set(found[child.pid].files) == {"stat", "status"}
    assert secret.encode() not in pack_processes({child.pid: found[child.pid]})
    own = table(found)
    assert own.socket_inodes(os.getpid()) == live.socket_inodes(os.getpid())
    assert own.uid(os.getpid()) == os.geteuid()
    assert own.sees_all() == live.sees_all()
