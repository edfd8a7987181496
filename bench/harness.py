"""Run commands in turn, A B A B ..., and compare them pair by pair.

The machine's speed drifts; what is measured within one pair drifts together. Times and peak memory
are the kernel's own accounting of each finished process and its children (wait4).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Spent(NamedTuple):
    """What one run of a process took: seconds, and the peak of its resident memory in MiB."""

    wall: float
    cpu: float
    peak: float


def run_once(command: Sequence[str], env: Mapping[str, str], codes: Sequence[int] = (0,)) -> Spent:
    """Run `command` to its end; raises RuntimeError if it ends with a code not in `codes`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/"
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


class Comparison(NamedTuple):
    """One command against another: medians, and medians of the ratios pair by pair."""

    name: str
    first: Spent
    second: Spent
    wall_ratio: float
    cpu_ratio: float


def compare(
    name: str,
    first: Sequence[str],
    second: Sequence[str],
    env: Mapping[str, str],
    pairs: int,
    codes: Sequence[int] = (0,),
) -> Comparison:
    """Compare after one run of each that does not count."""
    run_once(first, env, codes)
    run_once(second, env, codes)
    runs = [(run_once(first, env, codes), run_once(second, env, codes)) for _ in range(pairs)]
    return Comparison(
        name,
        _median([one for one, _ in runs]),
        _median([one for _, one in runs]),
        statistics.median(one.wall / other.wall for one, other in runs),
        statistics.median(one.cpu / other.cpu for one, other in runs),
    )


def _median(spent: Sequence[Spent]) -> Spent:
    return Spent(*(statistics.median(values) for values in zip(*spent)))
