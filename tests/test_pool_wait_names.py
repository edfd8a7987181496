"""check_pgsock_pool_wait -p of poolers whose program has another name than its package gives it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import EXECUTABLE, PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import Servers
from tests.test_pool_wait import BOUNDS, PREFIX, run


@pytest.fixture(scope="module")
def server(servers: Servers) -> PostgresServer:
    """One PostgreSQL: nobody connects to it."""
    support.require("pgbouncer")
    return servers.get(support.SOME_MAJORS[0])


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of programs that anybody may run."""
    with fresh_directory("pgsock-programs-", executable=True) as path:
        yield path


def test_names_of_a_poolers_program(server: PostgresServer, directory: Path) -> None:
    """Whose listener it is root is told by descriptors."""
    support.require("root")
    for name in ("pgbouncer-1_25_2", "connector"):
        program = str(shutil.copy(EXECUTABLE, directory / name))
        with PgBouncerServer(server, executable=program) as pooler:
            done = run("-p", str(pooler.port), user=None)
            if name != "connector":
                assert (done.code, done.out.endswith(f"\n{BOUNDS}")) == (0, True)
                done = support.run("saturation", "-p", str(pooler.port), user=None)
                assert (done.code, done.out.partition(" | ")[0]) == (
                    0,
                    f"PGSOCK_SATURATION OK - 0 of 100 connections (0 %) on port {pooler.port}",
                )
                continue
            assert done.code == 3
            assert re.fullmatch(
                rf"{PREFIX} UNKNOWN - on port {pooler.port} listens process \d+ \(connector\), "
                r"which by its name is no pooler that is known here: name the pooler's port, or "
                r"ask PgBouncer's console \(--dsn\)\n",
                done.out,
            )
