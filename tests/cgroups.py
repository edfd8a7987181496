"""Cgroups v2 that a test makes, enters and removes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.servers.cgroup_proof import mount_points
from tests import support


@contextlib.contextmanager
def cgroups(*names: str) -> Iterator[list[Path]]:
    """New cgroups of these names; skips the test where there may be none."""
    support.require("root")
    roots = mount_points()
    made: list[Path] = []
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                path = Path(roots[0]) / name
                path.mkdir()
                made.append(path)
                stack.callback(path.rmdir)
        except (IndexError, OSError) as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        stack.callback(enter, Path(roots[0] + own_path()))
        yield made


@contextlib.contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """What this process makes and starts meanwhile is in that cgroup."""
    home = Path(mount_points()[0] + own_path())
    enter(cgroup)
    try:
        yield
    finally:
        enter(home)


def own_path() -> str:
    """The path of the cgroup that this process is in."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "/")


def enter(cgroup: Path, pid: int | None = None) -> None:
    """Let a process (this one) make its sockets in that cgroup."""
    (cgroup / "cgroup.procs").write_text(str(pid or os.getpid()), encoding="ascii")
