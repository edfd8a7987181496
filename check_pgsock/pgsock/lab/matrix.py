"""The matrix: which service state each fault is to bring about, read from matrix.txt."""

from __future__ import annotations

import functools
from pathlib import Path

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.services import STATES

# No service state but OK, by design.
NONE = "none"

Matrix = dict[str, dict[str, str]]


def parse(text: str) -> Matrix:
    """Expected states by fault and service.

    The first line that is no comment names the services; each further one is a fault and a state
    for each service. Raises LabError at a line that is not.
    """
    services: list[str] = []
    matrix: Matrix = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not services:
            services = words[1:]
            continue
        fault, states = words[0], words[1:]
        wrong = [word for word in states if word not in (*STATES, NONE)]
        if wrong or len(states) != len(services) or fault in matrix:
            raise LabError(f"matrix line {number}: '{line.strip()}' is no row of states")
        matrix[fault] = {s: "OK" if w == NONE else w for s, w in zip(services, states)}
    return matrix


@functools.cache
def matrix() -> Matrix:
    """The committed matrix."""
    return parse(Path(__file__).with_name("matrix.txt").read_text(encoding="utf-8"))
