"""What programs are told by their names, and which listeners they may hold: pure."""

from __future__ import annotations

import pytest

from check_pgsock.servers.programs import (
    FORWARDER,
    OTHER_FORWARDERS,
    PLAIN_FORWARDERS,
    POOLER,
    POOLERS,
    POSTGRESQL,
    kind_of,
    may_forward,
    may_hold,
    only_forwards,
    pooler_of,
)


def test_kinds() -> None:
    names = ("postgres", "postmaster", "pgbouncer", "pgcat", "haproxy", "sshd", "systemd-socket-")
    assert [kind_of(name) for name in names] == [
        POSTGRESQL, POSTGRESQL, POOLER, POOLER, FORWARDER, FORWARDER, FORWARDER,
    ]  # fmt: skip
    assert kind_of("python3") is None
    assert kind_of("Postgres") is None
    assert [only_forwards(name) for name in ("socat", "rootlessport", "ssh", "nginx")] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "title", "expected"),
    [
        ("ssh", "ssh gate", True),
        ("sshd", "sshd: app@notty", True),
        ("sshd", "sshd: app", True),  # of `ssh -N`
        ("sshd-session", "sshd-session: app@pts/0,pts/1", True),
        ("sshd", "sshd: app [priv]", False),
        ("sshd-session", "sshd-session: [accepted]", False),
        ("sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", False),
        ("sshd", "/usr/sbin/sshd -D", False),
        ("sshd", "sshd", False),
    ],
)
def test_the_daemon_that_every_host_has_does_not_forward(
    command: str, title: str, expected: bool
) -> None:
    assert may_forward(command, title) is expected


@pytest.mark.parametrize(
    ("command", "pooler"),
    [
        ("pgbouncer-1.25", "pgbouncer"),
        ("pgbouncer_1_25_2", "pgbouncer"),
        ("pgbouncer1.25", "pgbouncer"),
        ("pgbouncer-1_25_", "pgbouncer"),  # of pgbouncer-1_25_2: the kernel keeps 15 bytes
        ("pgpool2", "pgpool"),
        ("pgbouncer-", None),
        ("pgbouncer_expor", None),
        ("my-pgbouncer-1", None),
        ("postgres15", None),
    ],
)
def test_poolers_with_their_version_in_the_name(command: str, pooler: str | None) -> None:
    assert pooler_of(command) == (pooler or command)
    assert kind_of(command) == (POOLER if pooler else None)
    assert may_hold(command, 26, 5432, 0) is (pooler is None)


def test_names_fit_into_what_the_kernel_keeps() -> None:
    assert max(map(len, (*POOLERS, *PLAIN_FORWARDERS, *OTHER_FORWARDERS))) <= 15


@pytest.mark.parametrize(
    ("command", "uid", "port", "listener_uid", "expected"),
    [
        ("postgres", 26, 5432, 26, True),
        ("postgres", 26, 5432, 0, False),
        ("postgres", 26, 5432, 27, False),
        ("pgbouncer", 26, 6432, 0, True),
        ("pgbouncer", 26, 5432, 0, False),
        ("haproxy", 99, 5432, 0, True),
        ("nginx", 33, 5432, 0, True),
        ("ssh", 26, 5432, 0, False),
        ("sshd", 0, 5432, 0, True),
        ("haproxy", 0, 5432, 99, False),
    ],
)
def test_listeners_that_a_process_may_hold(
    command: str, uid: int, port: int, listener_uid: int, expected: bool
) -> None:
    assert may_hold(command, uid, port, listener_uid) is expected
