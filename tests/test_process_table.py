"""ProcessTable on real processes."""

from __future__ import annotations

import os
import subprocess

from check_pgsock.deadline import Deadline
from check_pgsock.processes import ProcessTable
from tests import support


def test_a_process_of_another_namespace_is_told_apart() -> None:
    support.require("root")
    table = ProcessTable(Deadline(5))
    assert table.shares_namespaces(os.getpid())
    assert not table.shares_namespaces(2**22 + 1)  # no such process
    with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as process:
        try:
            other = f"/proc/{process.pid}/ns/mnt"
            support.wait_until(
                lambda: os.readlink(other) != os.readlink("/proc/self/ns/mnt"), "unshared"
            )
            assert not table.shares_namespaces(process.pid)
        finally:
            process.kill()


def test_this_process() -> None:
    table = ProcessTable(Deadline(5))
    command, parent = table.commands()[os.getpid()]
    process = table.process(os.getpid(), command, parent)
    assert process is not None
    assert (process.pid, process.parent, process.uid) == (os.getpid(), os.getppid(), os.geteuid())
    assert table.group(os.getpid()) == os.getegid()
    assert table.socket_inodes(os.getpid()) is not None
    assert table.socket_inodes(2**22 + 1) is None
    assert table.process(2**22 + 1, "gone", 1) is None
