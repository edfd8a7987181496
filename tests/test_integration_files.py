"""icinga/ and nrpe/, what an administrator installs: against the executables and real daemons."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import functools
import importlib
import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from check_pgsock import options, plugin
from check_pgsock.command_line import Parser
from check_pgsock.contract import CheckSpec
from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import daemons, session_load, support
from tests.conftest import Installations

CHECK_COMMANDS = (support.ROOT / "icinga/check_pgsock.conf").read_text(encoding="utf-8")
SERVICES = (support.ROOT / "icinga/services.conf.example").read_text(encoding="utf-8")
HOSTS = (support.ROOT / "icinga/hosts.conf.example").read_text(encoding="utf-8")
NRPE_COMMANDS = (support.ROOT / "nrpe/check_pgsock.cfg").read_text(encoding="utf-8")
PLUGINS = "/usr/lib/nagios/plugins/"  # where nrpe/check_pgsock.cfg expects the executables


def registry() -> dict[str, str]:
    """The console_scripts of setup.cfg: executable, and what it calls."""
    setup = configparser.ConfigParser()
    setup.read(support.ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    pairs = (line.partition("=") for line in lines if line.strip().startswith("check_pgsock_"))
    return {name.strip(): target.strip() for name, _, target in pairs}


EXECUTABLES = sorted(registry())
each_executable = pytest.mark.parametrize("executable", EXECUTABLES)


def name_of(executable: str) -> str:
    return executable.removeprefix("check_pgsock_")


def spec_of(executable: str) -> CheckSpec:
    module = importlib.import_module(f"check_pgsock.checks.{name_of(executable)}")
    return cast(CheckSpec, module.SPEC)


class CheckCommand(NamedTuple):
    """What Icinga knows of an executable."""

    command: str
    timeout: str
    arguments: dict[str, dict[str, object]]


def parse_check_commands(text: str) -> dict[str, CheckCommand]:
    """The CheckCommand objects of a file in the Icinga Template Library's style."""
    found = {}
    for name, body in re.findall(
        r'^object CheckCommand "([^"]+)" \{\n(.*?)^\}', text, re.DOTALL | re.MULTILINE
    ):
        arguments = {}
        for option, lines in re.findall(
            r'^\t\t"([^"]+)" = \{\n(.*?)^\t\t\}', body, re.DOTALL | re.MULTILINE
        ):
            pairs = re.findall(r"^\t\t\t(\w+) = (.+)$", lines, re.MULTILINE)
            arguments[option] = {key: json.loads(value) for key, value in pairs}
        head = dict(re.findall(r"^\t(command|timeout) = (.+)$", body, re.MULTILINE))
        found[name] = CheckCommand(head["command"], head["timeout"], arguments)
    return found


class NrpeCommand(NamedTuple):
    """A command line of NRPE; `example` if it is commented out."""

    name: str
    argv: list[str]
    example: bool


def parse_nrpe_commands(text: str) -> list[NrpeCommand]:
    """The commands of an NRPE configuration file, also those in comments."""
    found = re.findall(r"^(#?)command\[(.+?)\]=(.+)$", text, re.MULTILINE)
    return [NrpeCommand(name, shlex.split(line), bool(mark)) for mark, name, line in found]


class _Built(Exception):
    pass


def parser_of(executable: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser of an executable, caught at the moment it is used."""

    def parse(parser: Parser, arguments: object) -> None:
        raise _Built(parser)

    spec = spec_of(executable)
    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse", parse)
        with pytest.raises(_Built) as caught:
            plugin._parse(spec, [])
    return cast(Parser, caught.value.args[0])


def wanted_arguments(executable: str, parser: Parser) -> dict[str, dict[str, object]]:
    """The arguments that a CheckCommand should have: every option but help and version."""
    wanted: dict[str, dict[str, object]] = {}
    for action in parser._actions:
        if action.dest in ("help", "version"):
            continue
        long = next(one for one in action.option_strings if one.startswith("--"))
        variable = f"$pgsock_{name_of(executable)}_{long[2:].replace('-', '_')}$"
        one: dict[str, object] = {"set_if" if action.nargs == 0 else "value": variable}
        if isinstance(action, argparse._AppendAction):
            one["repeat_key"] = True
        one["description"] = (action.help or "") % {**vars(action), "prog": parser.prog}
        wanted[action.option_strings[0]] = one
    return wanted


# The files against the executables, without a daemon.


def test_registry_names_every_check() -> None:
    modules = {path.stem for path in (support.ROOT / "check_pgsock/checks").glob("*.py")} - {
        "__init__"
    }
    assert registry() == {
        f"check_pgsock_{name}": f"check_pgsock.checks.{name}:main" for name in modules
    }


def test_every_executable_has_a_check_command() -> None:
    found = parse_check_commands(CHECK_COMMANDS)
    assert sorted(found) == [f"pgsock_{name_of(one)}" for one in EXECUTABLES]
    assert CHECK_COMMANDS.count("object ") == len(found)


def test_every_executable_has_an_nrpe_command() -> None:
    found = [one.name for one in parse_nrpe_commands(NRPE_COMMANDS) if not one.example]
    assert sorted(found) == EXECUTABLES


@each_executable
def test_check_command_knows_every_option(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option, none besides, its variable, and the help, with its defaults, word by word."""
    found = parse_check_commands(CHECK_COMMANDS)[f"pgsock_{name_of(executable)}"]
    assert found.command == f'[ PluginContribDir + "/{executable}" ]'
    assert found.arguments == wanted_arguments(executable, parser_of(executable, monkeypatch))


def test_check_commands_outlive_the_executables() -> None:
    for found in parse_check_commands(CHECK_COMMANDS).values():
        assert found.timeout == "1m"
    assert options.DEFAULT_TIMEOUT < 60


@pytest.mark.parametrize("one", parse_nrpe_commands(NRPE_COMMANDS), ids=lambda one: str(one.name))
def test_nrpe_command_is_one_that_its_executable_takes(one: NrpeCommand) -> None:
    directory, _, executable = one.argv[0].rpartition("/")
    assert f"{directory}/" == PLUGINS
    assert one.name.startswith(executable)
    assert plugin._parse(spec_of(executable), one.argv[1:]).timeout == options.DEFAULT_TIMEOUT
    assert "$" not in "".join(one.argv)


# The real Icinga 2.


def test_icinga_takes_the_check_commands_alone() -> None:
    support.require("icinga2")
    with daemons.Icinga({"check_pgsock.conf": CHECK_COMMANDS}) as icinga:
        done = icinga.validate()
    assert done.code == 0, done
    assert "warning" not in done.out
    assert f"Instantiated {len(EXECUTABLES) + itl_commands()} CheckCommands" in done.out


def itl_commands() -> int:
    """How many CheckCommands the template library itself has."""
    with daemons.Icinga({}) as icinga:
        found = re.search(r"Instantiated (\d+) CheckCommands", icinga.validate().out)
    assert found is not None
    return int(found[1])


def test_icinga_refuses_a_misspelled_key() -> None:
    support.require("icinga2")
    wrong = CHECK_COMMANDS.replace("repeat_key", "repeat_keys", 1)
    with daemons.Icinga({"check_pgsock.conf": wrong}) as icinga:
        done = icinga.validate()
    assert done.code == 1, done
    assert "repeat_keys" in done.out


class Listener:
    """A context manager: two listening ports of 127.0.0.1, three connections to the first."""

    def __init__(self) -> None:
        self.port = 0
        self.other = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Listener:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.port = server.getsockname()[1]
            other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.other = other.getsockname()[1]
            for _ in range(3):
                stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
                stack.enter_context(server.accept()[0])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


class Monitoring(NamedTuple):
    """A running Icinga, the directory of the executables it runs, and two ports to check."""

    icinga: daemons.Icinga
    plugins: Path
    port: int
    other: int


# A host that is the daemon's own, and what the example's hosts have: agents of their own.
OUR_HOST = """
object Host "here" {
  check_command = "dummy"
  vars.agent_endpoint = NodeName
  vars.pgsock_server["listener"] = {
    port = %(port)d
    limit = 10
    pooler = true
    vars = { pgsock_saturation_warning = 2, pgsock_saturation_verbose = true }
  }
  vars.pgsock_server["two"] = {
    port = [ %(port)d, %(other)d ]
    limit = 10
    vars = { pgsock_saturation_warning = "~:", pgsock_saturation_critical = "@-5:2.5" }
  }
  vars.pgsock_client["pool"] = {
    port = %(port)d
    peer = [ "127.0.0.0/8", "192.0.2.0/24" ]
    limit = 3
  }
}
"""
AGENTS = """
object Endpoint "db1.example.org" { }
object Zone "db1.example.org" { endpoints = [ "db1.example.org" ], parent = ZoneName }
object Endpoint "app1.example.org" { }
object Zone "app1.example.org" { endpoints = [ "app1.example.org" ], parent = ZoneName }
"""


@pytest.fixture(scope="module")
def monitoring() -> Iterator[Monitoring]:
    """An Icinga with the shipped CheckCommands and examples, running, and a listener."""
    support.require("icinga2")
    support.require("system-python")
    zone = f"zones.d/{daemons.Icinga.node}"
    with daemons.plugin_directory(EXECUTABLES) as plugins, Listener() as listener:
        files = {
            "check_pgsock.conf": CHECK_COMMANDS,
            "agents.conf": AGENTS,
            f"{zone}/services.conf": SERVICES,
            f"{zone}/hosts.conf": HOSTS,
            f"{zone}/ours.conf": OUR_HOST % {"port": listener.port, "other": listener.other},
        }
        with daemons.Icinga(files, plugins) as icinga:
            icinga.start()
            yield Monitoring(icinga, plugins, listener.port, listener.other)


def test_daemon_knows_the_check_commands(monitoring: Monitoring) -> None:
    """What this module reads out of the file is what Icinga reads out of it."""
    condition = 'match("pgsock_*",checkcommand.name)'
    found = {one["__name"]: one for one in monitoring.icinga.objects("checkcommands", condition)}
    parsed = parse_check_commands(CHECK_COMMANDS)
    assert {name: one["arguments"] for name, one in found.items()} == {
        name: one.arguments for name, one in parsed.items()
    }
    for name, one in found.items():
        assert one["command"] == [f"{monitoring.plugins}/check_{name}"]
        assert one["timeout"] == 60
        assert one["vars"] is None


EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "app1.example.org!pgsock-client-close-wait-managed": (
        "pgsock_close_wait",
        {"leg": "client", "port": 5432, "peer": "managed.example.org", "min_age": 300},
    ),
    "app1.example.org!pgsock-client-close-wait-shop": (
        "pgsock_close_wait",
        {"leg": "client", "port": 6432, "peer": "192.0.2.10", "min_age": 300},
    ),
    "app1.example.org!pgsock-client-leak-managed": (
        "pgsock_leak",
        {"leg": "client", "port": 5432, "peer": "managed.example.org", "keep": 10},
    ),
    "app1.example.org!pgsock-client-leak-shop": (
        "pgsock_leak",
        {"leg": "client", "port": 6432, "peer": "192.0.2.10", "limit": 20, "keep": 20},
    ),
    "app1.example.org!pgsock-client-saturation-managed": (
        "pgsock_saturation",
        {
            "leg": "client",
            "port": 5432,
            "peer": "managed.example.org",
            "limit": "sql",
            "dsn": "service=check_pgsock_managed",
            "warning": "40%",
            "critical": "45%",
        },
    ),
    "app1.example.org!pgsock-client-saturation-shop": (
        "pgsock_saturation",
        {"leg": "client", "port": 6432, "peer": "192.0.2.10", "limit": 20},
    ),
    "app1.example.org!pgsock-client-thrashing-managed": (
        "pgsock_thrashing",
        {
            "leg": "client",
            "port": 5432,
            "peer": "managed.example.org",
            "time_wait_warning": "50%",
            "time_wait_critical": "80%",
        },
    ),
    "app1.example.org!pgsock-client-thrashing-shop": (
        "pgsock_thrashing",
        {
            "leg": "client",
            "port": 6432,
            "peer": "192.0.2.10",
            "time_wait_warning": "50%",
            "time_wait_critical": "80%",
        },
    ),
    "app1.example.org!pgsock-client-workers-shop": (
        "pgsock_workers",
        {"leg": "client", "port": 6432, "peer": "192.0.2.10"},
    ),
    "db1.example.org!pgsock-accept-queue-main": ("pgsock_accept_queue", {"port": 5432}),
    "db1.example.org!pgsock-accept-queue-pgbouncer": ("pgsock_accept_queue", {"port": 6432}),
    "db1.example.org!pgsock-accept-queue-slots": (
        "pgsock_accept_queue",
        {"port": 5432, "socket": "/run/postgresql/.s.PGSQL.5432"},
    ),
    "db1.example.org!pgsock-close-wait-main": ("pgsock_close_wait", {"port": 5432}),
    "db1.example.org!pgsock-close-wait-pgbouncer": ("pgsock_close_wait", {"port": 6432}),
    "db1.example.org!pgsock-close-wait-slots": (
        "pgsock_close_wait",
        {"port": 5432, "socket": "/run/postgresql/.s.PGSQL.5432"},
    ),
    "db1.example.org!pgsock-leak-main": ("pgsock_leak", {"port": 5432, "limit": 97, "keep": 40}),
    "db1.example.org!pgsock-leak-pgbouncer": (
        "pgsock_leak",
        {"port": 6432, "limit": 1000, "keep": 200},
    ),
    "db1.example.org!pgsock-leak-slots": (
        "pgsock_leak",
        {"port": 5432, "socket": "/run/postgresql/.s.PGSQL.5432", "limit": 97},
    ),
    "db1.example.org!pgsock-pool-size-report": (
        "pgsock_pool_size",
        {
            "dsn": "service=check_pgsock",
            "database": "report",
            "since": 3600,
            "pool_size": 10,
            "full_load_warning": "~:",
        },
    ),
    "db1.example.org!pgsock-pool-size-shop": (
        "pgsock_pool_size",
        {
            "dsn": "service=check_pgsock",
            "database": "shop",
            "since": 3600,
            "console": "service=check_pgsock_pgbouncer",
        },
    ),
    "db1.example.org!pgsock-pool-wait-pgbouncer": (
        "pgsock_pool_wait",
        {"dsn": "service=check_pgsock_pgbouncer"},
    ),
    "db1.example.org!pgsock-saturation-main": (
        "pgsock_saturation",
        {"port": 5432, "limit": 97},
    ),
    "db1.example.org!pgsock-saturation-pgbouncer": (
        "pgsock_saturation",
        {"port": 6432, "limit": 1000, "warning": "70%"},
    ),
    "db1.example.org!pgsock-saturation-slots": (
        "pgsock_saturation",
        {"port": 5432, "socket": "/run/postgresql/.s.PGSQL.5432", "limit": 97},
    ),
    "db1.example.org!pgsock-sessions-main": (
        "pgsock_sessions",
        {"dsn": "service=check_pgsock", "database": ["report", "shop"]},
    ),
    "db1.example.org!pgsock-thrashing-main": ("pgsock_thrashing", {"port": 5432}),
    "db1.example.org!pgsock-thrashing-pgbouncer": (
        "pgsock_thrashing",
        {"port": 6432, "warning": 100, "critical": 300},
    ),
    "db1.example.org!pgsock-thrashing-slots": (
        "pgsock_thrashing",
        {"port": 5432, "socket": "/run/postgresql/.s.PGSQL.5432"},
    ),
}


def test_examples_make_one_service_per_endpoint(monitoring: Monitoring) -> None:
    condition = 'host.name!="here"&&service.check_command!="nrpe"'
    found = {}
    for one in monitoring.icinga.objects("services", condition):
        assert one["command_endpoint"] == one["host_name"]
        prefix = f"{one['check_command']}_"
        variables = {
            name[len(prefix) :]: value
            for name, value in one["vars"].items()
            if name.startswith(prefix)
        }
        found[one["__name"]] = (one["check_command"], variables)
    assert found == EXAMPLES


def test_pool_wait_is_estimated_where_a_pooler_has_no_console(monitoring: Monitoring) -> None:
    condition = 'host.name=="here"&&service.check_command=="pgsock_pool_wait"'
    found = monitoring.icinga.objects("services", condition)
    assert [one["__name"] for one in found] == ["here!pgsock-pool-wait-listener"]
    assert found[0]["vars"]["pgsock_pool_wait_port"] == monitoring.port
    assert "pgsock_pool_wait_dsn" not in found[0]["vars"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_one_that_its_executable_takes(name: str) -> None:
    command, variables = EXAMPLES[name]
    argv = [
        f"--{key.replace('_', '-')}={value}"
        for key, given in variables.items()
        for value in (given if isinstance(given, list) else [given])
    ]
    plugin._parse(spec_of(f"check_{command}"), argv)


def test_example_of_a_host_without_agent_names_the_nrpe_commands(monitoring: Monitoring) -> None:
    condition = 'service.check_command=="nrpe"'
    found = monitoring.icinga.objects("services", condition)
    assert [one["__name"] for one in found] == [f"db2.example.org!{one}" for one in EXECUTABLES]
    assert [one["vars"]["nrpe_command"] for one in found] == EXECUTABLES


def check(monitoring: Monitoring, service: str, argv: list[str]) -> tuple[int, str, list[Any]]:
    """Let Icinga check; it runs `argv` and keeps what that prints when run by hand."""
    result = monitoring.icinga.check(service)
    command = [f"{monitoring.plugins}/{argv[0]}", *argv[1:]]
    assert result["command"] == command
    by_hand = daemons.run(command)
    assert result["exit_status"] == by_hand.code
    assert by_hand.err == ""
    first, _, rest = by_hand.out.partition("\n")
    sentence, _, perfdata = first.partition("|")
    # Icinga takes the perfdata out and leaves the space before it.
    assert re.sub(r" +$", "", result["output"], flags=re.MULTILINE) == (
        f"{sentence.rstrip()}\n{rest}".strip()
    )
    assert result["performance_data"] == perfdata.split()
    parsed = monitoring.icinga.evaluate(perfdata_expression(perfdata))
    return result["state"], sentence.rstrip(), parsed


def perfdata_expression(perfdata: str) -> str:
    """An expression of Icinga's language for what Icinga makes of perfdata."""
    items = ", ".join(
        f"System.parse_performance_data({json.dumps(one)})" for one in perfdata.split()
    )
    return f"[ {items} ]"


def test_icinga_runs_saturation_on_the_server_leg(monitoring: Monitoring) -> None:
    port = monitoring.port
    state, sentence, parsed = check(
        monitoring,
        "pgsock-saturation-listener",
        ["check_pgsock_saturation", "--limit", "10", "-p", str(port), "-v", "-w", "2"],
    )
    assert state == 1
    assert sentence == (
        f"PGSOCK_SATURATION WARNING - 3 of 10 connections (30 %) on port {port} "
        "(established outside range 0:2)"
    )
    assert parsed[0] == {
        "type": "PerfdataValue",
        "label": "established",
        "value": 3,
        "warn": 2,
        "crit": 9,
        "min": 0,
        "max": 10,
        "unit": "",
        "counter": False,
    }


def test_icinga_runs_saturation_with_an_array_and_ranges(monitoring: Monitoring) -> None:
    port = monitoring.port
    state, sentence, parsed = check(
        monitoring,
        "pgsock-saturation-two",
        [
            "check_pgsock_saturation",
            *("--limit", "10", "-c", "@-5:2.5", "-p", str(port)),
            *("-p", str(monitoring.other), "-w", "~:"),
        ],
    )
    assert (state, sentence) == (
        0,
        f"PGSOCK_SATURATION OK - 3 of 10 connections (30 %) on ports {port}, {monitoring.other}",
    )
    assert {"value": 3, "warn": None, "crit": None}.items() <= parsed[0].items()


def test_icinga_runs_saturation_on_the_client_leg(monitoring: Monitoring) -> None:
    port = monitoring.port
    state, sentence, _ = check(
        monitoring,
        "pgsock-client-saturation-pool",
        [
            "check_pgsock_saturation",
            *("--leg", "client", "--limit", "3"),
            *("--peer", "127.0.0.0/8", "--peer", "192.0.2.0/24", "-p", str(port)),
        ],
    )
    assert (state, sentence) == (
        2,
        "PGSOCK_SATURATION CRITICAL - 3 of 3 connections (100 %) "
        f"to port {port} with 127.0.0.0/8, 192.0.2.0/24 (established outside range 0:2)",
    )


# The real NRPE.


class Answers(NamedTuple):
    """What a shipped NRPE command says: run by hand, and through NRPE."""

    by_hand: support.Completed
    by_nrpe: support.Completed


@pytest.fixture(scope="module")
def answers(installations: Installations) -> Iterator[dict[str, Answers]]:
    """The shipped NRPE commands against a PostgreSQL with three idle sessions, and a PgBouncer."""
    for name in ("nrpe", "check_nrpe", "system-python", "pgbouncer"):
        support.require(name)
    server = PostgresServer(installations.get(18), arguments=("-c", "max_connections=20"))
    with daemons.plugin_directory(EXECUTABLES) as plugins, server, contextlib.ExitStack() as stack:
        server.execute("create database shop")
        with server.connect("shop") as session:
            session.query("select pg_stat_reset()")  # so that it is known since when they count
        sessions = [stack.enter_context(server.connect("shop")) for _ in range(3)]
        # A session reports the time of a statement when a later one ends, and has read a table.
        for _ in range(2):
            for session in sessions:
                session.simple_query("select pg_sleep(1.1), count(*) from pg_class")
            for session in sessions:
                session.wait_ready()
        state = stack.enter_context(fresh_directory("pgsock-state-"))
        accounts.own(state, accounts.account_of(daemons.USER))
        pooler = stack.enter_context(PgBouncerServer(server))
        text = adapted(NRPE_COMMANDS, plugins, server, pooler, state)
        nrpe = stack.enter_context(daemons.Nrpe(text))

        def without_traces(run: Callable[[], support.Completed]) -> support.Completed:
            """Run, and let nothing of it be there for the next: no session, no sample."""
            done = run()
            support.wait_until(lambda: count_sessions(server) == 3, "the check's session is gone")
            for path in state.iterdir():
                path.unlink()
            return done

        yield {
            one.name: Answers(
                without_traces(functools.partial(daemons.run, one.argv)),
                without_traces(functools.partial(nrpe.call, one.name)),
            )
            for one in parse_nrpe_commands(text)
            if not one.example
        }


def count_sessions(server: PostgresServer) -> int:
    """The server's sockets of sessions, also of those about to end."""
    states = support.tcp_states(server.port)
    return sum(states.values()) - states["LISTEN"] - states["TIME_WAIT"]


def adapted(
    text: str, plugins: Path, server: PostgresServer, pooler: PgBouncerServer, state: Path
) -> str:
    """The shipped commands as an administrator adapts them: where, which port, which database.

    The state directory keeps them from the home of the machine's own monitoring user.
    """
    console = f"host={pooler.host} port={pooler.port} user=stats"
    for shipped, ours in (
        (PLUGINS, f"{plugins}/"),
        ("-p 5432", f"-p {server.port}"),
        ("check_pgsock_accept_queue -p", f"check_pgsock_accept_queue --state-dir {state} -p"),
        ("-d service=check_pgsock_pgbouncer", f"-d '{console}' --state-dir {state}"),
        ("-d service=check_pgsock --", f"-d '{server.dsn()}' --state-dir {state} --"),
        ("check_pgsock_pool_size -d", "check_pgsock_pool_size --cores 10 -d"),
        ("--since 3600", "--since 5"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    return text


@each_executable
def test_nrpe_command_says_what_its_executable_says(
    answers: dict[str, Answers], executable: str
) -> None:
    by_hand, by_nrpe = answers[executable]
    assert by_hand.err == ""
    assert by_nrpe.code == by_hand.code == 0
    if executable == "check_pgsock_pool_size":  # the server's statistics go on
        assert measured_masked(by_nrpe.out) == measured_masked(by_hand.out)
    else:
        assert by_nrpe == by_hand


def measured_masked(text: str) -> str:
    """What pool_size says, without what depends on how long ago the statistics were reset."""
    text = re.sub(r"( over (?:the )?)[\d.]+ (?:s|min)\b", r"\1#", text)
    text = re.sub(r"(?<=may be )\d+(?= to )|(?<=pool_size_needed=)\d+", "#", text)
    return re.sub(r"\d+\.\d+", "#", text)


def test_nrpe_saturation(answers: dict[str, Answers]) -> None:
    done = answers["check_pgsock_saturation"].by_nrpe
    assert done.code == 0
    assert re.fullmatch(
        r"PGSOCK_SATURATION OK - 3 of 97 connections \(3 %\) on port \d+ \| "
        r"established=3;77;87;0;97 slots_used=3;77;87;0;97 limit=97;;;0 utilization=3\.1%;;;0 "
        r"free=94;;;0;97 close_wait=0;;;0 syn_recv=0;;;0 not_accepted=0;;;0\n",
        done.out,
    )


def test_nrpe_pool_size(answers: dict[str, Answers]) -> None:
    done = answers["check_pgsock_pool_size"].by_nrpe
    assert done.code == 0
    assert measured_masked(done.out) == (
        "PGSOCK_POOL_SIZE OK - pool of database shop may be # to 10, it is 3; busy ratio # over # "
        "| pool_size=3;10;;0 pool_size_limit=10;;;0 pool_size_needed=#;;;0 busy_ratio=#;;;0;1 "
        "parallelism=#;;;1 full_load=#%;;;0 busy_sessions=#;;;0 idle_in_transaction=#;;;0 "
        "window=#s;;;0\n"
        "first run: judged over the # since the statistics were reset\n"
        "the pool's size is 3 client backends at most seen within an hour; --pool-size, --console "
        "or --ini names the configured one\n"
    )


def test_nrpe_pool_wait(answers: dict[str, Answers]) -> None:
    assert answers["check_pgsock_pool_wait"].by_nrpe == (
        0,
        "PGSOCK_POOL_WAIT OK - no client waits: there is no pool yet; 0 of 100 client connections "
        "| maxwait=0.0s;1;5;0 cl_waiting=0;;;0 clients=0;80;90;0;100\n"
        "first run: wait_ratio is measured from the second on\n",
        "",
    )


def test_nrpe_sessions(answers: dict[str, Answers]) -> None:
    done = answers["check_pgsock_sessions"].by_nrpe
    assert done.code == 0
    assert session_load.masked(done.out) == (
        "PGSOCK_SESSIONS OK - ends of sessions on database shop are judged from the next run on: "
        f"first run | {session_load.PROFILE}\n{session_load.ADVICE}"
    )


@each_executable
def test_icinga_keeps_the_perfdata_as_printed(answers: dict[str, Answers], executable: str) -> None:
    support.require("icinga2")
    perfdata = answers[executable].by_hand.out.partition("\n")[0].partition("|")[2]
    assert perfdata
    with daemons.Icinga({}) as icinga:
        parsed = icinga.evaluate(perfdata_expression(perfdata))
    printed = [item.partition("=")[0] for item in perfdata.split()]
    assert [one["label"] for one in parsed] == printed
    for one, item in zip(parsed, perfdata.split()):
        value = re.match(r"-?[0-9.]+", item.partition("=")[2])
        assert value is not None
        assert one["value"] == float(value[0])
