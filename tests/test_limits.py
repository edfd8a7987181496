"""The limit's sources, pure: arguments, pg_control, backlog formulas, reserved slots."""

from __future__ import annotations

import struct
import sys

import pytest

from check_pgsock.servers import limits

PROGRAM = "/usr/lib/postgresql/16/bin/postgres"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["-D", "/x", "-c", "max_connections=50"], {"max_connections": "50"}),
        (["-cmax_connections=50"], {"max_connections": "50"}),
        (["--max_connections=50", "--port=5433"], {"max_connections": "50", "port": "5433"}),
        (["--max-connections=50"], {"max_connections": "50"}),
        (["-c", "MAX_CONNECTIONS = 50"], {"max_connections": "50"}),
        (["-N", "50", "-p", "5433"], {"max_connections": "50", "port": "5433"}),
        (["-N50"], {"max_connections": "50"}),
        (["-N", "40", "-c", "max_connections=50"], {"max_connections": "50"}),
        (["-c", "max_connections=50", "-c", "max_connections=60"], {"max_connections": "60"}),
        # The value of another option is no option.
        (["-D", "-N", "-k", "-c"], {}),
        (["-c"], {}),
        (["-c", "nonsense"], {}),
    ],
)
def test_parse_arguments(arguments: list[str], expected: dict[str, str]) -> None:
    assert limits.parse_arguments([PROGRAM, *arguments]) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("100", 100), ("0", 0), (None, None), ("", None), ("-1", None), ("1e3", None),
     ("262143", 262143), ("262144", None), ("1234567", None), ("100 ", None), ("0100", None)],
)  # fmt: skip
def test_parse_whole(text: str | None, value: int | None) -> None:
    assert limits.parse_whole(text) == value


def control(version: int = 1300, state: int = 6, max_connections: int = 100) -> bytes:
    """A pg_control in this host's byte order."""
    raw = bytearray(8192)
    struct.pack_into("=QII", raw, 0, 7, version, 202209061)
    struct.pack_into("=i", raw, 16, state)
    struct.pack_into("=i", raw, 180, max_connections)
    return bytes(raw)


def test_control_file_of_a_primary_and_a_standby() -> None:
    assert sys.byteorder in ("little", "big")
    assert limits.parse_control_file(control()) == (100, True)
    assert limits.parse_control_file(control(1800, 6, 17)) == (17, True)
    assert limits.parse_control_file(control(state=5)) == (100, False)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (control()[:100], "pg_control has 100 bytes"),
        (control(version=1900), "pg_control has the unknown version 1900"),
        (control(max_connections=0), "pg_control says max_connections 0"),
        (control(max_connections=300000), "pg_control says max_connections 300000"),
    ],
)
def test_an_unknown_control_file_is_an_error(raw: bytes, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        limits.parse_control_file(raw)
    assert str(caught.value) == sentence


DEFAULTS = {
    "max_connections": 100,
    "autovacuum_max_workers": 3,
    "max_worker_processes": 8,
    "max_wal_senders": 10,
}


@pytest.mark.parametrize(
    ("major", "backlog"), [(14, 244), (15, 244), (16, 200), (17, 200), (18, 200)]
)
def test_backlog_formulas(major: int, backlog: int) -> None:
    assert limits.backlog_for(major, DEFAULTS) == backlog
    assert limits.backlog_confirms(major, DEFAULTS, backlog, 4096)
    assert not limits.backlog_confirms(major, DEFAULTS, backlog + 2, 4096)
    assert not limits.backlog_confirms(major, DEFAULTS, backlog, backlog)  # capped
    assert not limits.backlog_confirms(None, DEFAULTS, backlog, 4096)
    assert not limits.backlog_confirms(major, DEFAULTS, None, 4096)
    assert not limits.backlog_confirms(19, DEFAULTS, backlog, 4096)


def test_backlog_before_16_is_capped_by_the_server() -> None:
    assert limits.backlog_for(15, {**DEFAULTS, "max_connections": 6000}) == 10000


@pytest.mark.parametrize(
    ("major", "backlog", "expected"),
    [(16, 200, 100), (18, 40, 20), (15, 244, None), (None, 200, None), (16, None, None),
     (16, 4096, None), (16, 5000, None), (16, 201, None), (16, 0, None), (19, 200, None)],
)  # fmt: skip
def test_max_connections_from_the_backlog_alone(
    major: int | None, backlog: int | None, expected: int | None
) -> None:
    assert limits.max_connections_from_backlog(major, backlog, 4096) == expected


@pytest.mark.parametrize(
    ("settings", "major", "expected"),
    [
        ({}, 16, (3, True)),
        ({}, None, (3, True)),
        ({"superuser_reserved_connections": "5"}, 15, (5, False)),
        ({"superuser_reserved_connections": "5"}, 16, (5, True)),
        ({"superuser_reserved_connections": "5", "reserved_connections": "7"}, 16, (12, False)),
        ({"superuser_reserved_connections": "0", "reserved_connections": "0"}, None, (0, False)),
    ],
)
def test_reserved_slots(
    settings: dict[str, str], major: int | None, expected: tuple[int, bool]
) -> None:
    assert limits.reserved_slots(settings, major) == expected


def test_usable() -> None:
    assert limits.Limit(100, 3, "pg_control", False).usable == 97
