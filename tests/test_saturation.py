"""check_pgsock_saturation against real servers: whole output and exit code, in all four states."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.pgsock.lab.wire import Session
from tests import support
from tests.conftest import MakePg, OpenSessions
from tests.moment import MOMENT

# Another unprivileged user than the servers': it may read none of their files.
STRANGER = "daemon"


def line(
    state: str,
    established: int,
    limit: int,
    where: str,
    warning: int,
    critical: int,
    extra: str = "",
    slots: bool = True,
) -> str:
    """The whole first line, for a leg without anything but ESTABLISHED sockets; each has a slot of
    a server that is proven, or (without `slots`) nobody knows.
    """
    share = f"{100 * established / limit:.0f}"
    utilization = round(100 * established / limit, 1)
    used = f"slots_used={established};{warning};{critical};0;{limit} " if slots else ""
    return (
        f"PGSOCK_SATURATION {state} - {established} of {limit} connections ({share} %) {where}"
        f"{extra} | established={established};{warning};{critical};0;{limit} {used}"
        f"limit={limit};;;0 utilization={utilization}%;;;0 free={limit - established};;;0;{limit} "
        "close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n"
    )


WAITING = (
    "2 connections of these not accepted yet: check_pgsock_accept_queue tells whether they stay "
    "so\n"
)


RECORD = "pgsock record, as root or as the server's user, saves what is needed"


def assumed(reserved: int = 3) -> str:
    """The note on settings that could not be read."""
    return (
        f"{reserved} reserved slots are assumed (the defaults; their settings cannot be read "
        "from here)\n"
    )


def test_ok_warning_critical_and_back(pg: PostgresServer, sessions: OpenSessions) -> None:
    port = str(pg.port)
    where = f"on port {port}"
    opened = sessions(pg, 5)
    done = support.run("saturation", "-p", port)
    assert done == (0, line("OK", 5, 17, where, 13, 15), "")
    opened += sessions(pg, 9)
    done = support.run("saturation", "-p", port)
    extra = " (established outside range 0:13; slots_used outside range 0:13)"
    assert done == (
        1,
        line("WARNING", 14, 17, where, 13, 15, extra) + support.who(14, sees_processes=True),
        "",
    )  # fmt: skip
    opened += sessions(pg, 2)
    done = support.run("saturation", "-p", port)
    extra = " (established outside range 0:15; slots_used outside range 0:15)"
    assert done == (
        2,
        line("CRITICAL", 16, 17, where, 13, 15, extra) + support.who(16, sees_processes=True),
        "",
    )  # fmt: skip
    for session in opened[5:]:
        session.close()
    support.wait_until(lambda: support.tcp_states(pg.port)["ESTABLISHED"] == 5, "closed")
    done = support.run("saturation", "-p", port)
    assert done == (0, line("OK", 5, 17, where, 13, 15), "")


def test_limit_is_given_as_nobody(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 3)
    for source in ("auto", "netlink", "procfs"):
        done = support.run(
            "saturation", "-p", str(pg.port), "--limit", "10", "--source", source, user=STRANGER
        )
        assert done == (0, line("OK", 3, 10, f"on port {pg.port}", 8, 9), "")


def test_client_leg_counts_the_other_ends(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 4)
    done = support.run("saturation", "-p", str(pg.port), "--leg", "client")
    assert done == (0, line("OK", 4, 17, f"to port {pg.port}", 13, 15, slots=False), "")
    done = support.run(
        "saturation", "-p", str(pg.port), "--leg", "client", "--limit", "4", user=STRANGER
    )
    extra = " (established outside range 0:3)"
    assert done == (
        2,
        line("CRITICAL", 4, 4, f"to port {pg.port}", 3, 3, extra, slots=False) + support.who(4),
        "",
    )


def test_free_slots_have_thresholds_of_their_own(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    sessions(pg, 5)
    done = support.run("saturation", "-p", str(pg.port), "--free-critical", "13:")
    expected = line(
        "CRITICAL", 5, 17, f"on port {pg.port}", 13, 15, " (free outside range 13:)"
    ).replace("free=12;;;0;17", "free=12;;13:;0;17")
    assert done == (2, expected + support.who(5, sees_processes=True), "")


def test_a_strangers_pooler_and_several_ports_need_a_limit(
    pg: PostgresServer, pgbouncer: PgBouncerServer, sessions: OpenSessions
) -> None:
    done = support.run("saturation", "-p", str(pgbouncer.port), user=STRANGER)
    assert done == pooler_unproven(pgbouncer)
    both = ["-p", str(pg.port), "-p", str(pgbouncer.port)]
    done = support.run("saturation", *both)
    assert done == (
        3,
        "PGSOCK_SATURATION UNKNOWN - several --port are one pool and need its size: name it with "
        "--limit N\n",
        "",
    )
    sessions(pgbouncer, 3)
    on_server = support.tcp_states(pg.port)["ESTABLISHED"]
    done = support.run("saturation", *both, "--limit", "50")
    where = f"on ports {pg.port}, {pgbouncer.port}"
    note = support.uncounted(
        "several ports are several servers'", remedy="give each port a service of its own"
    )
    assert done == (0, line("OK", 3 + on_server, 50, where, 40, 45, slots=False) + note, "")


def test_limit_on_the_command_line_is_read_by_a_stranger(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg(major=15, arguments=("-c", "max_connections=30"))
    sessions(server, 2)
    where = f"on port {server.port}"
    expected = line("OK", 2, 27, where, 21, 24)
    assert support.run("saturation", "-p", str(server.port)) == (0, expected, "")
    done = support.run("saturation", "-p", str(server.port), "-v", user=STRANGER)
    assert done == (
        0,
        expected
        + assumed()
        + support.who(2)
        + "limit: 27 usable of max_connections 30, read from the postmaster's command line; whose "
        "server it is: the titles of its backends name connections of the port (process "
        f"{server.pid})\n",
        "",
    )


def test_reserved_settings_are_subtracted_where_they_can_be_read(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    support.require("root")  # else the stranger is the server's own user
    server = make_pg(
        major=18,
        settings={
            "max_connections": 40,
            "reserved_connections": 5,
            "superuser_reserved_connections": 4,
        },
    )
    sessions(server, 1)
    where = f"on port {server.port}"
    done = support.run("saturation", "-p", str(server.port))
    assert done == (0, line("OK", 1, 31, where, 24, 27), "")
    # Without rights: the backlog tells max_connections of a known 16 or later, the rest is assumed.
    done = support.run("saturation", "-p", str(server.port), "-v", user=STRANGER)
    assert done == (
        0,
        line("OK", 1, 37, where, 29, 33)
        + assumed()
        + support.who(1)
        + "limit: 37 usable of max_connections 40, read from the listener's backlog of 80; whose "
        "server it is: the titles of its backends name connections of the port (process "
        f"{server.pid})\n",
        "",
    )


def test_a_stranger_does_not_guess_the_limit_of_15_from_its_backlog(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg(major=15, settings={"max_connections": 40})
    sessions(server, 1)
    done = support.run("saturation", "-p", str(server.port), user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_SATURATION UNKNOWN - the limit of port {server.port} cannot be read: its command "
        "line does not set max_connections, pg_control: Permission denied, postgres -C may not be "
        "run or does not answer, the backlog does not tell it on version 15; name the usable "
        "slots with --limit N\n",
        "",
    )


def test_a_pending_change_of_the_file_is_not_the_limit(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg(major=18, settings={"max_connections": 40})
    server.configure({"max_connections": 400})
    done = support.run("saturation", "-p", str(server.port))
    assert done == (
        0,
        line("OK", 0, 37, f"on port {server.port}", 29, 33)
        + "the configuration file says max_connections 400, in effect after a restart\n"
        + assumed(),
        "",
    )


def test_a_backlog_capped_by_somaxconn_is_no_limit(make_pg: MakePg, sessions: OpenSessions) -> None:
    support.require("root")  # else the stranger is the server's own user
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    server = make_pg(major=18, settings={"max_connections": somaxconn // 2 + 10})
    sessions(server, 1)
    done = support.run("saturation", "-p", str(server.port), user=STRANGER)
    assert done.code == 3
    assert f"the backlog is capped by somaxconn {somaxconn}; name the usable slots" in done.out


@pytest.mark.parametrize("major", [15, 18])
def test_the_servers_own_user_reads_what_root_reads(
    make_pg: MakePg, sessions: OpenSessions, major: int
) -> None:
    settings = {"max_connections": 40, "superuser_reserved_connections": 6}
    server = make_pg(major=major, settings=settings, user="nobody")
    sessions(server, 1)
    first = line("OK", 1, 34, f"on port {server.port}", 27, 30)
    for user in (None, "nobody"):
        done = support.run("saturation", "-p", str(server.port), "-v", user=user)
        assert done == (
            0,
            first
            + support.who(1, sees_processes=user is None)
            + "limit: 34 usable of max_connections 40, read from pg_control; whose server it is: "
            f"it holds the listener (process {server.pid})\n",
            "",
        )


def test_a_configuration_file_elsewhere_is_the_one_that_is_read(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    """As Debian's clusters are started: with -D and -c config_file=."""
    server = make_pg(major=15, settings={"max_connections": 40})
    server.stop("fast")
    own = server.data_directory / "postgresql.conf"
    other = server.data_directory.parent / "elsewhere.conf"
    other.write_text(own.read_text() + "superuser_reserved_connections = 8\n")
    other.chmod(0o644)
    server.arguments = ("-c", f"config_file={other}")
    server.start()
    done = support.run("saturation", "-p", str(server.port))
    assert done == (0, line("OK", 0, 32, f"on port {server.port}", 25, 28), "")


@pytest.mark.parametrize("major", [15, 18])
def test_pg_control_of_a_standby_is_not_the_limit(
    make_pg: MakePg, sessions: OpenSessions, major: int
) -> None:
    server = make_pg(major=major, settings={"max_connections": 40})
    server.stop("fast")
    (server.data_directory / "standby.signal").touch()
    server.configure({"max_connections": 60, "hot_standby": True})
    server.start()
    assert server.execute("select pg_is_in_recovery()") == [("t",)]
    sessions(server, 1)
    done = support.run("saturation", "-p", str(server.port), "-v")
    assert done == (
        0,
        line("OK", 1, 57, f"on port {server.port}", 45, 51)
        + support.who(1, sees_processes=True)
        + "limit: 57 usable of max_connections 60, read from postgres -C, confirmed by the "
        f"backlog; whose server it is: it holds the listener (process {server.pid})\n",
        "",
    )
    # A file that was changed since is not confirmed.
    server.configure({"max_connections": 90})
    done = support.run("saturation", "-p", str(server.port))
    if major == 18:
        assert done.out.startswith("PGSOCK_SATURATION OK - 1 of 57 connections (2 %) on port ")
    else:
        assert done == (
            3,
            f"PGSOCK_SATURATION UNKNOWN - the limit of port {server.port} cannot be read: its "
            "command line does not set max_connections, pg_control of a standby may name its "
            "primary's, what postgres -C says is not confirmed by the listener's backlog, the "
            "backlog does not tell it on version 15; name the usable slots with --limit N\n",
            "",
        )


def test_two_clusters_of_one_user_are_told_apart(make_pg: MakePg, sessions: OpenSessions) -> None:
    one = make_pg(major=15, arguments=("-c", "max_connections=30"))
    two = make_pg(major=15, arguments=("-c", "max_connections=50"))
    # No connection yet: a stranger has nothing to tell them by.
    done = support.run("saturation", "-p", str(one.port), user=STRANGER)
    assert done == (
        3,
        f"PGSOCK_SATURATION UNKNOWN - the limit of port {one.port} cannot be read: which "
        "PostgreSQL server owns its listener cannot be proven from here; name the usable slots "
        "with --limit N\n",
        "",
    )
    sessions(one, 1)
    sessions(two, 1)
    for server, limit in ((one, 27), (two, 47)):
        for user in (None, STRANGER):
            done = support.run("saturation", "-p", str(server.port), user=user)
            warning, critical = limit * 80 // 100, limit * 90 // 100
            first = line("OK", 1, limit, f"on port {server.port}", warning, critical)
            assert done == (0, first + (assumed() if user else ""), "")


def pooler_unproven(pooler: PgBouncerServer) -> tuple[int, str, str]:
    """What is due where a PgBouncer probably has the port."""
    return (
        3,
        f"PGSOCK_SATURATION UNKNOWN - the limit of port {pooler.port} cannot be read: its owner is "
        f"probably process {pooler.pid} (pgbouncer), whose max_client_conn root and its own user "
        "alone may read (run the check as one of them); name the usable slots with --limit N\n",
        "",
    )


def unproven(port: int) -> tuple[int, str, str]:
    """What is due where nobody can prove whose the port is."""
    return (
        3,
        f"PGSOCK_SATURATION UNKNOWN - the limit of port {port} cannot be read: which PostgreSQL "
        "server owns its listener cannot be proven from here; name the usable slots with "
        "--limit N\n",
        "",
    )


def test_a_pooler_of_the_servers_user_never_gets_the_servers_limit(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    """Also where the server's command line names the pooler's port, and it has no TCP port."""
    arguments = ("-c", "max_connections=50", "-c", "listen_addresses=")
    server = make_pg(major=15, arguments=arguments)
    with (
        PgBouncerServer(server, port=server.port, user="nobody") as pooler,
        socket.create_connection(("127.0.0.1", pooler.port)) as client,
    ):
        client.sendall(b"\0")  # PgBouncer accepts none before its first byte (TCP_DEFER_ACCEPT)
        done = support.run("saturation", "-p", str(pooler.port), user=STRANGER)
        assert done == pooler_unproven(pooler)
        done = support.run("saturation", "-p", str(pooler.port))
        where = f"on port {pooler.port}"
        assert done == (0, line("OK", 1, 100, where, 80, 90, slots=False), "")


def test_a_client_port_shared_by_two_servers_proves_nothing(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg(major=15, arguments=("-c", "max_connections=50"))
    with (
        PgBouncerServer(server, user="nobody") as pooler,
        socket.socket() as one,
        socket.socket() as two,
    ):
        for client in (one, two):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
        two.bind(one.getsockname())
        one.connect(("127.0.0.1", server.port))
        session = Session(one)
        session.send_startup({"user": "postgres", "database": "postgres"})
        session.wait_ready()
        two.connect(("127.0.0.1", pooler.port))
        two.sendall(b"\0")
        assert _title(session.backend_pid).endswith(f"127.0.0.1({one.getsockname()[1]}) idle")
        done = support.run("saturation", "-p", str(pooler.port), user=STRANGER)
        assert done == pooler_unproven(pooler)
        # On the server's own port the same connection proves as little; another one does.
        assert support.run("saturation", "-p", str(server.port), user=STRANGER).code == 3
        sessions(server, 1)
        done = support.run("saturation", "-p", str(server.port), user=STRANGER)
        assert done.out.startswith("PGSOCK_SATURATION OK - 2 of 47 connections (4 %) on port ")


def _title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_a_pooler_at_another_address_never_gets_the_servers_limit(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    """The same port and user, and connections that prove the server at its own address."""
    server = make_pg(major=15, arguments=("-c", "max_connections=50"))
    sessions(server, 2)
    port = str(server.port)
    with (
        PgBouncerServer(
            server, port=server.port, user="nobody", settings={"listen_addr": "127.0.0.2"}
        ),
        socket.create_connection(("127.0.0.2", server.port)) as client,
    ):
        client.sendall(b"\0")
        for arguments in (
            (),
            ("--address", "127.0.0.2"),
            ("--leg", "client", "--peer", "127.0.0.2"),
        ):
            done = support.run("saturation", "-p", port, *arguments, user=STRANGER)
            assert done == unproven(server.port)
            # To root it is PgBouncer's max_client_conn, where no other has the address.
            done = support.run("saturation", "-p", port, *arguments)
            assert done.code == (0 if arguments else 3)
            assert (" 1 of 100 connections (1 %) " in done.out) == bool(arguments)
        for arguments in (("--address", "127.0.0.1"), ("--leg", "client", "--peer", "127.0.0.1")):
            done = support.run("saturation", "-p", port, *arguments, user=STRANGER)
            assert done.code == 0
            assert re.match(r"PGSOCK_SATURATION OK - \d of 47 connections ", done.out)


@pytest.mark.parametrize("addresses", ["*", "127.0.0.1,::1"])
def test_all_addresses_of_one_server_are_its_own(
    make_pg: MakePg, sessions: OpenSessions, addresses: str
) -> None:
    """Connections over IPv4 alone prove the listener of IPv6, too: both were made in one go."""
    settings = {"listen_addresses": addresses}
    server = make_pg(major=15, settings=settings, arguments=("-c", "max_connections=50"))
    sessions(server, 1)
    for user in (None, STRANGER):
        done = support.run("saturation", "-p", str(server.port), user=user)
        assert done.code == 0
        assert done.out.startswith("PGSOCK_SATURATION OK - 1 of 47 connections (2 %) on port ")


def test_reserved_slots_of_a_file_that_has_changed_are_said_to_be(make_pg: MakePg) -> None:
    server = make_pg(major=18, settings={"max_connections": 40})
    time.sleep(1.2)
    server.configure({"superuser_reserved_connections": 9})
    done = support.run("saturation", "-p", str(server.port))
    assert done == (
        0,
        line("OK", 0, 31, f"on port {server.port}", 24, 27)
        + "reserved slots are those of the configuration file, which has changed since the server "
        "started\n",
        "",
    )


def test_several_programs_on_one_port_are_no_one_limit(
    make_pg: MakePg, sessions: OpenSessions
) -> None:
    server = make_pg(major=15, arguments=("-c", "max_connections=30"))
    sessions(server, 2)
    port = server.port
    with (
        socket.create_server(("127.0.0.2", port)) as other,
        socket.create_connection(("127.0.0.2", port)),
    ):
        other.accept()[0].close()
        for user in (None, STRANGER):
            done = support.run("saturation", "-p", str(port), user=user)
            assert done.code == 3
            assert "several programs listen on it, at different addresses (choose one" in done.out
            done = support.run("saturation", "-p", str(port), "--address", "127.0.0.1", user=user)
            assert done.code == 0
            assert done.out.startswith("PGSOCK_SATURATION OK - 2 of 27 connections (7 %) on port ")
            assert " slots_used=2;" in done.out
        done = support.run("saturation", "-p", str(port), "--address", "127.0.0.2")
        assert done.code == 3
        client = ("saturation", "-p", str(port), "--leg", "client")
        with socket.create_connection(("127.0.0.2", port)), other.accept()[0]:
            done = support.run(*client, "--peer", "127.0.0.2")
            assert done.code == 3
            assert "no PostgreSQL server that may be seen from here owns" in done.out
        done = support.run(*client, "--peer", "127.0.0.1")
        assert done.out.startswith("PGSOCK_SATURATION OK - 2 of 27 connections (7 %) to port ")
        done = support.run(*client, "--peer", "127.0.0.3")
        assert done.code == 3
        assert "no connection shows now which server this client leg has" in done.out


def test_percentages_of_free_slots(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 5)
    done = support.run("saturation", "-p", str(pg.port), "--free-warning", "80%:")
    expected = line("WARNING", 5, 17, f"on port {pg.port}", 13, 15, " (free outside range 14:)")
    expected = expected.replace("free=12;;;0;17", "free=12;14:;;0;17")
    assert done == (1, expected + support.who(5, sees_processes=True), "")


def test_a_value_inside_an_inverted_range(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 2)
    done = support.run("saturation", "-p", str(pg.port), "-w", "@1:9")
    assert done.out.split(" | ")[0] == (
        f"PGSOCK_SATURATION WARNING - 2 of 17 connections (12 %) on port {pg.port} (established "
        "inside range 1:9)"
    )


@pytest.mark.parametrize("choice", ["ok", "warning", "critical"])
def test_no_listener_without_a_limit_is_what_the_option_says(choice: str) -> None:
    port = _closed_port()
    done = support.run("saturation", "-p", str(port), "--no-listener", choice)
    code = ("ok", "warning", "critical").index(choice)
    extra = "" if choice == "ok" else f" (nothing listens on port {port})"
    assert done == (
        code,
        f"PGSOCK_SATURATION {choice.upper()} - 0 connections on port {port}, limit unknown{extra} "
        "| established=0;;;0 close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n",
        "",
    )


def test_a_process_that_calls_itself_postgres_proves_nothing(make_pg: MakePg) -> None:
    server = make_pg(major=15, arguments=("-c", "max_connections=30"), user="nobody")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # root's, no PostgreSQL
        port = listener.getsockname()[1]
        assert port != server.port
        done = support.run("saturation", "-p", str(port), user=STRANGER)
    assert done.code == 3
    assert "no PostgreSQL server that may be seen from here owns its listener" in done.out


@pytest.mark.parametrize("choice", ["ok", "warning", "critical"])
def test_no_listener_is_what_the_option_says(choice: str) -> None:
    port = _closed_port()
    done = support.run("saturation", "-p", str(port), "--limit", "10", "--no-listener", choice)
    code = ("ok", "warning", "critical").index(choice)
    extra = "" if choice == "ok" else f" (nothing listens on port {port})"
    first = line(choice.upper(), 0, 10, f"on port {port}", 8, 9, extra, slots=False)
    assert done == (code, first, "")


def test_no_listener_is_unknown_by_default() -> None:
    port = _closed_port()
    assert support.run("saturation", "-p", str(port)) == (
        3,
        f"PGSOCK_SATURATION UNKNOWN - nothing listens on port {port}; is the server down or the "
        "port another (--port)? --no-listener decides what this means\n",
        "",
    )


def test_addresses_and_peers_select(pg: PostgresServer, sessions: OpenSessions) -> None:
    sessions(pg, 2)
    port = str(pg.port)
    for arguments, count, where in (
        (["--peer", "127.0.0.0/8"], 2, "with 127.0.0.0/8"),
        (["--peer", "::ffff:127.0.0.1/128"], 2, "with ::ffff:127.0.0.1/128"),
        (["--peer", "10.0.0.0/8", "--peer", "fe80::/10"], 0, "with 10.0.0.0/8, fe80::/10"),
        (["--exclude-peer", "127.0.0.1"], 0, "without 127.0.0.1"),
        (["--address", "127.0.0.1"], 2, "at 127.0.0.1"),
    ):
        done = support.run("saturation", "-p", port, "--limit", "9", *arguments)
        # An address selects listeners, and so no sessions of the server.
        slots = arguments[0] == "--address"
        expected = line("OK", count, 9, f"on port {port} {where}", 7, 8, slots=slots)
        assert done == (0, expected, "")
    done = support.run("saturation", "-p", port, "--limit", "9", "--address", "127.0.0.2")
    assert done.code == 3
    assert f"nothing listens on port {port} at 127.0.0.2;" in done.out


def test_mapped_ipv4_peers_of_a_dual_stack_listener_count_once() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            for source in ("netlink", "procfs"):
                for leg, where in (("server", "on"), ("client", "to")):
                    done = support.run(
                        "saturation", "-p", str(port), "--limit", "9", "--source", source,
                        "--leg", leg, "--peer", "127.0.0.1/32",
                    )  # fmt: skip
                    first = line(
                        "OK", 1, 9, f"{where} port {port} with 127.0.0.1/32", 7, 8, slots=False
                    )
                    assert done == (0, first, "")


def test_connections_not_yet_accepted_count_and_are_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)),
            socket.create_connection(("127.0.0.1", port)),
        ):
            for source in ("netlink", "procfs"):
                done = support.run(
                    "saturation", "-p", str(port), "--limit", "9", "--source", source
                )
                first = line("OK", 2, 9, f"on port {port}", 7, 8, slots=False)
                first = first.replace("not_accepted=0", "not_accepted=2")
                assert done == (0, first + WAITING, "")


def test_a_saved_moment() -> None:
    done = support.run("saturation", "--proc-root", str(MOMENT), "--limit", "4", "-vv")
    out = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert out[:-1] == [
        "PGSOCK_SATURATION OK - 3 of 4 connections (75 %) on port 5432 | established=3;3;3;0;4 "
        "limit=4;;;0 utilization=75.0%;;;0 free=1;;;0;4 close_wait=1;;;0 syn_recv=0;;;0 "
        "not_accepted=2;;;0",
        support.uncounted("a saved moment holds no processes", remedy=RECORD).strip(),
        WAITING.strip(),
        "peer 127.0.0.1: 3 established",
        "activity: 2 not accepted, 1 unknown",
        "limit: 4 usable, given by --limit",
        f"source: procfs ({MOMENT}/net)",
    ]
    done = support.run("saturation", "--proc-root", str(MOMENT))
    assert done == (
        3,
        "PGSOCK_SATURATION UNKNOWN - the limit of port 5432 is not in a saved moment; name it "
        "with --limit N\n",
        "",
    )


def _damage(root: Path, name: str) -> str:
    """Damage a copy of the moment; return the sentence that is due."""
    net = root / "net"
    if name == "no net":
        shutil.rmtree(net)
        return f"{net} cannot be read: No such file or directory; see --proc-root"
    if name == "net is a file":
        shutil.rmtree(net)
        net.write_bytes(b"")
        return f"{net} is no directory; --proc-root wants the copy of a /proc"
    if name == "no tcp":
        (net / "tcp").unlink()
        return f"{net}/tcp cannot be read: No such file or directory"
    if name == "tcp is unreadable":
        (net / "tcp").chmod(0)
        return f"{net}/tcp cannot be read: Permission denied"
    if name == "tcp6 is unreadable":
        (net / "tcp6").chmod(0)
        return f"{net}/tcp6 cannot be read: Permission denied"
    if name == "tcp is a fifo":
        (net / "tcp").unlink()
        os.mkfifo(net / "tcp")
        (net / "tcp").chmod(0o644)
        return f"{net}/tcp is not a regular file"
    if name == "tcp is empty":
        (net / "tcp").write_bytes(b"")
        return f"{net}/tcp is empty, not even a header line"
    if name == "tcp ends within a line":
        (net / "tcp").write_bytes((net / "tcp").read_bytes()[:-20])
        return (
            f"{net}/tcp line 15: the file ends within a line, '13: 0100007F:1538 0100007F:9C47 01 "
            "00000000:00000000 00:0000...'"
        )
    text = (net / "tcp6").read_bytes()
    (net / "tcp6").write_bytes(text.replace(b" 01 ", b" ZZ ", 1))
    return f"{net}/tcp6 line 3: bad st 'ZZ'"


@pytest.mark.parametrize(
    "damage",
    ["no net", "net is a file", "no tcp", "tcp is unreadable", "tcp6 is unreadable",
     "tcp is a fifo", "tcp is empty", "tcp ends within a line", "tcp6 is malformed"],
)  # fmt: skip
@pytest.mark.parametrize("check", ["saturation", "close_wait"])
def test_a_damaged_proc_root_is_never_zero_connections(damage: str, check: str) -> None:
    with fresh_directory("pgsock-moment-") as root:
        shutil.copytree(MOMENT / "net", root / "net")
        sentence = _damage(root, damage)
        limit = ["--limit", "9"] if check == "saturation" else []
        done = support.run(check, "--proc-root", str(root), *limit, user=STRANGER)
    assert done == (3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}\n", "")


def test_a_saved_moment_without_tcp6_is_noted() -> None:
    with fresh_directory("pgsock-moment-") as root:
        shutil.copytree(MOMENT / "net", root / "net")
        (root / "net" / "tcp6").unlink()
        done = support.run("close_wait", "--proc-root", str(root), "-vv")
    assert done.code == 0
    assert done.out.splitlines()[1] == (
        "the saved moment has no tcp6: IPv6 connections, and those of listeners that take IPv4 "
        "and IPv6, are not in it"
    )


def test_a_live_proc_below_another_root_is_read_at_its_first_process(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    sessions(pg, 2)
    done = support.run("saturation", "-p", str(pg.port), "--proc-root", "/proc", "-vv")
    assert "source: procfs (/proc/1/net)\n" in done.out


def _closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port
