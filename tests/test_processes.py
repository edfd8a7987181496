"""Parsing of /proc/PID files and of process titles."""

from __future__ import annotations

import pytest

from check_pgsock import processes
from tests.moment import LOCAL4, LOCAL6


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"12 (postgres) S 1 12 12 0", ("postgres", 1)),
        (b"12 (a) S 7 (b) c) S 3 4", ("a) S 7 (b) c", 3)),
        (b"12 (caf\xc3\xa9 \xff) R 9 9", ("caf\u00e9 \ufffd", 9)),
    ],
)
def test_parse_stat(raw: bytes, expected: tuple[str, int]) -> None:
    assert processes.parse_stat(raw) == expected


# Of a backend, read by root; a stranger's copy has zeros for the addresses (fields 45 to 51).
STAT = (
    b"1234 (post) gres) S 1200 1234 1234 0 -1 4194368 4012 0 0 0 37 15 0 0 20 0 1 0 88000 "
    b"230000000 5000 18446744073709551615 1 2 3 0 0 0 0 19935232 84487 0 0 0 17 1 0 0 0 0 0 "
    b"4 5 6 140733000000100 140733000000160 140733000000160 140733000000400 0\n"
)


def test_times_and_title_area_of_a_backend() -> None:
    assert processes.parse_start_ticks(STAT) == 88000
    assert processes.parse_cpu_ticks(STAT) == 37 + 15
    assert processes.parse_title_area(STAT) == 300
    hidden = STAT.replace(b"140733000000", b"0").replace(b"0100 0160 0160 0400", b"0 0 0 0")
    assert processes.parse_title_area(hidden) is None
    assert processes.parse_title_area(b"") is None


def test_parse_ids_takes_the_effective_one() -> None:
    raw = b"Name:\tx\nUid:\t0\t107\t0\t0\nGid:\t1\t2\t3\t4\n"
    assert processes.parse_ids(raw, b"Uid") == 107
    assert processes.parse_ids(raw, b"Gid") == 2
    with pytest.raises(ValueError, match="no Groups line"):
        processes.parse_ids(raw, b"Groups")


def test_parse_command_line() -> None:
    assert processes.parse_command_line(b"postgres\0-D\0/x\0") == ["postgres", "-D", "/x"]
    assert processes.parse_command_line(b"postgres: checkpointer \0\0\0") == [
        "postgres: checkpointer "
    ]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("postgres: u d 127.0.0.1(4711) idle", (LOCAL4, 4711)),
        ("postgres: u d 127.0.0.1(4711) ", (LOCAL4, 4711)),
        ("postgres: main: u d 127.0.0.1(4711) idle in transaction (aborted)", (LOCAL4, 4711)),
        ("postgres: u d ::1(4711) SELECT waiting", (LOCAL6, 4711)),
        ("postgres: u d ::ffff:127.0.0.1(4711) idle", (LOCAL4, 4711)),
        # Names that look like an address stand left of the real one.
        ("postgres: u 10.0.0.1(1) 127.0.0.1(4711) idle", (LOCAL4, 4711)),
        ("postgres: u a (b) c(1) idle 127.0.0.1(4711) idle", (LOCAL4, 4711)),
        ("postgres: u d [local] idle", None),
        ("postgres: 127.0.0.1(4711) d [local] idle", None),
        ("postgres: u [local] 127.0.0.1(4711) idle", (LOCAL4, 4711)),
        ("postgres: u d host.example(4711) idle", None),
        ("postgres: checkpointer", None),
        ("postgres: u d 127.0.0.1(471", None),
        ("postgres: u d 1.2.3.4.5(4711) idle", None),
    ],
)
def test_parse_title_peer(title: str, expected: tuple[bytes, int] | None) -> None:
    assert processes.parse_title_peer(title) == expected
