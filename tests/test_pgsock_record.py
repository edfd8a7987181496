"""`pgsock record`, and its files replayed by every check and tool, beside what lives."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import NamespaceHost
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.pgsock.record import next_number
from check_pgsock.text import plural
from tests import restricted, support
from tests.conftest import Installations, MakePg, OpenSessions
from tests.moment import MOMENT
from tests.recordings import BY_NETLINK, captured, write
from tests.restricted import DENY_NETLINK
from tests.support import Completed

# Neither root nor the servers' user.
STRANGER = "daemon"
USERS = pytest.mark.parametrize("user", [None, STRANGER], ids=["root", "stranger"])
DONE = BY_NETLINK["tcp.netlink"][-20:]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody may write to."""
    with fresh_directory("pgsock-record-") as made:
        made.chmod(0o777)
        yield made


def record(path: Path, *arguments: str, user: str | None = None) -> Completed:
    """Record to `path`; fail where that fails."""
    done = support.run("pgsock", "record", str(path), *arguments, user=user)
    assert (done.code, done.err) == (0, ""), done
    return done


def first_line(done: Completed) -> tuple[int, str]:
    """Exit code, and the line with the verdict and the performance data."""
    assert done.err == ""
    return done.code, done.out.partition("\n")[0]


def as_recorded(live: tuple[int, str]) -> tuple[int, str]:
    """What a replay says where this was said: of a limit that was unknown, that it was so."""
    # That of close_wait is of a moment of its own.
    text = re.sub(r" oldest=\d+s;;;0\Z", "", live[1])
    return live[0], text.replace("; name the usable", " (as recorded); name the usable")


@pytest.mark.parametrize("major", [15, 18])
@USERS
def test_replayed_verdicts_are_the_live_ones(
    make_pg: MakePg, sessions: OpenSessions, directory: Path, major: int, user: str | None
) -> None:
    support.require("root")
    server = make_pg(major=major, settings={"max_connections": 30})
    (held,) = sessions(server, 1)
    held.simple_query("select pg_sleep(60)")
    sessions(server, 4)
    held.kill()
    port = str(server.port)
    support.wait_until(lambda: support.tcp_states(server.port)["CLOSE_WAIT"] == 1, "orphaned")
    plain, anonymous = directory / "plain.zip", directory / "anonymous.zip"
    record(plain, user=user)
    record(anonymous, "--anonymize", user=user)
    sock = str(server.socket_directory / f".s.PGSQL.{port}")
    for check, options in (
        ("saturation", ("-p", port, "-w", "10%", "-c", "90%")),
        ("saturation", ("-p", port, "--leg", "client", "--limit", "9", "--peer", "127.0.0.0/8")),
        ("saturation", ("-p", port, "--address", "127.0.0.1", "--exclude-peer", "127.0.0.1")),
        ("saturation", ("-p", port, "--address", "::1", "--limit", "9")),
        ("saturation", ("--socket", sock)),
        ("close_wait", ("-p", port)),
    ):
        live = first_line(support.run(check, *options, user=user))
        for path in (plain,) if "--socket" in options else (plain, anonymous):
            done = support.run(check, *options, "--source", str(path), user=user)
            assert first_line(done) == as_recorded(live), options


@USERS
def test_what_a_replay_says_besides(
    make_pg: MakePg, sessions: OpenSessions, directory: Path, user: str | None
) -> None:
    """Who holds the connections is the same; when and how it was recorded is said."""
    support.require("root")
    server = make_pg(major=18, settings={"max_connections": 30})
    sessions(server, 3)
    path = directory / "one.zip"
    done = record(path, user=user)
    options = ("-p", str(server.port), "-w", "2", "-v")
    live = support.run("saturation", *options, user=user)
    replayed = support.run("saturation", *options, "-v", "--source", str(path), user=user)
    assert (live.code, replayed.code) == (1, 1)
    first, *lines = live.out.splitlines()
    found = replayed.out.splitlines()
    assert found[0] == first
    assert found[1].startswith("as recorded at 20")
    assert found[1].endswith(" UTC")
    uid = 0 if user is None else pwd.getpwnam(user).pw_uid
    if user is not None:
        unseen = found.pop(2)
        assert unseen.startswith("not recorded: descriptors of ")
        assert unseen.endswith(f" processes, which uid {uid} may not read")
        assert f"\n{unseen}\n" in done.out
    source = "pg_control" if user is None else "the listener's backlog of 60"
    end = 2 + len(lines)
    assert found[2:end] == [
        one.replace(f"read from {source};", f"read from {source} (as recorded);") for one in lines
    ]
    assert found[end] == f"source: recording ({path})"
    assert found[end + 1].startswith(f"recorded by check_pgsock 0.1.0 as uid {uid} on Linux ")
    assert found[end + 1].endswith(", from tcp.netlink, unix.netlink")
    assert found[end + 2].startswith("took ")
    assert len(found) == end + 3


@USERS
def test_tools_replay_it(
    make_pg: MakePg, sessions: OpenSessions, directory: Path, user: str | None
) -> None:
    support.require("root")
    server = make_pg(major=15, settings={"max_connections": 30})
    sessions(server, 3)
    (busy,) = sessions(server, 1)
    busy.simple_query("select pg_sleep(60)")
    port = ("-p", str(server.port), "--json")
    support.wait_until(
        lambda: _activities(*port, user=user)["active"] == 1,
        "busy",
    )
    path = directory / "one.zip"
    record(path, user=user)
    for arguments in (("connections", *port), ("states", *port), ("listeners", *port)):
        live = json.loads(support.run("pgsock", *arguments, user=user).out)
        done = support.run("pgsock", *arguments, "--source", str(path), user=user)
        assert (done.code, done.err) == (0, "")
        assert steady(json.loads(done.out)) == steady(live)


def _activities(*arguments: str, user: str | None) -> dict[str, int]:
    done = support.run("pgsock", "connections", *arguments, "--by", "activity", user=user)
    groups = json.loads(done.out)["groups"]
    return {"active": 0, **{one["by"]["activity"]: one["count"] for one in groups}}


# What goes on between two looks, what says where it is from, and names of this host's users.
_PASSING = ("_seconds", "_seconds_ago", "_at", "notes", "source", "limit_source")


def steady(value: Any) -> Any:
    """A tool's JSON without what passes; lists in an order of their own."""
    if isinstance(value, dict):
        if "program" in value:
            value = {**value, "user": None}  # a name of this host
        return {key: steady(one) for key, one in value.items() if not key.endswith(_PASSING)}
    if isinstance(value, list):
        return sorted((steady(one) for one in value), key=lambda one: json.dumps(one))
    return value.replace(" (as recorded)", "") if isinstance(value, str) else value


@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_two_moments_are_two_looks(
    make_pg: MakePg, sessions: OpenSessions, directory: Path, source: str
) -> None:
    server = make_pg()
    (session,) = sessions(server)
    session.simple_query("select pg_sleep(60)")
    session.kill()
    support.wait_until(lambda: support.tcp_states(server.port)["CLOSE_WAIT"] == 1, "orphaned")
    path = directory / "two.zip"
    record(path, "--for", "0.4", "--interval", "0.4", "--source", source)
    options = ("-p", str(server.port), "-w", "0", "--source", str(path))
    done = support.run("close_wait", *options, "--settle", "0.4", "-v")
    assert done.out.startswith(
        f"PGSOCK_CLOSE_WAIT WARNING - 1 connection in CLOSE_WAIT, unchanged for 0.4 s on port "
        f"{server.port} (close_wait outside range 0:0) | close_wait=1;0;20;0 established=0;;;0 "
        "orphans=1;;;0 not_accepted=0;;;0\nas recorded at 20"
    )
    assert done.out.splitlines()[1].endswith(" UTC, moment 2 of 2")
    assert done.out.splitlines()[-1] == "looked twice"
    for more in (("--settle", "3"), ("--moment", "1", "--settle", "0.4")):
        done = support.run("close_wait", *options, *more)
        assert done.code == 1
        assert done.out.splitlines()[2] == (
            "a saved moment, judged as it is: which of them stay cannot be told"
        )


def test_what_the_earlier_moment_does_not_hold_has_not_stayed(directory: Path) -> None:
    empty = {**BY_NETLINK, "tcp.netlink": DONE}
    path = write(directory / "two.zip", captured([empty], since_boot=1.0), captured(since_boot=2.0))
    done = support.run("close_wait", "-w", "0", "-v", "--source", str(path))
    assert done == (
        0,
        "PGSOCK_CLOSE_WAIT OK - 0 connections in CLOSE_WAIT on port 5432 | close_wait=0;0;20;0 "
        "established=3;;;0 orphans=0;;;0 not_accepted=0;;;0\n"
        "as recorded at 2023-11-14 22:13:20 UTC, moment 2 of 2\n"
        "looked twice\n",
        "",
    )


def test_events_are_not_in_it(directory: Path) -> None:
    path = write(directory / "one.zip")
    for options in ((), ("--leg", "client", "--time-wait-warning", "80%"), ("--ignore-probes",)):
        done = support.run("thrashing", "--source", str(path), *options)
        assert done == (
            3,
            "PGSOCK_THRASHING UNKNOWN - a saved moment (--source FILE) cannot tell a rate; watch a "
            "live system, or judge the moment by check_pgsock_saturation or "
            "check_pgsock_close_wait\n",
            "",
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--source", "netlnk"),
         "there is no recording netlnk; --source takes auto, netlink, procfs, or the file that "
         "pgsock record wrote"),
        (("--source", ""),
         "argument --source: '' is neither auto, netlink, procfs nor a file; see "
         "check_pgsock_saturation --help"),
        (("--source", "x", "--proc-root", "/proc"),
         "--proc-root and --source FILE name different places to read; drop one"),
        (("--moment", "2"), "--moment is one of a recording, and --source names none"),
        (("--source", "x", "--moment", "0"),
         "argument --moment: '0' is no whole number of 1 or more; see check_pgsock_saturation "
         "--help"),
        (("--source", "/dev/null"), "/dev/null is not a regular file"),
        (("--source", "/etc/hostname"), None),
    ],
)  # fmt: skip
def test_what_is_no_source(arguments: tuple[str, ...], sentence: str | None) -> None:
    done = support.run("saturation", "--limit", "9", *arguments, user=STRANGER)
    assert (done.code, done.err) == (3, "")
    if sentence is None:
        assert done.out.startswith(
            "PGSOCK_SATURATION UNKNOWN - /etc/hostname is no recording, or not the whole of one: "
        )
    else:
        assert done.out == f"PGSOCK_SATURATION UNKNOWN - {sentence}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the following arguments are required: FILE; see pgsock record --help"),
        (("--interval", "1", "x"),
         "--interval is the time between several moments: name --for, too"),
        (("--source", "y", "--for", "1", "x"),
         "--source FILE is copied as it was recorded; drop --for, --interval and --netns"),
        (("--source", "y", "x"),
         "there is no recording y; --source takes auto, netlink, procfs, or the file that pgsock "
         "record wrote"),
        (("--netns", "no such", "x"), None),
        (("--proc-root", str(MOMENT), "x"),
         f"{MOMENT} is a saved moment already; name a live --proc-root"),
        (("missing/x",), "missing cannot be written to: No such file or directory"),
        (("-",),
         "'-' is no file; a recording is written to a file alone, not to standard output"),
        (("",),
         "'' is no file; a recording is written to a file alone, not to standard output"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded(arguments: tuple[str, ...], sentence: str | None) -> None:
    done = support.run("pgsock", "record", *arguments)
    assert (done.code, done.out) == (3, "")
    if sentence is None:
        assert done.err.startswith("pgsock: there is no network namespace no such in ")
    else:
        assert done.err in (f"pgsock: {sentence}\n", f"pgsock record: {sentence}\n")
    for name in ("x", "-"):
        assert not os.path.lexists(os.path.join(tempfile.gettempdir(), name))


def test_a_file_that_is_there_is_left_alone(directory: Path) -> None:
    path = directory / "one.zip"
    path.write_text("mine")
    done = support.run("pgsock", "record", str(path))
    sentence = f"pgsock: {path} is there already; name another file, or --force\n"
    assert done == (3, "", sentence)
    assert path.read_text() == "mine"
    record(path, "--force")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(directory) == ["one.zip"]


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_what_is_no_regular_file_is_left_alone(directory: Path, options: tuple[str, ...]) -> None:
    """As root a device would be replaced, and /dev/stdout, which is a link."""
    fifo, link = directory / "fifo", directory / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in (fifo, link):
        done = support.run("pgsock", "record", str(path), *options)
        assert done == (3, "", f"pgsock: {path} is not a regular file; name another file\n")
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert link.readlink() == fifo
    assert sorted(os.listdir(directory)) == ["fifo", "link"]


@pytest.mark.parametrize(
    ("number", "passed", "last", "expected"),
    [
        (0, 0.01, 4, 1),
        (3, 3.01, 4, 4),
        (0, 0.999, 4, 1),
        (0, 1.0, 4, 1),
        (0, 1.01, 4, 2),  # the second has been missed
        (1, 3.5, 9, 4),
        (2, 3.2, 3, 3),  # the last is late
        (0, 1e6, 4, 4),
    ],
)
def test_which_moment_is_next(number: int, passed: float, last: int, expected: int) -> None:
    assert next_number(number, passed, last) == expected


def test_a_series_has_its_last_moment(directory: Path) -> None:
    done = record(directory / "a", "--for", "4", "--interval", "1", "--json")
    taken = [one["taken"] for one in json.loads(done.out)["moments"]]
    assert [round(one - taken[0]) for one in taken] == [0, 1, 2, 3, 4]
    done = record(directory / "b", "--for", "0.3", "--interval", "0.4", "--json")
    assert len(json.loads(done.out)["moments"]) == 1


def test_what_it_says(directory: Path) -> None:
    path = directory / "one.zip"
    done = record(path, "--for", "0.2", "--interval", "0.1", "--json")
    found = json.loads(done.out)
    assert (found["command"], found["file"]) == ("record", str(path))
    assert (found["bytes"], found["anonymized"], found["ended_by"]) == (
        path.stat().st_size, False, None,
    )  # fmt: skip
    assert len(found["moments"]) in (2, 3)  # three, where a moment takes less than 0.1 s
    for one in found["moments"]:
        assert list(one) == ["taken", "seconds", "processes", "namespaces", "limits"]
        assert abs(one["taken"] - time.time()) < 30
        assert one["processes"] > 1
        (place,) = one["namespaces"]
        assert place["name"] == "self"
        assert place["tcp_sockets"] >= 0
    text = record(path, "--force").out
    assert text.startswith(f"{path}: 1 moment in ")
    assert text.splitlines()[0].endswith(f" processes; {path.stat().st_size / 1000:.1f} kB")


def test_a_recording_is_copied_moment_by_moment(directory: Path) -> None:
    series, copy, again, one = (directory / f"{name}.zip" for name in ("a", "b", "c", "d"))
    record(series, "--for", "0.2", "--interval", "0.1")
    record(copy, "--source", str(series))
    assert copy.read_bytes() == series.read_bytes()
    record(copy, "--source", str(series), "--anonymize", "--force")
    record(again, "--source", str(series), "--anonymize")
    assert again.read_bytes() == copy.read_bytes() != series.read_bytes()
    record(one, "--source", str(series), "--moment", "2")
    with zipfile.ZipFile(series) as many, zipfile.ZipFile(one) as single:
        table = "1/tcp.netlink"
        assert single.read(f"moments/1/{table}") == many.read(f"moments/2/{table}")
        assert len(json.loads(single.read("manifest.json"))["moments"]) == 1
    done = support.run("pgsock", "record", str(directory / "e"), "--source", str(one),
                       "--moment", "2")  # fmt: skip
    assert done == (3, "", f"pgsock: {one} holds 1 moment: there is no --moment 2\n")
    assert not (directory / "e").exists()


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin to record, until the temporary file is there."""
    process = subprocess.Popen(
        support.command("pgsock", "record", str(path), *arguments),
        env=support.environment(support.ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),
    )
    support.wait_until(lambda: bool(os.listdir(path.parent)), "begun", 10)
    return process


def wait_for_a_moment(directory: Path) -> None:
    """Wait until the first moment is written to the temporary file."""
    (temporary,) = directory.iterdir()
    support.wait_until(lambda: temporary.stat().st_size > 0, "a moment", 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_series_and_keeps_it(directory: Path, number: signal.Signals) -> None:
    path = directory / "series.zip"
    with start(path, "--for", "60", "--interval", "0.05") as process:
        wait_for_a_moment(directory)
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert (process.returncode, err) == (0, "")
    assert out.startswith(f"{path}: ")
    assert os.listdir(directory) == ["series.zip"]
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        held = len(json.loads(found.read("manifest.json"))["moments"])
    assert f"{path}: {plural(held, 'moment')} in " in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_beginning_leaves_a_whole_file_or_none(
    directory: Path, number: signal.Signals
) -> None:
    path = directory / "one.zip"
    with start(path, "--for", "60") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    if process.returncode == 0:
        assert os.listdir(directory) == ["one.zip"]
    else:
        assert (process.returncode, out, err) == (
            128 + number, "", "pgsock: interrupted, nothing is recorded\n",
        )  # fmt: skip
        assert os.listdir(directory) == []


def test_an_error_ends_a_series_and_keeps_it(directory: Path) -> None:
    support.require("root")
    path = directory / "series.zip"
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as host:
        own = os.stat("/proc/self/ns/net").st_ino
        support.wait_until(lambda: os.stat(f"/proc/{host.pid}/ns/net").st_ino != own, "unshared")
        with start(path, "--for", "60", "--interval", "0.1", "--netns", str(host.pid)) as process:
            wait_for_a_moment(directory)
            host.kill()
            host.wait()
            out, err = process.communicate(timeout=10)
    assert process.returncode == 3
    assert f"of network namespaces {host.pid}, 0 TCP sockets, " in out
    assert err.startswith(f"pgsock: --netns {host.pid}: there is no process {host.pid}")
    with zipfile.ZipFile(path) as found:
        assert json.loads(found.read("manifest.json"))["moments"]


@contextlib.contextmanager
def listening(host: NamespaceHost, count: int) -> Iterator[int]:
    """A listener on a host, with `count` connections from there; gives its port."""
    with contextlib.ExitStack() as stack:
        with host.entered():
            server = stack.enter_context(socket.create_server((host.address, 0)))
            port: int = server.getsockname()[1]
            for _ in range(count):
                stack.enter_context(socket.create_connection((host.address, port)))
                stack.enter_context(server.accept()[0])
        yield port


def test_several_network_namespaces(
    two_hosts: tuple[NamespaceHost, NamespaceHost], directory: Path
) -> None:
    one, other = two_hosts
    names = [str(host.process.pid) for host in two_hosts]
    with listening(one, 2) as port, listening(other, 3) as other_port:
        path = directory / "both.zip"
        said = record(path, *(item for name in names for item in ("--netns", name))).out
        assert f" of network namespaces {', '.join(names)}, " in said
        options = ("--limit", "9", "-p", str(port), "-p", str(other_port))
        for chosen in (names[:1], names[1:], names):
            netns = [item for name in chosen for item in ("--netns", name)]
            live = support.run("saturation", *options, *netns, "--no-listener", "ok")
            done = support.run(
                "saturation", *options, *netns, "--no-listener", "ok", "--source", str(path)
            )
            assert first_line(done) == first_line(live)
            counted = sum(count for count, name in zip((2, 3), names) if name in chosen)
            assert f" OK - {counted} of 9 connections " in done.out
    done = support.run("saturation", *options, "--source", str(path))
    assert done.out == (
        f"PGSOCK_SATURATION UNKNOWN - {path} holds network namespaces {', '.join(names)}; choose "
        "with --netns\n"
    )
    done = support.run("saturation", *options, "--source", str(path), "--netns", "blue")
    assert done.out == (
        f"PGSOCK_SATURATION UNKNOWN - {path} holds no network namespace blue, but network "
        f"namespaces {', '.join(names)}\n"
    )


def test_a_host_seen_from_a_container(
    pg: PostgresServer, sessions: OpenSessions, directory: Path
) -> None:
    sessions(pg, 2)
    path = directory / "one.zip"
    record(path, "--proc-root", "/proc")
    options = ("-p", str(pg.port), "--limit", "9", "-vv")
    done = support.run("saturation", *options, "--source", str(path))
    live = support.run("saturation", *options, "--proc-root", "/proc")
    assert first_line(done) == first_line(live)
    assert ", from tcp, tcp6, unix\n" in done.out


def test_where_netlink_is_refused(
    pg: PostgresServer, sessions: OpenSessions, directory: Path
) -> None:
    sessions(pg, 2)
    path = directory / "one.zip"
    code = DENY_NETLINK + support.command("pgsock")[2]
    assert restricted.run_code(code, "record", str(path))[0] == 0
    with zipfile.ZipFile(path) as found:
        names = {one.rpartition("/")[2] for one in found.namelist()}
    assert names == {"tcp", "tcp6", "unix", "processes.json", "cgroups.json", "manifest.json"}
    options = ("-p", str(pg.port), "--limit", "9", "-vv")
    done = support.run("saturation", *options, "--source", str(path))
    live = support.run("saturation", *options, "--source", "procfs")
    assert first_line(done) == first_line(live)
    assert "netlink did not answer then: the netlink socket dump failed: Permission denied\n" in (
        done.out
    )


NEEDLES = ("acme", "customers", "payroll", "nightly")


@pytest.mark.parametrize("major", [15, 18])
@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_no_name_and_no_address_is_left(
    two_hosts: tuple[NamespaceHost, NamespaceHost],
    installations: Installations,
    directory: Path,
    major: int,
    source: str,
) -> None:
    client, host = two_hosts
    settings: dict[str, Setting] = {"cluster_name": "acme/main", "max_connections": 30}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            PostgresServer(
                installations.get(major),
                settings=settings,
                host=host,
                hba=("host all all 192.0.2.0/24 trust",),
            )
        )  # fmt: skip
        server.execute("create role acme_app login")
        server.execute("create database customers")
        opened = []
        with client.entered():
            for user, database in (("acme_app", "customers"), ("acme_app", "postgres")) * 2:
                session = Session.connect(host.address, server.port, user, database)
                opened.append(stack.enter_context(session))
        local = Session.connect(str(server.socket_directory), server.port, "acme_app", "customers")
        stack.enter_context(local)
        stack.enter_context(subprocess.Popen(["sleep", "60"], executable="/bin/sleep")).kill()
        plain, path = directory / "plain.zip", directory / "anonymous.zip"
        options = ("--source", source, "--netns", str(host.process.pid))
        record(plain, *options)
        record(path, *options, "--anonymize")
        check = ("-p", str(server.port), "-w", "3", "--netns", str(host.process.pid))
        live = support.run("saturation", *check, "--source", source)
        replayed = support.run("saturation", *check, "--source", str(path))
    assert first_line(replayed) == first_line(live)
    assert live.code == 1
    assert "peer 192.0.2.1: 4 established\n" in live.out
    assert "peer 10.0.0." in replayed.out
    # Other servers of this machine may have the first numbers.
    assert re.search(
        r"^user user\d+: 4 established\ndatabase database\d+: 2 est", replayed.out, re.M
    )
    own = [support.own_command(), str(server.data_directory), str(server.socket_directory)]
    packed = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
    needles = [one.encode() for one in (*NEEDLES[:2], "192.0.2.", *own)]
    needles += [*packed, *(one[::-1].hex().upper().encode() for one in packed)]
    told, untold = contents(plain), contents(path)
    by_name = [one for one in needles if one in told]
    assert [one for one in needles if one in untold] == []
    # All but the spellings of the other source were there before.
    assert len(by_name) == len(needles) - 2


ODD_NAMES = ("jane doe", "a (b) c(1) idle", "walsender", "app")
# What a session is asked, and what it does then.
ASKED = {
    "select 1": "idle",
    "begin": "idle in transaction",
    "begin; select 1/0": "idle in transaction (aborted)",
    "select pg_sleep(60)": "SELECT",
}
RENAMED = ("user", "database", "process", "peer_process", "cgroup")


@USERS
def test_sessions_with_odd_names_stay_what_they_are(
    make_pg: MakePg, directory: Path, user: str | None
) -> None:
    """Over TCP and over the Unix socket, in every state: nothing but names is different."""
    support.require("root")
    server = make_pg(settings={"max_connections": 40})
    for name in ODD_NAMES:
        server.execute(f'create role "{name}" login')
        server.execute(f'create database "{name}"')
    plain, anonymous = directory / "plain.zip", directory / "anonymous.zip"
    with contextlib.ExitStack() as stack:
        for at, (place, name, sql) in enumerate(
            itertools.product((server.host, str(server.socket_directory)), ODD_NAMES, ASKED)
        ):
            database = ODD_NAMES[(at + at // 4) % 4]
            session = Session.connect(place, server.port, name, database)
            stack.enter_context(session).simple_query(sql)
        expected = Counter(dict.fromkeys(ASKED.values(), 8))
        support.wait_until(
            lambda: Counter(one["session_state"] for one in rows(server, user)) == expected,
            "all do what they are to do",
            20,
        )
        record(plain, user=user)
    record(anonymous, "--source", str(plain), "--anonymize", user=user)
    before, after = (rows(server, user, "--source", str(path)) for path in (plain, anonymous))
    assert Counter(one["session_state"] for one in before) == expected
    assert None not in {one["backend_pid"] for one in before}
    assert {None, "app"} <= {one["user"] for one in before}
    for one, other in itertools.zip_longest(before, after):
        for key in RENAMED:
            assert (one.pop(key) is None) == (other.pop(key) is None), key
        assert one == other
    assert b"jane doe" in contents(plain)
    assert b"jane doe" not in contents(anonymous)


def rows(server: PostgresServer, user: str | None, *options: str) -> list[dict[str, Any]]:
    """What `pgsock connections` shows of a server, by backend."""
    port = str(server.port)
    done = support.run("pgsock", "connections", "-p", port, "--json", *options, user=user)
    assert (done.code, done.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.out)["connections"]
    return sorted(found, key=lambda one: (one["leg"], one["backend_pid"] or 0))


def contents(path: Path) -> bytes:
    """All that a recording holds, decompressed."""
    with zipfile.ZipFile(path) as found:
        return b"\n".join(found.read(name) for name in found.namelist())


def test_nothing_of_it_is_loaded_by_a_live_check() -> None:
    code = (
        "import sys\n"
        "from argparse import Namespace\n"
        "from check_pgsock import view\n"
        "from check_pgsock.checks import close_wait, saturation, thrashing\n"
        "from check_pgsock.deadline import Deadline\n"
        "view.open_view(Namespace(source='auto', proc_root=None, netns=[], moment=None), "
        "Deadline(5)).reader.listeners(5432)\n"
        "print([one for one in sys.modules if 'recording' in one or one in ('zipfile', 'json')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=support.environment(support.ROOT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
