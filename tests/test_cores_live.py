"""The cores of real servers: with an affinity, in a cpuset, and in cgroups with a CPU quota, read
by a stranger. The quotas are of whichever version of cgroups this machine has the controller in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.postgres.cores import Mount, parse_mounts
from check_pgsock.postgres.locality import find_postmaster
from check_pgsock.processes import ProcessTable
from tests import restricted, support
from tests.conftest import MakePg

FIND = """
import ctypes, os, sys
for cgroup in sys.argv[2:]:
    with open(cgroup + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    assert ctypes.CDLL(None).unshare(0x02000000) == 0  # CLONE_NEWCGROUP
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65533, 65533, 65533); os.setresuid(65533, 65533, 65533)
from check_pgsock.deadline import Deadline
from check_pgsock.postgres.cores import find_cores
found = find_cores(int(sys.argv[1]), Deadline(5))
print(found.count, found.bound, found.how, found.unread, sep="; ")
"""


def found(pg: PostgresServer, *cgroup: Path) -> str:
    """The cores as somebody finds them who is neither root nor the server's user; in a namespace
    that begins at `cgroup`, where one is given.
    """
    support.require("system-python")
    with pg.connect() as session:
        arguments = [str(session.backend_pid), *map(str, cgroup)]
        done = restricted.run_code(FIND, *arguments, gives_up_root=True)
    assert done[::2] == (0, "")
    return done[1].replace(f"process {pg.pid}", "process #").rstrip("\n")


@contextlib.contextmanager
def made(controller: str, *names: str) -> Iterator[list[Path]]:
    """New cgroups below one another in the hierarchy of this controller; skips the test where there
    may be none. What is moved there is moved to the top again.
    """
    support.require("root")
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    tops = [Path(one.point) for one in mounts if has(one, controller)]
    if not tops:
        pytest.skip(f"no cgroup here can have the controller {controller}")
    with contextlib.ExitStack() as stack:
        path = tops[0]
        paths: list[Path] = []
        for name in names:
            if paths and (path / "cgroup.subtree_control").exists():
                (path / "cgroup.subtree_control").write_text(f"+{controller}")
            path = path / name
            try:
                path.mkdir()
            except OSError as error:
                pytest.skip(f"no cgroup can be made here: {error}")
            paths.append(path)
            stack.callback(path.rmdir)
        stack.callback(leave, paths, tops[0])
        yield paths


def has(mount: Mount, controller: str) -> bool:
    """Whether cgroups just below a mount's top have this controller."""
    if mount.controllers is not None:
        return controller in mount.controllers
    enabled = Path(mount.point, "cgroup.subtree_control").read_text()
    return controller in enabled.split()


def leave(cgroups: list[Path], top: Path) -> None:
    """Move all processes of these cgroups to the top."""
    for one in cgroups:
        while pids := (one / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    (top / "cgroup.procs").write_text(pid)


def limit(cgroup: Path, quota: int | None, period: int = 100000) -> None:
    """Set its CPU quota, in microseconds; None: it has none."""
    if (cgroup / "cpu.max").exists():
        (cgroup / "cpu.max").write_text(f"{quota or 'max'} {period}")
    else:
        (cgroup / "cpu.cfs_period_us").write_text(str(period))
        (cgroup / "cpu.cfs_quota_us").write_text(str(quota or -1))


def online() -> int:
    """The online CPUs; skips the test of what they must be more than one for."""
    number = os.sysconf("SC_NPROCESSORS_ONLN")
    if number < 2:
        pytest.skip("this machine has one CPU")
    return number


def test_the_postmaster_is_the_backends_parent(pg: PostgresServer) -> None:
    with pg.connect() as session:
        process = find_postmaster(session.backend_pid, ProcessTable(Deadline(5)))
    assert (process.pid, process.command) == (pg.pid, "postgres")


def test_the_affinity_of_the_postmaster_is_that_of_its_backends(make_pg: MakePg) -> None:
    number = online()
    server = make_pg()
    os.sched_setaffinity(server.pid, {number - 1})
    with server.connect() as session:
        assert os.sched_getaffinity(session.backend_pid) == {number - 1}
    assert found(server) == (
        f"1.0; CPU affinity; 1 of {number} online CPUs by the CPU affinity of the postmaster "
        "(process #); None"
    )


def test_a_quota_of_one_and_a_half_cores_in_the_cgroup_and_above_it(make_pg: MakePg) -> None:
    number = online()
    server = make_pg()
    above = f"pgsock-quota-{os.getpid()}"
    with made("cpu", above, "db") as (parent, cgroup):
        (cgroup / "cgroup.procs").write_text(str(server.pid))
        assert found(server) == (
            f"{number}.0; online CPUs; {number} online CPUs; no CPU quota limits the postmaster "
            "(process #); None"
        )
        limit(cgroup, 150000)
        assert found(server) == (
            f"1.5; CPU quota; 1.5 by the CPU quota of cgroup /{above}/db, which limits the "
            f"postmaster (process #); it may run on {number} of {number} online CPUs; None"
        )
        done = support.run("pool_size", "-d", server.dsn(), "-v", user="nobody")
        assert "\ncores: 1.5 by the CPU quota of cgroup " in done.out
        limit(cgroup, None)
        limit(parent, 40000, 50000)
        assert found(server) == (
            f"0.8; CPU quota; 0.8 by the CPU quota of cgroup /{above}, which limits the "
            f"postmaster (process #); it may run on {number} of {number} online CPUs; None"
        )


def test_a_cpuset(make_pg: MakePg) -> None:
    number = online()
    server = make_pg()
    with made("cpuset", f"pgsock-set-{os.getpid()}") as (cgroup,):
        (cgroup / "cpuset.mems").write_text("0")
        (cgroup / "cpuset.cpus").write_text("0")
        (cgroup / "cgroup.procs").write_text(str(server.pid))
        assert found(server) == (
            f"1.0; cpuset; 1 of {number} online CPUs by the cpuset of the postmaster (process #); "
            "None"
        )


def test_a_reader_in_a_cgroup_namespace(make_pg: MakePg) -> None:
    """What is mounted begins at the host's top. What the kernel calls `/` in the namespace has a
    name below that, which nothing tells: then a quota is not known, and not none.
    """
    number = online()
    server = make_pg()
    name = f"pgsock-db-{os.getpid()}"
    with made("cpu", name) as (cgroup,), made("cpu", f"pgsock-reader-{os.getpid()}") as (own,):
        (cgroup / "cgroup.procs").write_text(str(server.pid))
        limit(cgroup, 150000)
        assert found(server, own) == (
            f"1.5; CPU quota; 1.5 by the CPU quota of cgroup /../{name}, which limits the "
            f"postmaster (process #); it may run on {number} of {number} online CPUs; None"
        )
        assert found(server, cgroup) == (
            f"{number}.0; online CPUs; {number} online CPUs; no CPU quota that can be read limits "
            "the postmaster (process #); whether a lower CPU quota limits the postmaster (process "
            "#) is not known: cgroup / is not among those that are mounted here"
        )
