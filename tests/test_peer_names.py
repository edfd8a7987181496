"""--peer and --exclude-peer by the names of hosts: every executable that has them, and tools."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.support import Completed

CHECKS = ("saturation", "leak", "close_wait", "thrashing", "workers")
TOOLS = ("connections", "states")
SILENT = "127.0.0.77"


@contextlib.contextmanager
def both_families(count: int) -> Iterator[int]:
    """The port of two listeners, of 127.0.0.1 and ::1, each with `count` connections."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = int(first.getsockname()[1])
        second = stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        for listener in (first, second):
            for _ in range(count):
                address = listener.getsockname()[:2]
                stack.enter_context(socket.create_connection(address))
                stack.enter_context(listener.accept()[0])
        yield port


def run_with(
    tmp_path: Path, check: str, *args: str, hosts: str | None = None, timeout: float = 10
) -> Completed:
    """Run a check, or `pgsock`, where the names are those of `hosts` alone; without, where the
    name server never answers.
    """
    support.require("root")
    switch, names, resolver = (tmp_path / one for one in ("nsswitch", "hosts", "resolv.conf"))
    switch.write_text("hosts: dns\n" if hosts is None else "hosts: files\n")
    names.write_text(hosts or "")
    resolver.write_text(f"nameserver {SILENT}\n")
    files = {switch: "nsswitch.conf", names: "hosts", resolver: "resolv.conf"}
    mounts = "".join(f"mount --bind {path} /etc/{name} && " for path, name in files.items())
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh",
         *support.command(check, *args)],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )  # fmt: skip
    return Completed(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def silent_name_server() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((SILENT, 53))
        yield


def established(done: Completed) -> int:
    assert (done.code, done.err) == (0, "")
    return int(done.out.partition(" | established=")[2].partition(";")[0])


def test_all_addresses_of_both_families(tmp_path: Path) -> None:
    hosts = "127.0.0.1 both.example four.example\n::1 both.example six.example\n"
    with both_families(2) as port:
        for leg, word in (("server", "on"), ("client", "to")):
            options = ["-p", str(port), "--leg", leg, "--limit", "50"]
            for peers, count in (
                (["--peer", "both.example"], 4),
                (["--peer", "four.example"], 2),
                (["--peer", "six.example"], 2),
                (["--peer", "six.example", "--peer", "127.0.0.0/8"], 4),
                (["--exclude-peer", "both.example"], 0),
                (["--exclude-peer", "four.example"], 2),
                (["--peer", "both.example", "--exclude-peer", "six.example"], 2),
            ):
                done = run_with(tmp_path, "saturation", *options, *peers, hosts=hosts)
                assert established(done) == count
            done = run_with(tmp_path, "saturation", *options, "--peer", "both.example", "-vv",
                            hosts=hosts)  # fmt: skip
            assert f"{word} port {port} with both.example | established=4;" in done.out
            assert "both.example is 127.0.0.1, ::1\n" in done.out


def test_as_nobody() -> None:
    with both_families(2) as port:
        done = support.run("saturation", "-p", str(port), "--limit", "50", "--peer", "localhost",
                           user="nobody")  # fmt: skip
        assert established(done) in (2, 4)  # as /etc/hosts has it
        done = support.run("saturation", "-p", str(port), "--limit", "50", "--peer",
                           "no.such.host.invalid", user="nobody")  # fmt: skip
    assert (done.code, done.err) == (3, "")
    assert done.out.startswith(
        "PGSOCK_SATURATION UNKNOWN - the host name no.such.host.invalid cannot be resolved: "
    )


@pytest.mark.parametrize("option", ["--peer", "--exclude-peer"])
@pytest.mark.parametrize("check", [*CHECKS, *TOOLS])
def test_a_name_that_nobody_has(check: str, option: str, tmp_path: Path) -> None:
    sentence = (
        "the host name db.example cannot be resolved: Name or service not known; see to "
        f"{option} and to this host's resolver, or give addresses\n"
    )
    named = ["-p", "1", option, "10.0.0.0/8", option, "db.example"]
    if check in TOOLS:
        done = run_with(tmp_path, "pgsock", check, *named, hosts="127.0.0.1 localhost\n")
        assert done == (3, "", f"pgsock: {sentence}")
    else:
        done = run_with(tmp_path, check, *named, hosts="127.0.0.1 localhost\n")
        assert done == (3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}", "")


@pytest.mark.parametrize("option", ["--peer", "--exclude-peer"])
@pytest.mark.parametrize("check", ["saturation", *TOOLS])
def test_a_name_server_that_never_answers(check: str, option: str, tmp_path: Path) -> None:
    sentence = (
        "no verdict within 1 s, the time ran out while resolving the host name db.example; see "
        "what hangs there, or raise --timeout\n"
    )
    named = ["-p", "1", option, "db.example", "-t", "1"]
    with silent_name_server():
        if check in TOOLS:
            done = run_with(tmp_path, "pgsock", check, *named, timeout=4)
            assert done == (3, "", f"pgsock: {sentence}")
        else:
            done = run_with(tmp_path, check, *named, timeout=4)
            assert done == (3, f"PGSOCK_{check.upper()} UNKNOWN - {sentence}", "")


def test_names_of_hosts_are_of_no_use_where_peers_are_not(tmp_path: Path) -> None:
    done = support.run("accept_queue", "-p", "1", "--peer", "no.such.host.invalid")
    assert done == (
        3,
        "PGSOCK_ACCEPT_QUEUE UNKNOWN - --peer does not go with an accept queue, which is one for "
        "all peers; drop it\n",
        "",
    )


def test_tools_take_all_addresses(tmp_path: Path) -> None:
    hosts = "127.0.0.1 both.example\n::1 both.example\n"
    with both_families(2) as port:
        named = ["-p", str(port), "--peer", "both.example", "--json"]
        done = run_with(tmp_path, "pgsock", "connections", *named, hosts=hosts)
        found = json.loads(done.out)["connections"]
        assert sorted(one["peer_address"] for one in found) == ["127.0.0.1"] * 2 + ["::1"] * 2
        done = run_with(tmp_path, "pgsock", "states", *named, hosts=hosts)
        (counted,) = (one for one in json.loads(done.out)["states"] if one["code"] == "01")
        assert (counted["server_leg_sockets"], counted["client_leg_sockets"]) == (4, 4)


def test_samples_stay_those_of_a_name_whose_addresses_change(tmp_path: Path) -> None:
    state = tmp_path
    keys = set()
    with both_families(1) as port:
        for address in ("127.0.0.1", "::1", "127.0.0.9"):
            done = run_with(tmp_path, "leak", "-p", str(port), "--limit", "50", "--peer",
                            "db.example", "--state-dir", str(state),
                            hosts=f"{address} db.example\n")  # fmt: skip
            assert (done.code, done.err) == (0, "")
            with contextlib.closing(sqlite3.connect(state / "checks.sqlite")) as store:
                keys |= set(store.execute("SELECT key FROM sample"))
        assert len(keys) == len({json.loads(key)[0] for (key,) in keys})
        assert all("db.example" in key for (key,) in keys)


def test_nothing_is_asked_for_networks(tmp_path: Path) -> None:
    with silent_name_server():
        done = run_with(tmp_path, "saturation", "--leg", "client", "-p", "1", "--limit", "5",
                        "--peer", "10.0.0.0/8", "--exclude-peer", "::1", "-t", "2")  # fmt: skip
    assert established(done) == 0
