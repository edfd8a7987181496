"""What a run imports, and the speed goals, measured by bench.checks, as proofs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from bench.checks import imported
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.proving import Proof


def test_a_plain_run_imports_what_it_needs(pg: PostgresServer) -> None:
    support.require("system-python")
    plain = ("-p", str(pg.port), "--limit", "100")
    assert imported(plain) == []
    with_names = imported((*plain, "--peer", "localhost"))
    assert with_names == ["check_pgsock.host_names", "check_pgsock.waiting"]


@pytest.mark.prove
def test_speed_goals(proof: Proof) -> None:
    for name in ("root", "iproute2", "system-python", "embedded-wheel"):
        support.require(name)
    done = subprocess.run(
        [sys.executable, "-m", "bench.checks", "--json"],
        env={**os.environ, "PYTHONPATH": str(support.ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        start_new_session=True,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        proof(**row)
    missed = not all(row["met"] for row in rows)
    assert (done.returncode, done.stderr, bool(rows)) == (int(missed), "", True)
