"""What makes a program the probable owner of a listener that nothing proves anything of."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_pgsock.servers.evidence import (
    BY_COMMAND_LINE,
    BY_EXCLUSION,
    BY_INI,
    BY_PORT,
    BY_USUAL_PORT,
    Candidate,
    find_probable,
)
from check_pgsock.servers.listeners import Endpoint
from check_pgsock.servers.programs import kind_of
from check_pgsock.sockets.model import Listener
from check_pgsock.view import View
from tests.forwarding import docker_proxy
from tests.made_up_proc import FIRST_PID, INODE, Fake, make_proc
from tests.moment import LOCAL4

POSTGRES: Fake = ("postgres", 26, ["-D", "/data"])
BOUNCER: Fake = ("pgbouncer", 26, ["/nowhere/pgbouncer.ini"])
ODYSSEY: Fake = ("odyssey", 26, ["odyssey.conf"])
SSH: Fake = ("ssh", 26, ["-N", "-L", "5432:db:5432", "gate"])
DOCKER: Fake = ("docker-proxy", 0, docker_proxy("127.0.0.1", 5432))
HAPROXY: Fake = ("haproxy", 99, [])


def candidates(view: View, fakes: list[Fake], port: int | None = None) -> list[Candidate]:
    """The candidates of a made-up /proc; `port` is that of its PostgreSQL server."""
    found = []
    for pid, (command, _, _) in enumerate(fakes, FIRST_PID):
        process = view.processes().process(pid, command, 1)
        assert process is not None
        one = Candidate(view.processes(), process, kind_of(command) or "")
        one.port = port if command == "postgres" else None
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("port", "uid", "fakes", "server_port", "programs", "proof"),
    [
        (5432, 26, [POSTGRES], 5432, ["postgres"], BY_COMMAND_LINE),
        (5432, 26, [POSTGRES], 5433, [], ""),
        (5432, 26, [POSTGRES], None, ["postgres"], BY_USUAL_PORT),
        (5433, 26, [POSTGRES], None, ["postgres"], BY_EXCLUSION),
        (5433, 26, [POSTGRES, BOUNCER], None, [], ""),  # either may have it
        (5432, 26, [POSTGRES, BOUNCER], None, ["postgres"], BY_USUAL_PORT),
        (6432, 26, [POSTGRES, BOUNCER], None, ["pgbouncer"], BY_USUAL_PORT),
        (5433, 26, [POSTGRES, BOUNCER], 5432, ["pgbouncer"], BY_EXCLUSION),
        (6432, 26, [BOUNCER, ODYSSEY], None, [], ""),
        (6432, 26, [BOUNCER, BOUNCER], None, [], ""),
        (5432, 26, [POSTGRES, SSH], None, ["ssh"], BY_COMMAND_LINE),
        (5432, 26, [POSTGRES, SSH], 5432, [], ""),  # both say that it is theirs
        (5433, 26, [SSH], None, [], ""),
        (5432, 0, [DOCKER, HAPROXY], None, ["docker-proxy"], BY_COMMAND_LINE),
        (5433, 0, [DOCKER, HAPROXY, POSTGRES], None, ["haproxy"], BY_EXCLUSION),
        (5432, 27, [POSTGRES, SSH, DOCKER, HAPROXY], 5432, [], ""),
    ],
)
def test_what_speaks_for_a_program(
    tmp_path: Path, port: int, uid: int, fakes: list[Fake], server_port: int | None,
    programs: list[str], proof: str,
) -> None:  # fmt: skip
    view = make_proc(tmp_path, uid, fakes, port)
    one = Endpoint(view.reader.each[0], Listener(LOCAL4, port, uid, INODE, 1, 0, 128))
    found, by = find_probable(view, candidates(view, fakes, server_port), one, True)
    assert ([each.process.command for each in found], by) == (programs, proof)
    if proof == BY_EXCLUSION:
        assert find_probable(view, candidates(view, fakes, server_port), one, False) == ([], "")


def test_its_other_listeners_and_its_configuration_speak_for_a_server(tmp_path: Path) -> None:
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text("[pgbouncer]\nlisten_addr = *\nlisten_port = 5432\n", encoding="utf-8")
    fakes: list[Fake] = [POSTGRES, ("pgbouncer", 26, [str(ini)])]
    view = make_proc(tmp_path, 26, fakes)
    one = Endpoint(view.reader.each[0], Listener(LOCAL4, 5432, 26, INODE, 1, 0, 128))
    server, pooler = candidates(view, fakes, 5432)
    assert find_probable(view, [server, pooler], one, True) == ([], "")
    server.port = 5433
    assert find_probable(view, [server, pooler], one, True) == ([pooler], BY_INI)
    server.port, server.port_is_proven = 5432, True
    assert find_probable(view, [server], one, True) == ([server], BY_PORT)


@pytest.mark.parametrize(
    ("settings", "is_it"),
    [
        ("listen_addresses=127.0.0.9", False),
        ("listen_addresses=127.0.0.9, 127.0.0.1", True),
        ("listen_addresses='*'", True),
        ("listen_addresses=localhost", True),
        ("listen_addresses=", False),
        ("unix_socket_directories=/elsewhere", True),
    ],
)
def test_its_addresses_on_the_command_line_leave_out_others(
    tmp_path: Path, settings: str, is_it: bool
) -> None:
    fakes: list[Fake] = [("postgres", 26, ["-p", "5432", "-c", settings])]
    view = make_proc(tmp_path, 26, fakes)
    one = Endpoint(view.reader.each[0], Listener(LOCAL4, 5432, 26, INODE, 1, 0, 128))
    (server,) = candidates(view, fakes, 5432)
    found = find_probable(view, [server], one, True)
    assert found == (([server], BY_COMMAND_LINE) if is_it else ([], ""))


def test_another_network_namespace_is_not_meant(tmp_path: Path) -> None:
    view = make_proc(tmp_path, 26, [POSTGRES])
    one = Endpoint(view.reader.each[0], Listener(LOCAL4, 5432, 26, INODE + 1, 1, 0, 128))
    assert find_probable(view, candidates(view, [POSTGRES], 5432), one, True) == ([], "")
