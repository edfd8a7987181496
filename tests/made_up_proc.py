"""A made-up /proc: processes whose descriptors nobody can read, and one listener."""

from __future__ import annotations

import os
import time
from pathlib import Path

from check_pgsock.deadline import Deadline
from check_pgsock.proc_files import LiveProc
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.view import View

# Command, uid and arguments; what begins with the command and ":" is a title, of a child of the
# process before it.
Fake = tuple[str, int, list[str]]
INODE = 900
FIRST_PID = 100
KTHREADD = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0\n"  # PF_KTHREAD is set


def tcp_table(port: int, uid: int) -> str:
    """A /proc/net/tcp with the listener, on 127.0.0.1."""
    return (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  "
        f"timeout inode\n   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 "
        f"00:00000000 00000000 {uid:5} 0 {INODE} 1 0\n"
    )


def make_proc(root: Path, uid: int, fakes: list[Fake], port: int = 5432) -> View:
    """The view of it: the processes `fakes`, from FIRST_PID on, and the listener of `uid`."""
    for pid, (command, owner, arguments) in enumerate(fakes, FIRST_PID):
        directory = root / str(pid)
        (directory / "net").mkdir(parents=True)
        (directory / "comm").write_text(f"{command}\n", encoding="utf-8")
        (directory / "status").write_text(f"Uid:\t{owner}\t{owner}\t{owner}\n", encoding="utf-8")
        is_title = "".join(arguments).startswith(f"{command}: ")
        words, parent = (arguments, pid - 1) if is_title else ([command, *arguments], 1)
        stat = f"{pid} ({command}) S {parent} {'0 ' * 48}\n"
        (directory / "stat").write_text(stat, encoding="utf-8")
        (directory / "cmdline").write_text("\0".join([*words, ""]), encoding="utf-8")
        (directory / "net" / "tcp").write_text(tcp_table(port, uid), encoding="utf-8")
    deadline = Deadline(5)
    return View(SocketReader("auto", None, deadline), LiveProc(str(root)), deadline)


def make_kthreadd(root: Path) -> None:
    """Let it be the machine's /proc, of all its processes."""
    (root / "2").mkdir(exist_ok=True)
    (root / "2" / "stat").write_text(KTHREADD, encoding="ascii")


def make_children(root: Path, pid: int, *children: int) -> None:
    """Say whose parent a process is."""
    directory = root / str(pid) / "task" / str(pid)
    directory.mkdir(parents=True)
    (directory / "children").write_text(" ".join(map(str, children)), encoding="ascii")


def set_age(root: Path, pid: int, seconds: float) -> None:
    """Let a process have started so many seconds ago."""
    stat = root / str(pid) / "stat"
    head, _, rest = stat.read_text(encoding="ascii").rpartition(")")
    fields = rest.split()
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    fields[19] = str(int((since_boot - seconds) * os.sysconf("SC_CLK_TCK")))
    stat.write_text(f"{head}) {' '.join(fields)}\n", encoding="ascii")
