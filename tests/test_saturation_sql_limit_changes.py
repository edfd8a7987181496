"""`--limit sql`: a server whose limit is another than the one that is kept."""

from __future__ import annotations

import re
from pathlib import Path

from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.support import Completed
from tests.test_saturation import line
from tests.test_saturation_sql_limit import LOGGED, OTHERS, asked, make_older, run, state

__all__ = ["state"]


def resize(server: PostgresServer, slots: int) -> None:
    """Give the server another max_connections, which takes a restart."""
    server.execute(f"ALTER SYSTEM SET max_connections = {slots}")
    server.restart()


def aged(done: Completed) -> Completed:
    """The ages of a kept limit masked, and without who holds the connections."""
    lines = [one for one in done.out.splitlines(True) if "established by" not in one]
    return done._replace(out=re.sub(r"as it was \S+ \w+ ago", "as it was # ago", "".join(lines)))


def test_a_server_that_was_made_larger(
    pg: PostgresServer, make_pg: MakePg, state: Path, sessions: OpenSessions
) -> None:
    """What is kept raises no alert once it is a minute old; a younger one says its age."""
    server = make_pg(settings={**LOGGED, "max_connections": 20}, major=pg.version)
    server.execute("CREATE ROLE watch LOGIN")
    where, dsn = f"to port {server.port}", server.dsn("postgres", "watch")
    assert run(server.port, state, dsn) == (
        0,
        line("OK", 0, 17, where, 13, 15, slots=False) + OTHERS,
        "",
    )
    resize(server, 30)
    sessions(server, 16)
    by_kept = line(
        "CRITICAL", 16, 17, where, 13, 15, " (established outside range 0:15)", slots=False
    )
    make_older(state, 10)
    done = aged(run(server.port, state, dsn))
    assert (done.code, done.out.startswith(f"{by_kept}{OTHERS}the limit is as it was # ago\n")) == (
        2,
        True,
    )
    assert asked(server) == 1
    server.execute("ALTER ROLE watch NOLOGIN")
    make_older(state, 60)
    done = aged(run(server.port, state, dsn))
    assert (done.code, done.out.partition("\n")[0]) == (2, by_kept.strip())
    assert re.search(
        "\nthe limit is as it was # ago, it cannot be read now: the database cannot be reached: .*"
        'role "watch" is not permitted to log in',
        done.out,
    )
    server.execute("ALTER ROLE watch LOGIN")
    good = (0, line("OK", 16, 27, where, 21, 24, slots=False) + OTHERS, "")
    for _ in range(2):
        assert run(server.port, state, dsn) == good
    assert asked(server) == 3  # with the one that was refused
    # An alert by the limit of now says no age, and one a little later does.
    sessions(server, 6)
    make_older(state, 60)
    for said in ("", "the limit is as it was # ago\n"):
        done = aged(run(server.port, state, dsn))
        expected = line(
            "WARNING", 22, 27, where, 21, 24, " (established outside range 0:21)", slots=False
        )
        assert (done.code, done.out.startswith(f"{expected}{OTHERS}{said}")) == (1, True)
        assert ("as it was" in done.out) is bool(said)
    assert asked(server) == 4


def test_a_server_that_was_made_smaller(
    pg: PostgresServer, make_pg: MakePg, state: Path, sessions: OpenSessions
) -> None:
    """A restart closes all connections: where none is left that was there, it is asked again."""
    server = make_pg(settings={**LOGGED, "max_connections": 30}, major=pg.version)
    server.execute("CREATE ROLE watch LOGIN")
    where, dsn = f"to port {server.port}", server.dsn("postgres", "watch")
    opened = sessions(server, 8)
    larger = (0, line("OK", 8, 27, where, 21, 24, slots=False) + OTHERS, "")
    assert run(server.port, state, dsn) == larger
    make_older(state, 310)
    assert run(server.port, state, dsn) == larger
    assert asked(server) == 1
    resize(server, 20)
    for one in opened:
        one.close()
    # Nobody is there who could be judged.
    done = run(server.port, state, dsn)
    assert done == (0, line("OK", 0, 27, where, 21, 24, slots=False) + OTHERS, "")
    sessions(server, 8)
    make_older(state, -200)
    assert run(server.port, state, dsn) == larger
    assert asked(server) == 1
    make_older(state, 200)
    smaller = (0, line("OK", 8, 17, where, 13, 15, slots=False) + OTHERS, "")
    for _ in range(2):
        assert run(server.port, state, dsn) == smaller
    make_older(state, 310)
    assert run(server.port, state, dsn) == smaller
    assert asked(server) == 2
    # Those of another leg tell nothing of it.
    done = support.run(
        "saturation", "-p", str(server.port), "--limit", "sql", "-d", dsn, "--state-dir",
        str(state), user="nobody",
    )  # fmt: skip
    assert done.code == 0
    assert asked(server) == 2
